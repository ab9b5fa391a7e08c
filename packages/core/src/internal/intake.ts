import * as Exit from "effect/Exit"
import type * as Message from "../Message.ts"
import type { Delivery } from "../Transport.ts"
import { Attempt, type Shared } from "./attempt.ts"
import { Deque } from "./deque.ts"
import { toError } from "./invalid.ts"
import { Isolation } from "./isolation.ts"
import { invalidKeyType } from "./key.ts"
import { KeyedQueue } from "./keyedQueue.ts"
import { answered } from "./promise.ts"
import { Rest } from "./rest.ts"
import { thrown } from "./steps.ts"

/**
 * The messages that this process owns and has not begun: ready ones in the order in which they begin, those behind
 * another message of their key, and those that are not due yet.
 */
export class Intake {
  /** Ready to begin; the dispatcher takes from it. */
  readonly buffer = new Deque<Attempt>()
  readonly keys: KeyedQueue | undefined
  readonly isolation: Isolation
  private readonly options: {
    readonly shared: Shared
    /** The allowed attempts. */
    readonly limit: number
    readonly key: ((message: Message.Any) => string | undefined) | undefined
    readonly decode: (attempt: Attempt) => Exit.Exit<unknown, unknown> | undefined
    /** Milliseconds since the epoch, and monotonic ones. */
    readonly wallNow: () => number
    readonly now: () => number
    readonly after: (millis: number, f: () => void) => () => void
    readonly release: (attempt: Attempt) => void
    /** Messages have become ready in another way than by `take`. */
    readonly onReady: () => void
    /** A suspect is to run alone; nothing else is held here any more. And: it need not be alone any more. */
    readonly onAlone: (suspect: Attempt) => void
    readonly onAloneEnded: (rest: number) => void
    /** There is room: isolated suspects may be taken again, or a message waits in an open batch of its key. */
    readonly onRoom: () => void
  }
  /** After a suspect ran alone, the others have their turn. */
  private readonly rest: Rest
  /** The isolated suspects that this process owns: at most one. */
  private readonly isolated = new Set<Attempt>()
  /** Retries that are not due yet, of an earlier process or uncounted ones of this one, with what cancels their timers. */
  private readonly early = new Map<Attempt, { readonly until: number; readonly cancel: () => void }>()
  /** Uncounted retries that were released before they were due, by their ids: they may come back here. */
  private readonly postponed = new Map<string, { readonly until: number; readonly uncounted: number }>()

  constructor(options: Intake["options"]) {
    this.options = options
    this.isolation = new Isolation(options.limit)
    this.rest = new Rest({ now: options.now, after: options.after, onEnd: options.onRoom })
    const { key } = options
    this.keys = key === undefined ? undefined : new KeyedQueue({
      keyOf: (attempt) => this.keyOf(attempt, key),
      onReady: (attempt) => {
        this.enqueue(attempt)
        options.onReady()
      },
      onBatched: options.onRoom
    })
  }

  /** All that is held here. */
  get size(): number {
    return this.buffer.size + this.blocked + this.early.size
  }

  /** Behind another message of their key. */
  get blocked(): number {
    return this.keys?.blocked ?? 0
  }

  /** In an open batch of their key. */
  get batched(): number {
    return this.keys?.batched ?? 0
  }

  /** Not due yet. */
  get earlyCount(): number {
    return this.early.size
  }

  *all(): Iterable<Attempt> {
    yield* this.buffer.toArray()
    if (this.keys !== undefined) yield* this.keys.all()
    yield* this.early.keys()
  }

  // --- taking

  /** `false`: it cannot be taken now, and was released. */
  take(delivery: Delivery): boolean {
    const { release, shared, wallNow } = this.options
    const attempt = new Attempt(shared, delivery)
    if (!this.accepts(attempt)) {
      release(attempt)
      return false
    }
    const early = Math.max(this.cameBackEarly(attempt), delivery.due === undefined ? 0 : delivery.due - wallNow())
    if (!isFor(delivery, shared.group)) this.enqueue(attempt)
    else if (early > 0) {
      this.keys?.expect(attempt)
      this.holdFor(attempt, early)
    } else if (this.keys === undefined || this.keys.admit(attempt)) this.enqueue(attempt)
    return true
  }

  /** By how many milliseconds. An isolated suspect does not wait: it would hold up the others. */
  private cameBackEarly(attempt: Attempt): number {
    if (this.postponed.size === 0) return 0
    const { id } = attempt.delivery
    const postponed = this.postponed.get(id)
    if (postponed === undefined) return 0
    this.postponed.delete(id)
    attempt.uncounted = postponed.uncounted
    return this.isIsolated(attempt) ? 0 : postponed.until - this.options.now()
  }

  /**
   * A retry that does not count: another attempt at the same delivery, which its key waits for. Beside a suspect that is
   * to run alone nothing may be kept.
   */
  postpone(attempt: Attempt, millis: number, isDraining: boolean): void {
    const next = new Attempt(this.options.shared, attempt.delivery)
    next.uncounted = attempt.uncounted + 1
    const { current } = this.isolation
    if (isDraining || (current !== undefined && current !== attempt)) {
      this.remember(next, this.options.now() + millis)
      return this.options.release(next)
    }
    this.keys?.retried(attempt)
    this.holdFor(next, millis)
  }

  private holdFor(attempt: Attempt, millis: number): void {
    const cancel = this.options.after(millis, () => {
      this.early.delete(attempt)
      if (!this.accepts(attempt)) {
        this.keys?.gaveUp(attempt.delivery.id)
        this.options.release(attempt)
      } else if (this.keys === undefined || this.keys.admit(attempt)) this.enqueue(attempt)
      this.options.onReady()
    })
    this.early.set(attempt, { until: this.options.now() + millis, cancel })
  }

  private remember({ delivery: { id }, uncounted }: Attempt, until: number): void {
    const now = this.options.now()
    // A peer may have taken those that have not come back.
    for (const [id, { until }] of this.postponed) if (until <= now) this.postponed.delete(id)
    if (uncounted > 0) this.postponed.set(id, { until, uncounted })
  }

  /** Isolated suspects beyond the demand, and whatever arrives beside one that runs alone, are released. */
  private accepts(attempt: Attempt): boolean {
    if (this.isolation.current !== undefined) return false
    if (this.isolation.degree(attempt.delivery) === "free") return true
    if (this.isolated.size > 0) return false
    this.isolated.add(attempt)
    return true
  }

  private enqueue(attempt: Attempt): void {
    if (this.isIsolated(attempt) && this.isolation.degree(attempt.delivery) === "alone") {
      this.isolation.enter(attempt, this.options.now())
      this.releaseAll()
      this.buffer.push(attempt)
      this.options.onAlone(attempt)
    } else {
      this.buffer.push(attempt)
    }
  }

  /** Decodes before its turn. Undecodable messages have no key. Messages decoded by an Effect share one key. */
  private keyOf(attempt: Attempt, key: (message: Message.Any) => string | undefined): string | undefined {
    const exit = this.options.decode(attempt)
    if (exit === undefined) return ""
    if (Exit.isFailure(exit)) return undefined
    try {
      const chosen = answered("concurrency.key", key(attempt.message!))
      const invalid = invalidKeyType("concurrency.key", chosen)
      if (invalid !== undefined) throw toError("core", invalid)
      return chosen
    } catch (error) {
      attempt.keyFailure = thrown(error)
      return undefined
    }
  }

  // --- isolation

  isIsolated(attempt: Attempt): boolean {
    return this.isolated.size > 0 && this.isolated.has(attempt)
  }

  /** The suspect that is to run alone, or does. */
  get alone(): Attempt | undefined {
    return this.isolation.current
  }

  /** How many isolated suspects may be asked for. */
  get suspects(): number {
    return this.isolated.size > 0 || !this.rest.isOver ? 0 : 1
  }

  /** An isolated suspect need not be isolated any more. */
  leftIsolation(attempt: Attempt): void {
    if (this.isolated.size === 0 || !this.isolated.delete(attempt)) return
    const { now, onAloneEnded, onRoom } = this.options
    const isAlone = this.isolation.current === attempt
    const rest = isAlone ? this.isolation.leave(now()) : 0
    if (!this.rest.begin(rest)) onRoom()
    if (isAlone) onAloneEnded(rest)
  }

  /** No isolated suspect may be asked for, for so many milliseconds. */
  restFor(millis: number): void {
    this.rest.begin(millis)
  }

  // --- leaving

  /** A message that has not begun is not ours any more. `returns`: its key waits for it, where it has a place already. */
  lost(attempt: Attempt, returns: boolean): void {
    if (this.early.has(attempt)) this.forgetEarly(attempt, returns)
    else if (this.buffer.delete(attempt)) this.keys?.left(attempt)
    else this.keys?.forget(attempt)
  }

  /** Releases everything. */
  releaseAll(): void {
    const held = this.buffer.takeAll()
    const early = Array.from(this.early.keys())
    for (const [attempt, { until }] of this.early) this.remember(attempt, until)
    // Before their keys become free: no message may become ready now.
    const blocked = this.keys?.takeAll() ?? []
    for (const attempt of held) this.keys?.left(attempt)
    for (const attempt of early) this.forgetEarly(attempt)
    held.push(...early, ...blocked)
    for (const attempt of held) {
      this.options.release(attempt)
      this.leftIsolation(attempt)
    }
  }

  close(): void {
    this.rest.close()
  }

  private forgetEarly(attempt: Attempt, returns = false): void {
    this.early.get(attempt)?.cancel()
    this.early.delete(attempt)
    if (!returns) this.keys?.gaveUp(attempt.delivery.id)
  }
}

/** A message that was redriven for one group is not for the others. */
export const isFor = (delivery: Delivery, group: string): boolean => {
  const target = delivery.headers["millrace-group"]
  return target === undefined || target === group
}
