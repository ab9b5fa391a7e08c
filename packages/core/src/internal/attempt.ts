import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type * as Message from "../Message.ts"
import * as Settlement from "../Settlement.ts"
import type { Delivery, Settling, Transport } from "../Transport.ts"
import { InFlight, type Received } from "./inFlight.ts"
import { Inspected } from "./inspection.ts"

/**
 * Where an attempt is.
 *
 * - `buffered`: owned, its handler has not begun
 * - `confirming`: the broker is told first (on-receive: the acknowledgement; an isolated suspect: that it begins)
 * - `running`: its handler runs, or waits for its batch
 * - `stopping`: its handler is being interrupted (timeout, drain, lost ownership)
 * - `awaiting`: its handler has succeeded, the user settles it by hand
 * - `concluding`: its handler has ended, its outcome is being decided or its dead letter written
 * - `left`: its settlement is with the settler, or a peer owns the message
 */
export type State = "buffered" | "confirming" | "running" | "stopping" | "awaiting" | "concluding" | "left"

/** The only transitions there are; the simulation asserts them. */
export const transitions: { readonly [S in State]: ReadonlyArray<State> } = {
  buffered: ["confirming", "running", "concluding", "left"],
  confirming: ["running", "stopping", "concluding", "left"],
  running: ["stopping", "concluding", "left"],
  // A timeout that `catchTag` recovers from runs on.
  stopping: ["running", "concluding", "left"],
  concluding: ["awaiting", "left"],
  awaiting: ["concluding", "left"],
  left: []
}

/** Called on every transition, before it; the simulation and tests check the invariants of an attempt here. */
export const Watch = Context.Reference<((attempt: Attempt, next: State) => void) | undefined>(
  "@millrace/core/internal/attempt/Watch",
  { defaultValue: () => undefined }
)

/** The right to run a handler: of one attempt alone, or of a batch. */
export interface Permit {
  readonly release: () => void
}

/** What all attempts of one running pipeline share. */
export interface Shared {
  readonly source: string
  readonly group: string
  readonly clientId: string | undefined
  readonly transport: Transport["Service"]
  readonly watch: ((attempt: Attempt, next: State) => void) | undefined
  readonly settle: (
    attempt: Attempt,
    settlement: Settlement.Settlement | Settlement.SettlementRequested
  ) => Effect.Effect<boolean, Settlement.SettleError>
  /** A broker's own operation has settled the message. */
  readonly settled: (attempt: Attempt) => void
}

/** What a handler sees: everything but the value is read from the delivery when it is asked for. */
export class MessageImpl extends Inspected implements Message.Message<unknown> {
  readonly value: unknown
  readonly [InFlight]: Attempt
  constructor(value: unknown, attempt: Attempt) {
    super()
    this.value = value
    this[InFlight] = attempt
  }
  get id(): string {
    return this[InFlight].delivery.id
  }
  get topic(): string {
    return this[InFlight].delivery.topic
  }
  get key(): string | undefined {
    return this[InFlight].delivery.key
  }
  get headers(): Message.Headers {
    return this[InFlight].delivery.headers
  }
  get attempt(): number {
    return this[InFlight].delivery.attempt
  }
  get redelivered(): boolean {
    return this[InFlight].delivery.redelivered
  }
  get publishedAt(): DateTime.Utc {
    return DateTime.makeUnsafe(this[InFlight].delivery.publishedAt)
  }
  get signal(): AbortSignal {
    return this[InFlight].signal
  }
  toJSON(): unknown {
    const { attempt, headers, id, key, topic } = this
    // Its value, and what its source adds: typed headers, parameters of a subject.
    return { id, topic, key, headers, attempt, ...Object.fromEntries(Object.entries(this)) }
  }
}

/** One attempt at one message, from the moment this process owns the delivery until it is settled. */
export class Attempt extends Inspected implements Settling, Received {
  readonly shared: Shared
  readonly delivery: Delivery
  state: State = "buffered"
  message: MessageImpl | undefined
  /** What the first settlement said; it is final, and `isSettled` says that there was one. */
  settlement: Settlement.Settlement = Settlement.ack
  isSettled = false
  /** A peer owns the message: nothing more is said about it. */
  isLost = false
  /** Its outcome has been reported. */
  hasOutcome = false
  /** What its handler failed with. */
  failure: Cause.Cause<unknown> | undefined
  /** How often its handler asked for a retry that does not count. */
  uncounted = 0
  /** Monotonic milliseconds; 0 where no one measures. */
  startedAt = 0
  permit: Permit | undefined
  /** The key that keeps it in order, where keys do. */
  key: string | undefined
  /** Its place among the messages of its key. */
  place = 0
  /** Of the function that gives its key. */
  keyFailure: Cause.Cause<unknown> | undefined
  /** Its place among the running attempts, -1 when it has none, and under each `timeout`. */
  slot = -1
  places: Array<number> = none
  /** Called with the broker's answer: `false` when this consumer no longer owned the delivery; `undefined`: none came. */
  onSettled: ((owned: boolean | undefined) => void) | undefined
  /** Its message was decided to have no span. */
  isUnsampled = false
  /** Goes up when the attempt is taken from a step: a late promise or fiber then finds that it is not waited for. */
  epoch = 0
  /** Ends the waiting and calls `stopped` when nothing works on the message; a promise cannot be stopped. */
  stop: ((stopped: () => void) => void) | undefined
  context: Context.Context<never> | undefined
  scope: Scope.Closeable | undefined
  private controller: AbortController | undefined
  private aborted: Error | undefined

  constructor(shared: Shared, delivery: Delivery) {
    super()
    this.shared = shared
    this.delivery = delivery
  }

  toJSON(): unknown {
    const { delivery: { attempt, id, topic }, group, state } = this
    return { id, topic, group, attempt, state }
  }

  /** The only writer of `state`. */
  to(next: State): void {
    if (this.shared.watch !== undefined) this.shared.watch(this, next)
    this.state = next
  }

  get source(): string {
    return this.shared.source
  }

  get group(): string {
    return this.shared.group
  }

  get clientId(): string | undefined {
    return this.shared.clientId
  }

  get transport(): Transport["Service"] {
    return this.shared.transport
  }

  // --- signal: made when it is first read

  get signal(): AbortSignal {
    if (this.controller === undefined) {
      this.controller = new AbortController()
      if (this.aborted !== undefined) this.controller.abort(this.aborted)
    }
    return this.controller.signal
  }

  abort(reason: Error): void {
    this.aborted = reason
    this.controller?.abort(reason)
  }

  /** A step that recovers from a timeout has a signal of its own. */
  renewSignal(): void {
    this.controller = this.aborted = undefined
  }

  // --- settlement

  /** Takes the right to settle: `false` when it was taken before, or a peer owns the message. */
  claim(): boolean {
    if (this.isSettled || this.isLost) return false
    this.isSettled = true
    return true
  }

  /** Gives the right back when an operation of a broker failed, so that the policies decide. */
  unclaim(): void {
    this.isSettled = false
  }

  settled(): void {
    this.shared.settled(this)
  }

  unsample(): void {
    this.isUnsampled = true
    // Of a decoder that ran before.
    this.context = undefined
  }

  settle(
    settlement: Settlement.Settlement | Settlement.SettlementRequested
  ): Effect.Effect<boolean, Settlement.SettleError> {
    return this.shared.settle(this, settlement)
  }

  releasePermit(): void {
    const { permit } = this
    this.permit = undefined
    permit?.release()
  }
}

const none: Array<number> = []
