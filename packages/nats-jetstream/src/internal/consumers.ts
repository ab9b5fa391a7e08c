import * as TransportError from "@millrace/core/TransportError"
import {
  AckPolicy,
  type ConsumerConfig,
  type ConsumerInfo,
  DeliverPolicy,
  ReplayPolicy,
  RetentionPolicy,
  type StreamInfo
} from "@nats-io/jetstream"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import type { StartFrom } from "../Options.ts"
import { beside, type Difference, differences, isCode, mismatch, streamNotFound } from "./comparison.ts"
import { type Connection, failure, invalidOption, unexpected } from "./connection.ts"
import * as names from "./names.ts"
import { atLeast } from "./server.ts"
import type { Declaring } from "./streams.ts"

/** What a subscription needs of its consumer. */
export interface ConsumerSpec {
  readonly topic: string
  readonly group: string
  /** Empty: all that the stream holds. */
  readonly subjects: ReadonlyArray<string>
  readonly startFrom: StartFrom
  /** Milliseconds; `undefined`: what an existing consumer has, else {@link defaultAckWait}. */
  readonly ackWait: number | undefined
  readonly maxOwned: number
  /** Known once it has been found or created: it never changes while a subscription is open. */
  readonly name?: string | undefined
}

const consumerNotFound = 10014
const consumerExists = 10148
const workQueueNotUnique = 10100
const workQueueMultipleUnfiltered = 10099
const ackPendingExcess = 10121

const defaultAckWait = 30_000

/** Keeping messages alive takes three signs of life within the time. */
const minAckWait = 500

/** Says whose a consumer is, whatever becomes of the subjects of its stream, and whichever topic is asked for. */
export const groupKey = "millrace.group"
const topicKey = "millrace.topic"

export const validateAckWait = (millis: number): TransportError.TransportError | undefined =>
  millis >= minAckWait && millis <= 24 * 3600_000
    ? undefined
    : invalidOption("ackWait", `${millis} ms`, "give 0.5 seconds to 24 hours; long handlers are kept alive")

const isSequence = (n: unknown): boolean => Number.isSafeInteger(n) && n as number >= 1

/** What JavaScript, or a cast, may give instead of a position. */
export const invalidStart = (startFrom: unknown) =>
  startFrom === undefined || startFrom === "new" || startFrom === "beginning" ||
    (Predicate.hasProperty(startFrom, "sequence") && isSequence(startFrom.sequence)) ||
    (Predicate.hasProperty(startFrom, "time") && DateTime.isDateTime(startFrom.time))
    ? undefined
    : {
      option: "startFrom",
      value: startFrom,
      remedy: "write \"new\", \"beginning\", { sequence: 17 } or { time }, a DateTime of effect"
    }

export const start = (startFrom: StartFrom): Partial<ConsumerConfig> =>
  startFrom === "new"
    ? { deliver_policy: DeliverPolicy.New }
    : startFrom === "beginning"
    ? { deliver_policy: DeliverPolicy.All }
    : "sequence" in startFrom
    ? { deliver_policy: DeliverPolicy.StartSequence, opt_start_seq: startFrom.sequence }
    : { deliver_policy: DeliverPolicy.StartTime, opt_start_time: DateTime.formatIso(startFrom.time) }

/** `undefined`: there is no such consumer, or no such stream. */
export const consumerInfo = (connection: Connection, stream: string, name: string) =>
  connection.call(`looking for consumer ${name}`, (jsm) => jsm.consumers.info(stream, name)).pipe(
    Effect.catchIf((error) => isCode(error, consumerNotFound, streamNotFound), () => Effect.succeed(undefined)),
    Effect.mapError(unexpected(`looking for consumer ${name}`))
  )

/** What a consumer reads; without a filter, all that its stream takes. */
export const filterOf = (config: ConsumerConfig, stream: StreamInfo): ReadonlyArray<string> =>
  config.filter_subjects ?? (config.filter_subject ? [config.filter_subject] : stream.config.subjects ?? [])

const sameSubjects = (one: ReadonlyArray<string>, other: ReadonlyArray<string>) =>
  [...one].sort().join() === [...other].sort().join()

/**
 * The consumer of a group, found by what Millrace wrote on it, else by its name in both forms: the names depend on what
 * the stream took when it was created.
 */
export const findConsumer = Effect.fnUntraced(function*(
  connection: Connection,
  stream: StreamInfo,
  spec: Pick<ConsumerSpec, "topic" | "group" | "subjects" | "name">
): Effect.fn.Return<ConsumerInfo | undefined, TransportError.TransportError> {
  const { group, name, subjects, topic } = spec
  const streamName = stream.config.name
  if (name !== undefined) return yield* consumerInfo(connection, streamName, name)
  if (stream.state.consumer_count === 0) return undefined
  const found = (yield* Effect.forEach(
    [group, names.longDurableOf(topic, group)],
    (name) => consumerInfo(connection, streamName, name),
    { concurrency: 2 }
  )).filter((info) => info !== undefined)
  const marked = found.filter(({ config }) =>
    config.metadata?.[groupKey] === group && config.metadata[topicKey] === topic
  )
  const unmarked = found.filter(({ config }) => config.metadata?.[groupKey] === undefined)
  const reading = unmarked.filter(({ config }) => sameSubjects(filterOf(config, stream), subjects))
  const [first, second] = [...marked, ...reading].sort((one, other) => one.created.localeCompare(other.created))
  if (first !== undefined && second !== undefined) {
    yield* Effect.logWarning(
      `group ${group} has two consumers in stream ${streamName}: ${first.name} is used, ${second.name} has ${second.num_pending} messages pending; delete it`
    )
  }
  const expected = names.durableOf(topic, group, stream.config.subjects ?? [])
  return first ?? unmarked.find(({ name }) => name === expected)
})

/**
 * What `nats server check consumer` alerts on without a configuration of its own: nearly as many open pulls as a consumer
 * takes (`max_waiting`, 512), after which processes starve, and many messages that come again.
 */
const monitored = {
  "io.nats.monitor.enabled": "true",
  "io.nats.monitor.waiting-critical": "460",
  "io.nats.monitor.redelivery-critical": "1000"
}

const configOf = (connection: Connection, stream: StreamInfo, spec: ConsumerSpec): Partial<ConsumerConfig> => ({
  ack_policy: AckPolicy.Explicit,
  replay_policy: ReplayPolicy.Instant,
  ack_wait: (spec.ackWait ?? defaultAckWait) * 1e6,
  // Millrace counts attempts and stores dead letters; each process bounds what it owns, waiting retries are owned too.
  max_deliver: -1,
  max_ack_pending: -1,
  ...spec.subjects.length > 1
    ? { filter_subjects: [...spec.subjects] }
    : spec.subjects[0] === undefined
    ? {}
    : { filter_subject: spec.subjects[0] },
  ...atLeast(connection.nc.info?.version, 2, 10)
    ? { metadata: { [groupKey]: spec.group, [topicKey]: spec.topic, ...monitored } }
    : {},
  // A work queue delivers whatever it holds.
  ...start(stream.config.retention === RetentionPolicy.Workqueue ? "beginning" : spec.startFrom)
})

/** Creates the consumer of a group, or verifies the one that it has. */
export const ensureConsumer = Effect.fnUntraced(function*(
  connection: Connection,
  declaring: Declaring,
  stream: StreamInfo,
  spec: ConsumerSpec
): Effect.fn.Return<ConsumerInfo, TransportError.TransportError> {
  const streamName = stream.config.name
  const existing = yield* findConsumer(connection, stream, spec)
  if (existing !== undefined) return yield* verifyConsumer(connection, declaring, existing, spec, stream)
  const name = spec.name ?? names.durableOf(spec.topic, spec.group, stream.config.subjects ?? [])
  if (declaring.manage !== "create") {
    return yield* mismatch(
      `consumer ${name} of stream ${streamName}`,
      `there (manage is "${declaring.manage}")`,
      "absent"
    )
  }
  if (spec.subjects.length > 1 && !atLeast(connection.nc.info?.version, 2, 10)) {
    return yield* failure(
      new TransportError.Unsupported({
        operation: `reading ${spec.subjects.length} subjects with one consumer`,
        remedy: "that needs nats-server 2.10; give one subject, with wildcards if need be"
      })
    )
  }
  const config = { ...configOf(connection, stream, spec), durable_name: name }
  const add = (config: Partial<ConsumerConfig>) =>
    connection.call(`creating consumer ${name}`, (jsm) => jsm.consumers.add(streamName, config))
  return yield* add(config).pipe(
    // The account or the stream bounds it: 0 takes that bound.
    Effect.catchIf((error) => isCode(error, ackPendingExcess), () => add({ ...config, max_ack_pending: 0 })),
    Effect.catch((error) => {
      if (isCode(error, workQueueNotUnique, workQueueMultipleUnfiltered)) {
        return Effect.fail(mismatch(
          `stream ${streamName}`,
          `without another group that reads ${spec.subjects.join(", ")}`,
          "a work queue, which gives each message to one group only"
        ))
      }
      // A peer was faster, with options of its own.
      if (isCode(error, consumerExists)) {
        return Effect.flatMap(consumerInfo(connection, streamName, name), (found) =>
          found === undefined
            ? Effect.fail(unexpected(`creating consumer ${name}`)(error))
            : Effect.succeed(found))
      }
      return Effect.fail(unexpected(`creating consumer ${name}`)(error))
    }),
    Effect.flatMap((info) => verifyConsumer(connection, declaring, info, spec, stream))
  )
})

/** Options that an operator may choose; of all others, one that differs from what Millrace would create is refused. */
const free = new Set([
  "name",
  "durable_name",
  "description",
  "metadata",
  "deliver_policy",
  "opt_start_seq",
  "opt_start_time",
  "ack_policy",
  "ack_wait",
  "max_deliver",
  "filter_subject",
  "filter_subjects",
  "sample_freq",
  "num_replicas",
  "mem_storage",
  "max_waiting",
  "max_batch",
  "max_expires",
  "max_bytes",
  "max_ack_pending",
  "inactive_threshold",
  "pause_until",
  "replay_policy"
])

const reasons = new Map([
  [
    "max_deliver",
    ", because Millrace counts attempts and stores dead letters: the server would drop the message before"
  ],
  ["backoff", ", because it overrides ack_wait: the pipeline's retry policy decides"],
  ["deliver_subject", " (a pull consumer)"]
])

/** How a consumer differs from what the subscription can work with. */
export const consumerDifferences = (
  { config }: ConsumerInfo,
  spec: ConsumerSpec,
  stream: StreamInfo
): ReadonlyArray<Difference> => {
  const found: Array<Difference> = []
  const add = (name: string, expected: string, value: unknown) =>
    found.push({ name, expected, found: JSON.stringify(value) ?? "absent" })
  found.push(...beside(config, free))
  found.push(...differences(config, {
    ack_policy: AckPolicy.Explicit,
    max_deliver: -1,
    replay_policy: ReplayPolicy.Instant
  }))
  const filter = filterOf(config, stream)
  const subjects = spec.subjects.length > 0 ? spec.subjects : stream.config.subjects ?? []
  const readsAll = spec.subjects.length === 0 && config.filter_subject === undefined &&
    config.filter_subjects === undefined
  if (!readsAll && !sameSubjects(filter, subjects)) add("filter_subject", subjects.join(", "), filter)
  const ackWait = (config.ack_wait ?? 0) / 1e6
  if (spec.ackWait !== undefined && ackWait !== spec.ackWait) add("ack_wait", `${spec.ackWait} ms`, `${ackWait} ms`)
  else if (ackWait < minAckWait) add("ack_wait", `at least ${minAckWait} ms, to be extended in time`, `${ackWait} ms`)
  const maxAckPending = config.max_ack_pending ?? 0
  if (maxAckPending > 0 && maxAckPending < spec.maxOwned) {
    add("max_ack_pending", `-1, or at least ${spec.maxOwned}: this process alone needs as much room`, maxAckPending)
  }
  return found.map((difference) => ({
    ...difference,
    expected: difference.expected + (reasons.get(difference.name) ?? "")
  }))
}

const verifyConsumer = Effect.fnUntraced(function*(
  connection: Connection,
  declaring: Declaring,
  info: ConsumerInfo,
  spec: ConsumerSpec,
  stream: StreamInfo
): Effect.fn.Return<ConsumerInfo, TransportError.TransportError> {
  const [difference] = consumerDifferences(info, spec, stream)
  if (difference !== undefined) {
    return yield* mismatch(
      `${difference.name} of consumer ${info.name} of stream ${info.stream_name}`,
      difference.expected,
      difference.found
    )
  }
  return yield* keepIdle(connection, declaring, info)
})

/** A consumer with an idle limit vanishes while no process runs, and its position with it. */
const keepIdle = Effect.fnUntraced(function*(
  connection: Connection,
  declaring: Declaring,
  info: ConsumerInfo
): Effect.fn.Return<ConsumerInfo, TransportError.TransportError> {
  const threshold = info.config.inactive_threshold ?? 0
  if (threshold <= 0) return info
  const update = connection.call(
    `updating consumer ${info.name}`,
    (jsm) => jsm.consumers.update(info.stream_name, info.name, { ...info.config, inactive_threshold: 0 })
  )
  const updated = declaring.manage === "create"
    ? yield* Effect.orElseSucceed(update, () => info)
    : info
  if ((updated.config.inactive_threshold ?? 0) <= 0) {
    yield* Effect.logInfo(
      `consumer ${info.name} of stream ${info.stream_name} no longer has inactive_threshold: it would lose its position`
    )
    return updated
  }
  const idle = Duration.format(Duration.millis(threshold / 1e6))
  yield* Effect.logWarning(
    `inactive_threshold of consumer ${info.name} of stream ${info.stream_name} is ${idle}: the server deletes it, and its position, when no process has read for that long; remove it from the consumer, or from consumer_limits of the stream`
  )
  return updated
})
