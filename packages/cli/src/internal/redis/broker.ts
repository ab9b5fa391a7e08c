import type { Transport } from "@millrace/core/Transport"
import { Mismatch, TransportError } from "@millrace/core/TransportError"
import { layer as streams, RedisStreams } from "@millrace/redis-streams/RedisStreams"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Broker, type Held, type Stored } from "../Broker.ts"
import {
  type Admin,
  type CommandError,
  failure,
  info,
  isInternal,
  list,
  make as connect,
  millisOf,
  pairs,
  type Target
} from "./admin.ts"
import * as doctor from "./doctor.ts"
import { scan } from "./scan.ts"

const stored = Effect.fnUntraced(function*(admin: Admin, key: string, topic: string) {
  const reply = yield* admin.send(key, ["XINFO", "STREAM", key]).pipe(
    Effect.catch((error) => /no such key/i.test(error.message) ? Effect.succeed(undefined) : Effect.fail(error))
  )
  if (reply === undefined) return undefined
  const stream = pairs(reply)
  const bytes = yield* Effect.option(admin.send(key, ["MEMORY", "USAGE", key, "SAMPLES", "10"]))
  const idOf = (entry: string) => list(stream.get(entry))[0]
  const found: Stored = {
    topic,
    messages: Number(stream.get("length")),
    added: typeof stream.get("entries-added") === "number" ? Number(stream.get("entries-added")) : undefined,
    bytes: bytes._tag === "Some" && typeof bytes.value === "number" ? bytes.value : undefined,
    first: millisOf(idOf("first-entry")),
    last: millisOf(idOf("last-entry")),
    bounds: []
  }
  return found
})

const held = Effect.fnUntraced(function*(
  admin: Admin,
  key: string,
  group: string,
  limit: number,
  id: string | undefined
) {
  const [reply, [seconds, micros]] = yield* Effect.all([
    admin.send(key, ["XPENDING", key, group, id ?? "-", id ?? "+", String(limit)]),
    Effect.map(admin.send(key, ["TIME"]), list)
  ])
  const now = Number(seconds) * 1000 + Math.floor(Number(micros) / 1000)
  return list(reply).map((entry): Held => {
    const [id, consumer, idle, attempts] = list(entry)
    const isReleased = isInternal(String(consumer))
    return {
      id: String(id),
      consumer: isReleased ? undefined : String(consumer),
      since: isReleased ? undefined : now - Number(idle),
      attempts: Number(attempts)
    }
  })
})

const make = Effect.fnUntraced(function*(target: Target) {
  const { transport } = yield* RedisStreams
  const admin = yield* connect(target)
  const keyOf = (topic: string) => target.keyPrefix + topic
  const failing = <A>(operation: string, effect: Effect.Effect<A, CommandError>): Effect.Effect<A, TransportError> =>
    Effect.mapError(effect, (error) => failure(operation, target)(error))
  const server = yield* failing(
    "asking the server for its version",
    Effect.gen(function*() {
      const reply = yield* Effect.option(admin.nodes[0]!.send(["INFO", "server"]))
      if (reply._tag === "None") return "Redis (version unknown: this user may not run INFO)"
      const said = info(reply.value)
      const valkey = said.get("valkey_version")
      return valkey === undefined ? `Redis ${said.get("redis_version")}` : `Valkey ${valkey}`
    })
  )
  return Broker.of({
    name: "redis",
    server: target.cluster ? `${server}, cluster of ${admin.nodes.length}` : server,
    transport,
    topics: failing("listing streams", scan(admin, target.keyPrefix)),
    stored: (topic) =>
      Effect.mapError(stored(admin, keyOf(topic), topic), (error) =>
        error.message.startsWith("WRONGTYPE")
          ? new TransportError({
            transport: "redis",
            reason: new Mismatch({ name: keyOf(topic), expected: "a stream", found: "a key of another type" })
          })
          : failure(`looking at stream ${keyOf(topic)}`, target)(error)),
    held: (topic, group, limit, id) =>
      failing(
        `looking at group ${group} of ${keyOf(topic)}`,
        Effect.catch(held(admin, keyOf(topic), group, limit, id), (error) =>
          error.message.startsWith("NOGROUP") ? Effect.succeed(undefined) : Effect.fail(error))
      ),
    retries: (topic, group) => {
      const key = keyOf(topic)
      const dues = `${key.includes("{") ? `${key}:` : `{${key}}`}:millrace:due:${group}`
      return Effect.match(admin.send(key, ["HLEN", dues]), { onFailure: () => undefined, onSuccess: Number })
    },
    examine: (given) => failing("examining the server", doctor.examine(admin, target, given))
  })
})

export const layer = (target: Target): Layer.Layer<Broker | Transport, TransportError> =>
  Layer.effect(Broker, make(target)).pipe(
    Layer.provideMerge(streams({
      url: target.url,
      connectTimeout: "4 seconds",
      keyPrefix: target.keyPrefix,
      cluster: target.cluster,
      ...(target.sentinel === undefined ? {} : { sentinel: { master: target.sentinel } })
    }))
  )
