import {
  type ConsumerInfo,
  type JetStreamAccountStats,
  JetStreamApiError,
  type JetStreamManager,
  type StreamInfo
} from "@nats-io/jetstream"
import { errors, type NatsConnection } from "@nats-io/nats-core"
import type { Given } from "../findings.ts"

/** A stream with its consumers. */
export interface StreamFacts {
  readonly info: StreamInfo
  readonly consumers: ReadonlyArray<ConsumerInfo>
}

/** What the server says about itself and the account; `undefined` where this user may not ask. */
export interface Facts {
  readonly version: string
  readonly clustered: boolean
  readonly maxPayload: number | undefined
  readonly account: JetStreamAccountStats | undefined
  /** Milliseconds between two syncs, 0 for always; `undefined`: not asked for, `"silent"`: monitoring did not answer. */
  readonly syncInterval: number | "silent" | undefined
  /** Milliseconds that the server's clock is ahead of ours. */
  readonly skew: number | undefined
  readonly streams: ReadonlyArray<StreamFacts>
  /** Consumers that were seen to settle, though all that they may own was taken. */
  readonly moving: ReadonlySet<ConsumerInfo>
  /** Whether this user may list and examine streams. */
  readonly mayList: boolean
  /** `undefined`: the bucket of Millrace's attempt records is not there. */
  readonly bucket: StreamInfo | "denied" | undefined
}

const bucketName = "KV_millrace"

const maxStreams = 2_000

interface Varz {
  readonly jetstream?: { readonly config?: { readonly sync_interval?: number; readonly sync_always?: boolean } }
}

const syncInterval = async (monitor: string | undefined): Promise<number | "silent" | undefined> => {
  if (monitor === undefined) return undefined
  try {
    const answer = await fetch(new URL("/varz", monitor), { signal: AbortSignal.timeout(5000) })
    const { jetstream } = await answer.json() as Varz
    if (jetstream?.config === undefined) return "silent"
    const { sync_always, sync_interval = 120e9 } = jetstream.config
    return sync_always === true ? 0 : sync_interval / 1e6
  } catch {
    return "silent"
  }
}

const consumersOf = async (jsm: JetStreamManager, stream: string): Promise<ReadonlyArray<ConsumerInfo>> => {
  const all: Array<ConsumerInfo> = []
  for await (const info of jsm.consumers.list(stream)) all.push(info)
  return all
}

/** All that the consumer may own is taken. */
export const isFull = ({ config, num_ack_pending }: ConsumerInfo): boolean =>
  (config.max_ack_pending ?? 0) > 0 && num_ack_pending >= config.max_ack_pending!

/** Which of the full consumers go on: a busy pipeline replaces settled messages at once. */
const movingOf = async (
  jsm: JetStreamManager,
  full: ReadonlyArray<ConsumerInfo>
): Promise<ReadonlySet<ConsumerInfo>> => {
  const moving = new Set<ConsumerInfo>()
  for (let look = 0; look < looks && moving.size < full.length; look++) {
    await new Promise((resolve) => setTimeout(resolve, lookEvery))
    for (const before of full) {
      if (moving.has(before)) continue
      const now = await jsm.consumers.info(before.stream_name, before.name).catch(() => undefined)
      // A message that is delivered again has not been settled.
      if (now !== undefined && (!isFull(now) || now.delivered.stream_seq > before.delivered.stream_seq)) {
        moving.add(before)
      }
    }
  }
  return moving
}

const looks = 4

/** In milliseconds. */
const lookEvery = 500

/** `"denied"` where this user may not ask. */
const allowed = async <A>(asked: () => Promise<A>): Promise<A | "denied"> => {
  try {
    return await asked()
  } catch (error) {
    if (isDenied(error)) return "denied"
    throw error
  }
}

export const isDenied = (error: unknown): boolean =>
  error instanceof errors.PermissionViolationError ||
  (error instanceof Error && error.cause !== undefined && isDenied(error.cause))

/** The server, or this account, is without JetStream. */
export const isNotEnabled = (error: unknown): boolean =>
  error instanceof Error &&
  (error.name === "JetStreamNotEnabled" || (error.cause !== undefined && isNotEnabled(error.cause)))

const streamFacts = async (jsm: JetStreamManager, topic: string | undefined): Promise<ReadonlyArray<StreamFacts>> => {
  const infos: Array<StreamInfo> = []
  if (topic === undefined) {
    for await (const info of jsm.streams.list()) if (infos.length < maxStreams) infos.push(info)
  } else {
    infos.push(await jsm.streams.info(await jsm.streams.find(topic)))
  }
  const facts: Array<StreamFacts> = []
  for (const info of infos) {
    if (/^(KV_|OBJ_|\$)/.test(info.config.name)) continue
    const consumers = await consumersOf(jsm, info.config.name).catch((error) =>
      isGone(error) ? undefined : Promise.reject(error)
    )
    if (consumers !== undefined) facts.push({ info, consumers })
  }
  return facts
}

/** A stream that was deleted meanwhile, or never was there. */
const isGone = (error: unknown): boolean => error instanceof JetStreamApiError && error.code === 10059

const bucketInfo = async (jsm: JetStreamManager): Promise<StreamInfo | undefined> => {
  try {
    return await jsm.streams.info(bucketName)
  } catch (error) {
    if (isGone(error)) return undefined
    throw error
  }
}

/** What one answer of the server says about its clock; versions before 2.10 do not say what they read there. */
const skewOf = async (asked: () => Promise<StreamInfo>): Promise<number | undefined> => {
  const before = Date.now()
  const info = await asked()
  const at = Date.parse(String(info.ts ?? ""))
  return Number.isNaN(at) ? undefined : at - Math.round((before + Date.now()) / 2)
}

export const facts = async (
  client: NatsConnection,
  jsm: JetStreamManager,
  { monitor, topic }: Given
): Promise<Facts> => {
  const streams = await allowed(() => streamFacts(jsm, topic))
  const bucket = await allowed(() => bucketInfo(jsm))
  const found = streams === "denied" ? [] : streams
  const any = typeof bucket === "object" ? bucketName : found[0]?.info.config.name
  const account = await jsm.getAccountInfo().catch(() => undefined)
  return {
    version: client.info?.version ?? "0.0.0",
    clustered: client.info?.cluster !== undefined || found.some(({ info }) => info.cluster?.name !== undefined),
    maxPayload: client.info?.max_payload,
    account,
    syncInterval: await syncInterval(monitor),
    skew: any === undefined ? undefined : await skewOf(() => jsm.streams.info(any)),
    streams: found,
    moving: await movingOf(jsm, found.flatMap(({ consumers }) => consumers.filter(isFull))),
    mayList: streams !== "denied",
    bucket
  }
}
