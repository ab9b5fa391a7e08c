import { assert, describe, it } from "@effect/vitest"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Settlement from "@millrace/core/Settlement"
import * as Topic from "@millrace/core/Topic"
import { Transport } from "@millrace/core/Transport"
import type { RedisStreams } from "@millrace/redis-streams"
import { Brokers, Proxy, Wait } from "@millrace/testing"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { createServer } from "node:net"
import {
  connect,
  demand,
  fresh,
  noting,
  outgoing,
  retry,
  Server,
  serving,
  subscribing,
  textOf,
  transport
} from "./redis.ts"

const onServer = <A, E>(
  options: Parameters<typeof serving>[1],
  effect: Effect.Effect<A, E, Server | Scope.Scope>
) => effect.pipe(Effect.scoped, Effect.provide(serving("redis", options)))

const quick = { answerTimeout: "1 second", claim: { minIdle: "1 second" } } as const

/** How long the load test runs at least, in seconds: `MILLRACE_SOAK=120` for the long one. */
const soakFor = Number(process.env["MILLRACE_SOAK"] ?? 3)

/** A pipeline that notes what it handled, on connections of its own. */
const consuming = Effect.fnUntraced(function*(topic: string, options?: Partial<RedisStreams.Options>) {
  const context = yield* connect({ ...quick, ...options })
  const handled = new Map<string, number>()
  const suspects = new Set<string>()
  const source = Topic.make(topic, { schema: Schema.String })
  const running = yield* Pipeline.from(source, { group: "g", startFrom: "beginning" }).pipe(
    Pipeline.map((value, message) => {
      handled.set(value, (handled.get(value) ?? 0) + 1)
      if (message.attempt > 1) suspects.add(value)
    }),
    Pipeline.concurrency(16),
    Pipeline.start,
    Effect.provide(context)
  )
  return { running, handled, suspects, redis: Context.get(context, Transport) }
})

it.live("pipelines that close while the server is away wait for it together", () =>
  onServer(
    {},
    Effect.gen(function*() {
      const { broker } = yield* Server
      const { proxy, url } = yield* watched(broker)
      const context = yield* connect({ ...quick, url })
      const scope = yield* Scope.make()
      const closed: Array<number> = []
      for (const n of [1, 2, 3, 4]) {
        yield* Scope.addFinalizer(scope, Effect.sync(() => closed.push(performance.now())))
        yield* Pipeline.from(Topic.make(fresh("away"), { schema: Schema.String }), { group: `g${n}` }).pipe(
          Pipeline.map(() => {}),
          Pipeline.start,
          Scope.provide(scope),
          Effect.provide(context)
        )
      }
      // Nothing gets through any more, and no new connection answers.
      yield* proxy.hang
      const since = performance.now()
      yield* Scope.close(scope, Exit.void)
      const first = closed[0]! - since
      assert.isBelow(closed[3]! - closed[0]!, first)
    })
  ))

/** Stands before the server, and knows what each connection is for. */
const watched = Effect.fnUntraced(function*(broker: Brokers.Broker) {
  const uses = new Map<Proxy.Connection, { reads: boolean; publishes: boolean; isMute: boolean }>()
  const proxy = yield* Proxy.make(broker, {
    pass: (piece, to, connection) => {
      const use = uses.get(connection) ?? { reads: false, publishes: false, isMute: false }
      uses.set(connection, use)
      if (to === "client") return use.isMute ? Buffer.alloc(0) : piece
      // As commands: scripts name them too.
      use.reads ||= piece.includes("$10\r\nXREADGROUP\r\n")
      use.publishes ||= piece.includes("$4\r\nXADD\r\n")
      return piece
    }
  })
  return {
    proxy,
    url: proxy.through(broker.url),
    /** Nothing passes on these any more, and nobody is told; new connections work. */
    hang: (which: "all" | "reading") => {
      for (const [connection, { reads }] of uses) if (which === "all" || reads) connection.hang()
    },
    /** What is sent on these arrives, and no answer comes back. */
    mute: (which: "keeping" | "publishing") => {
      for (const use of uses.values()) {
        use.isMute ||= which === "publishing"
          ? use.publishes
          : !use.reads && !use.publishes
      }
    }
  }
})

const json = (topic: string, value: string) => outgoing(topic, JSON.stringify(value))

describe("what a server does to a consumer", () => {
  it.live("stream deleted, group destroyed, everything flushed: consumption goes on by itself, from the beginning", () =>
    onServer(
      {},
      Effect.gen(function*() {
        const { run } = yield* Server
        const topic = fresh("gone")
        const { handled, redis, running } = yield* consuming(topic)
        for (const command of [["DEL", topic], ["XGROUP", "DESTROY", topic, "g"], ["FLUSHALL"], ["SCRIPT", "FLUSH"]]) {
          const before = `before ${command[0]}`
          yield* redis.publish([json(topic, before)])
          yield* Wait.until(before, Effect.sync(() => handled.has(before)))
          yield* run("CONFIG", "RESETSTAT")
          yield* run(...command)
          const after = `after ${command[0]}`
          yield* run("XADD", topic, "*", "body", JSON.stringify(after))
          yield* Wait.until(after, Effect.sync(() => handled.has(after)))
        }
        yield* run("DEL", topic)
        yield* run("CONFIG", "RESETSTAT")
        yield* Effect.sleep(1_000)
        const reads = /cmdstat_xreadgroup:calls=(\d+)/.exec(String(yield* run("INFO", "commandstats")))
        assert.isAtMost(Number(reads?.[1] ?? 0), 10, "a hot loop")
        assert.strictEqual((yield* running.health).state, "consuming")
      })
    ))

  it.live("every client killed, again and again: nothing is lost", () =>
    onServer(
      {},
      Effect.gen(function*() {
        const { run } = yield* Server
        const topic = fresh("killed")
        const { handled, running } = yield* consuming(topic)
        for (let round = 0; round < 5; round++) {
          yield* Effect.forEach(
            Arr.makeBy(200, (i) => JSON.stringify(`${round} ${i}`)),
            (body) => run("XADD", topic, "*", "body", body),
            { concurrency: "unbounded", discard: true }
          )
          yield* run("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        }
        yield* Wait.until("all handled", Effect.sync(() => handled.size === 1_000))
        yield* Wait.until("healthy", Effect.map(running.health, ({ state }) => state === "consuming"))
      })
    ))

  it.live("restarted without its data: the group is created again and reads new entries", () =>
    onServer(
      { persistence: "none" },
      Effect.gen(function*() {
        const { broker } = yield* Server
        const topic = fresh("empty")
        const { handled, redis, running } = yield* consuming(topic)
        yield* redis.publish([json(topic, "before")])
        yield* Wait.until("before", Effect.sync(() => handled.has("before")))
        yield* broker.kill
        yield* Wait.until("noticed", Effect.map(running.health, ({ state }) => state === "reconnecting"))
        yield* broker.start
        yield* redis.publish([json(topic, "after")])
        yield* Wait.until("after", Effect.sync(() => handled.has("after")))
        assert.strictEqual((yield* running.health).state, "consuming")
      })
    ))

  it.live(
    "killed and restarted with its data under load: nothing is lost, and what is repeated was never confirmed",
    () =>
      onServer(
        { persistence: "always" },
        Effect.gen(function*() {
          const { broker } = yield* Server
          const topic = fresh("load")
          const { handled, redis, running, suspects } = yield* consuming(topic)
          const confirmed = new Set<string>()
          let published = 0
          const publishing = yield* Effect.forkChild(Effect.forever(Effect.gen(function*() {
            const values = Arr.makeBy(100, () => `m${published++}`)
            const outcomes = yield* redis.publish(values.map((value) => json(topic, value)) as any)
            outcomes.forEach((outcome, i) => Result.isSuccess(outcome) && confirmed.add(values[i]!))
            yield* Effect.sleep(5)
          })))
          const end = performance.now() + soakFor * 1_000
          let kills = 0
          while (performance.now() < end || confirmed.size <= 1_000) {
            yield* Effect.sleep(soakFor < 60 ? 1_000 : 3_000)
            yield* broker.kill
            kills++
            yield* Effect.sleep(300)
            yield* broker.start
          }
          yield* Effect.sleep(500)
          yield* Fiber.interrupt(publishing)
          yield* Wait.until(
            "all handled",
            Effect.sync(() => [...confirmed].every((value) => handled.has(value))),
            "1 minute"
          )
          const { resettled } = yield* running.counts
          const repeated = [...handled].filter(([, n]) => n > 1)
          const explained = repeated.filter(([value]) => suspects.has(value))
          console.log(
            `${kills} kills: ${confirmed.size} published and confirmed, ${handled.size} handled, ${repeated.length} more than ` +
              `once (${explained.length} of them redelivered as suspect), ${resettled} settlements sent again`
          )
          assert.strictEqual(explained.length, repeated.length)
        })
      ),
    (soakFor + 120) * 1_000
  )

  it.live("restarted with much to load: refused while it loads, and consumed from then on", () =>
    onServer(
      { persistence: "always", args: ["--key-load-delay", "300"] },
      Effect.gen(function*() {
        const { broker, run } = yield* Server
        const topic = fresh("loading")
        yield* run("EVAL", "for i = 1, 3000 do redis.call('SET', KEYS[1], i) end", "1", "key")
        const said: Array<string> = []
        const { handled, redis, running } = yield* consuming(topic).pipe(Effect.provide(noting(said)))
        yield* broker.kill
        yield* Wait.until("noticed", Effect.map(running.health, ({ state }) => state === "reconnecting"))
        yield* Effect.forkChild(broker.start)
        yield* Wait.until(
          "published",
          Effect.map(redis.publish([json(topic, "after")]), ([outcome]) => Result.isSuccess(outcome!))
        )
        yield* Wait.until("after", Effect.sync(() => handled.has("after")))
        yield* Wait.until("healthy", Effect.map(running.health, ({ state }) => state === "consuming"))
        // One line at the beginning of the outage and one at its end, however many connections were lost.
        const about = said.filter((line) => /lost|connect|consum/.test(line) && !line.includes("consuming loading"))
        assert.isAtMost(about.length, 2, said.join("\n"))
      })
    ))

  it.live.each<readonly [code: string, begin: ReadonlyArray<string>, end: ReadonlyArray<string>, remedy: RegExp]>([
    ["READONLY", ["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"], /address of the master/],
    [
      "NOREPLICAS",
      ["CONFIG", "SET", "min-replicas-to-write", "1"],
      ["CONFIG", "SET", "min-replicas-to-write", "0"],
      /min-replicas-to-write/
    ]
  ])(
    "refuses writes for a time (%s): health says why, one line is logged, and all goes on by itself",
    ([code, begin, end, remedy]) =>
      onServer(
        {},
        Effect.gen(function*() {
          const { run } = yield* Server
          const topic = fresh("refusing")
          const said: Array<string> = []
          const { handled, redis, running } = yield* consuming(topic).pipe(Effect.provide(noting(said)))
          yield* redis.publish([json(topic, "before")])
          yield* Wait.until("before", Effect.sync(() => handled.has("before")))
          // An acknowledgement that is refused would end the connection beside the publish.
          yield* Wait.until("acknowledged", Effect.map(run("XPENDING", topic, "g"), ([n]) => n === 0))
          yield* run(...begin)
          const [outcome] = yield* redis.publish([json(topic, "meanwhile")])
          assert.isTrue(Result.isFailure(outcome!) && outcome.failure.reason._tag === "NotSent")
          yield* Wait.until(
            "the reason",
            Effect.map(
              running.health,
              ({ reason, state }) => state === "reconnecting" && reason?.includes(code) === true
            )
          )
          yield* Wait.until(
            "logged",
            Effect.sync(() => said.some((line) => line.includes("cannot consume")))
          )
          yield* run(...end)
          yield* Wait.until("healthy", Effect.map(running.health, ({ state }) => state === "consuming"))
          yield* redis.publish([json(topic, "after")])
          yield* Wait.until("after", Effect.sync(() => handled.has("after")))
          const lines = said.filter((line) => line.includes(code))
          assert.strictEqual(lines.length, 1, said.join("\n"))
          assert.match(lines[0]!, remedy)
        })
      )
  )

  it.live("frozen: the connections are given up, and made again when it answers", () =>
    onServer(
      {},
      Effect.gen(function*() {
        const { broker } = yield* Server
        const topic = fresh("frozen")
        const { handled, redis, running } = yield* consuming(topic, { block: "500 millis" })
        yield* broker.pause
        yield* Wait.until("noticed", Effect.map(running.health, ({ state }) => state === "reconnecting"))
        yield* broker.resume
        yield* Wait.until("healthy", Effect.map(running.health, ({ state }) => state === "consuming"))
        yield* redis.publish([json(topic, "after")])
        yield* Wait.until("after", Effect.sync(() => handled.has("after")))
      })
    ))

  it.live("frozen: closing does not wait for it, also while others wait for their retry", () =>
    onServer(
      {},
      Effect.gen(function*() {
        const { broker } = yield* Server
        const scope = yield* Scope.make()
        const topic = fresh("frozen-close")
        const { redis, running } = yield* Scope.provide(consuming(topic), scope)
        const subscription = yield* Scope.provide(redis.subscribe(subscribing(topic, { group: "other" })), scope)
        yield* redis.publish([json(topic, "1")])
        const [delivery] = yield* subscription.pull(demand(1))
        yield* subscription.settle([{ delivery, settlement: retry("1 hour") }])
        yield* Wait.until("handled", Effect.map(running.counts, ({ handled }) => handled === 1))
        yield* broker.pause
        const closing = yield* Scope.close(scope, Exit.void).pipe(Effect.timeout("20 seconds"), Effect.exit)
        yield* broker.resume
        assert.isTrue(Exit.isSuccess(closing))
      })
    ))

  it.live(
    "half-open, all connections or only the reading one: consumption goes on before the answer timeout has passed",
    () =>
      onServer(
        {},
        Effect.gen(function*() {
          const { broker, run } = yield* Server
          const { hang, url } = yield* watched(broker)
          const topic = fresh("half-open")
          const { handled } = yield* consuming(topic, { url, answerTimeout: "10 seconds", claim: {} })
          for (const which of ["all", "reading"] as const) {
            const [before, after] = [`before ${which}`, `after ${which}`]
            yield* run("XADD", topic, "*", "body", JSON.stringify(before))
            yield* Wait.until(before, Effect.sync(() => handled.has(before)))
            hang(which)
            // A read that is under way takes one with it, to nowhere.
            yield* Wait.until(
              "the read is over at the server",
              Effect.map(
                run("CLIENT", "LIST"),
                (list) => !/cmd=xreadgroup[^\n]* flags=b|flags=b[^\n]*cmd=xreadgroup/.test(String(list))
              )
            )
            yield* run("XADD", topic, "*", "body", JSON.stringify(after))
            yield* Wait.until(after, Effect.sync(() => handled.has(after)), "9 seconds")
            yield* Wait.until("settled", Effect.map(run("XPENDING", topic, "g"), ([n]) => n === 0))
          }
        })
      )
  )

  it.live("may not acknowledge, or claim, or connect any more: that is logged once, shows in health, and ends when it may", () =>
    onServer(
      {},
      Effect.gen(function*() {
        const { broker, run } = yield* Server
        const topic = fresh("refused")
        const said: Array<string> = []
        const allow = (...rules: ReadonlyArray<string>) => run("ACL", "SETUSER", "app", ...rules)
        yield* allow("on", ">secret-1", "~*", "&*", "+@all")
        const { handled, redis, running } = yield* consuming(topic, {
          url: `redis://app:secret-1@127.0.0.1:${broker.port}`
        }).pipe(Effect.provide(noting(said)))
        const is = (expected: string) =>
          Wait.until(expected, Effect.map(running.health, ({ state }) => state === expected))
        const about = (what: RegExp) => said.filter((line) => what.test(line))

        yield* allow("-xack")
        yield* redis.publish([json(topic, "a")])
        yield* Wait.until("handled", Effect.sync(() => handled.has("a")))
        yield* is("impaired")
        // The pipeline logs the reason of its health, once.
        yield* Wait.until("logged", Effect.sync(() => about(/xack/).length > 0))
        yield* Effect.sleep(1_000)
        assert.strictEqual(about(/xack/).length, 1, said.join("\n"))
        assert.match(about(/xack/)[0]!, /cannot consume.*refused settling in .*allow it to this user/)
        yield* allow("+xack")
        yield* Wait.until("settled", Effect.map(run("XPENDING", topic, "g"), ([n]) => n === 0))
        yield* is("consuming")

        yield* allow("-evalsha")
        yield* is("impaired")
        yield* Wait.until("logged", Effect.sync(() => about(/evalsha/).length > 0))
        yield* Effect.sleep(1_000)
        assert.strictEqual(about(/evalsha/).length, 1, said.join("\n"))
        assert.match(about(/evalsha/)[0]!, /cannot consume.*abandoned entries.*allow it to this user/)
        yield* allow("+evalsha")
        yield* is("consuming")

        yield* allow("resetpass", ">secret-2")
        yield* run("CLIENT", "KILL", "USER", "app")
        yield* is("reconnecting")
        yield* Wait.until(
          "the reason",
          Effect.map(
            running.health,
            (health) => health.state === "reconnecting" && /WRONGPASS/.test(health.reason ?? "")
          )
        )
        yield* allow(">secret-1")
        yield* is("consuming")
        assert.deepStrictEqual(about(/secret/), [])
      })
    ))

  it.live("down: asked for at most a few times a second, and closing does not wait for it", () =>
    Effect.scoped(Effect.gen(function*() {
      const broker = yield* Brokers.redis()
      const scope = yield* Scope.make()
      const server = Server.of({ broker, url: broker.url, run: () => Effect.die("not here") })
      const { running } = yield* consuming(fresh("down")).pipe(
        Scope.provide(scope),
        Effect.provideService(Server, server)
      )
      yield* broker.kill
      let asked = 0
      const door = createServer((socket) => {
        asked++
        socket.destroy()
      })
      yield* Effect.callback<void>((resume) => void door.listen(broker.port, "127.0.0.1", () => resume(Effect.void)))
      yield* Wait.until("noticed", Effect.map(running.health, ({ state }) => state === "reconnecting"))
      yield* Effect.sleep(3_000)
      // Three connections, each after 50, 100, 200, ... ms at first.
      assert.isAtMost(asked, 27)
      yield* Scope.close(scope, Exit.void).pipe(Effect.timeout("15 seconds"))
      door.close()
    })))

  it.live("without memory: stored entries are still consumed", () =>
    onServer(
      {},
      Effect.gen(function*() {
        const { run } = yield* Server
        const topic = fresh("oom")
        const { handled, redis, running } = yield* consuming(topic)
        yield* running.pause
        yield* redis.publish([json(topic, "before")])
        yield* run("CONFIG", "SET", "maxmemory", "1")
        yield* running.resume
        yield* Wait.until("before", Effect.sync(() => handled.has("before")))
        yield* run("CONFIG", "SET", "maxmemory", "0")
        yield* redis.publish([json(topic, "after")])
        yield* Wait.until(
          "after",
          Effect.sync(() => handled.has("after"))
        )
      })
    ))
})

describe("what a consumer's connection does to a message", () => {
  it.live("a due retry whose answer is lost with the connection is given again, and counts one attempt", () =>
    onServer(
      {},
      Effect.gen(function*() {
        const { broker, run } = yield* Server
        const { mute, url } = yield* watched(broker)
        const redis = yield* transport({ url, answerTimeout: "1 second" })
        const topic = fresh("lost-hand")
        const subscription = yield* redis.subscribe(subscribing(topic))
        yield* redis.publish([outgoing(topic, "1")])
        // The first time only makes the server know the scripts.
        for (const delay of ["1 millis", "300 millis"] as const) {
          const [delivery] = yield* subscription.pull(demand(1))
          yield* subscription.settle([{ delivery, settlement: retry(delay) }])
        }
        const pulling = yield* Effect.forkChild(subscription.pull(demand(1)), { startImmediately: true })
        mute("keeping")
        const count = Effect.map(run("XPENDING", topic, "g", "-", "+", "1"), ([[, , , count]]) => Number(count))
        yield* Wait.until("counted at the server", Effect.map(count, (n) => n === 3))
        const [again] = yield* Fiber.join(pulling)
        assert.deepStrictEqual([textOf(again), again.attempt, yield* count], ["1", 3, 3])
      })
    ))

  it.live("a due retry whose answer is lost is kept while the engine has no room for it, and counts one attempt", () =>
    onServer(
      {},
      Effect.gen(function*() {
        const { broker, run } = yield* Server
        const { mute, url } = yield* watched(broker)
        const redis = yield* transport({ url, answerTimeout: "1 second", claim: { minIdle: "2 seconds" } })
        const topic = fresh("kept-hand")
        const subscription = yield* redis.subscribe(subscribing(topic))
        yield* redis.publish([outgoing(topic, "1")])
        // The first time only makes the server know the scripts.
        for (const delay of ["1 millis", "300 millis"] as const) {
          const [delivery] = yield* subscription.pull(demand(1))
          yield* subscription.settle([{ delivery, settlement: retry(delay) }])
        }
        const pulling = yield* Effect.forkChild(subscription.pull(demand(1)), { startImmediately: true })
        mute("keeping")
        const pending = Effect.map(
          run("XPENDING", topic, "g", "-", "+", "1"),
          ([[, , idle, count]]) => ({ idle, count })
        )
        yield* Wait.until("counted at the server", Effect.map(pending, ({ count }) => count === 3))
        yield* Fiber.interrupt(pulling)
        yield* subscription.withdraw
        yield* Wait.until("a second has passed", Effect.map(pending, ({ idle }) => idle > 1_000))
        yield* Wait.until("extended", Effect.map(pending, ({ idle }) => idle < 1_000))
        const [again] = yield* subscription.pull(demand(1))
        assert.deepStrictEqual([textOf(again), again.attempt, again.suspect], ["1", 3, false])
      })
    ))

  it.live("a read whose answer is lost with the connection is taken back, before anything unread", () =>
    onServer(
      {},
      Effect.gen(function*() {
        const { broker, run } = yield* Server
        let isLost = false
        const proxy = yield* Proxy.make(broker, {
          pass: (piece, to) => {
            if (isLost || to === "broker" || !piece.includes("first")) return piece
            isLost = true
            return undefined
          }
        })
        const redis = yield* transport({ url: proxy.through(broker.url), claim: { minIdle: "10 minutes" } })
        const topic = fresh("lost-read")
        const subscription = yield* redis.subscribe(subscribing(topic))
        const pulling = yield* Effect.forkChild(subscription.pull(demand(1)), { startImmediately: true })
        yield* run("XADD", topic, "*", "body", "first")
        yield* run("XADD", topic, "*", "body", "second")
        const [first] = yield* Fiber.join(pulling)
        const [second] = yield* subscription.pull(demand(1))
        assert.deepStrictEqual([textOf(first), first.attempt, textOf(second)], ["first", 1, "second"])
        assert.isTrue(isLost)
      })
    ))

  it.live("a settlement that is held up until a peer has settled the entry does not take the entry back", () =>
    onServer(
      {},
      Effect.gen(function*() {
        const { broker, run } = yield* Server
        const held = new Map<number, Array<Buffer>>()
        let isHeld = false
        const proxy = yield* Proxy.make(broker, {
          pass: (piece, to, { id }) => {
            if (to === "client") return piece
            const before = held.get(id) ?? []
            held.set(id, isHeld ? [...before, piece] : [])
            return isHeld ? Buffer.alloc(0) : Buffer.concat([...before, piece])
          }
        })
        const options = { answerTimeout: "5 minutes", claim: { minIdle: "1 second" } } as const
        const redis = yield* transport({ ...options, url: proxy.through(broker.url) })
        const topic = fresh("held-up")
        yield* redis.publish([outgoing(topic, "1")])
        const subscription = yield* redis.subscribe(subscribing(topic))
        const [delivery] = yield* subscription.pull(demand(1))
        // As a process that is stopped after it has decided, and before its socket is written.
        isHeld = true
        const settling = yield* Effect.forkChild(subscription.settle([{ delivery, settlement: retry("1 minute") }]), {
          startImmediately: true
        })
        const other = yield* transport(options)
        const peer = yield* other.subscribe(subscribing(topic))
        const [taken] = yield* peer.pull(demand(1))
        yield* peer.settle([{ delivery: taken, settlement: Settlement.ack }])
        isHeld = false
        yield* redis.publish([outgoing(fresh("flush"), "")])
        assert.deepStrictEqual(yield* Fiber.join(settling), [delivery])
        assert.strictEqual((yield* run("XPENDING", topic, "g"))[0], 0)
      })
    ))

  it.live("an entry whose deletion on acknowledgement is not answered yet was not deleted by anybody else", () =>
    onServer(
      {},
      Effect.gen(function*() {
        const { broker, run } = yield* Server
        const { mute, url } = yield* watched(broker)
        const said: Array<string> = []
        const redis = yield* Effect.provide(
          transport({ url, answerTimeout: "2 seconds", retention: "until-acked" }),
          noting(said)
        )
        const topic = fresh("deleted-here")
        yield* redis.publish([outgoing(topic, "1")])
        const subscription = yield* Effect.provide(redis.subscribe(subscribing(topic)), noting(said))
        const [delivery] = yield* subscription.pull(demand(1))
        mute("publishing")
        const settling = yield* Effect.forkChild(
          Effect.result(subscription.settle([{ delivery, settlement: Settlement.ack }])),
          { startImmediately: true }
        )
        yield* Wait.until("deleted", Effect.map(run("XLEN", topic), (n) => n === 0))
        assert.deepStrictEqual(yield* Effect.provide(subscription.extend([delivery]), noting(said)), [])
        assert.isFalse(delivery.vanished)
        assert.notMatch(said.join(), /were deleted/)
        yield* Fiber.join(settling)
      })
    ))

  it.live("a settlement that finds no server fails, and can be sent again when it is back", () =>
    onServer(
      { persistence: "always" },
      Effect.gen(function*() {
        const { broker, run } = yield* Server
        const redis = yield* transport()
        const topic = fresh("settle")
        const subscription = yield* redis.subscribe(subscribing(topic))
        yield* redis.publish(Arr.makeBy(4, (i) => outgoing(topic, String(i))) as any)
        const deliveries: Array<any> = []
        while (deliveries.length < 4) deliveries.push(...yield* subscription.pull(demand(4 - deliveries.length)))
        const settlements = [
          Settlement.ack,
          retry("1 millis"),
          Settlement.release,
          { _tag: "Terminate", reason: "no" } as const
        ]
        const batch = deliveries.map((delivery, i) => ({ delivery, settlement: settlements[i]! })) as any
        yield* broker.kill
        assert.strictEqual((yield* Effect.flip(subscription.settle(batch))).reason._tag, "OperationFailed")
        yield* broker.start
        yield* Wait.until("settled", Effect.isSuccess(subscription.settle(batch)))
        assert.deepStrictEqual(
          yield* subscription.settle(batch),
          [deliveries[2]],
          "repeated: they are settled already, and the released one may be another consumer's"
        )
        const left = yield* run("XPENDING", topic, "g", "-", "+", "10")
        assert.deepStrictEqual(left.map((entry: any) => entry[0]).sort(), [deliveries[1].id, deliveries[2].id])
      })
    ))

  it.live("a publish that waits for a connection is sent once there is one; too many say that they were not sent", () =>
    onServer(
      { persistence: "always" },
      Effect.gen(function*() {
        const { broker } = yield* Server
        const redis = yield* transport({ offline: { wait: "20 seconds", max: 3 } })
        const topic = fresh("offline")
        yield* redis.publish([outgoing(topic, "first")])
        yield* broker.kill
        yield* Wait.until("noticed", Effect.map(redis.health, ({ state }) => state === "reconnecting"))
        const waiting = yield* Effect.forkChild(redis.publish(Arr.makeBy(3, (i) => outgoing(topic, String(i))) as any))
        yield* Effect.sleep(10)
        const [refused] = yield* redis.publish([outgoing(topic, "4")])
        assert.strictEqual(Result.isFailure(refused!) && refused.failure.reason._tag, "NotSent")
        // One that is interrupted meanwhile is not sent.
        yield* Fiber.interrupt(waiting)
        const again = yield* Effect.forkChild(redis.publish(Arr.makeBy(3, (i) => outgoing(topic, String(i))) as any))
        yield* Effect.sleep(10)
        yield* broker.start
        assert.isTrue((yield* Fiber.join(again)).every(Result.isSuccess))
        const stored = yield* Stream.runCollect(redis.browse(topic))
        assert.deepStrictEqual(stored.map(textOf), ["first", "0", "1", "2"])
      })
    ))

  it.live("a publish whose connection is lost before the answer says that its outcome is not known", () =>
    onServer(
      {},
      Effect.gen(function*() {
        const { broker, run } = yield* Server
        const topic = fresh("unknown")
        const { mute, proxy, url } = yield* watched(broker)
        const redis = yield* transport({ url })
        yield* redis.publish([outgoing(topic, "first")])
        mute("publishing")
        const publishing = yield* Effect.forkChild(redis.publish([outgoing(topic, "second")]))
        yield* Wait.until("it has arrived", Effect.map(run("XLEN", topic), (n) => n === 2))
        yield* proxy.cut
        const [outcome] = yield* Fiber.join(publishing)
        assert.strictEqual(Result.isFailure(outcome!) && outcome.failure.reason._tag, "OutcomeUnknown")
      })
    ))

  it.live("without CLIENT UNBLOCK nothing waits for a long read either", () =>
    onServer(
      {},
      Effect.gen(function*() {
        const { broker, run } = yield* Server
        yield* run("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-client|unblock")
        const redis = yield* transport({ url: `redis://app:pw@127.0.0.1:${broker.port}`, block: "1 minute" })
        const [a, b] = [fresh("a"), fresh("b")]
        const one = yield* redis.subscribe(subscribing(a))
        const pulling = yield* Effect.forkChild(one.pull(demand(1)))
        yield* Effect.sleep(50)
        const other = yield* redis.subscribe(subscribing(b))
        yield* redis.publish([outgoing(b, "b")])
        // The first read is as long as asked for: its end cannot be forced, and only then is it known.
        yield* redis.publish([outgoing(a, "a")])
        assert.strictEqual(textOf((yield* Fiber.join(pulling))[0]), "a")
        assert.strictEqual(textOf((yield* other.pull(demand(1)))[0]), "b")
        yield* redis.publish([outgoing(b, "c")])
        assert.strictEqual(textOf((yield* other.pull(demand(1)))[0]), "c")
      })
    ))
})
