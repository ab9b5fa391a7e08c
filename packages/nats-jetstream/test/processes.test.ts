import { assert, describe, it } from "@effect/vitest"
import { Transport } from "@millrace/core/Transport"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { type ChildProcess, spawn } from "node:child_process"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as JetStream from "../src/JetStream.ts"
import { onNats, publish, until, versions } from "./nats.ts"

/** Where workers write what they handled. */
const journal = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "millrace-"))),
  (folder) => Effect.sync(() => rmSync(folder, { recursive: true, force: true }))
).pipe(Effect.map((folder) => {
  const file = join(folder, "journal")
  return {
    file,
    lines: Effect.sync(() => {
      try {
        return readFileSync(file, "utf8").split("\n").filter((line) => line !== "")
      } catch {
        return []
      }
    })
  }
}))

/** A worker that is started again whenever it dies. */
const keepWorking = (args: ReadonlyArray<string>) => {
  let child: ChildProcess
  let deaths = 0
  let over = false
  const start = () => {
    child = spawn(process.execPath, [join(import.meta.dirname, "worker.ts"), ...args], { stdio: "ignore" })
    child.on("exit", () => {
      if (over) return
      deaths++
      start()
    })
  }
  return Effect.acquireRelease(
    Effect.sync(() => {
      start()
      return {
        deaths: () => deaths,
        kill: Effect.sync(() => void child.kill("SIGKILL")),
        pause: Effect.sync(() => void child.kill("SIGSTOP")),
        resume: Effect.sync(() => void child.kill("SIGCONT"))
      }
    }),
    () =>
      Effect.sync(() => {
        over = true
        child.kill("SIGKILL")
      })
  )
}

const jobs = (count: number) => publish("jobs", Arr.makeBy(count, (n) => JSON.stringify({ n })))

describe.each(versions)("on nats-server %s", (version) => {
  it.live(
    "a process killed in the middle: everything is handled by those that follow, nothing is a dead letter",
    () =>
      onNats((broker) =>
        Effect.gen(function*() {
          const transport = yield* Transport
          yield* jobs(2000)
          const { file, lines } = yield* journal
          const worker = yield* keepWorking([broker.url, file])
          for (const count of [200, 700, 1300]) {
            yield* until(lines, (lines) => lines.length > count, "2 minutes")
            yield* worker.kill
          }
          yield* until(JetStream.consumerInfo("jobs", "workers"), (info) => info.lag === 0, "2 minutes")
          assert.strictEqual(new Set(yield* lines).size, 2000)
          assert.deepStrictEqual(yield* Stream.runCollect(transport.browse("jobs.dead")), [])
        }), { version }),
    240_000
  )

  it.live(
    "a message that kills its process is a dead letter after its attempts, and takes no neighbour with it",
    () =>
      onNats((broker) =>
        Effect.gen(function*() {
          const transport = yield* Transport
          yield* jobs(1000)
          const { file, lines } = yield* journal
          const worker = yield* keepWorking([broker.url, file, "500"])
          yield* until(
            Stream.runCollect(transport.browse("jobs.dead")),
            (dead) => dead.length > 0,
            "120 seconds"
          )
          yield* until(JetStream.consumerInfo("jobs", "workers"), (info) => info.lag === 0, "2 minutes")
          const dead = yield* Stream.runCollect(transport.browse("jobs.dead"))
          assert.deepStrictEqual(dead.map((delivery) => new TextDecoder().decode(delivery.body)), ["{\"n\":500}"])
          const killed = (yield* lines).filter((line) => line.startsWith("killed"))
          assert.deepStrictEqual(killed, Arr.makeBy(5, (i) => `killed at attempt ${i + 1}`))
          assert.strictEqual(worker.deaths(), 5)
          assert.strictEqual(new Set((yield* lines).filter((line) => !line.startsWith("killed"))).size, 999)
        }), { version }),
    240_000
  )

  it.live(
    "a process that stood still does not begin what it finds in its socket and a peer has handled",
    () =>
      onNats((broker) =>
        Effect.gen(function*() {
          yield* Transport.use((transport) => transport.declare("jobs", "output"))
          const { file, lines } = yield* journal
          const zombie = yield* keepWorking([broker.url, file])
          yield* keepWorking([broker.url, file])
          const consumer = JetStream.consumerInfo("jobs", "workers")
          yield* until(
            Effect.option(consumer),
            (info) => info._tag === "Some" && info.value.openPulls >= 2,
            "2 minutes"
          )
          yield* zombie.pause
          yield* jobs(200)
          yield* until(consumer, (info) => info.lag === 0)
          yield* zombie.resume
          yield* jobs(200)
          yield* until(consumer, (info) => info.lag === 0)
          yield* until(lines, (lines) => lines.length >= 400)
          assert.strictEqual((yield* lines).length, 400)
          assert.strictEqual(zombie.deaths(), 0)
        }), { version }),
    180_000
  )
})
