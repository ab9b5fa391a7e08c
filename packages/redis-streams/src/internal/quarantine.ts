/** How long what is out may take to end before an entry that should run alone runs beside it. */
const patience = 1_000

/**
 * Lets entries that were never settled out one at a time, and nothing new beside them: the one that kills its process
 * then takes no other with it. Half of the time stays for what is new, however many have to run alone.
 */
export class Quarantine {
  /** How many are left behind, as far as the last claim goes. */
  known = 0
  private out: object | undefined
  private since = 0
  private notBefore = 0
  private waitingSince = 0

  /** Whether new entries have to wait. */
  holdsBack(now: number): boolean {
    return this.out !== undefined || this.known > 0 && now >= this.notBefore && !this.isOverdue(now)
  }

  /** Whether one may be taken, while `owned` others are out. */
  admits(now: number, owned: number): boolean {
    return this.out === undefined && now >= this.notBefore && (owned === 0 || this.isOverdue(now))
  }

  get isEmpty(): boolean {
    return this.out === undefined
  }

  /** None may be taken yet; gives the time after which one may be, whatever is out. */
  wait(now: number): number {
    if (this.waitingSince === 0 && now >= this.notBefore) this.waitingSince = now
    return Math.max(this.notBefore, this.waitingSince + patience + 1) - now
  }

  enter(one: object, now: number): void {
    this.out = one
    this.since = this.waitingSince === 0 ? now : this.waitingSince
    this.waitingSince = 0
  }

  /** Gives how long the next one has to wait, if this was the one that was out. */
  leave(one: object, now: number): number | undefined {
    if (one !== this.out) return undefined
    this.out = undefined
    this.notBefore = now + (now - this.since)
    return this.notBefore - now
  }

  private isOverdue(now: number): boolean {
    return this.waitingSince > 0 && now - this.waitingSince > patience
  }
}
