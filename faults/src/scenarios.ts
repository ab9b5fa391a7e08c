/** What is done to consumers and brokers, as values. */
import * as DeadLetter from "@millrace/core/DeadLetter"
import { Transport } from "@millrace/core/Transport"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as fuzz from "./fuzz.ts"
import type { WorkerOptions } from "./jobs.ts"
import type { Fault } from "./journal.ts"
import * as Oracle from "./oracle.ts"
import * as Stage from "./stage.ts"
import { newestNats, newestRedis, newestValkey, oldestRedis, type Target } from "./target.ts"

export interface Scenario {
  readonly name: string
  /** Of the table; `times` is how often. */
  readonly does: (times: number) => string
  readonly times: { readonly quick: number; readonly full: number }
  readonly targets: ReadonlyArray<Target>
  readonly worker?: Partial<WorkerOptions>
  readonly job?: typeof Stage.job
  readonly run: (stage: Stage.Stage, times: number) => Effect.Effect<void, unknown, Scope.Scope>
  /** What must hold beside the laws. */
  readonly expect?: (verdict: Oracle.Verdict, stage: Stage.Stage) => ReadonlyArray<string>
  /** Its times are what is judged: nothing else runs beside it. */
  readonly isTimed?: boolean
  /** The oracle must find this broken: it has to be seen to see. */
  readonly control?: RegExp
}

const both = [newestRedis, newestNats]

type Disturb = (stage: Stage.Stage, workers: ReadonlyArray<Stage.Worker>) => Effect.Effect<void, unknown>

/** So many workers under load, while they are disturbed again and again. */
const disturbed = (workers: number, disturb: Disturb): Scenario["run"] => (stage, times) =>
  Effect.gen(function*() {
    const started = yield* Effect.all(Array.from({ length: workers }, () => stage.start()))
    yield* stage.load(
      Effect.sleep("500 millis").pipe(
        Effect.andThen(Effect.repeat(disturb(stage, started), { times: times - 1 })),
        Effect.andThen(Effect.sleep("500 millis"))
      )
    )
  })

/** Begins a fault, ends it after `millis`, and gives everybody as long to recover. */
const episode = (
  stage: Stage.Stage,
  fault: Fault,
  begin: Effect.Effect<void, unknown>,
  end: Effect.Effect<void, unknown>,
  millis: { readonly fault: number; readonly peace: number }
) =>
  Effect.gen(function*() {
    yield* stage.fault(fault)
    yield* begin
    yield* Effect.sleep(millis.fault)
    yield* end
    yield* stage.healed(fault)
    yield* Effect.sleep(millis.peace)
  })

const unburned = ({ burned }: Oracle.Verdict) =>
  burned === 0 ? [] : [`${burned} attempts were counted that no handler saw`]

const drained = (drainTimeout: number) => ({ exits }: Oracle.Verdict) => {
  const late = exits.filter((millis) => millis > drainTimeout + 1_000)
  return late.length === 0
    ? []
    : [`${late.length} exits took longer than the deadline and a second: ${Math.max(...late)} ms`]
}

const taken = ({ takeOver }: Oracle.Verdict) => {
  const p99 = Oracle.percentile(takeOver, 0.99)
  return p99 <= 1_000 ? [] : [`peers took over what was handed back after ${Math.round(p99)} ms (p99)`]
}

/** How many messages each survivor of a crash began in the three seconds before it, and after it. */
const survivors = (stage: Stage.Stage): ReadonlyArray<readonly [before: number, after: number]> => {
  const lines = stage.journal.lines()
  const begun = lines.filter((line) => line._tag === "Begun")
  return lines.flatMap((line) => {
    if (line._tag !== "Gone" || line.how !== "killed") return []
    const within = (from: number, to: number) =>
      begun.filter(({ at, pid }) => pid !== line.of && at >= line.at + from && at < line.at + to).length
    return [[within(-3_000, 0), within(0, 3_000)] as const]
  })
}

const counted = (count: number, one: string, plural = "s"): string => `${count} ${one}${count === 1 ? "" : plural}`

/** Some of a thousand messages end each process that handles them. */
const poisoned = (limit: number, processes: number, killers: number): Scenario => {
  const kills = (n: number) => n === 300 || (killers > 1 && n === 330)
  const job = (n: number) => Stage.job(n, { failures: 0, work: 5, kills: kills(n) })
  const isUsual = limit === 3 && processes === 1 && killers === 1
  return {
    name: isUsual
      ? "killer message"
      : `killer message: ${counted(limit, "attempt")}, ${counted(processes, "process", "es")}, ${killers} of them`,
    does: () =>
      `${killers} of ${1_000 + killers} ${killers === 1 ? "calls" : "call"} process.exit, ` +
      `${processes} at a time with concurrency 64, ${counted(limit, "attempt")}: ${counted(killers, "dead letter")}`,
    times: { quick: isUsual ? 1 : 0, full: 1 },
    targets: [newestRedis, oldestRedis, newestValkey, newestNats],
    worker: { concurrency: 64, keyed: false, retries: limit - 1 },
    job,
    run: (stage) =>
      Effect.andThen(
        stage.publish(Array.from({ length: 1_000 + killers }, (_, n) => job(n))),
        Effect.all(Array.from({ length: processes }, () => stage.keep()), { discard: true })
      ),
    expect: ({ deadLetters, faults, handled }, stage) => {
      const last = new Map<string, number>()
      const lines = stage.journal.lines()
      for (const line of lines) {
        if (line._tag === "Begun") last.set(line.id, Math.max(line.attempt, last.get(line.id) ?? 0))
      }
      const lastOf = (killing: boolean) =>
        lines.flatMap((line) => line._tag === "Accepted" && kills(line.n) === killing ? [last.get(line.id) ?? 0] : [])
      const most = Math.max(...lastOf(false))
      return [
        ...(deadLetters === killers ? [] : [`${deadLetters} dead letters`]),
        ...(handled === 1_000 ? [] : [`${handled} handled`]),
        ...(faults <= limit * killers ? [] : [`${counted(faults, "process", "es")} died`]),
        ...lastOf(true).filter((attempt) => attempt !== limit).map((attempt) =>
          `a killer was last at attempt ${attempt}`
        ),
        // One that was taken along once comes again, alone where the limit is two.
        ...(most <= Math.max(2, limit - 1) ? [] : [`an innocent message was at attempt ${most}`])
      ]
    }
  }
}

export const scenarios: ReadonlyArray<Scenario> = [
  {
    name: "control",
    does: () => "acknowledged before the work, and a consumer killed: the oracle must find the loss",
    times: { quick: 1, full: 1 },
    targets: [newestRedis],
    worker: { earlyAck: true },
    job: (n) => Stage.job(n, { failures: 0, work: 20 }),
    run: disturbed(2, (stage, [first]) => Effect.andThen(first!.kill, stage.start())),
    control: / is lost$/
  },
  {
    name: "connections cut",
    does: (times) => `every connection broken ${times} times`,
    times: { quick: 4, full: 40 },
    targets: both,
    job: Stage.orderlyJob,
    run: disturbed(
      1,
      (stage) => episode(stage, "connections cut", stage.proxy.cut, Effect.void, { fault: 0, peace: 600 })
    )
  },
  {
    name: "half-open connections",
    does: (times) => `nothing passes for 3 s and nobody is told, ${times} times; old connections stay dead`,
    times: { quick: 1, full: 4 },
    targets: both,
    run: disturbed(
      2,
      (stage) => episode(stage, "connections hung", stage.proxy.hang, stage.proxy.heal, { fault: 3_000, peace: 8_000 })
    )
  },
  {
    name: "slow network",
    does: () => "50 ms latency each way, 200 kB/s each connection",
    times: { quick: 1, full: 5 },
    targets: both,
    job: Stage.orderlyJob,
    run: (stage, times) =>
      Effect.andThen(
        stage.proxy.shape({ latency: 50, bandwidth: 200_000 }),
        disturbed(1, () => Effect.sleep("2 seconds"))(stage, times)
      ),
    expect: (verdict) => {
      const unplanned = [...verdict.repeats.keys()].filter((cause) => cause !== "retry")
      return [...unburned(verdict), ...unplanned.map((cause) => `repeated: ${cause}`)]
    }
  },
  {
    name: "broker killed",
    does: (times) => `SIGKILL and started again, ${times} times`,
    times: { quick: 2, full: 12 },
    targets: both,
    job: Stage.orderlyJob,
    run: disturbed(
      1,
      (stage) => episode(stage, "broker killed", stage.broker.kill, stage.broker.start, { fault: 300, peace: 1_500 })
    )
  },
  {
    name: "broker frozen",
    does: (times) => `SIGSTOP for 4 s, then SIGCONT, ${times} times`,
    times: { quick: 1, full: 4 },
    targets: both,
    job: Stage.orderlyJob,
    run: disturbed(
      1,
      (stage) =>
        episode(stage, "broker paused", stage.broker.pause, stage.broker.resume, { fault: 4_000, peace: 3_000 })
    )
  },
  {
    name: "broker stopped",
    does: (times) => `gone for ${times} s under load; no message is dead-lettered because of it`,
    times: { quick: 5, full: 300 },
    targets: both,
    job: Stage.orderlyJob,
    run: (stage, times) =>
      disturbed(
        1,
        (stage) =>
          Effect.delay(
            episode(stage, "broker stopped", stage.broker.stop, stage.broker.start, {
              fault: times * 1_000,
              peace: 1_000
            }),
            "2 seconds"
          )
      )(stage, 1)
  },
  {
    name: "consumer killed",
    does: (times) => `SIGKILL of one of two, another started, ${times} times`,
    times: { quick: 3, full: 30 },
    targets: both,
    run: (stage, times) =>
      Effect.gen(function*() {
        const workers = [yield* stage.start(), yield* stage.start()]
        yield* stage.load(Effect.gen(function*() {
          for (let i = 0; i < times; i++) {
            yield* Effect.sleep("300 millis")
            yield* workers.shift()!.kill
            workers.push(yield* stage.start())
          }
        }))
      })
  },
  {
    name: "zombie consumer",
    does: (times) => `SIGSTOP of one of two for twice the claim time, then SIGCONT, ${times} times`,
    times: { quick: 1, full: 4 },
    targets: both,
    run: disturbed(2, (stage, [zombie]) =>
      Effect.gen(function*() {
        yield* stage.fault("consumer paused", zombie)
        yield* zombie!.pause
        yield* Effect.sleep("4 seconds")
        yield* zombie!.resume
        yield* stage.healed("consumer paused", zombie)
        yield* Effect.sleep("1 second")
      }))
  },
  {
    name: "rolling restarts",
    does: (times) => `SIGTERM of the oldest of three every 500 ms, ${times} times`,
    times: { quick: 5, full: 50 },
    targets: both,
    worker: { drainTimeout: 1_000 },
    run: (stage, times) =>
      Effect.gen(function*() {
        const workers = yield* Effect.all([stage.start(), stage.start(), stage.start()])
        yield* stage.load(
          Effect.gen(function*() {
            for (let i = 0; i < times; i++) {
              const [, next] = yield* Effect.all([
                Effect.sleep("500 millis"),
                stage.start(),
                workers.shift()!.stop
              ], { concurrency: "unbounded" })
              workers.push(next)
            }
          }),
          500
        )
      }),
    expect: (verdict) => [...unburned(verdict), ...drained(1_000)(verdict)]
  },
  {
    name: "SIGTERM under full load",
    isTimed: true,
    does: (times) => `one of two, concurrency 64, some handlers outlast the deadline of 1 s, ${times} times`,
    times: { quick: 4, full: 100 },
    targets: both,
    worker: { drainTimeout: 1_000, concurrency: 64, keyed: false },
    job: (n) => Stage.job(n, { failures: 0, work: n % 400 === 0 ? 1_500 : 20 }),
    run: (stage, times) =>
      Effect.gen(function*() {
        const workers = [yield* stage.start(), yield* stage.start()]
        yield* stage.load(
          Effect.gen(function*() {
            for (let i = 0; i < times; i++) {
              yield* Effect.sleep("300 millis")
              yield* workers.shift()!.stop
              workers.push(yield* stage.start())
            }
          }),
          1_500
        )
      }),
    expect: (verdict) => [...unburned(verdict), ...drained(1_000)(verdict), ...taken(verdict)]
  },
  {
    name: "survivor of a crash",
    isTimed: true,
    does: (times) =>
      `SIGKILL of one of two, concurrency 64, handlers of 200 ms, ${times} times: the other keeps its own rate`,
    times: { quick: 1, full: 3 },
    targets: both,
    worker: { concurrency: 64, keyed: false },
    job: (n) => Stage.job(n, { failures: 0, work: 200 }),
    run: (stage, times) =>
      Effect.gen(function*() {
        for (let i = 0; i < times; i++) {
          const jobs = Array.from({ length: 8_000 }, (_, n) => Stage.job(8_000 * i + n, { failures: 0, work: 200 }))
          yield* stage.publish(jobs)
          const [first, second] = [yield* stage.start(), yield* stage.start()]
          yield* Effect.sleep("5 seconds")
          yield* first.kill
          yield* Effect.sleep("5 seconds")
          yield* stage.untilDone
          yield* second.stop
        }
      }),
    expect: (_, stage) =>
      survivors(stage).filter(([before, after]) => after < 0.9 * before)
        .map(([before, after]) => `the survivor began ${before} messages before the crash, and ${after} after it`)
  },
  ...[1, 3].flatMap((processes) =>
    [1, 2].flatMap((killers) => [3, 2, 5].map((limit) => poisoned(limit, processes, killers)))
  ),
  {
    name: "fuzz",
    does: (times) => `${times.toLocaleString("en")} random and mutated payloads and headers`,
    times: { quick: 3_000, full: 100_000 },
    targets: both,
    worker: { concurrency: 64, keyed: false, retries: 0 },
    run: (stage, times) => Effect.andThen(stage.start(), fuzz.send(stage, times)),
    expect: ({ accepted, deadLetters, handled }) =>
      handled + deadLetters === accepted
        ? []
        : [`${accepted} accepted, ${handled} handled, ${deadLetters} dead letters`]
  }
]

const collect = (stage: Stage.Stage) =>
  Effect.gen(function*() {
    const { browse } = Context.get(stage.direct, Transport)
    const decoder = new TextDecoder()
    const topic = yield* Stream.runCollect(Stream.map(browse(stage.topic), ({ id }) => id))
    const deadLetters = yield* Stream.runCollect(
      Stream.map(browse(`${stage.topic}.dead`), ({ headers }) => Exit.getSuccess(DeadLetter.fromHeaders(headers)))
    )
    const done = yield* Stream.runCollect(
      Stream.map(browse(`${stage.topic}.done`), ({ body }) => Number(decoder.decode(body)))
    )
    return { topic, done, deadLetters: deadLetters.flatMap((letter) => letter._tag === "Some" ? [letter.value] : []) }
  })

export const run = (scenario: Scenario, target: Target, times: number) =>
  Effect.gen(function*() {
    const toJob = scenario.job ?? Stage.job
    const stage = yield* Stage.make(target, scenario.worker ?? {}, toJob)
    yield* scenario.run(stage, times)
    const isDone = scenario.control === undefined ? yield* stage.untilDone : true
    yield* stage.stopAll
    const mustDie = (n: number) => n >= 0 && (toJob(n).kills || toJob(n).failures > 4)
    const verdict = Oracle.judge(
      stage.journal.lines(),
      yield* collect(stage),
      scenario.name === "fuzz" ? undefined : mustDie
    )
    const broken = [
      ...(isDone ? [] : ["it did not come to an end"]),
      ...verdict.broken,
      ...(scenario.expect?.(verdict, stage) ?? [])
    ]
    const judged = scenario.control === undefined
      ? broken
      : broken.some((sentence) => scenario.control!.test(sentence))
      ? []
      : ["the oracle saw nothing wrong"]
    const { kind, version } = stage.broker
    const label = kind === "nats" ? "NATS" : kind === "redis" ? "Redis" : "Valkey"
    return { broker: `${label} ${version}`, verdict, broken: judged, folder: stage.folder }
  }).pipe(Effect.scoped)
