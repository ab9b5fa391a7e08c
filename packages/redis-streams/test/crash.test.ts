import { assert, layer } from "@effect/vitest"
import { Wait } from "@millrace/testing"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { type ChildProcess, spawn } from "node:child_process"
import { tmpdir } from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import { fresh, outgoing, Server, servers, serving, textOf, transport } from "./redis.ts"

const program = fileURLToPath(new URL("./fixtures/killed.ts", import.meta.url))

/** Most of the time is the start of processes: they share what they have compiled. */
const env = { ...process.env, NODE_COMPILE_CACHE: Path.join(tmpdir(), "millrace-compiled") }

/** Runs it, and again whenever it dies; gives how often that was. */
const supervise = (...args: ReadonlyArray<string>) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const state = { deaths: 0, stopped: false, child: undefined as ChildProcess | undefined }
      const run = () => {
        state.child = spawn(process.execPath, [program, ...args], { stdio: "ignore", env })
        state.child.on("exit", () => {
          if (state.stopped) return
          state.deaths++
          run()
        })
      }
      run()
      return state
    }),
    (state) =>
      Effect.sync(() => {
        state.stopped = true
        state.child?.kill("SIGKILL")
      })
  )

servers.forEach(({ kind, version }, i) =>
  layer(serving(kind, { version }), { excludeTestServices: true })(`${kind} ${version}`, (it) => {
    it.effect.each([
      ["one message that kills its process, among a thousand: one dead letter, and all others handled", undefined],
      ["the same where each process has the name of the one that died", "worker"]
    ].slice(0, i === 0 ? 2 : 1))(
      "%s",
      ([, consumer]) =>
        Effect.gen(function*() {
          const { run, url } = yield* Server
          const redis = yield* transport()
          const topic = fresh("killer")
          const values = Arr.makeBy(1_001, (i) => i === 300 ? "killer" : String(i))
          yield* redis.publish(values.map((value) => outgoing(topic, JSON.stringify(value))) as any)
          const state = yield* supervise(url, topic, ...consumer === undefined ? [] : [consumer])
          yield* Wait.until(
            "everything is settled",
            Effect.gen(function*() {
              const pending = yield* run("XPENDING", topic, "g")
              return Array.isArray(pending) && Number(pending[0]) === 0 && (yield* run("XLEN", `${topic}.dead`)) > 0 &&
                (yield* run("XLEN", `${topic}.done`)) >= 1_000
            }),
            "150 seconds"
          )
          const dead = yield* Stream.runCollect(redis.browse(`${topic}.dead`))
          assert.deepStrictEqual(dead.map(textOf), [JSON.stringify("killer")])
          const done = yield* Stream.runCollect(redis.browse(`${topic}.done`))
          assert.deepStrictEqual(new Set(done.map(textOf)).size, 1_000)
          assert.strictEqual(state.deaths, 3)
        }),
      200_000
    )
  })
)
