/**
 * Messages that will not be tried again, stored with everything needed to understand and replay them.
 *
 * A dead letter is the original message, bytes and headers untouched, with one header more: the {@link Record}.
 *
 * @since 0.1.0
 */
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { dual } from "effect/Function"
import * as Option from "effect/Option"
import type * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { type Invalid, invalidFunction, toError, unknownOption } from "./internal/invalid.ts"
import { keyOf } from "./internal/key.ts"
import * as letters from "./internal/letterHeaders.ts"
import { answered, ignore } from "./internal/promise.ts"
import { DeadLetterReason, decodeHeaders, decodeRecord, encodeHistory, Failure, Record } from "./internal/record.ts"
import * as redriving from "./internal/redriving.ts"
import type * as Message from "./Message.ts"
import type * as Topic from "./Topic.ts"
import { type BrowseOptions, type Delivery, type Outgoing, Transport } from "./Transport.ts"
import type { TransportError } from "./TransportError.ts"

/**
 * The header that holds the {@link Record}, as JSON.
 *
 * @category constants
 * @since 0.1.0
 */
export const header = letters.recordHeader

export {
  /**
   * @category models
   * @since 0.1.0
   */
  DeadLetterReason,
  /**
   * @category models
   * @since 0.1.0
   */
  Failure,
  /**
   * @category models
   * @since 0.1.0
   */
  Record
}

/**
 * A dead letter where it is stored.
 *
 * @category models
 * @since 0.1.0
 */
export interface DeadLetter {
  /** Its id in the dead-letter topic. */
  readonly id: string
  /** The ids of all stored pieces: a message close to the broker's limit is stored in two pieces. */
  readonly ids: Arr.NonEmptyReadonlyArray<string>
  readonly record: Record
  /** Records of earlier failures, latest first, where the message that failed was a dead letter itself. */
  readonly earlier: ReadonlyArray<Record>
  /** The message as it was: bytes, fields, headers, key. Without its second half when `incomplete`. */
  readonly message: Delivery
  /** The second piece is not stored any more. Such a letter cannot be redriven. */
  readonly incomplete: boolean
}

/**
 * Reads the record of a dead letter; fails with a `SchemaError` when the message is none.
 *
 * @category decoding
 * @since 0.1.0
 */
export const fromHeaders = (headers: Message.Headers): Exit.Exit<Record, Schema.SchemaError> =>
  decodeRecord(headers[header])

/**
 * Decodes the original message of a dead letter as its topic would.
 *
 * @category decoding
 * @since 0.1.0
 */
export const decode: {
  /**
   * Decodes the original message of a dead letter as its topic would.
   */
  <A, RD, RE>(
    topic: Topic.Topic<A, RD, RE>
  ): (self: DeadLetter) => Effect.Effect<A, Schema.SchemaError, RD>
  /**
   * Decodes the original message of a dead letter as its topic would.
   */
  <A, RD, RE>(self: DeadLetter, topic: Topic.Topic<A, RD, RE>): Effect.Effect<A, Schema.SchemaError, RD>
} = dual(
  2,
  <A, RD, RE>(self: DeadLetter, topic: Topic.Topic<A, RD, RE>): Effect.Effect<A, Schema.SchemaError, RD> =>
    topic.codec.decode(self.message)
)

// --- reading

/**
 * Which dead letters to list, as in `Transport.BrowseOptions`: by default all, oldest first.
 *
 * @category models
 * @since 0.1.0
 */
export interface ListOptions extends BrowseOptions {
  /** Default: all. `limit` counts the letters that pass the filter. */
  readonly filter?: ((letter: DeadLetter) => boolean) | undefined
}

/**
 * Lists the dead letters of a dead-letter topic. Messages that are no dead letters are passed over. Memory is bounded
 * by a page, whatever the topic holds.
 *
 * @category operations
 * @since 0.1.0
 */
export const list = (
  topic: string,
  options?: ListOptions
): Stream.Stream<DeadLetter, TransportError, Transport> =>
  Stream.unwrap(Effect.map(Transport, (transport) => {
    const invalid = invalidChoice(transport, topic, options, ["filter", "after", "before", "reverse", "limit"])
    if (invalid !== undefined) return Stream.fail(toError(transport.name, invalid))
    const { filter, limit, ...bounds } = options ?? {}
    // Few messages of the topic are no letters, so a page of a little more than `limit` is enough as a rule.
    const found = transport.browse(topic, bounds).pipe(
      Stream.filter((delivery) => delivery.headers[letters.recordHeader] !== undefined),
      Stream.mapEffect((delivery) => assemble(transport, topic, delivery)),
      Stream.filter((letter): letter is DeadLetter => letter !== undefined && passes(filter, letter))
    )
    return limit === undefined ? found : Stream.take(found, limit)
  }))

/**
 * Reads one dead letter by its id in the dead-letter topic, in one request; two or three for one stored in two pieces.
 *
 * @category operations
 * @since 0.1.0
 */
export const inspect = (
  topic: string,
  id: string
): Effect.Effect<Option.Option<DeadLetter>, TransportError, Transport> =>
  Effect.flatMap(Transport, (transport) =>
    Effect.flatMap(transport.get(topic, id), (found) =>
      Option.isNone(found)
        ? Effect.succeedNone
        : Effect.map(assemble(transport, topic, found.value), Option.fromUndefinedOr)))

/** `undefined`: the message is no dead letter. */
const assemble = (
  transport: Transport["Service"],
  topic: string,
  delivery: Delivery
): Effect.Effect<DeadLetter | undefined, TransportError> => {
  const record = fromHeaders(delivery.headers)
  if (Exit.isFailure(record)) return Effect.succeed(undefined)
  const { message, earlier } = letters.unwrap(delivery)
  const letter: DeadLetter = {
    id: delivery.id,
    ids: [delivery.id],
    record: record.value,
    earlier: earlier.flatMap((text) => Exit.match(decodeRecord(text), { onFailure: () => [], onSuccess: Arr.of })),
    message,
    incomplete: false
  }
  const whole = delivery.headers[letters.splitHeader]
  if (whole === undefined) return Effect.succeed(letter)
  // The second piece was written just before this one.
  return Effect.map(
    Stream.runHead(Stream.filter(
      transport.browse(topic, { before: delivery.id, reverse: true }),
      ({ headers }) => headers[letters.restHeader] === whole
    )),
    (rest) =>
      Option.isNone(rest)
        ? { ...letter, incomplete: true }
        : { ...letter, ids: [delivery.id, rest.value.id], message: joined(message, rest.value) }
  )
}

/** Puts two pieces together: the second one begins with the headers. */
const joined = (first: Delivery, rest: Delivery): Delivery => {
  const headerBytes = Number(rest.headers[letters.headerBytesHeader] ?? 0)
  const second = rest.body.subarray(headerBytes)
  const body = new Uint8Array(first.body.byteLength + second.byteLength)
  body.set(first.body)
  body.set(second, first.body.byteLength)
  const decoded = decodeHeaders(new TextDecoder().decode(rest.body.subarray(0, headerBytes)))
  const headers = Exit.isSuccess(decoded)
    ? { ...first.headers, ...letters.withoutRecords(decoded.value) }
    : first.headers
  return { ...first, body, headers, key: keyOf(headers) }
}

/**
 * The properties of the wanted dead letters; an absent property matches all. Times are milliseconds since the epoch.
 *
 * @category models
 * @since 0.1.0
 */
export interface Criteria {
  /** Of the letter in the dead-letter topic, or of the message that failed. */
  readonly ids?: ReadonlyArray<string> | undefined
  readonly topic?: string | undefined
  readonly group?: string | undefined
  readonly reason?: DeadLetterReason | undefined
  /** The error's tag, exactly. */
  readonly tag?: string | undefined
  /** Anywhere in the error's tag, message or causes, in upper or lower case. */
  readonly text?: string | undefined
  /** When the last attempt failed, both inclusive. */
  readonly failedFrom?: number | undefined
  /** When the last attempt failed, both inclusive. */
  readonly failedUntil?: number | undefined
}

/**
 * Makes a filter for {@link list}, {@link redrive} and {@link discard}.
 *
 * **Gotchas**
 *
 * A criterion that does not exist, or has a value of another type, throws a `TransportError` that names it: a filter
 * without that criterion would match every letter.
 *
 * @category operations
 * @since 0.1.0
 */
export const matching = (criteria: Criteria): (letter: DeadLetter) => boolean => {
  const invalid = invalidCriteria(criteria)
  if (invalid !== undefined) throw toError("core", invalid)
  const { failedFrom = -Infinity, failedUntil = Infinity, group, ids, reason, tag, topic } = criteria
  const text = criteria.text?.toLowerCase()
  return ({ id, record }) =>
    (ids === undefined || ids.includes(id) || ids.includes(record.id)) &&
    (topic === undefined || record.topic === topic) &&
    (group === undefined || record.group === group) &&
    (reason === undefined || record.reason === reason) &&
    (tag === undefined || record.error.tag === tag) &&
    record.failedAt >= failedFrom && record.failedAt <= failedUntil &&
    (text === undefined ||
      [record.error.tag, record.error.message, ...record.error.causes].some((part) =>
        part.toLowerCase().includes(text)
      ))
}

// --- acting

/**
 * Which dead letters an operation concerns.
 *
 * @category models
 * @since 0.1.0
 */
export interface SelectOptions {
  /** Only those with these ids in the dead-letter topic, in this order; read one by one instead of listed. */
  readonly ids?: ReadonlyArray<string> | undefined
  /** Default all. */
  readonly filter?: ((letter: DeadLetter) => boolean) | undefined
  /** At most so many; default all. */
  readonly limit?: number | undefined
  /** Reports and changes nothing; default `false`. */
  readonly dryRun?: boolean | undefined
}

/**
 * Options of {@link redrive}.
 *
 * @category models
 * @since 0.1.0
 */
export interface RedriveOptions extends SelectOptions {
  /** Messages a second, evenly spaced; default as fast as the broker takes them. */
  readonly rate?: number | undefined
  /** How often one message may be redriven; default 3. Those beyond it stay where they are. */
  readonly cap?: number | undefined
  /** For which group, instead of the one that the message failed in. It is not checked whether that group exists. */
  readonly group?: string | undefined
  /**
   * The topics that may be published to. A letter names its topic itself, and a writer of the dead-letter
   * topic may forge one. Default: topics that belong to the dead-letter topic by name: from `orders.dead` to `orders`, and
   * to topics below it such as `orders.created`.
   */
  readonly to?: ReadonlyArray<string> | undefined
  /** Called after each step with the numbers so far. */
  readonly onProgress?: ((sofar: Redriven) => Effect.Effect<void>) | undefined
}

/**
 * Options of {@link discard}.
 *
 * @category models
 * @since 0.1.0
 */
export interface DiscardOptions extends SelectOptions {
  /** Called after each step with the number of letters deleted so far. */
  readonly onProgress?: ((discarded: number) => Effect.Effect<void>) | undefined
}

/**
 * The result of {@link redrive}, or, as a dry run, its plan.
 *
 * @category models
 * @since 0.1.0
 */
export interface Redriven {
  readonly redriven: number
  /** Redriven `cap` times already. */
  readonly capped: number
  /** Letters that cannot be redriven; they stay where they are. Absent when there are none. */
  readonly refused?: Refused | undefined
}

/**
 * Letters that {@link redrive} left where they are: how many, and the first 20 with the reason and the remedy.
 *
 * @category models
 * @since 0.1.0
 */
export interface Refused {
  readonly count: number
  readonly first: ReadonlyArray<{ readonly id: string; readonly detail: string }>
}

/**
 * Publishes dead letters to the topic they came from, for the group they failed in: pipelines of other groups
 * acknowledge them unseen. Each is deleted from the dead-letter topic once the broker has it again.
 *
 * **Details**
 *
 * The id of the published message derives from the dead letter, so that a redrive that was killed can be repeated; where
 * the broker no longer knows the id, a repeat delivers the message once more. An interruption waits until the messages
 * at hand are published and deleted. Attempts begin anew; how it failed before is kept in the record's `history` if it
 * fails again, as far as there is room.
 *
 * A letter that cannot be redriven is counted in `refused` and does not stop the others. Letters that arrive meanwhile
 * are left alone. Fails with `InvalidOption` when a number makes no sense.
 *
 * @category operations
 * @since 0.1.0
 */
export const redrive = Effect.fnUntraced(function*(
  topic: string,
  options?: RedriveOptions
): Effect.fn.Return<Redriven, TransportError, Transport> {
  const transport = yield* Transport
  const { cap = 3, dryRun = false, group, onProgress, rate, to } = options ?? {}
  yield* check(transport, topic, options, ["cap", "group", "rate", "to"])
  let capped = 0
  const run = new redriving.Redrive(transport, topic, { group, to, dryRun })
  const sofar = (): Redriven => ({ redriven: run.redriven, capped, ...run.refused })
  const selected = select(topic, options, (letter) => {
    if (letter.record.history.length < cap) return true
    capped++
    return false
  }).pipe(
    Stream.map((letter): redriving.Item => ({
      id: letter.id,
      ids: letter.ids,
      incomplete: letter.incomplete,
      topic: letter.record.topic,
      group: letter.record.group,
      messages: redrivenMessages(letter, group)
    }))
  )
  yield* redriving.inSteps(
    selected,
    dryRun ? undefined : rate,
    (items) => Effect.andThen(run.step(items), () => progressed(transport, onProgress, sofar()))
  )
  return sofar()
})

/**
 * Deletes dead letters for good; returns how many, or, as a dry run, how many it would delete. An interruption waits for
 * the request at hand. Fails with `InvalidOption` when a number makes no sense.
 *
 * @category operations
 * @since 0.1.0
 */
export const discard = Effect.fnUntraced(function*(
  topic: string,
  options?: DiscardOptions
): Effect.fn.Return<number, TransportError, Transport> {
  const transport = yield* Transport
  yield* check(transport, topic, options, [])
  return yield* Stream.runFoldEffect(Stream.grouped(select(topic, options), 100), () => 0, (sum, letters) => {
    const discarded = sum + letters.length
    const remove = options?.dryRun === true
      ? Effect.void
      : Effect.uninterruptible(transport.remove(topic, Arr.flatMap(letters, (letter) => letter.ids)))
    const told = () => progressed(transport, options?.onProgress, discarded)
    return Effect.as(Effect.andThen(remove, told), discarded)
  })
})

/** Calls the caller's function. A result that is no Effect, such as a promise, is refused: nothing would wait for it. */
const progressed = <A>(
  transport: Transport["Service"],
  onProgress: ((sofar: A) => Effect.Effect<void>) | undefined,
  sofar: A
): Effect.Effect<void, TransportError> => {
  const returned: unknown = onProgress?.(sofar)
  if (returned === undefined) return Effect.void
  if (Effect.isEffect(returned)) return returned as Effect.Effect<void>
  ignore(returned)
  const value = { toString: () => "a function that returns no Effect" }
  return Effect.fail(toError(transport.name, {
    option: "onProgress",
    value,
    remedy: "return an Effect: Effect.promise(() => …) waits for a promise"
  }))
}

type Choice = Omit<RedriveOptions, "onProgress"> & BrowseOptions & { readonly onProgress?: unknown }

const check = (
  transport: Transport["Service"],
  topic: string,
  options: Choice | undefined,
  more: ReadonlyArray<string>
): Effect.Effect<void, TransportError> => {
  const invalid = invalidChoice(transport, topic, options, ["ids", "filter", "limit", "dryRun", "onProgress", ...more])
  return invalid === undefined ? Effect.void : Effect.fail(toError(transport.name, invalid))
}

const invalidChoice = (
  transport: Transport["Service"],
  topic: unknown,
  options: Choice = {},
  known: ReadonlyArray<string>
): Invalid | undefined => {
  if (typeof topic !== "string" || topic === "") {
    return { option: "topic", value: topic, remedy: "give the name of a dead-letter topic, such as \"orders.dead\"" }
  }
  const unknown = unknownOption("options", options, known)
  if (unknown !== undefined) return unknown
  const { after, before, cap, dryRun, filter, group, ids, limit, onProgress, rate, reverse, to } = options
  const isCount = (n: number) => n === Infinity || (Number.isInteger(n) && n >= 0)
  if (rate !== undefined && !(Number.isFinite(rate) && rate > 0)) {
    const remedy = "give messages a second, more than 0, or leave it out for full speed"
    return { option: "rate", value: rate, remedy }
  }
  if (cap !== undefined && !isCount(cap)) {
    return { option: "cap", value: cap, remedy: "give a whole number of redrives, 0 or more" }
  }
  if (limit !== undefined && !isCount(limit)) {
    return { option: "limit", value: limit, remedy: "give a whole number of dead letters, 0 or more" }
  }
  const groupRemedy = group === undefined
    ? undefined
    : typeof group === "string"
    ? transport.nameRemedy("group", group)
    : "give the name of a group"
  if (groupRemedy !== undefined) return { option: "group", value: group, remedy: groupRemedy }
  return invalidTexts("ids", ids, "give an array of ids") ??
    invalidTexts("to", to, "give an array of names of topics") ??
    invalidType("after", after, "string", "give the id of a dead letter") ??
    invalidType("before", before, "string", "give the id of a dead letter") ??
    invalidType("reverse", reverse, "boolean", "write true or false") ??
    invalidType("dryRun", dryRun, "boolean", "write true or false") ??
    invalidFunction("filter", filter) ?? invalidFunction("onProgress", onProgress)
}

const invalidTexts = (option: string, values: unknown, remedy: string): Invalid | undefined =>
  values === undefined || (Array.isArray(values) && values.every((value) => typeof value === "string"))
    ? undefined
    : { option, value: values, remedy }

const invalidType = (
  option: string,
  value: unknown,
  type: "string" | "boolean" | "number",
  remedy: string
): Invalid | undefined => value === undefined || typeof value === type ? undefined : { option, value, remedy }

const invalidCriteria = (criteria: Criteria): Invalid | undefined => {
  const of = "DeadLetter.matching"
  const texts = ["topic", "group", "reason", "tag", "text"] as const
  const times = ["failedFrom", "failedUntil"] as const
  return unknownOption(of, criteria, ["ids", ...texts, ...times]) ??
    invalidTexts(`${of}.ids`, criteria.ids, "give an array of ids") ??
    texts.map((name) => invalidType(`${of}.${name}`, criteria[name], "string", "give a text")).find(isGiven) ??
    times.map((name) => {
      const value = Number.isNaN(criteria[name]) ? "NaN" : criteria[name]
      return invalidType(`${of}.${name}`, value, "number", "give milliseconds since the epoch")
    }).find(isGiven)
}

const isGiven = (invalid: Invalid | undefined): boolean => invalid !== undefined

const passes = (filter: SelectOptions["filter"], letter: DeadLetter): boolean =>
  filter === undefined || Boolean(answered("filter", filter(letter)))

const select = (
  topic: string,
  options: SelectOptions | undefined,
  may: (letter: DeadLetter) => boolean = () => true
): Stream.Stream<DeadLetter, TransportError, Transport> => {
  const filter = (letter: DeadLetter) => passes(options?.filter, letter) && may(letter)
  const limit = options?.limit === Infinity ? undefined : options?.limit
  if (options?.ids === undefined) return list(topic, { filter, limit })
  const letters = Stream.fromIterable(new Set(options.ids)).pipe(
    Stream.mapEffect((id) => inspect(topic, id)),
    Stream.filter(Option.isSome),
    Stream.map(({ value }) => value),
    Stream.filter(filter)
  )
  return limit === undefined ? letters : Stream.take(letters, limit)
}

/** The message to publish, with all of its history and, for one without room for that, with less and less. */
const redrivenMessages = (
  { message, record }: DeadLetter,
  group: string | undefined
): Arr.NonEmptyReadonlyArray<Outgoing> => {
  const failure = new Failure({
    id: record.id,
    reason: record.reason,
    attempts: record.attempts,
    failedAt: record.failedAt,
    error: `${record.error.tag}: ${record.error.message}`.slice(0, 300)
  })
  const history = [...record.history, failure]
  const to = group ?? record.group
  const outgoing = (headers: Message.Headers): Outgoing => ({
    topic: record.topic,
    body: message.body,
    fields: message.fields,
    headers: { ...message.headers, [letters.groupHeader]: to, ...headers },
    key: message.key,
    id: `redrive/${record.origin ?? ""}/${record.topic}/${to}/${record.id}`,
    delay: undefined
  })
  const withHistory = (failures: ReadonlyArray<Failure>) =>
    outgoing({ [letters.historyHeader]: letters.oneLine(encodeHistory(failures)) })
  return [
    withHistory(history),
    withHistory(history.map((failure) => new Failure({ ...failure, error: "" }))),
    outgoing({})
  ]
}
