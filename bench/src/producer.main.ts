/**
 * Sends at a fixed rate, whatever becomes of it: each message carries the time at which it was to be sent.
 */
import { connect as connectNats } from "@nats-io/transport-node"
import { connect as connectRedis } from "./arms/redis.ts"
import { bodyOf, contentType, monotonic, padding } from "./order.ts"
import type { Spec } from "./spec.ts"

const spec: Spec = JSON.parse(process.argv[2]!)
const url = process.argv[3]!
const topic = process.argv[4]!
const rate = spec.rate!

const sender = async () => {
  if (spec.broker === "jetstream") {
    const nc = await connectNats({ servers: url })
    return { send: (body: string) => nc.publish(topic, body), close: () => nc.flush().then(() => nc.close()) }
  }
  const client = await connectRedis(url)
  return {
    send: (body: string) => void client.sendCommand(["XADD", topic, "*", "body", body, "content-type", contentType]),
    close: () => client.close()
  }
}

const { close, send } = await sender()
const note = padding(spec.size)
const cell = new Int32Array(new SharedArrayBuffer(4))
/** Milliseconds between two looks at the clock: timers are ten times as coarse, and not looking is asleep. */
const step = 0.1

process.once("message", () => {
  const since = monotonic() + 5
  let sent = 0
  const turn = () => {
    const due = Math.min(spec.count, Math.floor((monotonic() - since) * rate / 1000))
    for (; sent < due; sent++) send(bodyOf(sent, Math.round((since + sent * 1000 / rate) * 1000) / 1000, note))
    if (sent < spec.count) {
      Atomics.wait(cell, 0, 0, step)
      setImmediate(turn)
    } else {
      void close().then(() => process.disconnect())
    }
  }
  turn()
})
process.send?.("ready")
