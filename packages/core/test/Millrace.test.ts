import { assert, describe, it } from "@effect/vitest"
import { Millrace, Pipeline, Topic, type Transport } from "@millrace/core"
import { MemoryTransport } from "@millrace/testing"
import { Cause, type Context, Effect, Layer, Schema } from "effect"
import { spawn } from "node:child_process"
import { once } from "node:events"
import * as path from "node:path"
import { text } from "node:stream/consumers"

const Numbers = Topic.make("numbers", { schema: Schema.Int })

const one = Pipeline.from(Numbers, { group: "g" })

/** A worker that collects what it handles, and a promise of each. */
const collecting = () => {
  const seen: Array<number> = []
  const waiters: Array<() => void> = []
  const worker = Pipeline.from(Numbers, { group: "collecting", startFrom: "beginning" }).pipe(
    Pipeline.tapPromise(async (n) => {
      seen.push(n)
      for (const wake of waiters.splice(0)) wake()
    })
  )
  const until = async (count: number) => {
    while (seen.length < count) await new Promise<void>((resolve) => waiters.push(resolve))
  }
  return { seen, until, worker }
}

describe("Millrace", () => {
  it("starts, publishes, counts, pauses, stops and starts again", async () => {
    const { seen, until, worker } = collecting()
    const millrace = await Millrace.run(worker, { broker: MemoryTransport.layer(), signals: false })
    assert.strictEqual((await millrace.health()).state, "consuming")
    await millrace.publish(Numbers, 1)
    await millrace.publishAll(Numbers, [2, 3])
    await until(3)
    assert.deepStrictEqual(seen, [1, 2, 3])
    await millrace.pause(worker)
    assert.strictEqual((await millrace.health(worker)).state, "paused")
    await millrace.resume()
    await millrace.stop()
    assert.strictEqual((await millrace.health()).state, "stopped")
    await millrace.closed
    await millrace.start()
    await millrace.publish(Numbers, 4)
    await until(4)
    await millrace.stop()
  })

  it("counts of one pipeline and of all, until the next start", async () => {
    const first = collecting()
    const other = Pipeline.from(Numbers, { group: "other" }).pipe(Pipeline.filter((n) => n > 1))
    const millrace = await Millrace.run([first.worker, other], { broker: MemoryTransport.layer(), signals: false })
    await millrace.publishAll(Numbers, [1, 2])
    await first.until(2)
    while ((await millrace.counts(other)).handled + (await millrace.counts(other)).filtered < 2) await turn()
    assert.strictEqual((await millrace.counts(other)).filtered, 1)
    assert.strictEqual((await millrace.counts()).handled, 3)
    await millrace.stop()
    await millrace.closed
    assert.strictEqual((await millrace.counts()).handled, 3)
    assert.strictEqual((await millrace.counts(other)).filtered, 1)
    await millrace.start()
    assert.strictEqual((await millrace.counts()).handled, 0)
    await millrace.stop()
  })

  it("has a health with its reason before the start, while it starts, and when the start fails", async () => {
    const { worker } = collecting()
    let connect = (_: Effect.Effect<never, Cause.TimeoutError>) => {}
    const broker = Layer.effectContext(
      Effect.callback<Context.Context<Transport.Transport>, Cause.TimeoutError>((resume) => void (connect = resume))
    )
    const millrace = Millrace.make({ broker, pipelines: [worker], signals: false })
    const before = await millrace.health()
    assert.deepInclude(before, { state: "stopped", reason: "no pipeline has started" })
    assert.isAbove(before.since, 0)
    const starting = millrace.start()
    await turn()
    assert.deepInclude(await millrace.health(), { state: "reconnecting", reason: "the pipelines are starting" })
    connect(Effect.fail(new Cause.TimeoutError("connection refused")))
    await starting.catch(() => {})
    assert.deepInclude(await millrace.health(), { state: "stopped", reason: "the start failed: connection refused" })
  })

  it("publishes without pipelines", async () => {
    const millrace = Millrace.make({ broker: MemoryTransport.layer() })
    assert.isFalse((await millrace.publish(Numbers, 1)).duplicate)
    await millrace.stop()
  })

  it("rejects with the typed error: bad input, a value that does not fit, a Layer that fails", async () => {
    const bad = Pipeline.from(Numbers, { group: "" })
    const error = await Millrace.run(bad, { broker: MemoryTransport.layer(), signals: false }).catch((error) => error)
    assert.strictEqual(error._tag, "TransportError")
    assert.include(error.message, "group is \"\"")
    const millrace = Millrace.make({ broker: MemoryTransport.layer() })
    const refused = await millrace.publish(Numbers, 1.5).catch((error) => error)
    assert.strictEqual(refused.reason._tag, "Unencodable")
    await millrace.stop()
    const broken = Millrace.make({
      broker: Layer.effectDiscard(Effect.fail("no configuration")).pipe(Layer.provideMerge(MemoryTransport.layer()))
    })
    assert.strictEqual(await broken.publish(Numbers, 1).catch((error) => error), "no configuration")
    await broken.stop()
  })

  it("lists dead letters and redrives them", async () => {
    let isBroken = true
    const handled: Array<number> = []
    const failing = Pipeline.from(Numbers, { group: "failing" }).pipe(
      Pipeline.tapPromise(async (n) => {
        if (isBroken) throw new Error(`${n} is refused`)
        handled.push(n)
      }),
      Pipeline.retry({ times: 0 })
    )
    const millrace = await Millrace.run(failing, { broker: MemoryTransport.layer(), signals: false })
    await millrace.publishAll(Numbers, [1, 2])
    while ((await millrace.counts()).deadLettered < 2) await turn()
    const letters = await millrace.deadLetters("numbers.dead")
    assert.deepStrictEqual(letters.map(({ record }) => record.error.message), ["1 is refused", "2 is refused"])
    assert.strictEqual((await millrace.deadLetters("numbers.dead", { limit: 1 })).length, 1)
    isBroken = false
    assert.strictEqual(
      (await millrace.redrive("numbers.dead", { filter: ({ id }) => id === letters[1]!.id })).redriven,
      1
    )
    while ((await millrace.counts()).handled < 1) await turn()
    assert.deepStrictEqual(handled, [2])
    assert.strictEqual((await millrace.deadLetters("numbers.dead")).length, 1)
    await millrace.stop()
  })

  it("after a stop, publishing and dead letters reject until the next start", async () => {
    const { worker } = collecting()
    const millrace = await Millrace.run(worker, { broker: MemoryTransport.layer(), signals: false })
    const first = millrace.closed
    await Promise.all([millrace.stop(), millrace.stop()])
    await first
    const refused = await millrace.publish(Numbers, 1).catch((error) => error)
    assert.strictEqual(refused.reason._tag, "NotSent")
    assert.include(refused.message, "this Millrace was stopped: call `start` first")
    assert.include((await millrace.redrive("numbers.dead").catch((error) => error)).message, "call `start` first")
    await Promise.all([millrace.start(), millrace.start()])
    assert.notStrictEqual(millrace.closed, first)
    await millrace.publish(Numbers, 1)
    await millrace.stop()
  })

  it("rejects options that plain JavaScript gets wrong, and shows no secret of them", async () => {
    const run: any = Millrace.run
    const broker = MemoryTransport.layer()
    const cases: ReadonlyArray<readonly [() => Promise<unknown>, string]> = [
      [() => run(), "broker is undefined: give RedisStreams.layer({ url })"],
      [() => run(one), "broker is undefined"],
      [() => run(one, { broker: "redis://app:s3cr3t@localhost" }), "broker is of type string"],
      [() => run(one, { broker: MemoryTransport.layer }), "broker is of type function"],
      [() => run(one, { broker: Layer.empty }), "broker is a Layer without @millrace/core/Transport"],
      [() => run(one, { broker, signal: false }), "options of Millrace.signal is false: there is no such option"],
      [() => run(one, { broker, signals: "no" }), "signals is \"no\""],
      [() => run(undefined, { broker }), "pipeline is undefined: start with Pipeline.from"],
      [() => run(Numbers, { broker }), "pipeline is Topic("],
      [() => run([one, async () => {}], { broker }), "start with Pipeline.from"],
      [() => run([], { broker }), "pipelines is an empty array: give at least one pipeline"],
      [() => Millrace.make({ broker, pipelines: [] }).start(), "pipelines is an empty array"],
      [
        () => (Millrace.make as any)({ broker, pipelines: one }).start(),
        "give at least one pipeline, as in [pipeline]"
      ],
      [
        () => Effect.runPromise(Effect.provide((Pipeline.runAll as any)([]), broker)),
        "pipelines is an empty array: give at least one pipeline"
      ],
      [
        () => (Millrace.make as any)("redis://app:s3cr3t@localhost").publish(Numbers, 1),
        "options of Millrace is a text"
      ],
      [() => Millrace.make({ broker }).health(one), "this Millrace has no pipeline"],
      [() => Millrace.make({ broker }).counts(one), "pipeline is \"numbers/g\": this Millrace has no pipeline"]
    ]
    for (const [act, sentence] of cases) {
      const error = await act().then(() => undefined, (error) => error)
      assert.strictEqual(error?._tag, "TransportError", sentence)
      assert.include(error.message, sentence)
      assert.notInclude(error.message, "s3cr3t")
    }
  })

  it("stopping finishes the handler that runs", async () => {
    const begun = Promise.withResolvers<void>()
    const finish = Promise.withResolvers<void>()
    let finished = false
    const slow = Pipeline.from(Numbers, { group: "slow" }).pipe(
      Pipeline.tapPromise(async () => {
        begun.resolve()
        await finish.promise
        finished = true
      })
    )
    const millrace = await Millrace.run(slow, { broker: MemoryTransport.layer(), signals: false })
    await millrace.publish(Numbers, 1)
    await begun.promise
    const stopped = millrace.stop()
    finish.resolve()
    await stopped
    assert.isTrue(finished)
  })

  const file = path.join(import.meta.dirname, "fixtures", "promises.main.ts")
  const ends = async (how: string) => {
    const child = spawn(process.execPath, [file, how], { stdio: ["ignore", "pipe", "pipe"] })
    const [stdout, stderr, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, "close")])
    return { code, stdout, stderr }
  }

  it("SIGTERM drains; the process ends by itself with code 0", async () => {
    assert.deepInclude(await ends("drained"), { code: 0, stdout: "begun\nfinished\nclosed\n" })
  })

  it("a second signal ends the process at once, with code 1", async () => {
    assert.deepInclude(await ends("impatient"), { code: 1, stdout: "begun\n" })
  })

  it("a pipeline that can no longer run ends a program that awaits `closed`, with code 1", async () => {
    const { code, stderr, stdout } = await ends("failed")
    assert.strictEqual(code, 1)
    assert.notInclude(stdout, "closed")
    assert.include(stderr, "fake refused reading: no permission")
  })
})

const turn = () => new Promise<void>((resolve) => setImmediate(resolve))
