import type { GroupInfo } from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import * as Effect from "effect/Effect"
import { Broker, type Stored } from "./Broker.ts"

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

/** The topics given, or all; those that do not exist are left out. */
export const overview = Effect.fnUntraced(
  function*(given?: ReadonlyArray<string>): Effect.fn.Return<ReadonlyArray<Overview>, TransportError, Broker> {
    const broker = yield* Broker
    const topics = given === undefined || given.length === 0 ? yield* broker.topics : given
    const all = yield* Effect.forEach(topics, one, { concurrency: 16 })
    return all.filter((found) => found !== undefined)
  }
)

/** Told by the name: there is no other sign of an empty one. */
export const isDeadLetterTopic = (topic: string): boolean => /[^A-Za-z0-9]dead$/.test(topic)
