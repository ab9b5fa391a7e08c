import type { GroupInfo } from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import * as Effect from "effect/Effect"
import { Broker, type Stored } from "./Broker.ts"
import { Failure } from "./Output.ts"
import { clean } from "./text.ts"

/** A topic with its groups. */
export interface Overview extends Stored {
  readonly groups: ReadonlyArray<GroupInfo>
}

const one = (topic: string): Effect.Effect<Overview | undefined, TransportError, Broker> =>
  Effect.gen(function*() {
    const broker = yield* Broker
    const stored = yield* broker.stored(topic)
    if (stored === undefined) return undefined
    return { ...stored, groups: yield* broker.transport.groups(topic) }
  })

/** These topics; those that do not exist are left out. */
export const overviewOf = (
  topics: ReadonlyArray<string>
): Effect.Effect<ReadonlyArray<Overview>, TransportError, Broker> =>
  Effect.map(
    Effect.forEach(topics, one, { concurrency: 16 }),
    (all) => all.filter((found) => found !== undefined)
  )

/** All topics. */
export const overview: Effect.Effect<ReadonlyArray<Overview>, TransportError, Broker> = Effect.flatMap(
  Broker,
  ({ topics }) => Effect.flatMap(topics, overviewOf)
)

/** The topics given, or all when none is given. Fails with the first one that does not exist. */
export const chosen = (
  given: ReadonlyArray<string>
): Effect.Effect<ReadonlyArray<Overview>, TransportError | Failure, Broker> =>
  given.length === 0 ? overview : Effect.flatMap(overviewOf(given), (all) => {
    const missing = given.find((topic) => !all.some((found) => found.topic === topic))
    return missing === undefined ? Effect.succeed(all) : Effect.fail(noTopic(missing))
  })

export const noTopic = (topic: string): Failure => new Failure(`there is no topic ${clean(topic)}`, 1)

/** Fails when there is no such topic. */
export const existing = (topic: string): Effect.Effect<Stored, TransportError | Failure, Broker> =>
  Effect.flatMap(Broker, ({ stored }) =>
    Effect.flatMap(
      stored(topic),
      (found) => found === undefined ? Effect.fail(noTopic(topic)) : Effect.succeed(found)
    ))

/** Told by the name: there is no other sign of an empty one. */
export const isDeadLetterTopic = (topic: string): boolean => /[^A-Za-z0-9]dead$/.test(topic)
