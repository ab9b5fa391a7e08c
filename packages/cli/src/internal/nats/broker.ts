import type { Transport } from "@millrace/core/Transport"
import { OperationFailed, TransportError, Unauthorized } from "@millrace/core/TransportError"
import { JetStream, layer as jetStream } from "@millrace/nats-jetstream/JetStream"
import { JetStreamApiError, type JetStreamManager, jetstreamManager, type StreamInfo } from "@nats-io/jetstream"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import { Broker, type Stored } from "../Broker.ts"
import { duration } from "../text.ts"
import * as doctor from "./doctor.ts"
import { isDenied } from "./facts.ts"

export interface Target {
  readonly url: Redacted.Redacted<string>
  readonly domain: string | undefined
  readonly credentials: Redacted.Redacted<string> | undefined
  readonly mayCreate: boolean
}

const messageOf = (cause: unknown): string => cause instanceof Error ? cause.message : String(cause)

const attemptAt = (address: string) => <A>(operation: string, f: () => Promise<A>): Effect.Effect<A, TransportError> =>
  Effect.tryPromise({
    try: f,
    catch: (cause) =>
      new TransportError({
        transport: "nats",
        reason: isDenied(cause)
          ? new Unauthorized({ address, operation, detail: messageOf(cause) })
          : new OperationFailed({ operation, cause })
      })
  })

const isPattern = (subject: string) => /(^|\.)[*>](\.|$)/.test(subject)

/** Streams that hold no topics: buckets and the server's own. */
export const isInternal = (name: string): boolean => /^(KV_|OBJ_|\$)/.test(name)

const isTopic = (subject: string) => !subject.startsWith("$") && !subject.startsWith("millrace-delayed.")

export const streamsOf = async (jsm: JetStreamManager): Promise<ReadonlyArray<StreamInfo>> => {
  const all: Array<StreamInfo> = []
  for await (const info of jsm.streams.list()) all.push(info)
  return all
}

const topics = async (jsm: JetStreamManager): Promise<ReadonlyArray<string>> => {
  const found = new Set<string>()
  for (const { config } of await streamsOf(jsm)) {
    if (isInternal(config.name)) continue
    for (const subject of config.subjects ?? []) {
      if (!isPattern(subject)) found.add(subject)
      else {
        const { state } = await jsm.streams.info(config.name, { subjects_filter: subject }).catch((error) =>
          isDenied(error) ? { state: { subjects: {} } } : Promise.reject(error)
        )
        for (const stored of Object.keys(state.subjects ?? {})) found.add(stored)
      }
    }
  }
  return [...found].filter(isTopic).sort()
}

export const boundsOf = ({ discard, max_age, max_bytes, max_msgs, max_msgs_per_subject, retention }: {
  readonly discard?: string
  readonly max_age?: number
  readonly max_bytes?: number
  readonly max_msgs?: number
  readonly max_msgs_per_subject?: number
  readonly retention?: string
}): ReadonlyArray<string> => {
  const bounds = [
    ...(max_age! > 0 ? [`max_age ${duration(max_age! / 1e6)}`] : []),
    ...(max_msgs! > 0 ? [`max_msgs ${max_msgs}`] : []),
    ...(max_msgs_per_subject! > 0 ? [`max_msgs_per_subject ${max_msgs_per_subject}`] : []),
    ...(max_bytes! > 0 ? [`max_bytes ${max_bytes}`] : [])
  ]
  return [
    ...(retention === "limits" || retention === undefined ? [] : [`retention ${retention}`]),
    ...bounds,
    ...(bounds.length > 0 ? [`discard ${discard}`] : [])
  ]
}

const isAbsent = (error: unknown) =>
  error instanceof JetStreamApiError
    ? error.code === 10059 || error.code === 10037
    : /no stream matches/.test(String(error))

const stored = async (jsm: JetStreamManager, topic: string): Promise<Stored | undefined> => {
  const name = await jsm.streams.find(topic).catch((error) => isAbsent(error) ? undefined : Promise.reject(error))
  if (name === undefined) return undefined
  const { config, state } = await jsm.streams.info(name, { subjects_filter: topic })
  const messages = isPattern(topic)
    ? Object.values(state.subjects ?? {}).reduce((sum, n) => sum + n, 0)
    : state.subjects?.[topic] ?? 0
  const isAlone = messages === state.messages
  const at = async (
    query: { readonly last_by_subj: string } | { readonly next_by_subj: string; readonly seq: number }
  ) => (await jsm.streams.getMessage(name, query).catch(() => null))?.time.getTime()
  return {
    topic,
    messages,
    added: isAlone ? state.last_seq : undefined,
    bytes: state.bytes,
    first: messages === 0
      ? undefined
      : isAlone
      ? Date.parse(state.first_ts)
      : await at({ next_by_subj: topic, seq: 1 }),
    last: messages === 0 ? undefined : isAlone ? Date.parse(state.last_ts) : await at({ last_by_subj: topic }),
    bounds: boundsOf(config)
  }
}

const make = Effect.fnUntraced(function*(target: Target) {
  const { client, transport } = yield* JetStream
  const attempt = attemptAt(transport.address)
  const jsm = yield* attempt(
    "opening JetStream",
    // Which parts of the API this user may use shows where they are used.
    () =>
      jetstreamManager(client, { checkAPI: false, ...(target.domain === undefined ? {} : { domain: target.domain }) })
  )
  return Broker.of({
    name: "nats",
    server: `NATS ${client.info?.version}`,
    transport,
    topics: attempt("listing streams", () => topics(jsm)),
    stored: (topic) => attempt(`looking for the stream of ${topic}`, () => stored(jsm, topic)),
    held: () => Effect.succeed(undefined),
    retries: () => Effect.succeed(undefined),
    examine: (given) => doctor.examine(client, jsm, given)
  })
})

export const layer = (target: Target): Layer.Layer<Broker | Transport, TransportError> =>
  Layer.effect(Broker, make(target)).pipe(
    Layer.provideMerge(jetStream({
      url: target.url,
      name: "millrace-cli",
      connectTimeout: "4 seconds",
      manage: target.mayCreate ? "create" : "none",
      ...(target.domain === undefined ? {} : { domain: target.domain }),
      ...(target.credentials === undefined ? {} : { credentials: target.credentials })
    }))
  )
