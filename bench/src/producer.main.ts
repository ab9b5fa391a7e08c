/**
 * Sends at a given rate, whatever becomes of the messages: each carries the time at which it was to be sent. Where messages
 * come one by one, each carries the time at which it was sent.
 */
import { connect as connectNats } from "@nats-io/transport-node"
import { flushCompileCache } from "node:module"
import { connect as connectRedis } from "./arms/redis.ts"
import { bodyOf, contentType, monotonic, padding } from "./order.ts"
import { type Spec, stepsOf } from "./spec.ts"

const broker = process.argv[2]!
const url = process.argv[3]!

const sender = async () => {
  if (broker === "jetstream") {
    const nc = await connectNats({ servers: url })
    return (topic: string, body: string) => nc.publish(topic, body)
  }
  const client = await connectRedis(url)
  return (topic: string, body: string) =>
    void client.sendCommand(["XADD", topic, "*", "body", body, "content-type", contentType])
}

const send = await sender()
const cell = new Int32Array(new SharedArrayBuffer(4))

/** Below this rate a message finds the system idle. */
const loneBelow = 1000

/** When each message is due, in milliseconds after the first. */
const schedule = ({ count, ramp, rate }: Spec): (index: number) => number => {
  if (ramp === undefined) return (index) => index * 1000 / rate!
  const times = new Float64Array(count)
  let index = 0
  stepsOf(rate!, ramp).forEach((count, step) => {
    for (let n = 0; n < count; n++) times[index++] = (step + n / count) * ramp.millis
  })
  return (index) => times[index]!
}

flushCompileCache()
process.on("message", ({ spec, topic }: { readonly spec: Spec; readonly topic: string }) => {
  const dueAfter = schedule(spec)
  const isLone = spec.rate! < loneBelow
  /** Milliseconds between two looks at the clock: timers are ten times as coarse, and not looking is asleep. */
  const step = isLone ? 0.5 : 0.1
  const note = padding(spec.size)
  const since = monotonic() + 5
  let sent = 0
  const turn = () => {
    const now = monotonic() - since
    while (sent < spec.count && dueAfter(sent) <= now) {
      const at = isLone ? monotonic() : since + dueAfter(sent)
      send(topic, bodyOf(sent, Math.round(at * 1000) / 1000, note))
      sent++
    }
    if (sent === spec.count) return
    Atomics.wait(cell, 0, 0, step)
    setImmediate(turn)
  }
  turn()
})
process.on("disconnect", () => process.exit())
process.send?.("ready")
