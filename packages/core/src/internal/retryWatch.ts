import * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import type { Located, Subscription } from "../Transport.ts"

interface Entry {
  readonly id: string
  /** Monotonic milliseconds. */
  readonly due: number
  readonly onGone: (() => void) | undefined
  /** How many more times it may be missed: see {@link RetryWatch}. */
  left: number
}

/**
 * The retries that this process has requested and has not seen again.
 *
 * A due retry comes back here where the broker allows, but a peer may have been given it. One that is due and does not
 * come is given up when a peer is known to have settled it, or else after the lease and a margin: a broker that forgot the
 * retry delivers the message when its own lease ends. Only time counts in which a pull was open and the broker could have
 * answered: an outage, or slots that are all taken, do not. Messages that were lost and may return are due at once.
 */
export class RetryWatch {
  private readonly entries = new Map<string, Entry>()
  /** Not due yet, the next one last. */
  private readonly upcoming: Array<Entry> = []
  private readonly dueNow = new Set<Entry>()
  private readonly options: {
    readonly now: () => number
    readonly after: (millis: number, f: () => void) => () => void
    readonly subscription: Pick<Subscription, "health" | "lease" | "locate">
    /** As `Reader.wasOpen`. */
    readonly wasOpen: (millis: number) => boolean
    /** Called when a retry has become due or was given up. */
    readonly onChange: () => void
    readonly run: <A>(effect: Effect.Effect<A>) => { readonly addObserver: (f: (exit: Exit.Exit<A>) => void) => void }
  }
  /** Milliseconds after which a due retry would have come. */
  private readonly giveUpAfter: number
  private cancelDue: (() => void) | undefined
  private cancelMiss: (() => void) | undefined
  private isClosed = false

  constructor(options: RetryWatch["options"]) {
    this.options = options
    const { lease } = options.subscription
    this.giveUpAfter = lease === undefined ? giveUpWithoutLease : Duration.toMillis(lease) * 1.25 + 1000
  }

  get size(): number {
    return this.entries.size
  }

  get due(): number {
    return this.dueNow.size
  }

  /** `onGone` is called when the retry is given up. */
  add(id: string, delay: number, onGone: (() => void) | undefined): void {
    this.seen(id)
    const entry: Entry = { id, due: this.options.now() + delay, onGone, left: steps }
    this.entries.set(id, entry)
    // A new retry is nearly always the last one to be due.
    const at = this.upcoming.findIndex((other) => other.due <= entry.due)
    if (at >= 0) this.upcoming.splice(at, 0, entry)
    else {
      this.upcoming.push(entry)
      this.arm()
    }
  }

  /** It has come back; `false` when it was not waited for. */
  seen(id: string): boolean {
    const entry = this.entries.get(id)
    if (entry !== undefined) this.remove(entry)
    return entry !== undefined
  }

  /** It cannot come back any more. */
  gaveUp(id: string): void {
    const entry = this.entries.get(id)
    if (entry === undefined) return
    this.remove(entry)
    entry.onGone?.()
    this.options.onChange()
  }

  private remove(entry: Entry): void {
    this.entries.delete(entry.id)
    if (this.dueNow.delete(entry)) return
    const at = this.upcoming.indexOf(entry)
    if (at >= 0) this.upcoming.splice(at, 1)
  }

  private arm(): void {
    this.cancelDue?.()
    this.cancelDue = undefined
    const next = this.upcoming.at(-1)
    if (next === undefined || this.isClosed) return
    this.cancelDue = this.options.after(Math.max(1, Math.ceil(next.due - this.options.now())), () => {
      this.cancelDue = undefined
      // A timer may fire a fraction of a millisecond early.
      const now = this.options.now() + 1
      while (this.upcoming.length > 0 && this.upcoming.at(-1)!.due <= now) this.dueNow.add(this.upcoming.pop()!)
      this.arm()
      this.watchDue()
      this.options.onChange()
    })
  }

  /** Counts, a tenth of `giveUpAfter` at a time, how long due retries have not come. */
  private watchDue(): void {
    if (this.cancelMiss !== undefined || this.dueNow.size === 0 || this.isClosed) return
    const { after, run } = this.options
    const step = this.giveUpAfter / steps
    const watched = [...this.dueNow]
    this.cancelMiss = after(step, () => {
      const missed = watched.filter((entry) => this.dueNow.has(entry))
      const ids = missed.map(({ id }) => id)
      const looked = Effect.flatMap(
        this.couldCome(step),
        (could) => could && Arr.isArrayNonEmpty(ids) ? Effect.asSome(this.locate(ids)) : Effect.succeedNone
      )
      run(looked).addObserver((exit) => {
        this.cancelMiss = undefined
        if (exit._tag === "Success" && exit.value._tag === "Some") {
          const settled = new Set(exit.value.value.settled)
          const held = new Set(exit.value.value.held)
          for (const entry of missed) {
            if (!this.dueNow.has(entry) || held.has(entry.id)) continue
            if (--entry.left > 0 && !settled.has(entry.id)) continue
            this.remove(entry)
            entry.onGone?.()
          }
        }
        this.options.onChange()
        this.watchDue()
      })
    })
  }

  /** Whether, in the last `millis`, a due retry could have come. */
  private couldCome(millis: number): Effect.Effect<boolean> {
    const { subscription, wasOpen } = this.options
    return wasOpen(millis)
      ? Effect.map(subscription.health, ({ state }) => state === "consuming")
      : Effect.succeed(false)
  }

  private locate(ids: Arr.NonEmptyReadonlyArray<string>): Effect.Effect<Located> {
    const { locate } = this.options.subscription
    return locate === undefined ? Effect.succeed(unlocated) : Effect.orElseSucceed(locate(ids), () => unlocated)
  }

  close(): void {
    this.isClosed = true
    this.cancelDue?.()
    this.cancelMiss?.()
  }
}

const steps = 10

const unlocated: Located = { settled: [], held: [] }

/** How long a key waits for a retry that is due, where ownership does not end. Milliseconds. */
const giveUpWithoutLease = 30_000
