/** The terminal output in `docs/operating.md`: written when `MILLRACE_DOCS=1`, compared otherwise. */
import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Publisher, Topic } from "@millrace/core"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers } from "@millrace/testing"
import { jetstreamManager, StorageType } from "@nats-io/jetstream"
import { connect } from "@nats-io/transport-node"
import { Effect, Layer, Schema } from "effect"
import * as Fs from "node:fs"
import process from "node:process"
import { fileURLToPath } from "node:url"
import { Command, json, millrace, until } from "./cli.ts"

const page = fileURLToPath(new URL("../../../docs/operating.md", import.meta.url))

const Order = Schema.Struct({ id: Schema.String, total: Schema.Number })
const Orders = Topic.make("orders", { schema: Order, key: (order) => order.id })

/** A failure without a stack, which would show where this machine keeps the project. */
const declined = (id: string) => ({ _tag: "Declined", message: `no funds for ${id}` })

/** Some are declined, and one is never done with. */
const payments = Pipeline.from(Orders, { group: "payments", startFrom: "beginning", prefetch: 0, drainTimeout: 0 })
  .pipe(
    Pipeline.mapEffect((order) =>
      order.id === "o6" ? Effect.never : order.total > 10 ? Effect.fail(declined(order.id)) : Effect.void
    ),
    Pipeline.retry({ times: 0 })
  )

interface Block {
  readonly command: string
  readonly output: string
}

/** What one run has and another has not. */
const mask = (text: string): string =>
  text
    .replaceAll(/\b\d{13}-\d+\b/g, "ID")
    .replaceAll(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z/g, "TIME")
    .replaceAll(/\b\d+(ms|s|m\d\ds|h\d\dm|d\d\dh)\b/g, "AGE")
    .replaceAll(/\b\d+(\.\d+)? (B|kB|MB|GB)\b/g, "SIZE")
    .replaceAll(/(Redis|NATS|nats-server) \d+(\.\d+)*/g, "$1 VERSION")
    .replaceAll(/127\.0\.0\.1:\d+/g, "ADDRESS")
    .replaceAll(/localhost:\d+/g, "ADDRESS")
    .replaceAll(/\s+/g, " ")
    .trim()

const blocks = /```console\n\$ (millrace[^\n]*)\n([\s\S]*?)```\n/g

const compare = (seen: ReadonlyArray<Block>): void => {
  const text = Fs.readFileSync(page, "utf8")
  const byCommand = new Map(seen.map((block) => [mask(block.command), block]))
  if (process.env["MILLRACE_DOCS"] === "1") {
    const written = text.replaceAll(blocks, (all, command: string) => {
      const block = byCommand.get(mask(command))
      if (block === undefined) return all
      const output = block.output.replaceAll(
        /127\.0\.0\.1:\d+/g,
        block.output.includes("NATS") ? "localhost:4222" : "localhost:6379"
      )
      return `\`\`\`console\n$ ${block.command}\n${output}\n\`\`\`\n`
    })
    Fs.writeFileSync(page, written)
    return
  }
  const shown = new Map([...text.matchAll(blocks)].map(([, command, output]) => [mask(command!), mask(output!)]))
  for (const [command, { output }] of byCommand) {
    assert.strictEqual(shown.get(command), mask(output), `docs/operating.md, ${command}`)
  }
}

const take = Effect.fnUntraced(function*(seen: Array<Block>, ...args: ReadonlyArray<string>) {
  const { error, out } = yield* millrace(...args)
  const command = args.map((arg) => /[\s"{]/.test(arg) ? `'${arg}'` : arg).join(" ")
  seen.push({ command: `millrace ${command}`.trim(), output: [out, error].filter((text) => text !== "").join("\n") })
})

/** What the checks are called, in their source and in the tests of the doctor. */
const idsIn = (folder: URL, files: RegExp): ReadonlySet<string> =>
  new Set(
    Fs.readdirSync(folder, { recursive: true, encoding: "utf8" }).filter((file) => files.test(file)).flatMap((file) =>
      [...Fs.readFileSync(new URL(file, folder), "utf8").matchAll(/["`](?:redis|nats|\$\{kind\})\/([a-z-]+)/g)].map((
        [, id]
      ) => id!)
    )
  )

it("each check of the doctor has a test, and is in docs/operating.md", () => {
  const checks = idsIn(new URL("../src/internal/", import.meta.url), /hecks\.ts$|doctor\.ts$/)
  const tested = idsIn(new URL("./", import.meta.url), /^doctor\..*\.ts$/)
  const shown = Fs.readFileSync(page, "utf8").split("\n").filter((line) => line.startsWith("| `")).join()
  assert.isAbove(checks.size, 50)
  for (const id of checks) {
    assert.include(shown, `\`${id}\``)
    assert.isTrue(tested.has(id), id)
  }
})

describe("docs/operating.md shows the terminal as it is", () => {
  it.live("topics, messages and dead letters", () =>
    Effect.gen(function*() {
      const { url } = yield* Brokers.redis()
      const seen: Array<Block> = []
      yield* Effect.gen(function*() {
        const running = yield* Pipeline.start(payments)
        for (let i = 0; i < 9; i++) yield* Publisher.publish(Orders, { id: `o${i}`, total: i % 2 === 0 ? 5 : 50 })
        yield* until(
          "three are dead, and one is at work",
          Effect.map(running.counts, ({ deadLettered, handled }) => deadLettered === 3 && handled === 3)
        )
        yield* until("it is held", Effect.map(json("lag", "orders"), ({ groups }) => groups[0].pending === 1))
        const [newest] = (yield* json("dead", "list", "orders.dead")).letters
        const [order] = (yield* json("inspect", "orders")).topics[0].held[0].messages
        yield* take(seen)
        yield* take(seen, "inspect", "orders")
        yield* take(seen, "lag", "orders", "--max-lag", "1")
        yield* take(seen, "show", "orders", order.id)
        yield* take(seen, "tail", "orders", "--lines", "3")
        yield* take(seen, "publish", "orders", "{\"id\":\"o9\",\"total\":7}", "--key", "o9")
        yield* take(seen, "dead", "list", "orders.dead")
        yield* take(seen, "dead", "show", "orders.dead", newest.id)
        yield* take(seen, "dead", "redrive", "orders.dead", "--text", "funds")
        yield* take(seen, "dead", "redrive", "orders.dead", "--id", newest.id, "--yes")
        yield* take(seen, "dead", "discard", "orders.dead", "--older-than", "30d")
      }).pipe(
        Effect.scoped,
        Effect.provide(Layer.merge(
          Layer.succeed(Command, { name: "redis", flags: ["--redis", url], open: undefined }),
          RedisStreams.layer({ url, consumer: "worker-1" })
        ))
      )
      compare(seen)
    }))

  it.live("doctors", () =>
    Effect.gen(function*() {
      const redis = yield* Brokers.redis({ args: ["--maxmemory-policy", "allkeys-lru", "--maxmemory", "100mb"] })
      const seen: Array<Block> = []
      yield* Effect.provide(
        take(seen, "doctor", "--grace-period", "30s"),
        Layer.succeed(Command, { name: "redis", flags: ["--redis", redis.url], open: undefined })
      )
      const nats = yield* Brokers.nats()
      const connection = yield* Effect.acquireRelease(
        Effect.promise(() => connect({ servers: nats.url })),
        (connection) => Effect.promise(() => connection.close())
      )
      yield* Effect.promise(async () => {
        const jsm = await jetstreamManager(connection)
        await jsm.streams.add({ name: "orders", subjects: ["orders"], storage: StorageType.Memory })
        await jsm.consumers.add("orders", { durable_name: "payments", ack_policy: "explicit", max_deliver: 5 })
      })
      yield* Effect.provide(
        take(seen, "doctor", "--handler-timeout", "10s"),
        Layer.succeed(Command, { name: "nats", flags: ["--nats", nats.url], open: undefined })
      )
      compare(seen)
    }))
})
