/**
 * A broker in memory with the semantics of a real one: groups, pending lists, ownership, attempts, delays, redelivery
 * after idle. It runs on `Clock`, so `TestClock` drives it.
 *
 * @since 0.1.0
 */
import * as Concurrency from "@millrace/core/Concurrency"
import * as Transport from "@millrace/core/Transport"
import { checkOptions, durationOf, type Hints } from "@millrace/core/TransportAuthor"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { Broker, type Group, Origin, type Settled } from "./internal/memory/broker.ts"
import { connect } from "./internal/memory/transport.ts"

export type { Settled } from "./internal/memory/broker.ts"

/**
 * Options of the broker in memory.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** How long an unsettled message stays with a consumer that does not keep it; default 30 seconds. */
  readonly minIdle?: Duration.Input | Hints["duration"] | undefined
  /** `"until-acked"` deletes a message once every group has acknowledged it; default `"keep"`. */
  readonly retention?: "keep" | "until-acked" | undefined
  /** Handlers that run at once on this broker, all pipelines together; default unbounded. */
  readonly concurrency?: number | Concurrency.Limit | undefined
  /** The largest message in bytes, headers included; default 1 MiB, as NATS has it. */
  readonly maxBody?: number | undefined
  /** Keeps published messages and settlements, for {@link MemoryTransport}; default `false`. */
  readonly history?: boolean | undefined
}

/**
 * The work that a group of a topic has left.
 *
 * @category models
 * @since 0.1.0
 */
export interface GroupState {
  readonly topic: string
  readonly group: string
  /** Published and never delivered to this group. */
  readonly lag: number
  /** Delivered and not settled. */
  readonly pending: ReadonlyArray<{ readonly id: string; readonly attempts: number }>
  /** Retries that are not due yet. */
  readonly delayed: ReadonlyArray<{ readonly id: string; readonly attempts: number; readonly due: number }>
}

/**
 * The broker itself, for tests: its contents, its history, further connections to it.
 *
 * @category services
 * @since 0.1.0
 */
export class MemoryTransport extends Context.Service<MemoryTransport, {
  /** Another process of the same broker. Closing its scope without drain is a crash: it keeps its messages. */
  readonly connect: Effect.Effect<Transport.Transport["Service"], never, Scope.Scope>
  readonly groups: Effect.Effect<ReadonlyArray<GroupState>>
  /** Deletes a topic with its groups; the next use creates another one of that name. */
  readonly deleteTopic: (topic: string) => Effect.Effect<void>
  /** Deletes a group with its position; the next pull of a consumer creates it anew. */
  readonly deleteGroup: (topic: string, group: string) => Effect.Effect<void>
  /** Messages held, by topic. */
  readonly sizes: Effect.Effect<ReadonlyMap<string, number>>
  /** With `history`: all that was published, and all settlements, in order. */
  readonly published: Effect.Effect<ReadonlyArray<Transport.Outgoing>>
  readonly settled: Effect.Effect<ReadonlyArray<Settled>>
  /** Goes up with everything that happens: two equal readings with time between them mean that nothing did. */
  readonly activity: Effect.Effect<number>
}>()("@millrace/testing/MemoryTransport") {}

/**
 * Makes a broker in memory. An option that cannot work is a defect.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options?: Options): Effect.Effect<MemoryTransport["Service"]> =>
  Effect.flatMap(Effect.context<never>(), (context) => {
    const { duration: minIdle, invalid } = durationOf("minIdle", options?.minIdle ?? "30 seconds")
    const wrong = checkOptions("memory", "layer", options ?? {}, known, invalid, invalidIn(options ?? {}))
    if (wrong !== undefined) return Effect.die(wrong)
    const broker = new Broker(Context.get(context, Clock.Clock), {
      minIdle: Duration.toMillis(minIdle),
      untilAcked: options?.retention === "until-acked",
      maxBody: options?.maxBody ?? 1_048_576,
      history: options?.history ?? false
    }, Context.get(context, Origin))
    const { concurrency = Infinity } = options ?? {}
    const limit = Concurrency.isLimit(concurrency) ? concurrency : Concurrency.make(concurrency)
    return Effect.succeed(MemoryTransport.of({
      connect: connect(broker, limit),
      groups: Effect.sync(() => [...broker.topics.values()].flatMap((topic) => [...topic.groups.values()].map(state))),
      deleteTopic: (topic) => Effect.sync(() => broker.deleteTopic(topic)),
      deleteGroup: (topic, group) => Effect.sync(() => broker.deleteGroup(topic, group)),
      sizes: Effect.sync(() => new Map([...broker.topics].map(([name, topic]) => [name, topic.size]))),
      published: Effect.sync(() => broker.published),
      settled: Effect.sync(() => broker.settled),
      activity: Effect.sync(() => broker.activity)
    }))
  })

const invalidIn = ({ maxBody, minIdle = 1, retention }: Options) => {
  if (!Duration.isPositive(durationOf("minIdle", minIdle).duration)) {
    return { option: "minIdle", value: minIdle, remedy: "give more than 0: an owner needs time to extend" }
  }
  if (retention !== undefined && retention !== "keep" && retention !== "until-acked") {
    return { option: "retention", value: retention, remedy: "write \"keep\" or \"until-acked\"" }
  }
  return maxBody === undefined || (Number.isSafeInteger(maxBody) && maxBody >= 0)
    ? undefined
    : { option: "maxBody", value: maxBody, remedy: "give a whole number of bytes" }
}

const known = ["minIdle", "retention", "concurrency", "maxBody", "history"]

const state = (group: Group): GroupState => ({
  topic: group.topic.name,
  group: group.name,
  lag: group.lag,
  pending: [...group.pending.values(), ...group.released].map(({ attempts, entry }) => ({ id: entry.id, attempts })),
  delayed: group.delayed.map(({ attempts, due, entry }) => ({ id: entry.id, attempts, due }))
})

/**
 * Provides a broker in memory, and one connection to it as the transport.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options?: Options): Layer.Layer<MemoryTransport | Transport.Transport> =>
  Layer.effectContext(Effect.gen(function*() {
    const memory = yield* make(options)
    return Context.make(MemoryTransport, memory).pipe(Context.add(Transport.Transport, yield* memory.connect))
  }))
