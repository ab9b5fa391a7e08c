import { NodeServices } from "@effect/platform-node"
import { Cli } from "@millrace/cli"
import { Transport } from "@millrace/core"
import { JetStream } from "@millrace/nats-jetstream"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers, MemoryTransport } from "@millrace/testing"
import { Context, Effect, Layer } from "effect"
import { Broker } from "../src/internal/Broker.ts"
import { Output } from "../src/internal/Output.ts"
import { Open } from "../src/internal/target.ts"

/** What a run of the command left behind. */
export interface Ran {
  readonly code: number
  readonly out: string
  readonly error: string
}

/** The command as a test runs it: the flags that name the broker, and the services it needs. */
export class Command extends Context.Service<Command, {
  readonly name: string
  readonly flags: ReadonlyArray<string>
  readonly open: Layer.Layer<Broker | Transport.Transport> | undefined
}>()("test/Command") {}

/** Runs the command in this process and takes down what it writes. */
export const millrace = Effect.fnUntraced(function*(...args: ReadonlyArray<string>): Effect.fn.Return<
  Ran,
  never,
  Command
> {
  const { flags, open } = yield* Command
  const out: Array<string> = []
  const error: Array<string> = []
  const run = Cli.run([...args, ...flags]).pipe(
    Effect.provideService(Output, {
      out: (text) => Effect.sync(() => void out.push(text)),
      error: (text) => Effect.sync(() => void error.push(text)),
      transient: () => Effect.void,
      isTerminal: false,
      hasColor: false
    }),
    Effect.provide(NodeServices.layer)
  )
  const code = yield* open === undefined ? run : Effect.provideService(run, Open, () => open)
  return { code, out: out.join("\n"), error: error.join("\n") }
})

/** This machine's clock is set to another time until the scope closes; timers go on. */
export const shiftClock = (millis: number) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const now = Date.now
      Date.now = () => now() + millis
      return now
    }),
    (now) => Effect.sync(() => void (Date.now = now))
  )

/** Starts a command that goes on until its scope closes; what it has written so far grows. */
export const started = Effect.fnUntraced(function*(...args: ReadonlyArray<string>) {
  const { flags, open } = yield* Command
  const out: Array<string> = []
  const write = (text: string) => Effect.sync(() => void out.push(text))
  const run = Cli.run([...args, ...flags]).pipe(
    Effect.provideService(Output, {
      out: write,
      error: write,
      transient: () => Effect.void,
      isTerminal: false,
      hasColor: false
    }),
    Effect.provide(NodeServices.layer)
  )
  yield* Effect.forkScoped(open === undefined ? run : Effect.provideService(run, Open, () => open))
  return out
})

export const until = Effect.fnUntraced(function*<E, R>(what: string, holds: Effect.Effect<boolean, E, R>) {
  for (let i = 0; i < 1000; i++) {
    if (yield* holds) return
    yield* Effect.sleep("50 millis")
  }
  throw new Error(`not within 50 seconds: ${what}`)
})

export const json = Effect.fnUntraced(function*(...args: ReadonlyArray<string>) {
  const { code, error, out } = yield* millrace(...args, "--json")
  if (code === 2) throw new Error(error)
  return JSON.parse(out)
})

type Layers = Layer.Layer<Command | Transport.Transport, unknown>

/** The broker in memory, which the command reaches in this process. */
export const memory: Layers = Layer.effectContext(Effect.gen(function*() {
  const memory = yield* MemoryTransport.make({ history: true })
  const transport = yield* memory.connect
  const broker = Broker.of({
    name: "memory",
    server: "memory",
    transport,
    topics: Effect.map(memory.sizes, (sizes) => [...sizes.keys()].sort()),
    stored: (topic) =>
      Effect.map(memory.sizes, (sizes) => {
        const messages = sizes.get(topic)
        return messages === undefined
          ? undefined
          : { topic, messages, added: undefined, bytes: undefined, first: undefined, last: undefined, bounds: [] }
      }),
    held: () => Effect.succeed(undefined),
    retries: () => Effect.succeed(undefined),
    examine: () => Effect.succeed([])
  })
  const open = Layer.mergeAll(Layer.succeed(Broker, broker), Layer.succeed(Transport.Transport, transport))
  return Context.make(Command, { name: "memory", flags: ["--redis", "redis://memory"], open }).pipe(
    Context.add(Transport.Transport, transport)
  )
}))

export const redis = (kind: "redis" | "valkey", options?: Brokers.RedisOptions): Layers =>
  Layer.unwrap(Effect.map(Brokers[kind](options), ({ url }) =>
    Layer.merge(
      Layer.succeed(Command, { name: kind, flags: ["--redis", url], open: undefined }),
      RedisStreams.layer({ url })
    )))

export const nats = (options?: Brokers.NatsOptions): Layers =>
  Layer.unwrap(Effect.map(Brokers.nats(options), ({ url }) =>
    Layer.merge(
      Layer.succeed(Command, { name: "nats", flags: ["--nats", url], open: undefined }),
      JetStream.layer({ url })
    )))
