import type { GroupInfo } from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import * as Effect from "effect/Effect"
import { Broker, type Stored } from "./Broker.ts"
import { Failure } from "./Output.ts"
import { clean, many } from "./text.ts"

/** A topic with its groups. */
export interface Overview extends Stored {
  readonly groups: ReadonlyArray<GroupInfo>
}

/** `undefined`: there is no such topic. */
export const one = (topic: string): Effect.Effect<Overview | undefined, TransportError, Broker> =>
  Effect.gen(function*() {
    const broker = yield* Broker
    const stored = yield* broker.stored(topic)
    if (stored === undefined) return undefined
    return { ...stored, groups: yield* broker.transport.groups(topic) }
  })

/** Topics, and how many there are that this user may not look at. */
export interface Seen {
  readonly topics: ReadonlyArray<Overview>
  readonly denied: number
}

const seen = (all: ReadonlyArray<Overview | "denied" | undefined>): Seen => ({
  topics: all.filter((found) => found !== undefined && found !== "denied"),
  denied: all.filter((found) => found === "denied").length
})

const allowed = (topic: string): Effect.Effect<Overview | "denied" | undefined, TransportError, Broker> =>
  Effect.catch(
    one(topic),
    (error) => error.reason._tag === "Unauthorized" ? Effect.succeed("denied" as const) : Effect.fail(error)
  )

/** All topics for which this holds; others may be beyond the rights of this user. */
export const overview = (
  isWanted: (topic: string) => boolean = () => true
): Effect.Effect<Seen, TransportError, Broker> =>
  Effect.flatMap(
    Broker,
    ({ topics }) =>
      Effect.flatMap(topics, (all) =>
        Effect.map(Effect.forEach(all.filter(isWanted), allowed, { concurrency: 16 }), seen))
  )

/** The topics given, or all when none is given. Fails with the first one that does not exist. */
export const chosen = (given: ReadonlyArray<string>): Effect.Effect<Seen, TransportError | Failure, Broker> =>
  given.length === 0 ? overview() : Effect.flatMap(
    Effect.forEach(given, one, { concurrency: 16 }),
    (all) => {
      const missing = given[all.indexOf(undefined)]
      return missing === undefined ? Effect.succeed(seen(all)) : Effect.fail(noTopic(missing))
    }
  )

/** What a list of topics leaves out. */
export const deniedLines = (denied: number): ReadonlyArray<string> =>
  denied === 0
    ? []
    : ["", `${many(denied, "topic")} left out: this user may not look at ${denied === 1 ? "it" : "them"}`]

export const noTopic = (topic: string): Failure =>
  new Failure(`there is no topic ${topic === "" ? "\"\"" : clean(topic)}`, 1)

const ids = {
  redis: { form: /^\d{1,20}(-\d{1,20})?$/, example: "1700000000000-0" },
  nats: { form: /^([0-9a-z]+-)?[1-9]\d{0,15}$/, example: "mwz7hj6f-42, or the sequence alone: 42" },
  memory: { form: /./, example: "1" }
}

/** Says what an id looks like where one of another form was given. */
export const noMessage = (broker: Broker["Service"]["name"], what: string, id: string, topic: string): Failure => {
  const { example, form } = ids[broker]
  return new Failure(
    `there is no ${what} ${id === "" ? "\"\"" : clean(id)} in topic ${clean(topic)}` +
      (form.test(id) ? "" : `: an id is like ${example}`),
    1
  )
}

/** Fails when there is no such topic. */
export const existing = (topic: string): Effect.Effect<Stored, TransportError | Failure, Broker> =>
  Effect.flatMap(Broker, ({ stored }) =>
    Effect.flatMap(
      stored(topic),
      (found) => found === undefined ? Effect.fail(noTopic(topic)) : Effect.succeed(found)
    ))

/** Told by the name: there is no other sign of an empty one. */
export const isDeadLetterTopic = (topic: string): boolean => /[^A-Za-z0-9]dead$/.test(topic)
