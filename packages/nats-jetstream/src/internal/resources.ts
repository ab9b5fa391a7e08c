import * as TransportError from "@millrace/core/TransportError"
import {
  AckPolicy,
  type ConsumerConfig,
  type ConsumerInfo,
  DeliverPolicy,
  JetStreamApiError,
  ReplayPolicy,
  RetentionPolicy,
  StorageType,
  type StreamConfig,
  type StreamInfo
} from "@nats-io/jetstream"
import type * as Arr from "effect/Array"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { type Connection, failure, NoAnswer, notConnected, transport, unexpected } from "./connection.ts"
import * as names from "./names.ts"
import { atLeast } from "./server.ts"
import type { StartFrom } from "./settings.ts"

/** What a layer says about the streams and consumers it needs. */
export interface Declaring {
  readonly manage: "create" | "verify" | "none"
  readonly retention: "limits" | "until-acked" | undefined
  readonly ackWait?: Duration.Input | undefined
  readonly storage?: "file" | "memory" | undefined
  readonly replicas?: number | undefined
  readonly maxAge?: Duration.Input | undefined
  readonly maxMessages?: number | undefined
  readonly maxBytes?: number | undefined
  readonly duplicateWindow?: Duration.Input | undefined
  readonly config?: Partial<StreamConfig> | undefined
}

/** The API's error codes that mean something to us. */
const code = {
  consumerNotFound: 10014,
  streamNotFound: 10059,
  streamNameInUse: 10058,
  subjectsOverlap: 10065,
  consumerExists: 10148,
  workQueueNotUnique: 10100,
  workQueueMultipleUnfiltered: 10099,
  ackPendingExcess: 10121
}

const isCode = (error: unknown, ...codes: ReadonlyArray<number>) =>
  error instanceof JetStreamApiError && codes.includes(error.code)

const mismatch = (name: string, expected: string, found: string) =>
  failure(new TransportError.Mismatch({ name, expected, found }))

/** The stream that takes what is published on a subject, if there is one. */
export const findStream = (connection: Connection, subject: string) =>
  connection.call(
    `looking for the stream of ${subject}`,
    (jsm) => jsm.streams.find(subject).then((name) => jsm.streams.info(name))
  ).pipe(
    Effect.catch((error) =>
      isCode(error, code.streamNotFound)
        ? Effect.succeed(undefined)
        : Effect.fail(unexpected(`looking for the stream of ${subject}`)(error))
    )
  )

const differences = (
  found: Record<string, unknown>,
  wanted: Record<string, unknown>
): ReadonlyArray<{ readonly name: string; readonly expected: string; readonly found: string }> =>
  Object.entries(wanted).flatMap(([name, value]) =>
    value === undefined || JSON.stringify(found[name]) === JSON.stringify(value)
      ? []
      : [{ name, expected: JSON.stringify(value), found: JSON.stringify(found[name]) ?? "absent" }]
  )

const nanos = (duration: Duration.Input | undefined): number | undefined =>
  duration === undefined ? undefined : Duration.toMillis(Duration.fromInputUnsafe(duration)) * 1e6

type Given<A> = { [K in keyof A]?: Exclude<A[K], undefined> }

const given = <A extends object>(options: A): Given<A> =>
  Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as Given<A>

/** Creates the stream that takes `subjects`, or verifies the one that does. */
export const ensureStream = Effect.fnUntraced(function*(
  connection: Connection,
  declaring: Declaring,
  topic: string,
  subjects: Arr.NonEmptyReadonlyArray<string>
): Effect.fn.Return<StreamInfo, TransportError.TransportError> {
  const version = connection.nc.info?.version
  const existing = yield* findStream(connection, subjects[0])
  const wanted = {
    ...declaring.config,
    retention: declaring.retention === undefined
      ? declaring.config?.retention
      : declaring.retention === "until-acked"
      ? RetentionPolicy.Workqueue
      : RetentionPolicy.Limits,
    ...given({
      storage: declaring.storage,
      num_replicas: declaring.replicas,
      max_age: nanos(declaring.maxAge),
      max_msgs: declaring.maxMessages,
      max_bytes: declaring.maxBytes,
      duplicate_window: nanos(declaring.duplicateWindow)
    })
  }
  if (existing === undefined) {
    const name = names.streamOf(topic)
    if (declaring.manage !== "create") {
      return yield* mismatch(`the stream of ${subjects[0]}`, `there (manage is "${declaring.manage}")`, "absent")
    }
    const tooNew = Object.entries(since).find(([option, minor]) => option in wanted && !atLeast(version, 2, minor))
    if (tooNew !== undefined) {
      return yield* failure(
        new TransportError.Unsupported({
          operation: `${tooNew[0]} of stream ${name}`,
          remedy: `it needs nats-server 2.${tooNew[1]}, this is ${version}: leave it out`
        })
      )
    }
    const delayed = atLeast(version, 2, 12)
    const config: Partial<StreamConfig> & { readonly name: string } = {
      allow_direct: true,
      ...(atLeast(version, 2, 11) ? { allow_msg_ttl: true } : {}),
      ...(delayed ? { allow_msg_schedules: true, allow_atomic: true } : {}),
      ...given(wanted),
      name,
      subjects: delayed ? [...subjects, names.delayedSubject(topic, "*")] : [...subjects],
      retention: wanted.retention ?? RetentionPolicy.Limits,
      storage: wanted.storage ?? StorageType.File,
      num_replicas: wanted.num_replicas ?? 1
    }
    return yield* connection.call(`creating stream ${name}`, (jsm) => jsm.streams.add(config)).pipe(
      Effect.flatMap((info) => verifyCreated(`stream ${name}`, info.config, config, info)),
      Effect.catch((error) => {
        // A peer was faster, with options of its own.
        if (isCode(error, code.streamNameInUse, code.subjectsOverlap)) {
          return Effect.flatMap(findStream(connection, subjects[0]), (found) =>
            found === undefined
              ? mismatch(`stream ${name}`, `to take ${subjects.join(", ")}`, "there with other subjects")
              : verifyStream(found, wanted, subjects))
        }
        return Effect.fail(unexpected(`creating stream ${name}`)(error))
      })
    )
  }
  return yield* verifyStream(existing, wanted, subjects)
})

/** The minor version from which a server knows an option of a stream; an older one drops it without a word. */
const since = {
  compression: 10,
  consumer_limits: 10,
  first_seq: 10,
  metadata: 10,
  subject_transform: 10,
  allow_msg_ttl: 11,
  subject_delete_marker_ttl: 11,
  allow_atomic: 12,
  allow_msg_counter: 12,
  allow_msg_schedules: 12,
  persist_mode: 12,
  allow_batched: 14
}

/** Whether nothing is ever removed from a stream. */
export const isUnbounded = (config: StreamConfig): boolean =>
  config.retention === RetentionPolicy.Limits && config.max_age === 0 &&
  [config.max_msgs, config.max_bytes, config.max_msgs_per_subject].every((bound) => bound <= 0)

const verifyStream = (
  info: StreamInfo,
  wanted: Record<string, unknown>,
  subjects: ReadonlyArray<string>
): Effect.Effect<StreamInfo, TransportError.TransportError> => {
  for (const subject of subjects) {
    if (!(info.config.subjects ?? []).some((captured) => names.covers(captured, subject))) {
      return Effect.fail(
        mismatch(
          `stream ${info.config.name}`,
          `to take ${subject}`,
          `taking ${(info.config.subjects ?? []).join(", ")}`
        )
      )
    }
  }
  const [difference] = differences({ ...info.config }, wanted)
  return difference === undefined
    ? Effect.succeed(info)
    : Effect.fail(
      mismatch(`${difference.name} of stream ${info.config.name}`, difference.expected, difference.found)
    )
}

/** What no list names may be dropped too. */
const verifyCreated = <A>(
  name: string,
  found: object,
  wanted: object,
  value: A
): Effect.Effect<A, TransportError.TransportError> => {
  const asked = Object.entries(wanted).filter(([, option]) => option !== undefined && typeof option !== "object")
  const [difference] = differences({ ...found }, Object.fromEntries(asked))
  return difference === undefined
    ? Effect.succeed(value)
    : Effect.fail(failure(
      new TransportError.Unsupported({
        operation: `${difference.name} ${difference.expected} of ${name}`,
        remedy: `the server kept ${difference.found}: use a newer one, or leave the option out`
      })
    ))
}

/** What a subscription needs of its consumer. */
export interface ConsumerWish {
  readonly topic: string
  readonly group: string
  readonly subjects: Arr.NonEmptyReadonlyArray<string>
  readonly startFrom: StartFrom
  /** Milliseconds; `undefined`: what an existing consumer has, else {@link defaultAckWait}. */
  readonly ackWait: number | undefined
  readonly maxOwned: number
}

const defaultAckWait = 30_000

export const start = (startFrom: StartFrom): Partial<ConsumerConfig> =>
  startFrom === "new"
    ? { deliver_policy: DeliverPolicy.New }
    : startFrom === "beginning"
    ? { deliver_policy: DeliverPolicy.All }
    : "sequence" in startFrom
    ? { deliver_policy: DeliverPolicy.StartSequence, opt_start_seq: startFrom.sequence }
    : { deliver_policy: DeliverPolicy.StartTime, opt_start_time: DateTime.formatIso(startFrom.time) }

/** What a consumer reads: without a filter, all that its stream takes. */
const filterOf = (config: ConsumerConfig, stream: StreamInfo): ReadonlyArray<string> =>
  config.filter_subjects ?? (config.filter_subject ? [config.filter_subject] : stream.config.subjects ?? [])

/** Creates the consumer, or verifies the one that has its name. */
export const ensureConsumer = Effect.fnUntraced(function*(
  connection: Connection,
  declaring: Declaring,
  stream: StreamInfo,
  wish: ConsumerWish
): Effect.fn.Return<ConsumerInfo, TransportError.TransportError> {
  const streamName = stream.config.name
  const name = names.durableOf(wish.topic, wish.group, stream.config.subjects ?? [])
  const existing = stream.state.consumer_count === 0 ? undefined : yield* consumerInfo(connection, streamName, name)
  if (existing !== undefined) return yield* verifyConsumer(existing, wish, stream)
  if (declaring.manage !== "create") {
    return yield* mismatch(
      `consumer ${name} of stream ${streamName}`,
      `there (manage is "${declaring.manage}")`,
      "absent"
    )
  }
  const several = wish.subjects.length > 1
  if (several && !atLeast(connection.nc.info?.version, 2, 10)) {
    return yield* failure(
      new TransportError.Unsupported({
        operation: `reading ${wish.subjects.length} subjects with one consumer`,
        remedy: "that needs nats-server 2.10; give one subject, with wildcards if need be"
      })
    )
  }
  const config: Partial<ConsumerConfig> & { readonly durable_name: string } = {
    durable_name: name,
    ack_policy: AckPolicy.Explicit,
    replay_policy: ReplayPolicy.Instant,
    ack_wait: (wish.ackWait ?? defaultAckWait) * 1e6,
    // Millrace counts attempts and stores dead letters; each process bounds what it owns, waiting retries are owned too.
    max_deliver: -1,
    max_ack_pending: -1,
    ...(several ? { filter_subjects: [...wish.subjects] } : { filter_subject: wish.subjects[0] }),
    // A work queue hands out whatever it holds.
    ...start(stream.config.retention === RetentionPolicy.Workqueue ? "beginning" : wish.startFrom)
  }
  const add = (config: Partial<ConsumerConfig>) =>
    connection.call(`creating consumer ${name}`, (jsm) => jsm.consumers.add(streamName, config))
  return yield* add(config).pipe(
    // The account or the stream bounds it: 0 takes that bound.
    Effect.catchIf((error) => isCode(error, code.ackPendingExcess), () => add({ ...config, max_ack_pending: 0 })),
    Effect.catch((error) => {
      if (isCode(error, code.workQueueNotUnique, code.workQueueMultipleUnfiltered)) {
        return Effect.fail(mismatch(
          `stream ${streamName}`,
          `without another group that reads ${wish.subjects.join(", ")}`,
          "a work queue, which gives each message to one group only"
        ))
      }
      // A peer was faster, with options of its own.
      if (isCode(error, code.consumerExists)) {
        return Effect.flatMap(consumerInfo(connection, streamName, name), (found) =>
          found === undefined
            ? Effect.fail(unexpected(`creating consumer ${name}`)(error))
            : Effect.succeed(found))
      }
      return Effect.fail(unexpected(`creating consumer ${name}`)(error))
    }),
    Effect.flatMap((info) => verifyConsumer(info, wish, stream))
  )
})

/** `undefined`: there is no such consumer, or no such stream. */
export const consumerInfo = (connection: Connection, stream: string, name: string) =>
  connection.call(`looking for consumer ${name}`, (jsm) => jsm.consumers.info(stream, name)).pipe(
    Effect.catch((error) =>
      isCode(error, code.consumerNotFound, code.streamNotFound)
        ? Effect.succeed(undefined)
        : Effect.fail(unexpected(`looking for consumer ${name}`)(error))
    )
  )

const verifyConsumer = (
  info: ConsumerInfo,
  wish: ConsumerWish,
  stream: StreamInfo
): Effect.Effect<ConsumerInfo, TransportError.TransportError> => {
  const { config } = info
  const differs = (option: string, expected: string, found: unknown) =>
    Effect.fail(
      mismatch(
        `${option} of consumer ${info.name} of stream ${info.stream_name}`,
        expected,
        JSON.stringify(found) ?? "absent"
      )
    )
  if (config.deliver_subject !== undefined) {
    return differs("deliver_subject", "absent (a pull consumer)", config.deliver_subject)
  }
  if (config.ack_policy !== AckPolicy.Explicit) return differs("ack_policy", "\"explicit\"", config.ack_policy)
  const filter = filterOf(config, stream)
  if ([...filter].sort().join() !== [...wish.subjects].sort().join()) {
    return differs("filter_subject", wish.subjects.join(", "), filter)
  }
  if (config.max_deliver !== undefined && config.max_deliver > 0) {
    return differs(
      "max_deliver",
      "-1, because Millrace counts attempts and stores dead letters: the server would drop the message before",
      config.max_deliver
    )
  }
  if (config.backoff !== undefined && config.backoff.length > 0) {
    return differs(
      "backoff",
      "absent, because it overrides ack_wait: the pipeline's retry policy decides",
      config.backoff
    )
  }
  if (config.headers_only === true) return differs("headers_only", "false", true)
  const ackWait = (config.ack_wait ?? 0) / 1e6
  if (wish.ackWait !== undefined && ackWait !== wish.ackWait) {
    return differs("ack_wait", `${wish.ackWait} ms`, `${ackWait} ms`)
  }
  if (ackWait < leastAckWait) {
    return differs("ack_wait", `at least ${leastAckWait} ms, to be kept alive in time`, `${ackWait} ms`)
  }
  const maxAckPending = config.max_ack_pending ?? 0
  if (maxAckPending > 0 && maxAckPending < wish.maxOwned) {
    return differs(
      "max_ack_pending",
      `-1, or at least ${wish.maxOwned}: what this process alone may hold at once`,
      maxAckPending
    )
  }
  return Effect.succeed(info)
}

/** Keeping messages alive takes three signs of life within the time. */
export const leastAckWait = 500

export const validateAckWait = (millis: number): TransportError.TransportError | undefined =>
  millis >= leastAckWait && millis <= 24 * 3600_000
    ? undefined
    : TransportError.invalidOption(
      transport,
      "ackWait",
      `${millis} ms`,
      "give 0.5 seconds to 24 hours; long handlers are kept alive"
    )

/** Between tries. */
export const backoff = Schedule.min([Schedule.exponential(Duration.millis(100)), Schedule.spaced(Duration.seconds(2))])
  .pipe(
    Schedule.jittered
  )

/** A cluster that has just been started, or lost a node, has no leader for some seconds; a connection may be lost. */
const willPass = ({ reason }: TransportError.TransportError): boolean =>
  reason._tag === "Interrupted" &&
  (reason.cause instanceof NoAnswer || reason.cause === notConnected ||
    (reason.cause instanceof JetStreamApiError && reason.cause.status === 503))

/** Waits for a leader, or the connection, up to ten seconds. */
export const whenReady = <A>(
  effect: Effect.Effect<A, TransportError.TransportError>
): Effect.Effect<A, TransportError.TransportError> =>
  Effect.retry(effect, {
    schedule: Schedule.upTo(backoff, { duration: Duration.seconds(10) }),
    while: willPass
  })

const mayHeal = (error: TransportError.TransportError) =>
  error.reason._tag === "Interrupted" || error.reason._tag === "Unreachable" || error.reason._tag === "Unsupported"

/** Tries for as long as it may help; what somebody would have to change is given ten seconds to be changed. */
export const untilHealed = <A>(
  effect: Effect.Effect<A, TransportError.TransportError>
): Effect.Effect<A, TransportError.TransportError> =>
  effect.pipe(
    Effect.retry({ schedule: backoff, while: mayHeal }),
    Effect.retry({ schedule: Schedule.upTo(backoff, { duration: Duration.seconds(10) }) })
  )
