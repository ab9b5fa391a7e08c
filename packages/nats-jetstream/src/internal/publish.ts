import type * as Message from "@millrace/core/Message"
import type * as Pipeline from "@millrace/core/Pipeline"
import * as Publisher from "@millrace/core/Publisher"
import type * as Topic from "@millrace/core/Topic"
import { outgoing, send, toTransport } from "@millrace/core/TransportAuthor"
import * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import type { Published, PublishOptions } from "../Options.ts"
import * as atomic from "./atomic.ts"
import type { PendingMessage } from "./encoding.ts"
import { checkPublish } from "./options.ts"
import { backoff } from "./recovery.ts"
import { JetStream, type Parts, partsOf } from "./service.ts"

const isUncertain = (error: Publisher.PublishError) =>
  error.reason._tag === "NotSent" || error.reason._tag === "OutcomeUnknown"

const sendUntil = (
  { connection, send }: Parts,
  message: PendingMessage,
  until: Schedule.Schedule<unknown, unknown>
): Effect.Effect<Published, Publisher.PublishError> =>
  Effect.ignore(Effect.timeoutOption(connection.whenConnected, "1 second")).pipe(
    Effect.andThen(send([message])),
    Effect.flatMap((answers) => Effect.fromResult(answers[0]!)),
    Effect.retry({ schedule: until, while: isUncertain })
  )

/**
 * Publishes one value, with what JetStream offers beside `Publisher.publish`, and waits for the confirmation. While
 * there is none it is published again under the same id, which the server takes once.
 *
 * @category publishing
 * @since 0.1.0
 */
export const publish = <A, RD, RE>(
  topic: Topic.Topic<A, RD, RE>,
  value: A,
  options: PublishOptions = {}
): Effect.Effect<Published, Publisher.PublishError, JetStream | RE> =>
  Effect.gen(function*() {
    const invalid = checkPublish(options)?.reason
    if (invalid?._tag === "InvalidOption") {
      return yield* new Publisher.PublishError({ topic: topic.name, reason: invalid })
    }
    const all = yield* partsOf
    const id = options.id ?? crypto.randomUUID()
    const message = yield* outgoing(topic, value, { headers: options.headers, delay: options.delay, id })
    const retryFor = Duration.fromInputUnsafe((options.retryFor ?? "30 seconds") as Duration.Input)
    const expectations = {
      ttl: options.ttl === undefined
        ? undefined
        : Math.ceil(Duration.toSeconds(Duration.fromInputUnsafe(options.ttl as Duration.Input))),
      expectStream: options.expect?.stream,
      expectLastSequence: options.expect?.lastSequence,
      expectLastSubjectSequence: options.expect?.lastSubjectSequence,
      expectLastMessageId: options.expect?.lastMessageId
    }
    const { transport } = yield* JetStream
    let published: Published | undefined
    const [result] = yield* send(transport, [message], ([message]) =>
      sendUntil(
        all,
        { message, subject: options.subject, expectations },
        Schedule.upTo(backoff, { duration: retryFor })
      )
        .pipe(
          Effect.tap((confirmed) => Effect.sync(() => published = confirmed)),
          Effect.result,
          Effect.map(Arr.of)
        ))
    yield* Effect.fromResult(result!)
    return published!
  })

/**
 * Publishes values so that all are stored or none, and consumers see them together. Needs nats-server 2.12 and a stream
 * with `allow_atomic`, which streams made by this layer have; at most 1000 values.
 *
 * **Gotchas**
 *
 * The server keeps no ids of such messages: when the outcome is unknown, publishing again may store all of them twice.
 *
 * @category publishing
 * @since 0.1.0
 */
export const publishBatch = <A, RD, RE>(
  topic: Topic.Topic<A, RD, RE>,
  values: Arr.NonEmptyReadonlyArray<A>
): Effect.Effect<{ readonly stream: string; readonly lastSequence: number }, Publisher.PublishError, JetStream | RE> =>
  Effect.gen(function*() {
    const { connection, declared } = yield* partsOf
    const fail = (reason: Publisher.PublishErrorReason) => new Publisher.PublishError({ topic: topic.name, reason })
    if (!declared.has(topic.name)) {
      yield* JetStream.use(({ transport }) => transport.declare(topic.name, "output")).pipe(
        Effect.mapError((error) => fail(new Publisher.NotSent({ detail: error.message })))
      )
    }
    const messages = yield* Effect.forEach(values, (value) => outgoing(topic, value))
    const { transport } = yield* JetStream
    let stored: { readonly stream: string; readonly lastSequence: number } | undefined
    const results = yield* send(
      transport,
      messages,
      (messages) =>
        Effect.tap(atomic.publishBatch(connection, topic.name, messages), (all) => Effect.sync(() => stored = all))
          .pipe(
            Effect.map((all) => ({ id: String(all.lastSequence), duplicate: false })),
            Effect.result,
            Effect.map((result) => Arr.map(messages, () => result))
          )
    )
    yield* Effect.fromResult(Result.all(results))
    return stored!
  })

/**
 * A step that publishes to JetStream from a pipeline on any broker, and passes the value on. An array that `value`
 * returns is several messages.
 *
 * **Details**
 *
 * The message id derives from the origin and id of the source message, the group and the step's place in the pipeline, so
 * that a retry does not duplicate within the stream's duplicate window. While the server is unreachable the publish waits
 * and holds its slot.
 *
 * @category steps
 * @since 0.1.0
 */
export const to: {
  /**
   * A step that publishes to JetStream from a pipeline on any broker, and passes the value on. An array that `value`
   * returns is several messages.
   *
   * **Details**
   *
   * The message id derives from the origin and id of the source message, the group and the step's place in the pipeline, so
   * that a retry does not duplicate within the stream's duplicate window. While the server is unreachable the publish waits
   * and holds its slot.
   */
  <B, RD, RE>(
    topic: Topic.Topic<B, RD, RE>
  ): <M extends Message.Any, A extends B, E, R>(
    self: Pipeline.Open<M, A, E, R>
  ) => Pipeline.Open<M, A, E | Publisher.PublishError, R | RE | JetStream>
  /**
   * A step that publishes to JetStream from a pipeline on any broker, and passes the value on. An array that `value`
   * returns is several messages.
   *
   * **Details**
   *
   * The message id derives from the origin and id of the source message, the group and the step's place in the pipeline, so
   * that a retry does not duplicate within the stream's duplicate window. While the server is unreachable the publish waits
   * and holds its slot.
   */
  <M extends Message.Any, A, B, RD, RE>(
    topic: Topic.Topic<B, RD, RE>,
    value: (value: NoInfer<A>, message: NoInfer<M>) => NoInfer<B> | ReadonlyArray<NoInfer<B>>
  ): <E, R>(self: Pipeline.Open<M, A, E, R>) => Pipeline.Open<M, A, E | Publisher.PublishError, R | RE | JetStream>
} =
  (topic: Topic.Topic<any, any, any>, value?: (value: any, message: any) => any) =>
  (self: Pipeline.Open<any, any, any, any>): any =>
    toTransport(self, JetStream.use(({ transport }) => Effect.succeed(transport)), topic, value)
