import { assert, describe, it } from "@effect/vitest"
import { DeadLetter, type Message, Pipeline, Publisher, Telemetry, Topic, Transport } from "@millrace/core"
import { JetStream } from "@millrace/nats-jetstream"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers, MemoryTransport, Wait } from "@millrace/testing"
import { Effect, Layer, Schema, type Scope, Stream, Tracer } from "effect"

const traceId = "0af7651916cd43dd8448eb211c80319c"
const traceparent = `00-${traceId}-b7ad6b7169203331-01`
const carried = { traceparent, tracestate: "vendor=1,other=2", baggage: "user=7,plan=pro%20max;p=1" }

const traceOf = ({ headers }: { readonly headers: Message.Headers }) =>
  Object.fromEntries(Object.keys(carried).map((name) => [name, headers[name]]))

const tracer = Tracer.make({ span: (options) => new Tracer.NativeSpan(options) })

const brokers: ReadonlyArray<
  readonly [string, Effect.Effect<Layer.Layer<Transport.Transport, unknown>, unknown, Scope.Scope>]
> = [
  ["memory", Effect.succeed(MemoryTransport.layer({ history: true }))],
  ["Redis", Effect.map(Brokers.redis(), ({ url }) => RedisStreams.layer({ url }))],
  ["NATS", Effect.map(Brokers.nats(), ({ url }) => JetStream.layer({ url }))]
]

/**
 * Orders 1 and 2 are published with a trace. A handler publishes an audit of each; 1 becomes a receipt, 2 a dead letter
 * that is redriven and becomes a receipt too. Gives what each topic then holds.
 */
const scenario = (name: string, options: { readonly isTraced: boolean }) =>
  Effect.gen(function*() {
    const Orders = Topic.make(`${name}_orders`, { schema: Schema.Number })
    const Receipts = Topic.make(`${name}_receipts`, { schema: Schema.Number })
    const Audits = Topic.make(`${name}_audits`, { schema: Schema.Number })
    let isBroken = true
    const pipeline = Pipeline.from(Orders, { group: "g", startFrom: "beginning" }).pipe(
      Pipeline.tap((n) => Publisher.publish(Audits, n)),
      Pipeline.tap((n) => n === 2 && isBroken ? Effect.fail("no") : Effect.void),
      Pipeline.to(Receipts),
      options.isTraced ? Pipeline.middleware(Telemetry.spans({ relation: "parent" })) : (self) => self,
      Pipeline.retry({ times: 0 })
    )
    const running = yield* Pipeline.start(pipeline)
    yield* Publisher.publishAll(Orders, [1, 2], () => ({ headers: carried }))
    const counts = (test: (counts: Pipeline.Counts) => boolean) =>
      Wait.eventually("the messages are handled", running.counts, test)
    yield* counts(({ deadLettered, handled }) => deadLettered === 1 && handled === 1)
    const [letter] = yield* Stream.runCollect(DeadLetter.list(`${Orders.name}.dead`))
    isBroken = false
    yield* DeadLetter.redrive(`${Orders.name}.dead`)
    yield* counts(({ handled }) => handled === 2)
    const transport = yield* Transport.Transport
    const stored = ({ name }: { readonly name: string }) => Stream.runCollect(transport.browse(name))
    return {
      letter: letter!,
      orders: yield* stored(Orders),
      receipts: yield* stored(Receipts),
      audits: yield* stored(Audits)
    }
  }).pipe(
    Effect.scoped,
    Effect.provideService(Telemetry.Logs, false),
    options.isTraced ? Effect.withTracer(tracer) : (self) => self
  )

describe("a trace with its state and baggage", () => {
  for (const [name, broker] of brokers) {
    it.live(`is carried by ${name}: published, by \`to\`, in a dead letter, redriven`, () =>
      Effect.gen(function*() {
        const context = yield* Layer.build(yield* broker)
        const run = (name: string, isTraced: boolean) => Effect.provideContext(scenario(name, { isTraced }), context)
        {
          const { audits, letter, orders, receipts } = yield* run("plain", false)
          assert.deepStrictEqual([orders.length, receipts.length, audits.length], [3, 2, 3])
          for (const message of [letter.message, ...orders, ...receipts, ...audits]) {
            assert.deepStrictEqual(traceOf(message), carried)
          }
          assert.strictEqual(letter.record.trace, traceparent)
        }
        {
          // In spans of handlers that go on with the publisher's trace.
          const { audits, letter, orders, receipts } = yield* run("traced", true)
          const all = [letter.message, ...orders, ...receipts, ...audits].map(traceOf)
          for (const trace of all) {
            assert.deepStrictEqual({ ...trace, traceparent: "" }, { ...carried, traceparent: "" })
            assert.match(trace["traceparent"]!, new RegExp(`^00-${traceId}-[0-9a-f]{16}-01$`))
          }
          // Each publish has a span of its own; a letter and its redrive keep the one of their message.
          const spans = new Set(all.map(({ traceparent }) => traceparent))
          assert.strictEqual(spans.size, 1 + receipts.length + audits.length)
          assert.notInclude([...spans], letter.record.trace)
          assert.include(letter.record.trace!, traceId)
        }
      }).pipe(Effect.scoped))
  }
})
