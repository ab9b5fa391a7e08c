/** Servers and proxies that lack something. */
import { assert, it } from "@effect/vitest"
import { Transport } from "@millrace/core/Transport"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers, Proxy, Wait } from "@millrace/testing"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { admin, demand, fresh, noting, outgoing, subscribing, textOf } from "./redis.ts"

const calls = (stats: unknown, command: string): number =>
  Number(new RegExp(`cmdstat_${command}:calls=(\\d+)`).exec(String(stats))?.[1] ?? 0)

/** Passes requests on as `change` has them. */
const behind = Effect.fnUntraced(function*(change: (request: string) => string) {
  const broker = yield* Brokers.redis()
  const proxy = yield* Proxy.make(broker, {
    pass: (piece, to) => to === "client" ? piece : Buffer.from(change(piece.toString("latin1")), "latin1")
  })
  return { run: yield* admin(broker.url), url: proxy.through(broker.url) }
})

const ignored = (request: string) =>
  request.replaceAll(/\*11(\r\n\$10\r\nXREADGROUP[^]*?)\$5\r\nBLOCK\r\n\$\d+\r\n\d+\r\n/g, "*9$1")

it.live.each(
  [
    ["ignores BLOCK", ignored, /does not wait/],
    [
      "refuses BLOCK",
      (request: string) => request.replaceAll("$5\r\nBLOCK\r\n", "$5\r\nXLOCK\r\n"),
      /refuses reads that wait/
    ]
  ] as const
)("a server that %s is polled, and says so once", ([, change, expected]) =>
  Effect.gen(function*() {
    const { run, url } = yield* behind(change)
    const said: Array<string> = []
    const redis = Context.get(yield* Effect.provide(Effect.orDie(RedisStreams.make({ url })), noting(said)), Transport)
    const topic = fresh("poll")
    const subscription = yield* Effect.provide(redis.subscribe(subscribing(topic)), noting(said))
    const pulling = yield* Effect.forkChild(subscription.pull(demand(1)))
    yield* Wait.until("told", Effect.sync(() => said.some((line) => expected.test(line))))
    const since = performance.now()
    yield* run("CONFIG", "RESETSTAT")
    yield* Effect.sleep(1_000)
    const reads = calls(yield* run("INFO", "commandstats"), "xreadgroup")
    assert.isAtMost(reads, (performance.now() - since) / 50 + 1)
    yield* redis.publish([outgoing(topic, "a")])
    yield* Wait.until("given", Effect.sync(() => pulling.pollUnsafe() !== undefined))
    assert.strictEqual(said.filter((line) => expected.test(line)).length, 1, said.join("\n"))
  }).pipe(Effect.scoped))

it.live("without CLIENT it connects, and no read is long", () =>
  Effect.gen(function*() {
    const broker = yield* Brokers.redis({ args: ["--rename-command", "CLIENT", ""] })
    const redis = Context.get(yield* Effect.orDie(RedisStreams.make({ url: broker.url, block: "1 minute" })), Transport)
    const [one, two] = [fresh("one"), fresh("two")]
    const first = yield* redis.subscribe(subscribing(one))
    const pulling = yield* Effect.forkChild(first.pull(demand(1)))
    yield* Effect.sleep(200)
    const second = yield* redis.subscribe(subscribing(two))
    yield* redis.publish([outgoing(two, "b")])
    assert.strictEqual(textOf((yield* second.pull(demand(1)).pipe(Effect.timeout("30 seconds")))[0]), "b")
    yield* redis.publish([outgoing(one, "a")])
    yield* Wait.until("given", Effect.sync(() => pulling.pollUnsafe() !== undefined))
  }).pipe(Effect.scoped))

it.live("without scripts a subscription says so at once, and plain publishing works", () =>
  Effect.gen(function*() {
    const broker = yield* Brokers.redis({ args: ["--rename-command", "EVAL", "", "--rename-command", "EVALSHA", ""] })
    const redis = Context.get(yield* Effect.orDie(RedisStreams.make({ url: broker.url })), Transport)
    const error = yield* Effect.flip(Effect.scoped(redis.subscribe(subscribing(fresh("scripts")))))
    assert.strictEqual(error.reason._tag, "Unsupported")
    assert.match(error.message, /it runs no scripts \(EVAL, EVALSHA\)/)
    assert.notInclude(error.message, "local function")
    const [outcome] = yield* redis.publish([outgoing(fresh("plain"), "a")])
    assert.strictEqual(outcome!._tag, "Success")
  }).pipe(Effect.scoped))

it.live.each(["newest", "oldest"])(
  "without XINFO a subscription says so at once (redis %s)",
  (version) =>
    Effect.gen(function*() {
      const broker = yield* Brokers.redis({ version, args: ["--rename-command", "XINFO", ""] })
      const redis = Context.get(yield* Effect.orDie(RedisStreams.make({ url: broker.url })), Transport)
      const error = yield* Effect.flip(Effect.scoped(redis.subscribe(subscribing(fresh("xinfo")))))
      assert.strictEqual(error.reason._tag, "Unsupported")
      assert.match(error.message, /it has no command XINFO/)
    }).pipe(Effect.scoped)
)

it.live("where CLIENT UNBLOCK is refused, the first read is short already", () =>
  Effect.gen(function*() {
    const broker = yield* Brokers.redis()
    const run = yield* admin(broker.url)
    yield* run("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-client|unblock")
    const url = `redis://app:pw@127.0.0.1:${broker.port}`
    const redis = Context.get(yield* Effect.orDie(RedisStreams.make({ url, block: "1 hour" })), Transport)
    const [one, two] = [fresh("one"), fresh("two")]
    const first = yield* redis.subscribe(subscribing(one))
    yield* Effect.forkChild(first.pull(demand(1)), { startImmediately: true })
    yield* Wait.until(
      "it reads",
      Effect.map(run("INFO", "commandstats"), (stats) => calls(stats, "xreadgroup") > 0)
    )
    const second = yield* redis.subscribe(subscribing(two))
    yield* redis.publish([outgoing(two, "b")])
    assert.strictEqual(textOf((yield* second.pull(demand(1)))[0]), "b")
  }).pipe(Effect.scoped))

it.live("a redirect is followed only where a cluster was asked for: no credentials go to the node it names", () =>
  Effect.gen(function*() {
    let asked = 0
    const broker = yield* Brokers.redis()
    const stranger = yield* Proxy.make(broker, { pass: (piece) => (asked++, piece) })
    const proxy = yield* Proxy.make(broker, {
      pass: (piece, to) =>
        to === "client" || !piece.includes("XADD")
          ? piece
          : Buffer.from(moved(stranger.port), "latin1")
    })
    const redis = Context.get(
      yield* Effect.orDie(RedisStreams.make({ url: proxy.through(broker.url) })),
      Transport
    )
    const [outcome] = yield* redis.publish([outgoing(fresh("moved"), "a")])
    assert.strictEqual(outcome!._tag, "Failure")
    assert.match(outcome!._tag === "Failure" ? outcome!.failure.message : "", /give cluster: true/)
    assert.strictEqual(asked, 0)
  }).pipe(Effect.scoped))

/** Makes the server itself answer with a redirect. */
const moved = (port: number): string => {
  const script = `return redis.error_reply('MOVED 1 127.0.0.1:${port}')`
  return `*3\r\n$4\r\nEVAL\r\n$${script.length}\r\n${script}\r\n$1\r\n0\r\n`
}
