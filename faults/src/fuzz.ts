/** Messages that nobody in his right mind would publish; the same seed makes the same ones. */
import { type Outgoing, Transport } from "@millrace/core/Transport"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import * as net from "node:net"
import { job, type Stage } from "./stage.ts"
import type { Kind } from "./target.ts"

const names = [
  "content-type",
  "traceparent",
  "tracestate",
  "millrace-key",
  "millrace-group",
  "millrace-history",
  "millrace-dead-letter",
  "millrace-split",
  "millrace-attempt",
  "x-anything",
  "__proto__",
  "constructor",
  "toString"
]

const texts = [
  "",
  "%",
  "%ff%",
  "null",
  "[{}]",
  "{\"version\":1}",
  "00-00000000000000000000000000000000-0000000000000000-00",
  "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-zz",
  "application/x-unknown; charset=\"",
  "nobody",
  "-1",
  "1e999",
  "x".repeat(5_000)
]

const bodies = [
  "",
  "null",
  "[]",
  "{",
  "{\"n\":1e400}",
  "{\"__proto__\":{\"n\":1}}",
  "\uFEFF{}",
  "\"\\ud800\"",
  "[".repeat(20_000),
  "9".repeat(10_000)
]

const encoder = new TextEncoder()

const maker = (random: () => number) => {
  const below = (n: number) => Math.floor(random() * n)
  const pick = <A>(all: ReadonlyArray<A>): A => all[below(all.length)]!
  const noise = (most: number) => Uint8Array.from({ length: below(most) }, () => below(256))
  /** Changes, drops and repeats some of the bytes. */
  const mutate = (bytes: Uint8Array) => {
    let bent = Array.from(bytes)
    for (let i = below(4); i >= 0; i--) {
      const at = below(bent.length)
      const kind = below(4)
      if (kind === 0) bent[at] = below(256)
      else if (kind === 1) bent.splice(at, 1 + below(8))
      else if (kind === 2) bent.splice(at, 0, ...bent.slice(at, at + below(16)))
      else bent = bent.slice(0, at + 1)
    }
    return Uint8Array.from(bent)
  }
  const body = (n: number) => {
    const whole = encoder.encode(JSON.stringify(job(n, { work: 0, failures: 0 })))
    const kind = below(8)
    return kind < 2 ? whole : kind < 6 ? mutate(whole) : kind === 6 ? noise(200) : encoder.encode(pick(bodies))
  }
  const headers = () => {
    const some: Record<string, string> = Object.create(null)
    for (let i = below(4); i > 0; i--) some[pick(names)] = pick(texts)
    return some
  }
  const raw = {
    /** `XADD` with whatever fields. */
    redis: (topic: string, n: number) => {
      const fields = Array.from({ length: 1 + below(4) }, () => [
        below(3) === 0 ? noise(20) : encoder.encode(pick([...names, "body", "Body"])),
        below(2) === 0 ? noise(50) : below(2) === 0 ? body(n) : encoder.encode(pick(texts))
      ]).flat()
      const words = [...["XADD", topic, "*"].map((word) => encoder.encode(word)), ...fields]
      return Buffer.concat([
        Buffer.from(`*${words.length}\r\n`),
        ...words.flatMap((word) => [Buffer.from(`$${word.length}\r\n`), word, Buffer.from("\r\n")])
      ])
    },
    /** `HPUB` with a head that is none, or nearly one. */
    nats: (topic: string, n: number) => {
      const lines = Array.from(
        { length: below(4) },
        () => `${pick([...names, "", " ", "Ä"])}${pick([":", ": ", "", "::"])}${pick(texts)}`
      )
      const written = Buffer.from(
        `NATS/1.0${pick(["", "", " 503", " 100 Idle", " x"])}\r\n${lines.join("\r\n")}\r\n\r\n`
      )
      const head = below(3) === 0 ? Buffer.concat([written, noise(20)]) : written
      const load = body(n)
      return Buffer.concat([
        Buffer.from(`HPUB ${topic} ${head.length} ${head.length + load.length}\r\n`),
        head,
        load,
        Buffer.from("\r\n")
      ])
    }
  }
  const outgoing = (topic: string, n: number): Outgoing => ({
    topic,
    body: body(n),
    headers: headers(),
    key: undefined,
    id: undefined,
    delay: undefined
  })
  return { outgoing, raw }
}

/** The server ended the connection before it had read everything. */
class Unread extends Data.TaggedError("Unread")<{ readonly heard: string; readonly cause?: unknown }> {}

/** Writes bytes as they are, and waits until the server has read them. */
const write = (kind: Kind, broker: { readonly host: string; readonly port: number }, bytes: Uint8Array) =>
  Effect.callback<void, Unread>((resume) => {
    const socket = net.connect(broker.port, broker.host)
    let heard = ""
    socket.on("error", (error) => resume(Effect.fail(new Unread({ heard, cause: error }))))
    socket.on("close", () => resume(Effect.fail(new Unread({ heard }))))
    socket.on("data", (data) => {
      heard = (heard + data.toString("latin1")).slice(-1_000)
      if (!heard.includes("PONG")) return
      resume(Effect.void)
      socket.destroy()
    })
    if (kind === "nats") socket.write("CONNECT {\"verbose\":false,\"headers\":true}\r\n")
    socket.write(bytes)
    socket.write("PING\r\n")
  })

/** Nine of ten through a transport, one past it. */
export const send = (stage: Stage, times: number): Effect.Effect<void, unknown> =>
  Effect.gen(function*() {
    const random = yield* Random.Random
    const { outgoing, raw } = maker(() => random.nextDoubleUnsafe())
    const { broker, journal, topic } = stage
    const kind = broker.kind === "nats" ? "nats" : "redis"
    for (const numbers of Arr.chunksOf(Arr.range(0, times - 1), 500)) {
      const own = numbers.filter((n) => n % 10 !== 0)
      const foreign = numbers.filter((n) => n % 10 === 0)
      yield* stage.send(own.map((n) => ({ n, message: outgoing(topic, n) })))
      yield* write(kind, broker, Buffer.concat(foreign.map((n) => raw[kind](topic, n))))
    }
    const known = new Set(journal.lines().flatMap((line) => line._tag === "Accepted" ? [line.id] : []))
    const count = Stream.runForEach(Context.get(stage.direct, Transport).browse(topic), ({ id }) =>
      Effect.sync(() => {
        if (!known.has(id)) journal.write({ _tag: "Accepted", id, n: -1 })
        known.add(id)
      }))
    // A server may have read what it has not stored yet.
    yield* Effect.repeat(count, { until: () => known.size >= times, schedule: Schedule.spaced("100 millis") }).pipe(
      Effect.timeout("10 minutes")
    )
  }).pipe(Random.withSeed("millrace"))
