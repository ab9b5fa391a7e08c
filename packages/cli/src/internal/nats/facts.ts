import {
  type ConsumerInfo,
  type JetStreamAccountStats,
  JetStreamApiError,
  type JetStreamManager,
  type StreamInfo
} from "@nats-io/jetstream"
import type { NatsConnection } from "@nats-io/nats-core"
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
  /** Milliseconds between two syncs, 0 for always. Only monitoring tells it. */
  readonly syncInterval: number | undefined
  /** Milliseconds that the server's clock is ahead of ours. */
  readonly skew: number | undefined
  readonly streams: ReadonlyArray<StreamFacts>
  /** `undefined`: the bucket of Millrace's attempt records is not there. */
  readonly bucket: StreamInfo | undefined
}

const bucketName = "KV_millrace"

const maxStreams = 2_000

interface Varz {
  readonly jetstream?: { readonly config?: { readonly sync_interval?: number; readonly sync_always?: boolean } }
}

const syncInterval = async (monitor: string | undefined): Promise<number | undefined> => {
  if (monitor === undefined) return undefined
  const answer = await fetch(new URL("/varz", monitor), { signal: AbortSignal.timeout(5000) })
  const { jetstream } = await answer.json() as Varz
  const { sync_always, sync_interval = 120e9 } = jetstream?.config ?? {}
  return sync_always === true ? 0 : sync_interval / 1e6
}

const consumersOf = async (jsm: JetStreamManager, stream: string): Promise<ReadonlyArray<ConsumerInfo>> => {
  const all: Array<ConsumerInfo> = []
  for await (const info of jsm.consumers.list(stream)) all.push(info)
  return all
}

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
    facts.push({ info, consumers: await consumersOf(jsm, info.config.name) })
  }
  return facts
}

const bucket = async (
  jsm: JetStreamManager
): Promise<{ readonly info: StreamInfo | undefined; readonly skew: number | undefined }> => {
  const before = Date.now()
  try {
    const info = await jsm.streams.info(bucketName)
    return { info, skew: skewOf(info, before, Date.now()) }
  } catch (error) {
    if (error instanceof JetStreamApiError && error.code === 10059) return { info: undefined, skew: undefined }
    throw error
  }
}

const skewOf = (info: StreamInfo, before: number, after: number): number | undefined => {
  const at = Date.parse(String(info.ts ?? ""))
  return Number.isNaN(at) ? undefined : at - Math.round((before + after) / 2)
}

export const facts = async (
  client: NatsConnection,
  jsm: JetStreamManager,
  { monitor, topic }: Given
): Promise<Facts> => {
  const streams = await streamFacts(jsm, topic)
  const found = await bucket(jsm)
  const [first] = streams
  let skew = found.skew
  if (skew === undefined && first !== undefined) {
    const before = Date.now()
    skew = skewOf(await jsm.streams.info(first.info.config.name), before, Date.now())
  }
  return {
    version: client.info?.version ?? "0.0.0",
    clustered: client.info?.cluster !== undefined || streams.some(({ info }) => info.cluster?.name !== undefined),
    maxPayload: client.info?.max_payload,
    account: await jsm.getAccountInfo().catch(() => undefined),
    syncInterval: await syncInterval(monitor),
    skew,
    streams,
    bucket: found.info
  }
}
