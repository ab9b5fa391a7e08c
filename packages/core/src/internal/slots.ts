/** Something that stands in {@link Slots}: -1 when it does not. */
export interface Slotted {
  slot: number
}

/**
 * A set for what comes and goes with every message.
 *
 * A `Set` or `Map` that messages pass through is rehashed every few hundred of them, and V8 keeps each old table, with the
 * messages in it, alive until the next major collection: measured at a microsecond and hundreds of bytes a message. An
 * array that is written over has no old tables.
 */
export class Slots<A extends Slotted> {
  private readonly slots: Array<A | undefined> = []
  private readonly free: Array<number> = []

  add(entry: A): void {
    if (entry.slot >= 0) return
    const slot = this.free.pop() ?? this.slots.length
    this.slots[slot] = entry
    entry.slot = slot
  }

  delete(entry: A): void {
    if (entry.slot < 0) return
    this.slots[entry.slot] = undefined
    this.free.push(entry.slot)
    entry.slot = -1
  }

  /** Those that are in it now; it may change meanwhile. */
  all(): Array<A> {
    return this.slots.filter((entry) => entry !== undefined)
  }
}
