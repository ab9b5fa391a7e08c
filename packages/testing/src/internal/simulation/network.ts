import * as Publisher from "@millrace/core/Publisher"
import * as Settlement from "@millrace/core/Settlement"
import type { Delivery, Outgoing, Published, Settling, Subscription, Transport } from "@millrace/core/Transport"
import { Interrupted, TransportError } from "@millrace/core/TransportError"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import type { Laws } from "./laws.ts"
import type { Process, World } from "./world.ts"

type Service = Transport["Service"]

interface Ends {
  readonly worker: string
  readonly world: World
  readonly process: Process
  readonly laws: Laws
  readonly atBroker: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
  readonly faults: { readonly settle: boolean; readonly publish: boolean; readonly delay: boolean }
}

/** What stands between one process and its broker. */
export class Line {
  private cuts = 0
  /** Until when something was wrong on it. */
  disturbedUntil = -Infinity
  /** When the last settlement arrives: they do so in the order in which they were sent. */
  private inTurnUntil = 0
  readonly pulls = new Set<{ readonly cut: () => void; readonly restore: () => void }>()
  private readonly at: Ends

  constructor(at: Ends) {
    this.at = at
  }

  private get isCut(): boolean {
    return this.cuts > 0
  }

  cut(): void {
    this.disturbed(0)
    if (this.cuts++ > 0) return
    for (const pull of this.pulls) pull.cut()
  }

  restore(): void {
    this.disturbed(0)
    if (--this.cuts > 0) return
    for (const pull of this.pulls) pull.restore()
  }

  private get delay(): number {
    const { world } = this.at
    if (!this.at.faults.delay || world.chance(0.6)) return world.between(0, 1)
    if (world.chance(0.9)) return world.between(0, 50)
    this.disturbed(slow)
    return world.between(0, slow)
  }

  private disturbed(millis: number): void {
    this.disturbedUntil = Math.max(this.disturbedUntil, this.at.world.now + millis)
  }

  /** A question and its answer, either of which may be lost. */
  private ask<A, E>(
    question: () => Effect.Effect<A, E>,
    mayBeLost: boolean,
    lost: (wasSent: boolean) => Exit.Exit<A, E>,
    inTurn = false
  ): Effect.Effect<A, E> {
    const { laws, process, world } = this.at
    return Effect.callback<A, E>((resume) => {
      const answer = (exit: Exit.Exit<A, E>) => void world.after(this.delay, process, () => resume(exit))
      const isUnsent = mayBeLost && world.chance(0.05)
      const isUnanswered = mayBeLost && world.chance(0.05)
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

  private readonly broken = (operation: string) => () =>
    Exit.fail(new TransportError({ transport: "memory", reason: new Interrupted({ operation }) }))

  transport(inner: Service): Service {
    return {
      ...inner,
      declare: (topic) => this.ask(() => inner.declare(topic), false, this.broken("declare")),
      publish: (messages) => this.publish(inner, messages),
      subscribe: (options) =>
        Effect.gen({ self: this }, function*() {
          const scope = yield* Effect.scope
          const subscription = yield* this.ask(
            () => Scope.provide(inner.subscribe(options), scope),
            false,
            this.broken("subscribe")
          )
          const pull = this.pull(subscription)
          yield* Effect.addFinalizer(() => pull.close)
          return {
            ...subscription,
            pull: pull.pull,
            settle: (batch) => this.settle(subscription, batch),
            extend: (deliveries) => this.extend(subscription, deliveries),
            health: Effect.sync(() => this.isCut ? "reconnecting" as const : "consuming" as const)
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
    return this.ask(question, this.at.faults.publish, (wasSent) =>
      Exit.succeed(messages.map(({ topic }) => {
        const detail = "the simulated connection was lost"
        const reason = wasSent ? new Publisher.OutcomeUnknown({ detail }) : new Publisher.NotSent({ detail })
        return Result.fail(new Publisher.PublishError({ topic, reason }))
      })))
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
      const isPart = this.at.faults.settle && part.length < batch.length && world.chance(0.1)
      if (isPart && Arr.isArrayNonEmpty(part)) {
        this.disturbed(slow)
        const question = () => Effect.map(subscription.settle(part), arrived(part))
        return this.ask(() => Effect.andThen(question(), this.broken("settle")()), true, this.broken("settle"), true)
      }
      const question = () => Effect.map(subscription.settle(batch), arrived(batch))
      return Effect.map(this.ask(question, this.at.faults.settle, this.broken("settle"), true), confirmed)
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
    return this.ask(question, this.at.faults.settle, this.broken("extend"))
  }

  /** What was given and did not arrive in time is there for the next pull. */
  private pull(subscription: Subscription) {
    const { laws, process, worker, world } = this.at
    const arrived: Array<Delivery> = []
    // In one operation: an interruption finds it here, or in the engine's hands.
    const taken = (max: number) =>
      Effect.sync(() => {
        const [first, ...rest] = arrived.splice(0, max)
        const deliveries = [first!, ...rest] as const
        laws.received(deliveries)
        return deliveries
      })
    const pull: Subscription["pull"] = (max) =>
      arrived.length > 0 ? taken(max) : Effect.callback((resume) => {
        let asking: Fiber.Fiber<unknown, unknown> | undefined
        let cancel = () => {}
        const answer = () => {
          if (!this.pulls.delete(line)) return
          cancel()
          resume(taken(max))
        }
        const ask = () => {
          cancel = world.after(this.delay, undefined, () => {
            asking = this.at.atBroker(Effect.map(subscription.pull(max), (deliveries) => {
              laws.delivered(worker, max, deliveries)
              arrived.push(...deliveries)
            }))
            asking.addObserver((exit) => {
              if (Exit.isSuccess(exit)) world.after(this.delay, process, answer)
            })
          })
        }
        const cut = () => {
          cancel()
          asking?.interruptUnsafe()
        }
        const restore = () => {
          if (arrived.length === 0) ask()
        }
        const line = { cut, restore }
        this.pulls.add(line)
        if (!this.isCut) ask()
        return Effect.suspend(() => {
          this.pulls.delete(line)
          cancel()
          return asking === undefined ? Effect.void : Fiber.interrupt(asking)
        })
      })
    const close = Effect.suspend(() => {
      const left = arrived.splice(0).map((delivery) => ({ delivery, settlement: Settlement.release }))
      if (!Arr.isArrayNonEmpty(left)) return Effect.void
      laws.said(worker, left)
      const release = Effect.suspend(() => subscription.settle(left))
      const told = Effect.map(release, (lost) => laws.arrived(worker, left, lost))
      return Effect.ignore(Fiber.join(laws.atOnce(() => this.at.atBroker(told))))
    })
    return { pull, close }
  }
}

/** The longest that anything takes on the way, and an engine is patient with. Milliseconds. */
const slow = 2000
