import * as Concurrency from "@millrace/core/Concurrency"
import * as Publisher from "@millrace/core/Publisher"
import type { Transport } from "@millrace/core/Transport"
import * as TransportError from "@millrace/core/TransportError"
import { type NatsConnection, nuid } from "@nats-io/nats-core"
import * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import type { CommonOptions } from "../Options.ts"
import * as browsing from "./browsing.ts"
import { isCode } from "./comparison.ts"
import { type Answer, type Confirmed, isNobody } from "./confirmation.ts"
import { failure, invalidOption, transport as transportName, watch } from "./connection.ts"
import type { PendingMessage } from "./encoding.ts"
import { groups } from "./groups.ts"
import { Condition } from "./health.ts"
import { AttemptLedger } from "./ledger.ts"
import { idOf, type Life } from "./life.ts"
import * as names from "./names.ts"
import { publishing } from "./publishing.ts"
import { whenReady } from "./recovery.ts"
import { atLeast } from "./server.ts"
import { type JetStream, makeService } from "./service.ts"
import { type Declaring, ensureStream, findStream } from "./streams.ts"
import { subscribe } from "./subscription.ts"

const limitOf = (
  concurrency: CommonOptions["concurrency"]
): Effect.Effect<Concurrency.Limit, TransportError.TransportError> => {
  if (concurrency === undefined) return Effect.succeed(Concurrency.make(Infinity))
  if (Concurrency.isLimit(concurrency)) return Effect.succeed(concurrency)
  return concurrency === Infinity || (Number.isInteger(concurrency) && concurrency > 0)
    ? Effect.succeed(Concurrency.make(concurrency))
    : Effect.fail(
      invalidOption(
        "concurrency",
        concurrency,
        "give a whole number of handlers, 1 or more, a Concurrency.Limit, or leave it out"
      )
    )
}

/** Makes the service on a connection; closing the connection is its owner's business. */
export const make = Effect.fnUntraced(function*(
  client: NatsConnection,
  address: string,
  options: CommonOptions
): Effect.fn.Return<JetStream["Service"], TransportError.TransportError, Scope.Scope> {
  const limit = yield* limitOf(options.concurrency)
  const { subjects } = options.stream ?? {}
  if (subjects !== undefined && !Array.isArray(subjects)) {
    return yield* invalidOption("stream.subjects", subjects, "give an array of subjects")
  }
  const badSubject = (options.stream?.subjects ?? []).map((subject) => names.validateFilter(subject)).find((error) =>
    error !== undefined
  )
  if (badSubject !== undefined) return yield* badSubject
  const badName = options.stream?.name === undefined ? undefined : names.validateStream(options.stream.name)
  if (badName !== undefined) return yield* badName
  if (!atLeast(client.info?.version, 2, 9)) {
    return yield* failure(
      new TransportError.Unsupported({
        operation: `nats-server ${client.info?.version}`,
        remedy: "Millrace needs nats-server 2.9, and recommends 2.10 or newer"
      })
    )
  }
  const connection = yield* watch(client, {
    address,
    inboxPrefix: options.inboxPrefix ?? "_INBOX",
    ...(options.domain === undefined ? {} : { domain: options.domain }),
    ...(options.apiPrefix === undefined ? {} : { apiPrefix: options.apiPrefix })
  })
  const publishTimeout = Duration.fromInputUnsafe((options.publishTimeout ?? "5 seconds") as Duration.Input)
  const { send } = yield* publishing(connection, { timeout: publishTimeout })
  const declaring: Declaring = {
    manage: options.manage ?? "create",
    retention: options.retention,
    ackWait: options.ackWait,
    stream: options.stream,
    deadLetterStream: options.deadLetterStream
  }
  const context = yield* Effect.context<never>()
  const ledger = yield* Effect.acquireRelease(
    Effect.sync(() =>
      new AttemptLedger({
        connection,
        manage: declaring.manage,
        run: Effect.runForkWith(context),
        runPromise: Effect.runPromiseWith(context)
      })
    ),
    (ledger) => Effect.sync(() => ledger.close())
  )
  const declared = new Map<string, "output" | "deadLetter">()
  const declare = Effect.fnUntraced(function*(
    topic: string,
    purpose: "output" | "deadLetter"
  ): Effect.fn.Return<void, TransportError.TransportError> {
    const badName = names.validateTopic(topic)
    if (badName !== undefined) return yield* badName
    const ensured = whenReady(ensureStream(connection, declaring, { topic, subjects: [topic], purpose }))
    yield* Effect.catchIf(
      ensured,
      isPlaceMissing,
      (error) => Effect.flatMap(ledger.giveWay, (hasGivenWay) => hasGivenWay ? ensured : Effect.fail(error))
    )
    declared.set(topic, purpose)
  })
  /** Makes the stream that a message lacks: a publisher need not know whether a consumer has been started before. */
  const publish = (messages: Arr.NonEmptyReadonlyArray<PendingMessage>): Effect.Effect<ReadonlyArray<Answer>> => {
    const sent = Effect.flatMap(
      send(messages),
      (answers) => answers.every(Result.isSuccess) ? Exit.succeed(answers) : publishUnheard(messages, answers)
    )
    return messages.some(({ message }) => message.delay !== undefined)
      ? Effect.andThen(measureSkew(messages[0].message.topic), sent)
      : sent
  }
  const publishUnheard = Effect.fnUntraced(function*(
    messages: Arr.NonEmptyReadonlyArray<PendingMessage>,
    answers: ReadonlyArray<Answer>
  ) {
    const unheard = messages.flatMap((pending, index) => {
      const answer = answers[index]!
      return Result.isFailure(answer) && isNobody(answer.failure) ? [{ pending, index }] : []
    })
    if (!Arr.isArrayNonEmpty(unheard)) return answers
    const results = answers.slice()
    for (const [topic, ones] of Object.entries(Arr.groupBy(unheard, ({ pending }) => pending.message.topic))) {
      const declaration = yield* Effect.result(declare(topic, declared.get(topic) ?? "output"))
      if (Result.isSuccess(declaration)) {
        const again = yield* send(Arr.map(ones, ({ pending }) => pending))
        for (let i = 0; i < ones.length; i++) results[ones[i]!.index] = again[i]!
      } else if (declaration.failure.reason._tag === "Mismatch" || declaration.failure.reason._tag === "Unauthorized") {
        const reason = new Publisher.Refused({ detail: declaration.failure.message })
        for (const { index } of ones) results[index] = Result.fail(new Publisher.PublishError({ topic, reason }))
      }
    }
    return results
  })
  /** A delay is a date of the server's clock. */
  const measureSkew = (topic: string) =>
    connection.isSkewKnown() ? Effect.void : Effect.ignore(findStream(connection, topic))
  /** An id that nobody else knows is good for nobody else: what may not have arrived is published again here, once. */
  const publishOnce = (messages: Parameters<Transport["Service"]["publish"]>[0]) => {
    const all = Arr.map(
      messages,
      (message): PendingMessage => ({ message, id: message.id === undefined ? nuid.next() : undefined })
    )
    return Effect.flatMap(
      publish(all),
      (answers) => answers.every(Result.isSuccess) ? Exit.succeed(answers) : publishUnknown(messages, all, answers)
    )
  }
  const publishUnknown = Effect.fnUntraced(function*(
    messages: Parameters<Transport["Service"]["publish"]>[0],
    all: Arr.NonEmptyReadonlyArray<PendingMessage>,
    answers: ReadonlyArray<Answer>
  ) {
    const unknown = all.flatMap((pending, index) => {
      const answer = answers[index]!
      const isOurs = messages[index]!.id === undefined
      return isOurs && Result.isFailure(answer) && answer.failure.reason._tag === "OutcomeUnknown"
        ? [{ pending, index }]
        : []
    })
    if (!Arr.isArrayNonEmpty(unknown)) return answers
    yield* Effect.ignore(Effect.timeoutOption(connection.whenConnected, publishTimeout))
    const again = yield* send(Arr.map(unknown, ({ pending }) => pending))
    const results = answers.slice()
    unknown.forEach(({ index }, i) => {
      const answer = again[i]!
      // Not sent this time says nothing about the first.
      if (Result.isSuccess(answer) || answer.failure.reason._tag !== "NotSent") results[index] = answer
    })
    return results
  })
  /** A sequence is unique within one life of its stream only. */
  const identified = (answers: ReadonlyArray<Answer>): Effect.Effect<ReadonlyArray<Answer>> => {
    const results: Array<Answer> = []
    for (const answer of answers) {
      const life = Result.isSuccess(answer) ? lifeOf(answer.success) : undefined
      // Whoever has not been told of the stream has to ask.
      if (Result.isSuccess(answer) && life === undefined) return identifiedFrom(answers, results)
      results.push(withLife(answer, life))
    }
    return Exit.succeed(results)
  }
  const lifeOf = ({ duplicate, sequence, stream }: Confirmed) =>
    connection.lives.ofPublished(stream, sequence, duplicate)
  /** A user that may not look for the stream gets the bare sequence, which `get` and `remove` take too. */
  const withLife = (answer: Answer, life: Life | undefined): Answer =>
    Result.isSuccess(answer) && life !== undefined
      ? Result.succeed({ ...answer.success, id: idOf(life, answer.success.sequence) })
      : answer
  const identifiedFrom = Effect.fnUntraced(function*(answers: ReadonlyArray<Answer>, results: Array<Answer>) {
    for (const answer of answers.slice(results.length)) {
      if (Result.isFailure(answer)) {
        results.push(answer)
        continue
      }
      const { stream } = answer.success
      const life = lifeOf(answer.success) ??
        (yield* Effect.orElseSucceed(
          Effect.map(connection.call(`looking for stream ${stream}`, (jsm) => jsm.streams.info(stream)), (info) => {
            const life = connection.lives.note(info)
            lifeOf(answer.success)
            return life
          }),
          () => undefined
        ))
      results.push(withLife(answer, life))
    }
    return results
  })
  const condition = new Condition(Date.now)
  const transport: Transport["Service"] = {
    name: transportName,
    address,
    capabilities: {
      deduplication: true,
      delayedPublish: atLeast(client.info?.version, 2, 12),
      uncountedRelease: declaring.manage !== "none",
      orderedRelease: true,
      ownership: true,
      maxBody: undefined
    },
    limit,
    nameRemedy: names.remedy,
    subscribe: (wish) => subscribe(connection, declaring, ledger, wish),
    declare,
    publish: (messages) => Effect.flatMap(publishOnce(messages), identified),
    browse: (topic, options) => browsing.browse(connection, topic, options),
    get: (topic, id) => browsing.get(connection, topic, id),
    groups: (topic) => groups(connection, topic),
    remove: (topic, ids) => browsing.remove(connection, topic, ids),
    health: Effect.sync(() =>
      connection.state() === "connected"
        ? condition.connected()
        : condition.reconnecting(connection.trouble())
    )
  }
  return makeService(transport, client, { connection, declaring, send: publish, declared })
})

const maximumStreams = 10027

/** The account allows no further stream. */
const isPlaceMissing = ({ reason }: TransportError.TransportError): boolean =>
  reason._tag === "OperationFailed" && isCode(reason.cause, maximumStreams)
