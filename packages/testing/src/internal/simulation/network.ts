import * as Publisher from "@millrace/core/Publisher"
import * as Settlement from "@millrace/core/Settlement"
import type { Delivery, Demand, Outgoing, Published, Settling, Subscription, Transport } from "@millrace/core/Transport"
import { OperationFailed, TransportError } from "@millrace/core/TransportError"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import { type Faults, madeOnce } from "./faults.ts"
import type { Laws } from "./laws.ts"
import type { Process, World } from "./world.ts"

type Service = Transport["Service"]

interface Ends {
  readonly worker: string
  readonly world: World
  readonly process: Process
  readonly laws: Laws
  readonly atBroker: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
  readonly faults: Faults
  readonly kinds: { readonly settle: boolean; readonly publish: boolean; readonly delay: boolean }
}

const failures = new Map<string, Exit.Exit<never, TransportError>>()
const broken = (operation: string) => (): Exit.Exit<never, TransportError> => {
  let failure = failures.get(operation)
  if (failure === undefined) {
    const reason = madeOnce(() => new OperationFailed({ operation }))
    failure = Exit.fail(madeOnce(() => new TransportError({ transport: "memory", reason })))
    failures.set(operation, failure)
  }
  return failure
}
const detail = "the simulated connection was lost"
const outcomeUnknown = madeOnce(() => new Publisher.OutcomeUnknown({ detail }))
const notSent = madeOnce(() => new Publisher.NotSent({ detail }))

/** What stands between one process and its broker. */
export class Line {
  private cuts = 0
  /** Until when something was wrong on it. */
  disturbedUntil = -Infinity
  /** When the last settlement arrives: they do so in the order in which they were sent. */
  private inTurnUntil = 0
  readonly inboxes = new Set<Inbox>()
  readonly at: Ends

  constructor(at: Ends) {
    this.at = at
  }

  get isCut(): boolean {
    return this.cuts > 0
  }

  cut(): void {
    this.disturbed(0)
    if (this.cuts++ > 0) return
    for (const inbox of this.inboxes) inbox.cancel()
  }

  restore(): void {
    this.disturbed(0)
    if (--this.cuts > 0) return
    for (const inbox of this.inboxes) inbox.send()
  }

  get delay(): number {
    const { world } = this.at
    if (!this.at.kinds.delay || world.chance(0.6)) return world.between(0, 1)
    if (world.chance(0.9)) return world.between(0, 50)
    const delay = world.between(0, slow)
    const n = ++this.delays
    const { worker } = this.at
    if (!this.happens(true, "delay", n, () => `the network of ${worker} takes ${delay.toFixed(0)} ms`)) return 1
    this.disturbed(slow)
    return delay
  }

  /** How many decisions there were so far: of delays, of parts of batches, and of each operation. */
  private delays = 0
  private parts = 0
  private readonly asked = new Map<string, number>()

  /** Whether the fault of the nth decision of a kind happens: see {@link Faults}. */
  private happens(isChosen: boolean, kind: string, n: number, text: () => string): boolean {
    if (!isChosen) return false
    const { faults, world, worker } = this.at
    return faults.happens(true, () => `${worker} ${kind} ${n}`, () => `${text()} at ${(world.now / 1000).toFixed(3)}`)
  }

  private disturbed(millis: number): void {
    this.disturbedUntil = Math.max(this.disturbedUntil, this.at.world.now + millis)
  }

  /** A question and its answer, either of which may be lost. */
  private ask<A, E>(
    operation: string,
    question: () => Effect.Effect<A, E>,
    mayBeLost: boolean,
    lost: (wasSent: boolean) => Exit.Exit<A, E>,
    inTurn = false
  ): Effect.Effect<A, E> {
    const { laws, process, world } = this.at
    return Effect.callback<A, E>((resume) => {
      const answer = (exit: Exit.Exit<A, E>) => void world.after(this.delay, process, () => resume(exit))
      const { worker } = this.at
      const n = (this.asked.get(operation) ?? 0) + 1
      this.asked.set(operation, n)
      const isUnsent = this.happens(
        mayBeLost && world.chance(0.05),
        `${operation} unsent`,
        n,
        () => `${operation} of ${worker} is not sent`
      )
      const isUnanswered = this.happens(
        mayBeLost && world.chance(0.05),
        `${operation} unanswered`,
        n,
        () => `the answer to ${operation} of ${worker} is lost`
      )
      if (isUnsent || isUnanswered) this.disturbed(slow)
      if (this.isCut || isUnsent) return answer(lost(false))
      let due = world.now + this.delay
      if (inTurn) due = this.inTurnUntil = Math.max(due, this.inTurnUntil)
      world.after(
        due - world.now,
        undefined,
        () =>
          laws.atOnce(() => this.at.atBroker(question())).addObserver((exit) =>
            answer(this.isCut || isUnanswered ? lost(true) : exit)
          )
      )
    })
  }

  transport(inner: Service): Service {
    return {
      ...inner,
      declare: (topic, purpose) => this.ask("declare", () => inner.declare(topic, purpose), false, broken("declare")),
      publish: (messages) => this.publish(inner, messages),
      subscribe: (options) =>
        Effect.gen({ self: this }, function*() {
          const scope = yield* Effect.scope
          const subscription = yield* this.ask(
            "subscribe",
            () => Scope.provide(inner.subscribe(options), scope),
            false,
            broken("subscribe")
          )
          const inbox = new Inbox(this, subscription, options.isolateFrom)
          this.inboxes.add(inbox)
          yield* Effect.addFinalizer(() => inbox.close)
          return {
            ...subscription,
            pull: (demand) => inbox.pull(demand),
            withdraw: inbox.withdraw,
            settle: (batch) => this.settle(subscription, batch),
            extend: (deliveries) => this.extend(subscription, deliveries),
            begin: (delivery) => this.begin(subscription, delivery),
            health: Effect.sync(() => ({ state: this.isCut ? "reconnecting" : "consuming", since: 0 }))
          }
        })
    }
  }

  private publish(
    inner: Service,
    messages: Arr.NonEmptyReadonlyArray<Outgoing>
  ): Effect.Effect<ReadonlyArray<Result.Result<Published, Publisher.PublishError>>> {
    const question = () =>
      Effect.map(inner.publish(messages), (results) => {
        this.at.laws.look()
        return results
      })
    return this.ask("publish", question, this.at.kinds.publish, (wasSent) => {
      const reason = wasSent ? outcomeUnknown : notSent
      return Exit.succeed(messages.map(({ topic }) => Result.fail(new Publisher.PublishError({ topic, reason }))))
    })
  }

  private settle(
    subscription: Subscription,
    batch: Arr.NonEmptyReadonlyArray<Settling>
  ): Effect.Effect<ReadonlyArray<Delivery>, TransportError> {
    const { laws, worker, world } = this.at
    const arrived = (part: ReadonlyArray<Settling>) => (lost: ReadonlyArray<Delivery>) => {
      laws.arrived(worker, part, lost)
      return lost
    }
    const confirmed = (lost: ReadonlyArray<Delivery>) => {
      laws.confirmed(batch)
      return lost
    }
    // A transport that only writes to a socket answers at once.
    if (!this.isCut && world.now > this.inTurnUntil && world.chance(0.3)) {
      const heard = (lost: ReadonlyArray<Delivery>) => confirmed(arrived(batch)(lost))
      laws.said(worker, batch)
      return laws.atOnce(() => {
        const answer = subscription.settle(batch)
        return Exit.isExit(answer) && Exit.isSuccess(answer)
          ? Exit.succeed(heard(answer.value as ReadonlyArray<Delivery>))
          : Effect.map(answer, heard)
      })
    }
    return Effect.suspend(() => {
      laws.said(worker, batch)
      const part = batch.slice(0, Math.floor(world.between(1, batch.length)))
      const isPart = this.happens(
        this.at.kinds.settle && part.length < batch.length && world.chance(0.1),
        "settle part",
        ++this.parts,
        () => `only a part of what ${worker} settles arrives`
      )
      if (isPart && Arr.isArrayNonEmpty(part)) {
        this.disturbed(slow)
        const question = () => Effect.map(subscription.settle(part), arrived(part))
        return this.ask(
          "settle",
          () => Effect.andThen(question(), broken("settle")()),
          true,
          broken("settle"),
          true
        )
      }
      const question = () => Effect.map(subscription.settle(batch), arrived(batch))
      return Effect.map(this.ask("settle", question, this.at.kinds.settle, broken("settle"), true), confirmed)
    })
  }

  private extend(
    subscription: Subscription,
    deliveries: Arr.NonEmptyReadonlyArray<Delivery>
  ): Effect.Effect<ReadonlyArray<Delivery>, TransportError> {
    const question = () =>
      Effect.map(subscription.extend(deliveries), (lost) => {
        this.at.laws.extended(deliveries, lost)
        return lost
      })
    return this.ask("extend", question, this.at.kinds.settle, broken("extend"))
  }

  private begin(subscription: Subscription, delivery: Delivery): Effect.Effect<boolean, TransportError> {
    const question = () =>
      Effect.map(subscription.begin(delivery), (isOwned) => {
        if (isOwned) this.at.laws.recorded(delivery)
        return isOwned
      })
    return this.ask("begin", question, this.at.kinds.settle, broken("begin"))
  }
}

/** The reading end of one subscription: one request at the broker, and the deliveries that wait for a pull. */
class Inbox {
  private readonly line: Line
  private readonly subscription: Subscription
  private readonly isolateFrom: number
  private readonly arrived: Array<Delivery> = []
  /** Deliveries that the broker has given and that are under way. */
  private underWay = 0
  private demand: Demand | undefined
  private request: Fiber.Fiber<unknown, unknown> | undefined
  private cancelSend = () => {}
  private wakePull: (() => void) | undefined
  private wakeWithdraw: (() => void) | undefined

  constructor(line: Line, subscription: Subscription, isolateFrom: number) {
    this.line = line
    this.subscription = subscription
    this.isolateFrom = isolateFrom
  }

  /** What has arrived and the demand allows; in one operation, so that an interruption finds each delivery in one place. */
  private take(demand: Demand): Arr.NonEmptyReadonlyArray<Delivery> | undefined {
    const { laws, worker } = this.line.at
    let { fresh, suspects } = demand
    const taken: Array<Delivery> = []
    for (let i = 0; i < this.arrived.length && taken.length < demand.total;) {
      const delivery = this.arrived[i]!
      const isRetry = laws.isRetryOf(worker, delivery)
      const isIsolated = delivery.suspect && delivery.attempt >= this.isolateFrom
      if ((!isRetry && fresh <= 0) || (isIsolated && suspects <= 0)) {
        i++
        continue
      }
      if (!isRetry) fresh--
      if (isIsolated) suspects--
      taken.push(...this.arrived.splice(i, 1))
    }
    if (!Arr.isArrayNonEmpty(taken)) return undefined
    laws.received(taken)
    return taken
  }

  pull(demand: Demand): Effect.Effect<Arr.NonEmptyReadonlyArray<Delivery>> {
    return Effect.callback((resume) => {
      const answer = () => {
        const taken = this.take(demand)
        if (taken === undefined) return
        this.wakePull = undefined
        resume(Effect.succeed(taken))
      }
      this.wakePull = answer
      answer()
      if (this.wakePull === undefined) return
      this.cancel()
      this.demand = demand
      this.send()
      return Effect.sync(() => this.wakePull = undefined)
    })
  }

  /** The request is cancelled at once; what the broker has given before then arrives first. */
  readonly withdraw: Effect.Effect<void> = Effect.callback<void>((resume) => {
    this.cancel()
    this.demand = undefined
    const answer = () => {
      if (this.underWay > 0) return
      this.wakeWithdraw = undefined
      resume(Effect.void)
    }
    this.wakeWithdraw = answer
    answer()
    return Effect.sync(() => this.wakeWithdraw = undefined)
  })

  /** Sends the request, where one is wanted and the line is whole. */
  send(): void {
    const { demand } = this
    if (demand === undefined || this.line.isCut) return
    const { atBroker, laws, process, worker, world } = this.line.at
    this.cancelSend = world.after(this.line.delay, undefined, () => {
      this.request = atBroker(Effect.map(this.subscription.pull(demand), (deliveries) => {
        this.demand = this.request = undefined
        laws.delivered(worker, demand, this.isolateFrom, deliveries)
        this.underWay++
        world.after(this.line.delay, process, () => {
          this.underWay--
          this.arrived.push(...deliveries)
          this.wakePull?.()
          this.wakeWithdraw?.()
        })
      }))
    })
  }

  cancel(): void {
    this.cancelSend()
    this.request?.interruptUnsafe()
    this.request = undefined
  }

  readonly close: Effect.Effect<void> = Effect.suspend(() => {
    this.cancel()
    this.line.inboxes.delete(this)
    const { atBroker, laws, worker } = this.line.at
    const left = this.arrived.splice(0).map((delivery) => ({ delivery, settlement: Settlement.release }))
    if (!Arr.isArrayNonEmpty(left)) return Effect.void
    laws.said(worker, left)
    const release = Effect.suspend(() => this.subscription.settle(left))
    const told = Effect.map(release, (lost) => laws.arrived(worker, left, lost))
    return Effect.ignore(Fiber.join(laws.atOnce(() => atBroker(told))))
  })
}

/** The longest that anything takes on the way, and an engine is patient with. Milliseconds. */
const slow = 2000
