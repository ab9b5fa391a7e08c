/**
 * Passes of one arm, in a process of its own: one that warms up, then those that count.
 *
 * The clock of a consuming pass runs from the first message until the broker says that nothing is pending; that of a
 * publishing pass until the last confirmation. A pass is void unless every message came once.
 */
import * as fs from "node:fs"
import { Session } from "node:inspector/promises"
import { flushCompileCache } from "node:module"
import { setImmediate as turn, setTimeout as wait } from "node:timers/promises"
import { ordersOf } from "./order.ts"
import { makeSide, type Side } from "./side.ts"
import { type FromRound, group, type Measured, outputOf, type Spec, type ToRound, workOf } from "./spec.ts"
import { Tally } from "./tally.ts"
import { countSocketWrites, socketWrites } from "./writes.ts"

const given: Spec = JSON.parse(process.argv[2]!)
const url = process.argv[3] ?? ""
/** Where to leave a CPU profile of the pass that counts. */
const profileTo = process.argv[4]
const deadline = 60_000

const say = (message: FromRound): Promise<void> =>
  new Promise((resolve) => process.send!(message, undefined, undefined, () => resolve()))

// --- messages of the parent, in order

const told: Array<ToRound> = []
let listen: ((message: ToRound) => void) | undefined
process.on("message", (message: ToRound) => {
  if (listen === undefined) return void told.push(message)
  listen(message)
  listen = undefined
})
const hear = (): Promise<ToRound> =>
  new Promise((resolve) => {
    const next = told.shift()
    if (next === undefined) listen = resolve
    else resolve(next)
  })

// --- passes

const reportsOf = async (side: Side, spec: Spec, topic: string, group: string, tally: Tally) => {
  const stored = workOf(spec.arm) === "publish"
    ? await side.server!.length(topic)
    : isPublishing(spec.arm)
    ? await side.server!.length(outputOf(topic, group))
    : spec.count
  return [
    ...(tally.received === spec.count || workOf(spec.arm) === "publish"
      ? []
      : [`${tally.received} of ${spec.count} came within ${deadline / 1000} s`]),
    ...(tally.twice > 0 ? [`${tally.twice} came twice`] : []),
    ...(stored === spec.count ? [] : [`${stored} of ${spec.count} are stored`])
  ]
}

/** It publishes for each message that it consumes. */
const isPublishing = (arm: string) => arm === "to" || arm === "rawTo"

/** `done` gets the result before the arm stops. */
const pass = async (
  side: Side,
  spec: Spec,
  topic: string,
  group: string,
  done: (measured: Measured) => Promise<void> = async () => {}
): Promise<Measured> => {
  const { arm, server } = side
  const { count } = spec
  const work = workOf(spec.arm)
  const isOpen = spec.rate !== undefined
  const orders = work === "consume" ? [] : ordersOf(count, spec.size)
  const tally = new Tally(count, isOpen)
  globalThis.gc?.()
  await server?.resetCommands()
  let cpuBefore = process.cpuUsage()
  const writesBefore = socketWrites()
  let since = performance.now()
  // Subscribing takes as long as many messages do, and has a chapter of its own.
  if (work === "consume") {
    tally.onFirst = () => {
      cpuBefore = process.cpuUsage()
      since = performance.now()
    }
  }
  const isLate = () => performance.now() - since >= deadline
  let isPending = false
  let stop = async () => {}
  if (work === "publish") {
    await arm.publish!(topic, orders)
  } else {
    stop = await arm.consume!(topic, group, tally.handle)
    if (isOpen) await say({ _tag: "Consuming" })
    if (work === "both") await arm.publish!(topic, orders)
    await Promise.race([tally.done, wait(deadline, undefined, { ref: false })])
    while (!await side.isSettled(topic, group) && !isLate()) await turn()
    isPending = isLate()
  }
  const took = performance.now() - since
  const cpu = process.cpuUsage(cpuBefore)
  const writes = socketWrites() - writesBefore
  const commands = await server?.commands()
  const reports = [
    ...await reportsOf(side, spec, topic, group, tally),
    ...(isPending ? ["some are pending"] : [])
  ]
  const measured = {
    rate: count / took * 1000,
    cpu: (cpu.user + cpu.system) / count,
    commands: commands === undefined ? undefined : commands / count,
    writes: writes / count,
    rss: process.memoryUsage().rss,
    latency: tally.latency,
    steps: tally.steps(spec),
    void: reports.length === 0 ? undefined : reports.join(", ")
  }
  await done(measured)
  await stop()
  return measured
}

const profiled = async (run: () => Promise<Measured>): Promise<Measured> => {
  if (profileTo === undefined) return run()
  const session = new Session()
  session.connect()
  await session.post("Profiler.enable")
  await session.post("Profiler.setSamplingInterval", { interval: 200 })
  await session.post("Profiler.start")
  const measured = await run()
  const { profile } = await session.post("Profiler.stop")
  fs.writeFileSync(profileTo, JSON.stringify(profile))
  return measured
}

const measure = async (go: Extract<ToRound, { _tag: "Go" }>): Promise<void> => {
  const spec = go.spec ?? given
  const side = await makeSide(spec, url)
  const consumers = go.group ?? group
  if (go.warmUpCount > 0) {
    const { ramp: _ramp, rate: _rate, ...still } = spec
    await side.prepare?.(go.warmUp, go.warmUpCount)
    await pass(side, { ...still, count: go.warmUpCount }, go.warmUp, consumers)
  }
  await side.prepare?.(go.topic, spec.count)
  const saying = (measured: Measured) => say({ _tag: "Measured", measured })
  const measured = await profiled(() =>
    pass(side, spec, go.topic, consumers, go.saysEarly === true ? saying : undefined)
  )
  if (go.saysEarly !== true) await saying(measured)
  await side.close()
}

/** Consumes together with other processes; the parent has the clock. */
const join = async ({ group, spec, topic }: Extract<ToRound, { _tag: "Join" }>): Promise<void> => {
  const side = await makeSide(spec, url)
  const tally = new Tally(spec.count, false)
  await say({ _tag: "Joined" })
  await hear()
  const stop = await side.arm.consume!(topic, group, tally.handle)
  await hear()
  await say({ _tag: "Stopped", received: tally.received, twice: tally.twice })
  await stop()
  await side.close()
}

process.on("disconnect", () => process.exit())
countSocketWrites()
flushCompileCache()
await say({ _tag: "Ready" })
for (;;) {
  const message = await hear()
  if (message._tag === "Go") await measure(message)
  if (message._tag === "Join") await join(message)
}
