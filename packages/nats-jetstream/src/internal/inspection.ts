import type * as Topic from "@millrace/core/Topic"
import type * as TransportError from "@millrace/core/TransportError"
import * as Arr from "effect/Array"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import type * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import type { ConsumerInfo, Read, ReadOptions, StartFrom, StreamInfo } from "../Options.ts"
import { mismatch } from "./comparison.ts"
import { ask, type Connection, interrupted, invalidOption } from "./connection.ts"
import { findConsumer, invalidStart, start } from "./consumers.ts"
import { JetStreamDelivery } from "./delivery.ts"
import type { Life } from "./life.ts"
import * as names from "./names.ts"
import { whenReady } from "./recovery.ts"
import { type JetStream, partsOf } from "./service.ts"
import { ensureStream, findStream } from "./streams.ts"

/**
 * Reads a topic in order, without a group and without acknowledging: for projections and caches. It does not end: it goes
 * on with messages that are published later, where it was when the connection was lost, and at the beginning of a stream
 * that was created again.
 *
 * @category reading
 * @since 0.1.0
 */
export const read = <A, RD, RE>(
  topic: Topic.Topic<A, RD, RE>,
  options: ReadOptions = {}
): Stream.Stream<Read<A>, TransportError.TransportError | Schema.SchemaError, JetStream | RD> =>
  Stream.unwrap(Effect.map(partsOf, (parts) => {
    const { stream: name, subject } = options
    const bad = invalidStart(options.startFrom)
    if (bad !== undefined) {
      return Stream.fail(invalidOption(bad.option, bad.value, bad.remedy))
    }
    /** Where to go on, and in which life of the stream. */
    let next: { readonly life: Life | undefined; readonly startFrom: StartFrom } = {
      life: undefined,
      startFrom: options.startFrom ?? "beginning"
    }
    const subjects = Arr.of(subject ?? topic.name)
    const filter = subject ?? (name === undefined ? topic.name : undefined)
    const badName = names.validateTopic(topic.name) ?? (filter === undefined ? undefined : names.validateFilter(filter))
    if (badName !== undefined) return Stream.fail(badName)
    const operation = `reading ${filter ?? name}`
    const { connection, declaring } = parts
    const find = whenReady(
      ensureStream(connection, declaring, { topic: topic.name, subjects, purpose: "source", name })
    )
    const once = Stream.unwrap(Effect.gen(function*() {
      const stream = yield* find
      const life = connection.lives.note(stream)
      const startFrom = next.life === undefined || next.life.origin === life.origin ? next.startFrom : "beginning"
      next = { life, startFrom }
      const messages = yield* ask(connection, operation, (jsm) =>
        jsm.jetstream().consumers.get(stream.config.name, {
          ...filter === undefined ? {} : { filter_subjects: filter },
          ...start(startFrom)
        }).then((consumer) => consumer.consume()))
      yield* Effect.addFinalizer(() => Effect.ignore(Effect.promise(() => messages.close())))
      // The client goes on where it was, whatever has become of the stream.
      const isReplaced = connection.whenConnected.pipe(
        Effect.andThen(find),
        Effect.map((found) => connection.lives.note(found).origin !== life.origin),
        Effect.orElseSucceed(() => false),
        Effect.delay(lookAgainAfter),
        Effect.repeat({ until: (isReplaced) => isReplaced })
      )
      return Stream.fromAsyncIterable(messages, (cause) => interrupted(operation, cause)).pipe(
        Stream.mapEffect((message) => {
          const delivery = new JetStreamDelivery(message, life)
          return Effect.map(topic.codec.decode(delivery), (value): Read<A> => {
            next = { life, startFrom: { sequence: Number(delivery.sequence) + 1 } }
            return {
              value,
              id: delivery.id,
              topic: delivery.topic,
              headers: delivery.headers,
              publishedAt: DateTime.makeUnsafe(delivery.publishedAt)
            }
          })
        }),
        Stream.interruptWhen(isReplaced)
      )
    }))
    return Stream.forever(once)
  }))

/** How often a reader makes sure that its stream is still the same. */
const lookAgainAfter = "1 second"

const streamFor = (connection: Connection, topic: string) =>
  Effect.flatMap(findStream(connection, topic), (info) =>
    info === undefined
      ? Effect.fail(mismatch(`the stream of ${topic}`, "there", "absent"))
      : Effect.succeed(info))

/**
 * Asks how far a group has come on a topic.
 *
 * @category seeing
 * @since 0.1.0
 */
export const consumerInfo = Effect.fnUntraced(function*(
  topic: string | { readonly name: string },
  group: string
): Effect.fn.Return<ConsumerInfo, TransportError.TransportError, JetStream> {
  const { connection } = yield* partsOf
  const name = typeof topic === "string" ? topic : topic.name
  const stream = yield* streamFor(connection, name)
  const info = yield* findConsumer(connection, stream, { topic: name, group, subjects: [name] })
  if (info === undefined) {
    return yield* mismatch(`consumer ${group} of stream ${stream.config.name}`, "there", "absent")
  }
  const position = (sequence: { readonly stream_seq: number; readonly last_active?: unknown }) => ({
    sequence: sequence.stream_seq,
    at: typeof sequence.last_active === "string" ? DateTime.makeUnsafe(sequence.last_active) : undefined
  })
  return {
    stream: info.stream_name,
    consumer: info.name,
    pending: info.num_pending,
    ackPending: info.num_ack_pending,
    lag: info.num_pending + info.num_ack_pending,
    redelivered: info.num_redelivered,
    openPulls: info.num_waiting,
    lastDelivered: position(info.delivered),
    ackFloor: position(info.ack_floor)
  }
})

/**
 * Asks what the stream of a topic holds.
 *
 * @category seeing
 * @since 0.1.0
 */
export const streamInfo = Effect.fnUntraced(function*(
  topic: string | { readonly name: string }
): Effect.fn.Return<StreamInfo, TransportError.TransportError, JetStream> {
  const { connection } = yield* partsOf
  const info = yield* streamFor(connection, typeof topic === "string" ? topic : topic.name)
  return {
    stream: info.config.name,
    subjects: info.config.subjects ?? [],
    messages: info.state.messages,
    bytes: info.state.bytes,
    firstSequence: info.state.first_seq,
    lastSequence: info.state.last_seq,
    consumers: info.state.consumer_count,
    replicas: info.config.num_replicas,
    leader: info.cluster?.leader
  }
})
