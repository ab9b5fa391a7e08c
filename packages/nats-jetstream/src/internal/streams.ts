import type { Hints } from "@millrace/core/TransportAuthor"
import * as TransportError from "@millrace/core/TransportError"
import {
  DiscardPolicy,
  type JetStreamManager,
  RetentionPolicy,
  StorageType,
  type StreamConfig,
  type StreamInfo,
  type StreamUpdateConfig
} from "@nats-io/jetstream"
import type * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { CommonOptions, StreamBounds } from "../Options.ts"
import { type Difference, differences, isCode, maxBytesRequired, mismatch, streamNotFound } from "./comparison.ts"
import { ask, type Connection, failure, invalidOption, unexpected } from "./connection.ts"
import { verifyKeeps } from "./keeping.ts"
import * as names from "./names.ts"
import { atLeast } from "./server.ts"

/** What a layer says about the streams and consumers that it needs. */
export interface Declaring extends Pick<CommonOptions, "retention" | "ackWait" | "stream" | "deadLetterStream"> {
  readonly manage: "create" | "verify" | "none"
}

/** A stream that a topic needs. */
export interface StreamSpec {
  readonly topic: string
  readonly subjects: Arr.NonEmptyReadonlyArray<string>
  readonly purpose: "source" | "output" | "deadLetter"
  /** The stream is read by its name, whatever it takes. */
  readonly name?: string | undefined
}

const streamNameInUse = 10058
const subjectsOverlap = 10065

/** Marks streams that Millrace created, and may give further subjects. */
const createdByUs = "millrace.created"

export const infoOf = (connection: Connection, name: string) =>
  connection.call(`looking for stream ${name}`, async (jsm) => {
    const asked = performance.now()
    const info = await jsm.streams.info(name)
    connection.lives.note(info)
    // From 2.10 on.
    if (typeof info.ts === "string") connection.noteServerTime(Date.parse(info.ts), performance.now() - asked)
    return info
  }).pipe(
    Effect.catchIf((error) => isCode(error, streamNotFound), () => Effect.succeed(undefined)),
    Effect.mapError(unexpected(`looking for stream ${name}`))
  )

const namesFor = (connection: Connection, subject: string) =>
  ask(connection, `looking for the stream of ${subject}`, (jsm) => jsm.streams.names(subject).next())

/** The stream that takes what is published on a subject, if there is one. */
export const findStream = (
  connection: Connection,
  subject: string
): Effect.Effect<StreamInfo | undefined, TransportError.TransportError> =>
  Effect.flatMap(
    namesFor(connection, subject),
    (found) => found.length === 1 ? infoOf(connection, found[0]!) : Effect.succeed(undefined)
  )

/** The names of the streams that take any of the subjects: what one that was found covers is not looked for. */
const streamsOf = Effect.fnUntraced(function*(
  connection: Connection,
  subjects: ReadonlyArray<string>
): Effect.fn.Return<ReadonlyArray<string>, TransportError.TransportError> {
  const found = new Map<string, ReadonlyArray<string>>()
  for (const subject of subjects) {
    if ([...found.values()].flat().some((taken) => names.covers(taken, subject))) continue
    for (const name of yield* namesFor(connection, subject)) {
      if (!found.has(name)) found.set(name, (yield* infoOf(connection, name))?.config.subjects ?? [])
    }
  }
  return [...found.keys()]
})

/** Creates the stream that takes the subjects, gives it those that it lacks where that is allowed, or verifies it. */
export const ensureStream = Effect.fnUntraced(function*(
  connection: Connection,
  declaring: Declaring,
  spec: StreamSpec
): Effect.fn.Return<StreamInfo, TransportError.TransportError> {
  const { name, subjects } = spec
  if (name !== undefined) {
    return (yield* infoOf(connection, name)) ?? (yield* mismatch(`stream ${name}`, "there", "absent"))
  }
  const found = yield* streamsOf(connection, subjects)
  if (found.length > 1) {
    return yield* mismatch(
      `the stream of ${subjects.join(", ")}`,
      `one: declare the family in the layer, stream: { subjects: ["${spec.topic}.>"] }, before a program makes a stream for a part of it`,
      `${found.length}: ${found.join(", ")}`
    )
  }
  const existing = found.length === 1 ? yield* infoOf(connection, found[0]!) : undefined
  if (existing === undefined && spec.purpose === "source") yield* refuseStored(connection, spec)
  const info = existing ?? (yield* create(connection, declaring, spec))
  const moved = spec.purpose === "source" ? storedElsewhere(info.config, subjects) : undefined
  if (moved !== undefined) return yield* mismatch(moved.name, moved.expected, moved.found)
  const covering = yield* widen(connection, declaring, spec, info)
  yield* verify(covering, wantedOf(declaring, spec.purpose))
  yield* verifyKeeps(connection, covering, spec)
  return covering
})

/** Streams that store under subjects of their own, by transforms. */
type Storing = ReadonlyArray<{ readonly name: string; readonly stored: ReadonlyArray<string> }>

/** Under way: a thousand pipelines that start together look at all streams once, not a thousand times. */
const listings = new WeakMap<Connection, Promise<Storing>>()

const listStoring = (connection: Connection, jsm: JetStreamManager): Promise<Storing> => {
  const listing = listings.get(connection) ?? storingOf(jsm).finally(() => listings.delete(connection))
  listings.set(connection, listing)
  return listing
}

const storingOf = async (jsm: JetStreamManager): Promise<Storing> => {
  const storing: Array<Storing[number]> = []
  for await (const { config } of jsm.streams.list()) {
    const transforms = [
      config.subject_transform,
      ...(config.sources ?? []).flatMap((source) => source.subject_transforms ?? []),
      ...config.mirror?.subject_transforms ?? []
    ]
    const stored = transforms.flatMap((transform) => transform?.dest?.replaceAll(/\{\{[^{}]*\}\}/g, "*") ?? [])
    if (stored.length > 0) storing.push({ name: config.name, stored })
  }
  return storing
}

/** What is stored under these subjects by transforms is not published on them: an empty stream would be read instead. */
const refuseStored = Effect.fnUntraced(function*(
  connection: Connection,
  { subjects }: StreamSpec
): Effect.fn.Return<void, TransportError.TransportError> {
  const streams = connection.call("listing streams", (jsm) => listStoring(connection, jsm))
  // A user that may not list streams is not kept from making one.
  const storing = (yield* Effect.orElseSucceed(streams, (): Storing => [])).find(({ stored }) =>
    subjects.some((subject) => stored.some((dest) => names.covers(dest, subject) || names.covers(subject, dest)))
  )
  if (storing === undefined) return
  return yield* mismatch(
    `the stream of ${subjects.join(", ")}`,
    `to be read by its name, JetStream.from(topic, { group, stream: "${storing.name}" })`,
    `${storing.name}, which stores them by a transform`
  )
})

/** A stream that stores these subjects under others has nothing for a consumer that filters by what is published. */
export const storedElsewhere = (
  { name, subject_transform }: StreamConfig,
  subjects: ReadonlyArray<string>
): Difference | undefined => {
  const { dest = "", src = "" } = subject_transform ?? {}
  const moved = dest === "" ? undefined : subjects.find((subject) => names.covers(src || ">", subject))
  const stored = dest.replaceAll(/\{\{[^{}]*\}\}/g, "*")
  return moved === undefined || names.covers(stored, moved) || names.covers(moved, stored) ? undefined : {
    name: `subject_transform of stream ${name}`,
    expected: `absent, or the stream read by its name, JetStream.from(topic, { group, stream: "${name}" })`,
    found: `storing ${moved} as ${dest}`
  }
}

/**
 * A subject finds the stream that takes what is published. A mirror takes nothing: whoever names one and its subjects reads
 * the origin.
 */
export const warnOfMirror = Effect.fnUntraced(function*(
  connection: Connection,
  { name, topic }: StreamSpec,
  { config }: StreamInfo
): Effect.fn.Return<void> {
  const mirror = names.streamOf(topic)
  if (name !== undefined || mirror === config.name) return
  const info = yield* Effect.orElseSucceed(infoOf(connection, mirror), () => undefined)
  if (info?.config.mirror === undefined) return
  yield* Effect.logWarning(
    `stream ${mirror} is a mirror, and stream ${config.name} is read: JetStream.from(topic, { group, stream: "${mirror}" }) reads the mirror`
  )
})

/** The options that were given for streams of a purpose. */
const wantedOf = (declaring: Declaring, purpose: StreamSpec["purpose"]): Partial<StreamConfig> => {
  const { retention, stream } = declaring
  if (purpose === "deadLetter") return configOf(declaring.deadLetterStream)
  return given({
    ...configOf(stream),
    retention: retention === undefined
      ? stream?.config?.retention
      : retention === "until-acked"
      ? RetentionPolicy.Workqueue
      : RetentionPolicy.Limits
  })
}

const configOf = (bounds: StreamBounds | undefined): Partial<StreamConfig> =>
  given({
    ...bounds?.config,
    ...given({
      storage: bounds?.storage,
      num_replicas: bounds?.replicas,
      max_age: nanos(bounds?.maxAge),
      max_msgs: bounds?.maxMessages,
      max_bytes: bounds?.maxBytes,
      duplicate_window: nanos(bounds?.duplicateWindow)
    })
  })

/** What a stream is created with where nothing was given for its purpose. */
const defaultsOf = (declaring: Declaring, purpose: StreamSpec["purpose"]): Partial<StreamConfig> =>
  purpose === "deadLetter"
    ? given({
      storage: declaring.stream?.storage,
      num_replicas: declaring.stream?.replicas,
      retention: declaring.retention === "until-acked" ? RetentionPolicy.Workqueue : undefined
    })
    : {}

const nanos = (duration: Duration.Input | Hints["duration"] | undefined): number | undefined =>
  duration === undefined ? undefined : Duration.toMillis(Duration.fromInputUnsafe(duration as Duration.Input)) * 1e6

const given = <A extends object>(options: A): { [K in keyof A]?: Exclude<A[K], undefined> } =>
  Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as {
    [K in keyof A]?: Exclude<A[K], undefined>
  }

/** The declared family, where the topic is in it. */
const familyOf = ({ stream }: Declaring, { purpose, subjects }: StreamSpec) => {
  const family = purpose === "deadLetter" ? undefined : stream?.subjects
  return family !== undefined && subjects.some((subject) => family.some((member) => names.covers(member, subject)))
    ? family
    : undefined
}

const create = Effect.fnUntraced(function*(
  connection: Connection,
  declaring: Declaring,
  spec: StreamSpec
): Effect.fn.Return<StreamInfo, TransportError.TransportError> {
  const version = connection.nc.info?.version
  const family = familyOf(declaring, spec)
  const name = family === undefined ? names.streamOf(spec.topic) : declaring.stream?.name ?? names.streamOf(spec.topic)
  if (declaring.manage !== "create") {
    return yield* mismatch(`the stream of ${spec.subjects[0]}`, `there (manage is "${declaring.manage}")`, "absent")
  }
  const wanted = wantedOf(declaring, spec.purpose)
  const tooNew = Object.entries(since).find(([option, minor]) => option in wanted && !atLeast(version, 2, minor))
  if (tooNew !== undefined) {
    return yield* failure(
      new TransportError.Unsupported({
        operation: `${tooNew[0]} of stream ${name}`,
        remedy: `it needs nats-server 2.${tooNew[1]}, this is ${version}: leave it out`
      })
    )
  }
  const asked = { ...defaultsOf(declaring, spec.purpose), ...wanted }
  const features = featuresOf(version, asked)
  const subjects = names.union(family ?? [], spec.subjects)
  const config: Partial<StreamConfig> & { readonly name: string } = {
    ...features,
    ...asked,
    ...atLeast(version, 2, 10) ? { metadata: { ...asked.metadata, [createdByUs]: "true" } } : {},
    name,
    subjects: (asked.allow_msg_schedules ?? features.allow_msg_schedules)
      ? [...subjects, names.delayedSubject(spec.topic, "*")]
      : [...subjects],
    retention: asked.retention ?? RetentionPolicy.Limits,
    storage: asked.storage ?? StorageType.File,
    num_replicas: asked.num_replicas ?? 1
  }
  return yield* connection.call(`creating stream ${name}`, (jsm) => jsm.streams.add(config)).pipe(
    Effect.flatMap((info) => {
      connection.lives.note(info)
      return Effect.as(verifyCreated(`stream ${name}`, info.config, config), info)
    }),
    Effect.catch((error) => {
      if (isCode(error, maxBytesRequired)) {
        const option = spec.purpose === "deadLetter" ? "deadLetterStream.maxBytes" : "stream.maxBytes"
        return Effect.fail(
          invalidOption(
            option,
            undefined,
            `the account allows no stream without a bound in bytes, give one for stream ${name}`
          )
        )
      }
      // A peer was faster, with options of its own; or the name belongs to a stream with other subjects.
      if (isCode(error, streamNameInUse, subjectsOverlap)) {
        return Effect.flatMap(
          Effect.flatMap(
            findStream(connection, spec.subjects[0]),
            (found) => found === undefined ? infoOf(connection, name) : Effect.succeed(found)
          ),
          (found) =>
            found === undefined
              ? Effect.fail(unexpected(`creating stream ${name}`)(error))
              : Effect.succeed(found)
        )
      }
      return Effect.fail(unexpected(`creating stream ${name}`)(error))
    })
  )
})

/** What Millrace switches on where the server has it and nothing that was asked for excludes it. */
const featuresOf = (version: string | undefined, asked: Partial<StreamConfig>): Partial<StreamConfig> => {
  const isCounter = asked.allow_msg_counter === true
  return {
    allow_direct: true,
    ...atLeast(version, 2, 11) && !isCounter ? { allow_msg_ttl: true } : {},
    ...atLeast(version, 2, 12) && !isCounter && asked.discard !== DiscardPolicy.New
      ? { allow_msg_schedules: true }
      : {},
    ...atLeast(version, 2, 12) && (asked as { readonly persist_mode?: string }).persist_mode !== "async"
      ? { allow_atomic: true }
      : {}
  }
}

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

/** Gives a stream the subjects that it lacks, where it is ours or the layer declares it. */
const widen = Effect.fnUntraced(function*(
  connection: Connection,
  declaring: Declaring,
  spec: StreamSpec,
  found: StreamInfo
): Effect.fn.Return<StreamInfo, TransportError.TransportError> {
  let info = found
  // Two processes may widen at once, and the server keeps the list of the second.
  for (let tries = 0; tries < 5; tries++) {
    const { metadata, name, subjects = [] } = info.config
    const family = familyOf(declaring, spec) ?? []
    const missing = spec.subjects.filter((subject) => !subjects.some((taken) => names.covers(taken, subject)))
    if (missing.length === 0) return info
    const wider = names.union(subjects, [...missing, ...family])
    const isOurs = metadata?.[createdByUs] === "true" ||
      (declaring.stream?.name === name && missing.every((subject) => family.some((all) => names.covers(all, subject))))
    const refused = mismatch(
      `stream ${name}`,
      `to take ${missing.join(", ")}: nats stream edit ${name} --subjects "${
        wider.join(",")
      }", or read it by its name, JetStream.from(topic, { group, stream: "${name}" })`,
      `taking ${subjects.length === 0 ? "no subject" : subjects.join(", ")}`
    )
    if (!isOurs || declaring.manage !== "create") return yield* refused
    const config: Partial<StreamUpdateConfig> = { ...info.config, subjects: [...wider] }
    yield* connection.call(`adding subjects to stream ${name}`, (jsm) => jsm.streams.update(name, config)).pipe(
      Effect.mapError((error) =>
        isCode(error, subjectsOverlap) ? refused : unexpected(`adding subjects to stream ${name}`)(error)
      )
    )
    yield* Effect.logInfo(`stream ${name} now takes ${missing.join(", ")} too`)
    info = (yield* infoOf(connection, name)) ?? info
  }
  return info
})

const verify = ({ config }: StreamInfo, wanted: Partial<StreamConfig>) => {
  const [difference] = differences(config, wanted)
  return difference === undefined
    ? Effect.void
    : Effect.fail(mismatch(`${difference.name} of stream ${config.name}`, difference.expected, difference.found))
}

/** An older server drops options that no list here names. */
const verifyCreated = (name: string, found: object, asked: object) => {
  const scalars = Object.entries(asked).filter(([, option]) => option !== undefined && typeof option !== "object")
  const [difference] = differences(found, Object.fromEntries(scalars))
  return difference === undefined
    ? Effect.void
    : Effect.fail(failure(
      new TransportError.Unsupported({
        operation: `${difference.name} ${difference.expected} of ${name}`,
        remedy: `the server kept ${difference.found}: use a newer one, or leave the option out`
      })
    ))
}
