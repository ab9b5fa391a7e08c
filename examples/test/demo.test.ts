import { NodeServices } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as shop from "../src/demo/shop.ts"
import { memory, nats, redis, run } from "./processes.ts"

const orders = 3_000

const published = (fate: ReturnType<typeof shop.fateOf>) =>
  Array.from({ length: orders }, (_, n) => shop.fateOf(n)).filter((other) => other === fate).length

/** The rows of the table, by name: the value, then the numbers of the remark. */
const rows = (stdout: string): Record<string, ReadonlyArray<number>> =>
  Object.fromEntries(
    [...stdout.matchAll(/^ {2}([a-z]\S*(?: p\d+)?) +(\d.*)$/gm)].map(([, name, rest]) => [
      name,
      [...rest!.replaceAll(",", "").matchAll(/(?<![a-z])\d+(?:\.\d+)?/g)].map(([digits]) => Number(digits))
    ])
  )

describe("demo", () => {
  for (const transport of [memory, redis, nats]) {
    it.live(`${transport.name}: every order is accounted for, in a pipe`, () =>
      Effect.gen(function*() {
        const { exitCode, stderr, stdout } = yield* run("demo.ts", [...yield* transport.flags, "--rate", "3000"])
        assert.strictEqual(exitCode, 0, stderr)
        assert.strictEqual(stderr, "")
        const table = rows(stdout)
        const malformed = published("malformed")
        const exhausted = published("always fails")
        const retried = published("fails twice")
        assert.deepStrictEqual(table["published"], [orders])
        assert.deepStrictEqual(table["handled"], [orders - malformed - exhausted, retried])
        assert.deepStrictEqual(table["dead-lettered"], [malformed + exhausted, malformed, exhausted])
        assert.deepStrictEqual(table["retried"], [2 * retried + shop.retries * exhausted])
        const [p50, p95, p99] = ["latency p50", "latency p95", "latency p99"].map((row) => table[row]![0]!)
        assert.isTrue(20 <= p50! && p50! <= p95! && p95! <= p99!, `${p50}, ${p95}, ${p99}`)
        // One line for each tenth of the way, the last for all of it, and nothing that only a terminal understands.
        assert.match(stdout, /^100 % {2}2,910 handled, 330 retried, 90 dead-lettered$/m)
        assert.notInclude(stdout, "\x1b")
      }).pipe(Effect.provide(NodeServices.layer)))

    it.live(`${transport.name}: one dead letter is shown in full`, () =>
      Effect.gen(function*() {
        const { stdout } = yield* run("demo.ts", [...yield* transport.flags, "--orders", "100", "--rate", "3000"])
        assert.match(stdout, /One of the 3 dead letters in demo-\w+\.dead:/)
        assert.include(stdout, `{"id":"order-42","customer":"customer-42","total":47}`)
        assert.match(stdout, /why +exhausted after 4 attempts/)
        assert.match(stdout, /error +AccountClosed: the account of customer-42 is closed/)
      }).pipe(Effect.provide(NodeServices.layer)))
  }

  for (const args of [["--redis", "redis://me:s3cret@127.0.0.1:1"], ["--nats", "nats://me:s3cret@127.0.0.1:1"]]) {
    it.live(`${args[0]}: a broker that cannot be reached is one line without the password, and exit code 1`, () =>
      Effect.gen(function*() {
        const { exitCode, stderr, stdout } = yield* run("demo.ts", args)
        assert.strictEqual(exitCode, 1)
        assert.strictEqual(stdout, "")
        assert.match(
          stderr,
          /^(redis|nats): cannot connect to (redis|nats):\/\/127\.0\.0\.1:1: connection refused( \(ECONNREFUSED\))?\n$/
        )
      }).pipe(Effect.provide(NodeServices.layer)))
  }

  it.live("an address of another kind is named as what it is", () =>
    Effect.gen(function*() {
      const { exitCode, stderr } = yield* run("demo.ts", ["--redis", "http://me:s3cret@127.0.0.1"])
      assert.strictEqual(exitCode, 1)
      assert.include(stderr, "url is \"http://127.0.0.1\"")
      assert.notInclude(stderr, "s3cret")
    }).pipe(Effect.provide(NodeServices.layer)))
})
