/**
 * A transport of which a test writes each answer, for tests of a pipeline's requests and their times.
 *
 * `MemoryTransport` is a broker; this is none: it delivers the messages of `deliver`, notes each settlement, and answers
 * with success unless the test has replaced the answer.
 *
 * @since 0.1.0
 */
import * as Concurrency from "@millrace/core/Concurrency"
import * as Transport from "@millrace/core/Transport"
import * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Stream from "effect/Stream"

type Service = Transport.Transport["Service"]

/**
 * A delivery for tests: `id` as a number is also its JSON body.
 *
 * @category constructors
 * @since 0.1.0
 */
export const delivery = (id: number, over?: Partial<Transport.Delivery>): Transport.Delivery => ({
  id: String(id),
  origin: "fake",
  topic: "numbers",
  key: undefined,
  headers: {},
  attempt: 1,
  redelivered: false,
  suspect: false,
  publishedAt: 0,
  body: new TextEncoder().encode(JSON.stringify(id)),
  ...over
})

/**
 * A transport with one subscription. Its answers are fields: replace them at any time.
 *
 * @category models
 * @since 0.1.0
 */
export class FakeTransport {
  /** Deliveries that no pull has taken. */
  readonly queue: Array<Transport.Delivery> = []
  readonly settled: Array<Transport.Settling> = []
  readonly published: Array<Transport.Outgoing> = []
  /** The demand of each pull. */
  readonly demands: Array<Transport.Demand> = []
  /** The ids of each extension. */
  readonly extended: Array<ReadonlyArray<string>> = []
  /** The ids whose attempts began on record. */
  readonly begun: Array<string> = []
  /** How often the open request was cancelled. */
  withdrawn = 0
  /** Deliveries that this consumer no longer owns. */
  readonly lost = new Set<Transport.Delivery>()
  /** The ids of messages that a peer has settled. */
  readonly settledByPeers = new Set<string>()
  /** The ids of messages that wait here for another pull. */
  readonly held = new Set<string>()
  /** As the pipeline subscribed. */
  options: Transport.SubscribeOptions | undefined
  lease: Duration.Duration | undefined = Duration.seconds(30)
  readonly limit: Concurrency.Limit = Concurrency.make(Infinity)
  private wake: (() => void) | undefined

  /** Gives these to the open pull, or to the next one. */
  deliver(...deliveries: ReadonlyArray<Transport.Delivery>): void {
    this.queue.push(...deliveries)
    this.wake?.()
  }

  /** The settlements of the messages, such as `"1 Ack"`, in order. */
  get said(): ReadonlyArray<string> {
    return this.settled.map(({ delivery, settlement }) => `${delivery.id} ${settlement._tag}`)
  }

  pull: Transport.Subscription["pull"] = (demand) =>
    Effect.callback((resume) => {
      this.demands.push(demand)
      const answer = () => {
        const taken = this.queue.splice(0, demand.total)
        if (!Arr.isArrayNonEmpty(taken)) return
        this.wake = undefined
        resume(Effect.succeed(taken))
      }
      this.wake = answer
      answer()
      return Effect.sync(() => this.wake = undefined)
    })

  settle: Transport.Subscription["settle"] = (batch) =>
    Effect.sync(() => {
      this.settled.push(...batch)
      return batch.filter(({ delivery }) => this.lost.has(delivery)).map(({ delivery }) => delivery)
    })

  extend: Transport.Subscription["extend"] = (deliveries) =>
    Effect.sync(() => deliveries.filter((delivery) => this.lost.has(delivery)))

  begin: Transport.Subscription["begin"] = (delivery) => Effect.sync(() => !this.lost.has(delivery))

  publish: Service["publish"] = (messages) =>
    Effect.sync(() => {
      this.published.push(...messages)
      return messages.map((_, index) => Result.succeed({ id: String(index), duplicate: false }))
    })

  health: Effect.Effect<Transport.Health> = Effect.succeed({ state: "consuming", since: 0 })

  readonly transport: Service = Transport.Transport.of({
    name: "fake",
    address: "fake",
    capabilities: {
      deduplication: true,
      delayedPublish: true,
      uncountedRelease: true,
      orderedRelease: true,
      ownership: true,
      maxBody: undefined
    },
    limit: this.limit,
    nameRemedy: () => undefined,
    health: Effect.suspend(() => this.health),
    declare: () => Effect.void,
    subscribe: (options) =>
      Effect.sync(() => {
        this.options = options
        return {
          pull: (demand) => this.pull(demand),
          withdraw: Effect.sync(() => void this.withdrawn++),
          settle: (batch) => this.settle(batch),
          extend: (deliveries) =>
            Effect.suspend(() => {
              this.extended.push(deliveries.map(({ id }) => id))
              return this.extend(deliveries)
            }),
          begin: (delivery) =>
            Effect.suspend(() => {
              this.begun.push(delivery.id)
              return this.begin(delivery)
            }),
          locate: (ids) =>
            Effect.sync(() => ({
              settled: ids.filter((id) => this.settledByPeers.has(id)),
              held: ids.filter((id) => this.held.has(id))
            })),
          lease: this.lease,
          health: Effect.suspend(() => this.health)
        }
      }),
    publish: (messages) => this.publish(messages),
    browse: () => Stream.empty,
    get: () => Effect.succeed(Option.none()),
    groups: () => Effect.succeed([]),
    remove: () => Effect.succeed(0)
  })
}

/**
 * A new one.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (): FakeTransport => new FakeTransport()
