import { assert } from "@effect/vitest"
import * as Message from "@millrace/core/Message"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Settlement from "@millrace/core/Settlement"
import * as Topic from "@millrace/core/Topic"
import { Transport } from "@millrace/core/Transport"
import { RedisStreams } from "@millrace/redis-streams"
import { Wait } from "@millrace/testing"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { connect, eachServer, fresh, outgoing, Server, transport } from "./redis.ts"

const topicOf = (name: string) => Topic.make(name, { schema: Schema.String })

const json = (topic: string, value: string) => outgoing(topic, JSON.stringify(value))

eachServer((it) => {
  /** Runs a handler that removes, and gives its answers. */
  const removing = Effect.fnUntraced(function*(
    topic: string,
    group: string,
    handler: (message: Message.Message<string>) => Effect.Effect<unknown, unknown, RedisStreams.RedisStreams>
  ) {
    const answers: Array<unknown> = []
    const running = yield* Pipeline.from(topicOf(topic), { group, startFrom: "beginning" }).pipe(
      Pipeline.mapEffect((_, message) =>
        Effect.tap(handler(message), (answer) => Effect.sync(() => answers.push(answer)))
      ),
      Pipeline.start
    )
    return { answers, running }
  })

  it.effect("remove acknowledges and deletes, whatever comes after it in the handler", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("remove")
      const context = yield* connect()
      const { answers, running } = yield* removing(topic, "g", (message) =>
        Effect.tap(RedisStreams.remove(message), () =>
          message.value === "fails" ? Effect.fail("after it was removed") : Effect.void)).pipe(
          Effect.provide(context)
        )
      yield* Context.get(context, Transport).publish([json(topic, "a"), json(topic, "fails"), json(topic, "b")])
      yield* Wait.until(
        "both",
        Effect.sync(() =>
          answers.length === 2
        )
      )
      assert.deepStrictEqual(answers, ["removed", "removed"])
      assert.strictEqual((yield* running.counts).failedAfterSettle, 1)
      assert.strictEqual(yield* run("XLEN", topic), 0)
      assert.strictEqual((yield* run("XPENDING", topic, "g"))[0], 0)
      assert.strictEqual(yield* run("EXISTS", `${topic}.dead`), 0)
    }))

  it.effect("remove settles a message that its handler left to the user", () =>
    Effect.gen(function*() {
      const topic = fresh("manual")
      const context = yield* connect()
      const handled: Array<Message.Message<string>> = []
      const running = yield* Pipeline.from(topicOf(topic), { group: "g", startFrom: "beginning" }).pipe(
        Pipeline.tap((_, message) => Effect.sync(() => handled.push(message))),
        Pipeline.ackPolicy("manual", { settleWithin: "5 minutes" }),
        Pipeline.start,
        Effect.provide(context)
      )
      yield* Context.get(context, Transport).publish([json(topic, "a")])
      yield* Wait.until("handled", Effect.sync(() => handled.length === 1))
      assert.strictEqual(yield* Effect.provide(RedisStreams.remove(handled[0]!), context), "removed")
      assert.deepInclude(yield* running.counts, { handled: 1, failedAfterSettle: 0 })
    }))

  it.effect("an entry stays until the last group has acknowledged it; also after it was settled by hand", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("groups")
      const context = yield* connect()
      yield* run("XGROUP", "CREATE", topic, "later", "0", "MKSTREAM")
      const first = yield* removing(
        topic,
        "first",
        (message) => Effect.andThen(Message.settle(message, Settlement.ack), RedisStreams.remove(message))
      ).pipe(Effect.provide(context))
      yield* Context.get(context, Transport).publish([json(topic, "a")])
      yield* Wait.until("kept", Effect.sync(() => first.answers.length === 1))
      assert.deepStrictEqual(first.answers, ["kept"])
      assert.strictEqual(yield* run("XLEN", topic), 1)
      const later = yield* removing(topic, "later", (message) => RedisStreams.remove(message)).pipe(
        Effect.provide(context)
      )
      yield* Wait.until("removed", Effect.sync(() => later.answers.length === 1))
      assert.deepStrictEqual(later.answers, ["removed"])
      assert.strictEqual(yield* run("XLEN", topic), 0)
    }))

  it.effect("force deletes at once; what is gone is absent; what a peer has taken is left to it", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("force")
      const context = yield* connect()
      yield* run("XGROUP", "CREATE", topic, "other", "0", "MKSTREAM")
      const { answers } = yield* removing(topic, "g", (message) =>
        message.value === "force"
          ? RedisStreams.remove(message, { force: true })
          : message.value === "gone"
          ? Effect.andThen(run("XDEL", topic, message.id), RedisStreams.remove(message))
          : Effect.andThen(
            run("XCLAIM", topic, "g", "peer", "0", message.id),
            RedisStreams.remove(message, { force: true })
          ))
        .pipe(Effect.provide(context))
      yield* Context.get(context, Transport).publish([
        json(topic, "force"),
        json(topic, "gone"),
        json(topic, "taken")
      ])
      yield* Wait.until("three", Effect.sync(() => answers.length === 3))
      assert.deepStrictEqual(answers, ["removed", "absent", "kept"])
      assert.strictEqual(yield* run("XLEN", topic), 1)
      assert.strictEqual((yield* run("XPENDING", topic, "g", "-", "+", "9"))[0][1], "peer")
    }))

  it.effect("remove takes many at a time, and removes them with one command", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("all")
      const context = yield* connect()
      const answers: Array<unknown> = []
      yield* Context.get(context, Transport).publish(Arr.makeBy(20, (i) => json(topic, String(i))))
      yield* run("CONFIG", "RESETSTAT")
      yield* Pipeline.from(topicOf(topic), { group: "g", startFrom: "beginning" }).pipe(
        Pipeline.batch({ size: 20, within: "10 seconds" }, (_, messages) =>
          Effect.tap(RedisStreams.remove(messages), (removals) =>
            Effect.sync(() => answers.push(...removals)))),
        Pipeline.concurrency(20),
        Pipeline.start,
        Effect.provide(context)
      )
      yield* Wait.until(
        "all",
        Effect.sync(() =>
          answers.length === 20
        )
      )
      assert.deepStrictEqual(new Set(answers), new Set(["removed"]))
      assert.strictEqual(yield* run("XLEN", topic), 0)
    }))

  it.effect("removeOnSuccess and until-acked leave nothing behind: done, filtered or dead-lettered", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      for (const byRetention of [true, false]) {
        const topic = fresh("until-acked")
        const context = yield* connect(byRetention ? { retention: "until-acked" } : {})
        const pipeline = Pipeline.from(topicOf(topic), { group: "g", startFrom: "beginning" }).pipe(
          Pipeline.filter((value) => value !== "filtered"),
          Pipeline.mapEffect((value) => value === "bad" ? Effect.fail("bad") : Effect.void),
          Pipeline.retry({ times: 1, schedule: Schedule.spaced("1 millis") })
        )
        yield* (byRetention ? Pipeline.start(pipeline) : Pipeline.start(RedisStreams.removeOnSuccess(pipeline))).pipe(
          Effect.provide(context)
        )
        yield* Context.get(context, Transport).publish([
          json(topic, "good"),
          json(topic, "filtered"),
          json(topic, "bad")
        ])
        yield* Wait.until("dead-lettered", Effect.map(run("XLEN", `${topic}.dead`), (n) => n === 1))
        yield* Wait.until("empty", Effect.map(run("XLEN", topic), (n) => n === 0))
      }
    }))

  it.effect("a retried message stays until it is done", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("retried")
      const context = yield* connect({ retention: "until-acked" })
      let attempts = 0
      yield* Pipeline.from(topicOf(topic), { group: "g", startFrom: "beginning" }).pipe(
        Pipeline.mapEffect(() => ++attempts < 3 ? Effect.fail("not yet") : Effect.void),
        Pipeline.retry({ times: 5, schedule: Schedule.spaced("20 millis") }),
        Pipeline.start,
        Effect.provide(context)
      )
      yield* Context.get(context, Transport).publish([json(topic, "a")])
      yield* Wait.until("empty", Effect.map(run("XLEN", topic), (n) => attempts > 0 && n === 0))
      assert.strictEqual(attempts, 3)
    }))

  it.effect("trims only what every group has acknowledged", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("trim")
      const context = yield* connect()
      const redis = Context.get(context, RedisStreams.RedisStreams)
      assert.strictEqual(yield* redis.trim(topic), 0)
      yield* Context.get(context, Transport).publish(Arr.makeBy(1_000, (i) => json(topic, String(i))))
      assert.strictEqual(yield* redis.trim(topic), 0, "no group")
      yield* run("XGROUP", "CREATE", topic, "a", "0")
      yield* run("XGROUP", "CREATE", topic, "b", "0")
      const [[, entries]] = yield* run("XREADGROUP", "GROUP", "a", "c", "COUNT", "1000", "STREAMS", topic, ">")
      yield* run("XACK", topic, "a", ...entries.map(([id]: [string]) => id))
      assert.strictEqual(yield* redis.trim(topic), 0, "b has read nothing")
      yield* run("XREADGROUP", "GROUP", "b", "c", "COUNT", "1000", "STREAMS", topic, ">")
      yield* run("XACK", topic, "b", ...entries.slice(0, 500).map(([id]: [string]) => id))
      const trimmed = yield* redis.trim(topic)
      assert.isAbove(trimmed, 300)
      assert.isAtMost(trimmed, 500)
      assert.strictEqual((yield* run("XRANGE", topic, entries[500][0], "+", "COUNT", "1"))[0][0], entries[500][0])
    }))

  it.effect("with retention acknowledged the janitor trims by itself, and deletes dead consumers that own nothing", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("janitor")
      const redis = yield* transport({ retention: "acknowledged", forgetConsumersAfter: "200 millis" })
      yield* redis.publish(Arr.makeBy(500, (i) => json(topic, String(i))))
      yield* run("XGROUP", "CREATE", topic, "g", "0")
      yield* run("XREADGROUP", "GROUP", "g", "owns", "COUNT", "1", "STREAMS", topic, ">")
      yield* run("XREADGROUP", "GROUP", "g", "empty", "COUNT", "1", "STREAMS", topic, ">")
      const [[id]] = yield* run("XPENDING", topic, "g", "-", "+", "1", "empty")
      yield* run("XACK", topic, "g", id)
      let done = 0
      yield* Pipeline.from(topicOf(topic), { group: "g" }).pipe(
        Pipeline.map(() => void done++),
        Pipeline.concurrency(64),
        Pipeline.start,
        Effect.provideService(Transport, redis)
      )
      yield* Wait.until("handled", Effect.sync(() => done >= 498))
      yield* Wait.until(
        "pruned",
        Effect.map(run("XINFO", "CONSUMERS", topic, "g"), (consumers) => {
          const names = consumers.map((consumer: Array<unknown>) => consumer[1])
          return names.includes("owns") && !names.includes("empty")
        })
      )
      assert.strictEqual(yield* run("XLEN", topic), 500, "the oldest is pending")
      yield* run("XACK", topic, "g", (yield* run("XPENDING", topic, "g", "-", "+", "1", "owns"))[0][0])
      yield* Wait.until("trimmed", Effect.map(run("XLEN", topic), (n) => n < 200))
    }))

  it.effect("tells what a group has pending, how old that is, its lag and its consumers", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("info")
      const context = yield* connect()
      const info = RedisStreams.groupInfo(topic, "g").pipe(Effect.provide(context))
      assert.strictEqual((yield* Effect.flip(info)).reason._tag, "Mismatch")
      yield* run("XADD", topic, "*", "a", "1")
      assert.strictEqual((yield* Effect.flip(info)).reason._tag, "Mismatch")
      yield* run("XGROUP", "CREATE", topic, "g", "0")
      yield* run("XADD", topic, "*", "a", "1")
      yield* run("XREADGROUP", "GROUP", "g", "c", "COUNT", "1", "STREAMS", topic, ">")
      yield* Effect.sleep(5)
      const found = yield* info
      assert.deepStrictEqual([
        found.pending,
        found.lag,
        found.consumers.map(({ name, pending }) => [name, pending])
      ], [
        1,
        1,
        [["c", 1]]
      ])
      assert.isAbove(found.oldestPendingAge!, 0)
      yield* run("XADD", topic, "*", "a", "1")
      const [[last]] = yield* run("XREVRANGE", topic, "+", "-", "COUNT", "1")
      yield* run("XADD", topic, "*", "a", "1")
      yield* run("XDEL", topic, last)
      assert.isNull((yield* info).lag, "an entry beyond the group's position was deleted")
      const [told] = yield* Context.get(context, Transport).groups(topic)
      assert.deepInclude(told, { group: "g", pending: 1 })
      assert.isFalse("lag" in told! && told.lag !== undefined, "what the server cannot know is absent")
    }))
})
