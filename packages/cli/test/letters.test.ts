import { assert, describe, it } from "@effect/vitest"
import { DeadLetter, Transport } from "@millrace/core"
import { JetStream } from "@millrace/nats-jetstream"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers } from "@millrace/testing"
import { Array as Arr, Context, Effect, Fiber, Layer, Option, Result, type Scope, Stream } from "effect"
import { spawn } from "node:child_process"
import process from "node:process"
import { fileURLToPath } from "node:url"
import { createClient } from "redis"
import { outgoing } from "../../core/src/internal/letters.ts"
import { until } from "./cli.ts"

const main = fileURLToPath(new URL("../src/internal/main.ts", import.meta.url))

/** 100,000 are a matter of a minute or two: `MILLRACE_LETTERS=100000`. */
const many = Number(process.env["MILLRACE_LETTERS"] ?? 3_000)

const letter = (i: number): Transport.Outgoing => {
  const body = new TextEncoder().encode(`{"n":${i}}`)
  return outgoing(
    "orders.dead",
    {
      id: `${i}`,
      origin: "test",
      topic: "orders",
      key: undefined,
      headers: { "content-type": "application/json" },
      body,
      fields: undefined,
      attempt: 1,
      redelivered: false,
      suspect: false,
      publishedAt: 1
    },
    new DeadLetter.Record({
      version: 1,
      sdk: "test",
      topic: "orders",
      id: `${i}`,
      group: "payments",
      pipeline: "orders/payments",
      reason: "exhausted",
      attempts: 1,
      publishedAt: 1,
      failedAt: 1,
      error: { tag: "Declined", message: `no funds ${i}`, causes: [] },
      history: []
    })
  )
}

/** The topics, and the group that the letters are for. */
const declare = Effect.gen(function*() {
  const transport = yield* Transport.Transport
  yield* transport.declare("orders.dead", "deadLetter")
  const subscribed = transport.subscribe({
    topic: "orders",
    group: "payments",
    startFrom: "beginning",
    maxOwned: 1,
    isolateFrom: Infinity,
    timeout: undefined,
    settings: Context.empty()
  })
  yield* Effect.scoped(subscribed)
})

/** Letters with these numbers. */
const add = Effect.fnUntraced(function*(from: number, to: number) {
  const transport = yield* Transport.Transport
  for (let i = from; i < to; i += 500) {
    const letters = Arr.makeBy(Math.min(500, to - i), (j) => ({ ...letter(i + j), id: undefined }))
    for (const result of yield* transport.publish(letters)) Result.getOrThrow(result)
  }
})

/** Runs `dead redrive` as a process of its own, until it ends or until it is sent this signal. */
const redrive = (
  flags: ReadonlyArray<string>,
  signal?: "SIGINT" | "SIGKILL",
  when: Effect.Effect<boolean, unknown, Transport.Transport> = Effect.succeed(false)
) =>
  Effect.gen(function*() {
    const child = spawn(process.execPath, [main, "dead", "redrive", "orders.dead", "--yes", ...flags], {
      stdio: ["ignore", "pipe", "pipe"]
    })
    let output = ""
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk) => output += chunk)
    const ended = yield* Effect.forkChild(
      Effect.callback<number | null>((resume) => void child.once("close", (code) => resume(Effect.succeed(code))))
    )
    if (signal !== undefined) {
      yield* until("it is in the middle", when)
      child.kill(signal)
    }
    return { code: yield* Fiber.join(ended), output }
  })

/** Numbers of the messages that a topic holds. */
const numbersIn = (topic: string) =>
  Effect.flatMap(
    Transport.Transport,
    (transport) =>
      Stream.runFold(transport.browse(topic), () => new Array<number>(), (all, { body }) => {
        all.push(JSON.parse(new TextDecoder().decode(body)).n)
        return all
      })
  )

const brokers: ReadonlyArray<{
  readonly name: string
  readonly open: Effect.Effect<
    {
      readonly flags: ReadonlyArray<string>
      readonly layer: Layer.Layer<Transport.Transport, unknown>
      /** Requests that the server has been sent so far; the question itself is not among them. */
      readonly requests: Effect.Effect<number>
    },
    unknown,
    Scope.Scope
  >
}> = [
  ...(["redis", "valkey"] as const).map((kind) => ({
    name: kind,
    open: Effect.gen(function*() {
      const { url } = yield* Brokers[kind]()
      const admin = yield* Effect.acquireRelease(
        Effect.promise(() => createClient({ url, RESP: 2 }).on("error", () => {}).connect()),
        (client) => Effect.sync(() => client.destroy())
      )
      return {
        flags: ["--redis", url],
        layer: RedisStreams.layer({ url, deduplicateFor: "10 minutes" }),
        requests: Effect.promise(async () => {
          const stats = String(await admin.sendCommand(["INFO", "commandstats"]))
          return [...stats.matchAll(/^cmdstat_(x\w+|eval\w*):calls=(\d+)/gm)].reduce(
            (sum, [, , calls]) => sum + Number(calls),
            0
          )
        })
      }
    })
  })),
  {
    name: "nats",
    open: Effect.gen(function*() {
      const { url } = yield* Brokers.nats()
      const context = yield* Layer.build(JetStream.layer({ url, stream: { duplicateWindow: "10 minutes" } }))
      const { client } = Context.get(context, JetStream.JetStream)
      return {
        flags: ["--nats", url],
        layer: Layer.succeedContext(context),
        requests: Effect.sync(() => client.stats().outMsgs)
      }
    })
  }
]

describe.each(brokers)(`${many} dead letters on $name`, ({ open }) => {
  it.live(
    "a page and a letter cost what they hold; a redrive that is interrupted, killed and continued loses and doubles nothing",
    () =>
      Effect.gen(function*() {
        const { flags, layer, requests } = yield* open
        yield* Effect.gen(function*() {
          yield* declare
          const cost = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
            Effect.gen(function*() {
              const before = yield* requests
              const value = yield* effect
              return { value, cost: (yield* requests) - before }
            })
          const newest = cost(Stream.runCollect(DeadLetter.list("orders.dead", { reverse: true, limit: 50 })))
          const look = Effect.gen(function*() {
            const page = yield* newest
            const before = page.value.at(-1)!.id
            const older = yield* cost(
              Stream.runCollect(DeadLetter.list("orders.dead", { reverse: true, limit: 50, before }))
            )
            const one = yield* cost(DeadLetter.inspect("orders.dead", older.value[49]!.id))
            return {
              numbers: [...page.value, ...older.value].map(({ record }) => Number(record.id)),
              shown: Option.getOrThrow(one.value).record.error.message,
              costs: [page.cost, older.cost, one.cost] as const
            }
          })
          const few = 200
          yield* add(0, few)
          const early = yield* look
          yield* add(few, many)
          const late = yield* look
          assert.deepStrictEqual(late.numbers, Arr.makeBy(100, (i) => many - 1 - i))
          assert.strictEqual(late.shown, `no funds ${many - 100}`)
          // Whatever is stored beside them; a client may ask for the time in between.
          early.costs.forEach((cost, i) => assert.isAtMost(late.costs[i]!, cost + 2))
          assert.isAtMost(late.costs[2], 3)

          const moved = Effect.map(numbersIn("orders"), ({ length }) => length)
          const slow = ["--rate", String(many / 3)]
          const first = yield* redrive([...flags, ...slow], "SIGINT", Effect.map(moved, (n) => n >= many / 10))
          assert.strictEqual(first.code, 130)
          assert.match(first.output, /^millrace: interrupted after [\d,]+ redriven; run again to go on$/m)
          const stopped = yield* moved
          assert.isBelow(stopped, many)
          yield* redrive([...flags, ...slow], "SIGKILL", Effect.map(moved, (n) => n >= stopped + many / 10))
          assert.isBelow(yield* moved, many)
          const last = yield* redrive(flags)
          assert.strictEqual(last.code, 0, last.output)
          assert.deepStrictEqual(yield* numbersIn("orders"), Arr.range(0, many - 1))
          assert.deepStrictEqual(yield* numbersIn("orders.dead"), [])
        }).pipe(Effect.provide(layer))
      }),
    400_000
  )
})
