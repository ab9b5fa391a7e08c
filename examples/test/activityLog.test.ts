import { NodeServices } from "@effect/platform-node"
import { assert, describe, it } from "@effect/vitest"
import { Brokers } from "@millrace/testing"
import { Effect, FileSystem, Schedule } from "effect"
import { once } from "node:events"
import { connect } from "node:net"
import { ActivityStore, layerStore } from "../src/activityLog.ts"
import { memory, nats, redis, run, start } from "./processes.ts"

const database = Effect.map(
  FileSystem.FileSystem.use((fs) => fs.makeTempDirectoryScoped()),
  (directory) => `${directory}/activity.db`
)

const rows = ActivityStore.use(({ count }) => count)

const untilRows = (enough: (rows: number) => boolean) =>
  Effect.repeat(rows, { until: enough, schedule: Schedule.spaced("2 millis") })

describe("activity log", () => {
  for (const transport of [memory, redis, nats]) {
    it.live(`${transport.name}: what many producers append is written in batches`, () =>
      Effect.gen(function*() {
        const { exitCode, stderr, stdout } = yield* run("activityLog.main.ts", yield* transport.flags)
        assert.strictEqual(exitCode, 0, stderr)
        assert.match(stdout, /^20 producers append 250 activities each$/m)
        assert.match(stdout, /^5000 activities in the database$/m)
      }).pipe(Effect.provide(NodeServices.layer)))
  }

  for (const transport of [redis, nats]) {
    it.live(
      `${transport.name}: the writer is killed mid-run and started again, every activity is written once`,
      () =>
        Effect.gen(function*() {
          const file = yield* database
          const args = [...yield* transport.flags, "--database", file]
          yield* Effect.gen(function*() {
            const writer = yield* start("activityLog.main.ts", [...args, "--part", "write"])
            const producing = run("activityLog.main.ts", [...args, "--part", "produce", "--each", "1000"])
            const [produced, written] = yield* Effect.all([
              producing,
              Effect.tap(untilRows((rows) => rows >= 1_000), () => writer.kill({ killSignal: "SIGKILL" }))
            ], { concurrency: 2 })
            assert.match(produced.stdout, /^20000 activities appended$/m)
            assert.isBelow(written, 20_000)
            assert.isBelow(yield* rows, 20_000)

            yield* start("activityLog.main.ts", [...args, "--part", "write"])
            yield* untilRows((rows) => rows >= 20_000)
            assert.strictEqual(yield* rows, 20_000)
          }).pipe(Effect.provide(layerStore(file)))
          // What the dead process owned is handled one message at a time: it may have died of one of them.
        }).pipe(Effect.provide(NodeServices.layer)),
      120_000
    )
  }

  it.live("redis: an activity that redis-cli appended is written like any other", () =>
    Effect.gen(function*() {
      const { host, port, url } = yield* Brokers.redis()
      const file = yield* database
      yield* start("activityLog.main.ts", ["--redis", url, "--part", "write", "--database", file])
      yield* Effect.promise(async () => {
        const socket = connect(port, host).resume()
        socket.end("XADD activity * user_id 1 action login\r\n")
        await once(socket, "close")
      })
      assert.strictEqual(yield* Effect.provide(untilRows((rows) => rows > 0), layerStore(file)), 1)
    }).pipe(Effect.provide(NodeServices.layer)))
})
