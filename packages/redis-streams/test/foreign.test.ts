/** Entries, names and groups of other producers. */
import { assert } from "@effect/vitest"
import * as Codec from "@millrace/core/Codec"
import * as DeadLetter from "@millrace/core/DeadLetter"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Publisher from "@millrace/core/Publisher"
import * as Topic from "@millrace/core/Topic"
import { Transport } from "@millrace/core/Transport"
import { RedisStreams } from "@millrace/redis-streams"
import { Wait } from "@millrace/testing"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { createClient, RESP_TYPES } from "redis"
import { connect, demand, eachServer, fresh, outgoing, Server, subscribing, textOf } from "./redis.ts"

/** The fields of each entry, byte for byte. */
const stored = (topic: string) =>
  Server.use(({ url }) =>
    Effect.promise(async () => {
      const client = createClient({
        url,
        RESP: 2,
        commandOptions: { typeMapping: { [RESP_TYPES.BLOB_STRING]: Buffer } }
      })
      await client.connect()
      const entries: any = await client.sendCommand(["XRANGE", topic, "-", "+"])
      client.destroy()
      return entries.map(([, fields]: [Buffer, ReadonlyArray<Buffer>]) =>
        fields.map((part) => part.toString("latin1"))
      ) as ReadonlyArray<ReadonlyArray<string>>
    })
  )

eachServer((it) => {
  it.effect("topics and groups have any name that Redis takes", () =>
    Effect.gen(function*() {
      const redis = Context.get(yield* connect(), Transport)
      for (const name of ["orders:eu", "a b", "straße/{x}", "a}b:{"]) {
        const topic = fresh(name)
        const subscription = yield* redis.subscribe(subscribing(topic, { group: `workers:${name}` }))
        yield* redis.publish([outgoing(topic, "1", { id: "i" }), outgoing(topic, "2")])
        const [delivery] = yield* subscription.pull(demand(1))
        assert.strictEqual(textOf(delivery), "1")
        assert.deepStrictEqual((yield* redis.groups(topic)).map(({ group }) => group), [`workers:${name}`])
      }
      assert.isDefined(redis.nameRemedy("topic", ""))
      assert.isUndefined(redis.nameRemedy("group", "orders:eu"))
    }))

  it.effect("fields decode beside binary ones that the schema does not name, and without our own headers", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("fields")
      const context = yield* connect()
      yield* run(
        "XADD",
        topic,
        "*",
        "user",
        "1",
        "metadata",
        Buffer.from([0x81, 0xff, 0x00]) as any,
        "millrace-group",
        "g"
      )
      const seen: Array<unknown> = []
      const codecs: ReadonlyArray<Codec.Codec<any>> = [
        Codec.fields(Schema.Struct({ user: Schema.String })),
        Codec.fields(Schema.Record(Schema.String, Schema.String))
      ]
      for (const codec of codecs) {
        const source = Topic.make(topic, { codec })
        const running = yield* Pipeline.from(source, { group: fresh("g"), startFrom: "beginning" }).pipe(
          Pipeline.map((value) => void seen.push({ ...value })),
          Pipeline.start,
          Effect.provide(context)
        )
        yield* Wait.until("settled", Effect.map(running.counts, ({ filtered, handled }) => handled + filtered === 1))
      }
      // Redriven for a group that these are not.
      assert.deepStrictEqual(seen, [])
      yield* run("XADD", topic, "*", "user", "2", "metadata", Buffer.from([0x81, 0xff, 0x00]) as any)
      yield* Wait.until("both", Effect.sync(() => seen.length === 2))
      assert.deepStrictEqual(seen, [{ user: "2" }, { user: "2" }])
    }))

  it.effect("fields of one name decode to an array where the schema has one, and else the entry is dead-lettered", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("repeated")
      const context = yield* connect()
      yield* run("XADD", topic, "*", "tag", "one", "tag", "two")
      yield* run("XADD", topic, "*", "tag", "one")
      const start = (codec: Codec.Codec<any>) =>
        Effect.gen(function*() {
          const seen: Array<unknown> = []
          const running = yield* Pipeline.from(Topic.make(topic, { codec }), {
            group: fresh("g"),
            startFrom: "beginning"
          }).pipe(
            Pipeline.map(({ tag }) => void seen.push(tag)),
            Pipeline.deadLetter(fresh("dead")),
            Pipeline.start,
            Effect.provide(context)
          )
          yield* Wait.until(
            "done",
            Effect.map(running.counts, ({ deadLettered, handled }) => deadLettered + handled === 2)
          )
          return seen
        })
      assert.deepStrictEqual(
        yield* start(Codec.fields(Schema.Struct({ tag: Schema.Array(Schema.String) }))),
        [["one", "two"], ["one"]]
      )
      assert.deepStrictEqual(yield* start(Codec.fields(Schema.Struct({ tag: Schema.String }))), ["one"])
      const [stored] = yield* Stream.runCollect(Context.get(context, Transport).browse(topic, { limit: 1 }))
      const fields = stored!.fields as Codec.FieldMap
      assert.deepStrictEqual(fields.getAll("tag").map(String), ["one", "two"])
      assert.deepStrictEqual(fields.getAll("none"), [])
    }))

  it.effect("a topic and one whose name is the same in braces keep their delayed messages and ids apart", () =>
    Effect.gen(function*() {
      const topic = fresh("braces")
      const redis = Context.get(yield* connect({ consumer: "a wörker" }), Transport)
      for (const name of [topic, `{${topic}}`]) {
        const more = { id: "i", delay: Duration.millis(50) }
        const [outcome] = yield* redis.publish([outgoing(name, name, more)])
        assert.isFalse(Result.getOrThrow(outcome!).duplicate)
      }
      for (const name of [topic, `{${topic}}`]) {
        const [delivery] = yield* (yield* redis.subscribe(subscribing(name))).pull(demand(1))
        assert.strictEqual(textOf(delivery), name)
      }
    }))

  it.effect("an entry with repeated and binary names is dead-lettered and redriven byte for byte", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("raw")
      const context = yield* connect()
      const binary = Buffer.from([0xff, 0x01])
      yield* run("XADD", topic, "*", "tag", "one", "tag", "two", binary as any, binary as any)
      const [original] = yield* stored(topic)
      const source = Topic.make(topic, { codec: Codec.fields(Schema.Struct({ missing: Schema.String })) })
      const running = yield* Pipeline.from(source, { group: "g", startFrom: "beginning" }).pipe(
        Pipeline.start,
        Effect.provide(context)
      )
      yield* Wait.until("dead-lettered", Effect.map(running.counts, ({ deadLettered }) => deadLettered === 1))
      const [letter] = yield* stored(`${topic}.dead`)
      assert.deepStrictEqual(letter!.slice(0, 6), original)
      yield* Effect.provide(DeadLetter.redrive(`${topic}.dead`), context)
      yield* Wait.until("again", Effect.map(running.counts, ({ deadLettered }) => deadLettered === 2))
      const redriven = (yield* stored(topic)).at(-1)!
      assert.deepStrictEqual(redriven.slice(0, 6), original)
      const names = redriven.filter((_, i) => i % 2 === 0)
      assert.deepStrictEqual(names.slice(3).filter((name) => !/^millrace-(group|history)$/.test(name)), [])
    }))

  it.effect("a field with the name of a header is refused, and is not silently replaced", () =>
    Effect.gen(function*() {
      const topic = Topic.make(fresh("reserved"), {
        codec: Codec.fields(Schema.Record(Schema.String, Schema.String))
      })
      const context = yield* connect()
      for (const name of ["content-type", "millrace-group"]) {
        const error = yield* Effect.flip(Publisher.publish(topic, { [name]: "mine" })).pipe(Effect.provide(context))
        assert.strictEqual(error.reason._tag, "Unencodable")
        assert.match(error.message, new RegExp(`field named ${name} .*another name`))
      }
    }))

  it.effect("an entry of 10,000 fields is dead-lettered, once, and stops nothing", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("wide")
      const context = yield* connect({ claim: { minIdle: "1 second" } })
      const fields = Array.from({ length: 10_000 }, (_, i) => [`f${i}`, String(i)]).flat()
      yield* run("XADD", topic, "*", ...fields)
      yield* run("XADD", topic, "*", "body", `"after"`)
      const handled: Array<string> = []
      const running = yield* Pipeline.from(Topic.make(topic, { schema: Schema.String }), {
        group: "g",
        startFrom: "beginning"
      }).pipe(Pipeline.map((value) => void handled.push(value)), Pipeline.start, Effect.provide(context))
      yield* Wait.until(
        "settled",
        Effect.map(running.counts, ({ deadLettered }) => deadLettered === 1 && handled.length === 1)
      )
      yield* Wait.until("none pending", Effect.map(run("XPENDING", topic, "g"), ([n]) => n === 0))
      const [letter, ...more] = yield* stored(`${topic}.dead`)
      assert.deepStrictEqual(letter!.slice(0, fields.length), fields)
      assert.deepStrictEqual(more, [])
    }))

  it.effect("an entry of 10,000 fields is published whatever bounds the topic has", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const fields = new Map(Array.from({ length: 10_000 }, (_, i) => [`f${i}`, Buffer.from(String(i))]))
      for (const bound of [{ maxAge: "1 hour" }, { maxLength: 2 }] as const) {
        const topic = fresh("bounded")
        for (const id of ["1-0", "1-1"]) yield* run("XADD", topic, id, "old", "1")
        const redis = Context.get(yield* connect({ retention: { ...bound, exact: true } }), Transport)
        for (const more of [{}, { id: "i" }]) {
          const [outcome] = yield* redis.publish([outgoing(topic, "", { fields, ...more })])
          assert.isTrue(Result.isSuccess(outcome!))
        }
        assert.deepStrictEqual((yield* stored(topic)).map(({ length }) => length), [20_000, 20_000])
      }
    }))

  it.effect("stored entries are read between ids and times, forwards and back, and one by its id", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("read")
      const context = yield* connect()
      for (let i = 1; i <= 5; i++) yield* run("XADD", topic, `${i}000-1`, "body", String(i))
      const read = (options?: RedisStreams.ReadOptions) =>
        Effect.map(
          Effect.provide(Stream.runCollect(RedisStreams.read({ name: topic }, options)), context),
          (all) => all.map(textOf).join("")
        )
      assert.strictEqual(yield* read(), "12345")
      assert.strictEqual(yield* read({ reverse: true }), "54321")
      assert.strictEqual(yield* read({ from: "2000-1", to: "4000" }), "234")
      assert.strictEqual(yield* read({ from: "2000", to: "4000", reverse: true, limit: 2 }), "43")
      assert.strictEqual(yield* read({ limit: 0 }), "")
      for (const limit of [1.5, -1, NaN]) {
        assert.match((yield* Effect.flip(read({ limit }))).message, /^redis: limit is .*whole number/)
      }
      const tooLarge = "18446744073709551616-0"
      assert.match((yield* Effect.flip(read({ from: tooLarge }))).message, /^redis: from is .*: give the id/)
      assert.isTrue(Option.isNone(yield* Effect.provide(RedisStreams.get(topic, tooLarge), context)))
      const error = yield* Effect.flip(read({ from: "yesterday" }))
      assert.match(error.message, /from is "yesterday": give the id/)
      const one = yield* Effect.provide(RedisStreams.get(topic, "3000-1"), context)
      assert.strictEqual(textOf(Option.getOrThrow(one)), "3")
      assert.isTrue(Option.isNone(yield* Effect.provide(RedisStreams.get(topic, "3000-2"), context)))
    }))
})
