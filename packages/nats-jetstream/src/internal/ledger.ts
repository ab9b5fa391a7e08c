import { type ApiError, DiscardPolicy, JetStreamApiError, StorageType, type StreamConfig } from "@nats-io/jetstream"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Semaphore from "effect/Semaphore"
import { isCode, maxBytesRequired, noMessage, streamNotFound } from "./comparison.ts"
import type { Connection } from "./connection.ts"
import type { JetStreamDelivery } from "./delivery.ts"
import type { Life } from "./life.ts"

/**
 * What the server does not remember about a message: it counts each delivery, cannot take one back, and does not say why
 * it delivers again. Written on the connection of the settlement, before it.
 */
export interface AttemptRecord {
  /** The delivery, by the server's count, that the record is about. */
  readonly delivered: number
  /** How many up to that one do not count: they were released, or never begun. */
  readonly released: number
  /** It was settled (by a retry or a release); otherwise its process may have died of it. */
  readonly settled: boolean
  readonly firstFailedAt?: number | undefined
  /** Of a retry that was handed over before its time, in milliseconds since the epoch by the server's clock. */
  readonly due?: number | undefined
  /** The message's own, in nanoseconds: tells it from the message with its sequence in an earlier life of the stream. */
  readonly timestamp: string
}

/** What a record says of a delivery. */
export type Recorded = Pick<
  JetStreamDelivery,
  "reply" | "sequence" | "delivered" | "released" | "suspect" | "firstFailedAt" | "due" | "timestamp"
>

const bucket = "KV_millrace"

const description = "Millrace: releases and retries of messages, to count their attempts"

/** A record outlives its message's redeliveries by far. */
const timeToLive = Duration.days(7)

/** For accounts that allow no stream without a bound: some hundred thousand records. */
const boundedBytes = 32 * 1024 * 1024

/** How long an answer may take before the bucket counts as out of reach. */
const answerTimeout = 1000

/** How long the ledger waits for a connection that was lost. */
const reconnectTimeout = 5000

/** While the bucket is out of reach, it is tried again after these times. */
const minProbeDelay = 250
const maxProbeDelay = 15_000

/** How often the arrival of records that are written without waiting is verified. */
const verifyEvery = 1000

export interface LedgerOptions {
  readonly connection: Connection
  readonly manage: "create" | "verify" | "none"
  readonly run: <A, E>(effect: Effect.Effect<A, E>) => unknown
  readonly runPromise: <A, E>(effect: Effect.Effect<A, E>) => Promise<A>
}

/**
 * The attempts of messages, in a key-value bucket that all processes share.
 *
 * The ledger is an aid: no message waits on it longer than `answerTimeout`, once. When an answer fails to come, for
 * whatever reason (the bucket was deleted, has no leader, is sealed or full, a permission is missing), the ledger is out
 * of reach: reads know nothing, writes are skipped, releases count an attempt. That is logged once per episode. Meanwhile
 * the bucket is looked for, and created again where that is allowed.
 */
export class AttemptLedger {
  readonly #connection: Connection
  private readonly options: LedgerOptions
  /** As durable as the most durable stream that is served. */
  private replicas = 1
  private storage: StorageType | undefined
  private isAvailable = false
  private probing: NodeJS.Timeout | undefined
  private isClosed = false
  private readonly turns = Semaphore.makeUnsafe(1)
  private verifiedAt = -Infinity

  constructor(options: LedgerOptions) {
    this.options = options
    this.#connection = options.connection
  }

  /** Finds or creates the bucket; as durable as `stream`. Never fails: without it the ledger is out of reach. */
  serve(stream: StreamConfig): Effect.Effect<void> {
    // One after the other: the first finds the bucket for all that start with it.
    return this.turns.withPermit(Effect.suspend(() => {
      if (this.options.manage === "none") return Effect.void
      const isKnown = this.isAvailable && stream.num_replicas <= this.replicas
      this.replicas = Math.max(this.replicas, stream.num_replicas)
      this.storage ??= stream.storage
      if (isKnown || this.probing !== undefined) return Effect.void
      return Effect.matchEffect(this.whileConnected(this.open), {
        onFailure: (error) => Effect.sync(() => this.trip(error)),
        onSuccess: () => Effect.sync(() => this.found())
      })
    }))
  }

  /**
   * Deletes the bucket while it holds no record: an account that counts its streams needs the place for messages.
   * `false`: there is nothing to give.
   */
  readonly giveWay: Effect.Effect<boolean> = Effect.suspend(() => {
    if (!this.isAvailable || this.options.manage !== "create") return Effect.succeed(false)
    return this.#connection.call("deleting the bucket millrace", async (jsm) => {
      const { config, state } = await jsm.streams.info(bucket)
      // The probe is no record.
      return config.description === description && state.messages <= 1 && await jsm.streams.delete(bucket)
    }).pipe(
      Effect.tap((isGone) => {
        if (isGone) this.trip(new Error("the account has no place for it beside the streams of messages"))
        return Effect.void
      }),
      Effect.orElseSucceed(() => false)
    )
  })

  close(): void {
    this.isClosed = true
    clearTimeout(this.probing)
  }

  /** Reads the records of redelivered messages; `undefined`: out of reach, nothing is known. */
  read(
    deliveries: ReadonlyArray<JetStreamDelivery>
  ): Promise<ReadonlyArray<AttemptRecord | undefined> | undefined> | undefined {
    if (!this.isAvailable) return undefined
    return this.ask("reading attempts", () => Promise.all(deliveries.map((delivery) => this.readOne(delivery))))
  }

  private readOne(delivery: JetStreamDelivery): Promise<AttemptRecord | undefined> {
    return this.last<AttemptRecord>(subjectOf(delivery)).then((record) =>
      // The message with its sequence in another life; or the consumer was created again, and counts from 1.
      record?.timestamp === delivery.timestamp && record.delivered < delivery.delivered
        ? { ...record, due: shifted(record.due, -this.#connection.clockSkew()) }
        : undefined
    )
  }

  private last<A>(subject: string): Promise<A | undefined> {
    const { apiPrefix, nc } = this.#connection
    const query = JSON.stringify({ last_by_subj: subject })
    return nc.request(`${apiPrefix}.STREAM.MSG.GET.${bucket}`, query, { timeout: answerTimeout }).then((answer) => {
      const { error, message } = answer.json<Stored>()
      if (error !== undefined && error.err_code !== noMessage) throw new JetStreamApiError(error)
      return message?.data === undefined ? undefined : JSON.parse(Buffer.from(message.data, "base64").toString())
    })
  }

  /** How far a group had settled when a process last said so; `undefined`: not known. */
  floorOf(life: Life, consumer: string): Promise<number | undefined> {
    if (!this.isAvailable) return Promise.resolve(undefined)
    return this.ask("reading a position", () => this.last<FloorRecord>(floorSubject(life, consumer))).then((record) =>
      record?.origin === life.origin ? record.sequence : undefined
    )
  }

  /** Keeps how far a group has settled, where the server may delete its consumer. */
  keepFloor(life: Life, consumer: string, sequence: number): Promise<void> {
    if (!this.isAvailable) return Promise.resolve()
    const text = JSON.stringify({ origin: life.origin, sequence } satisfies FloorRecord)
    return this.ask(
      "storing a position",
      () =>
        this.#connection.nc.request(floorSubject(life, consumer), text, { timeout: answerTimeout }).then(throwRefusal)
    )
  }

  /** `undefined`: the bucket is out of reach from now on. A lost connection says nothing of it: then it is asked again. */
  private ask<A>(operation: string, f: () => Promise<A>): Promise<A | undefined> {
    const asked = this.whileConnected(this.#connection.call(operation, f))
    return this.options.runPromise(Effect.catch(asked, (error) =>
      Effect.sync(() => {
        this.trip(error)
        return undefined
      })))
  }

  private whileConnected<A>(effect: Effect.Effect<A, unknown>): Effect.Effect<A, unknown> {
    const { state, whenConnected } = this.#connection
    return Effect.catch(effect, (error) =>
      state() === "reconnecting"
        ? whenConnected.pipe(
          Effect.timeout(reconnectTimeout),
          Effect.andThen(this.whileConnected(effect))
        )
        : Effect.fail(error))
  }

  /** A retry was requested. Losing the record makes the next delivery a suspect, no more. */
  retried(delivery: JetStreamDelivery): void {
    this.write(delivery, { released: delivery.released, settled: true })
  }

  /** An isolated suspect has arrived; its delivery does not count until `begin`. */
  arrived(delivery: JetStreamDelivery): void {
    this.write(delivery, { released: delivery.released + 1, settled: false })
  }

  /** The handler of an isolated suspect is about to begin. */
  begin(delivery: JetStreamDelivery): Promise<void> {
    return this.store([delivery], { settled: false, released: 0 })
  }

  /** Resolves when the records are stored, or cannot be: then each release counts an attempt. */
  released(deliveries: ReadonlyArray<JetStreamDelivery>): Promise<void> {
    return this.store(deliveries, { settled: true, released: 1 })
  }

  /** Retries that wait are handed over before their time. */
  handedOver(deliveries: ReadonlyArray<Recorded>): Promise<void> {
    return this.store(deliveries, { settled: true, released: 0 })
  }

  private store(
    deliveries: ReadonlyArray<Recorded>,
    how: { readonly settled: boolean; readonly released: number }
  ): Promise<void> {
    if (!this.isAvailable) return Promise.resolve()
    const { clockSkew, nc } = this.#connection
    const storeOne = (delivery: Recorded) => {
      const text = textOf(delivery, clockSkew(), {
        ...how,
        released: delivery.released + how.released,
        // A release keeps the suspicion.
        settled: how.settled && !delivery.suspect
      })
      return nc.request(subjectOf(delivery), text, { timeout: answerTimeout }).then(throwRefusal)
    }
    return this.ask("storing attempts", () => Promise.all(deliveries.map(storeOne)).then(() => undefined))
  }

  private write(delivery: JetStreamDelivery, how: { readonly released: number; readonly settled: boolean }): void {
    const { clockSkew, nc, state } = this.#connection
    if (!this.isAvailable || state() !== "connected") return
    const text = textOf(delivery, clockSkew(), how)
    const time = performance.now()
    if (time - this.verifiedAt < verifyEvery) return nc.publish(subjectOf(delivery), text)
    this.verifiedAt = time
    void this.ask(
      "storing attempts",
      () => nc.request(subjectOf(delivery), text, { timeout: answerTimeout }).then(throwRefusal)
    )
  }

  /** Out of reach from now on. */
  private trip(cause: unknown): void {
    if (this.isClosed || this.probing !== undefined) return
    // With the connection everything is out of reach.
    if (this.#connection.state() !== "connected") return this.probe(minProbeDelay)
    this.isAvailable = false
    this.options.run(
      Effect.logWarning(
        "the bucket `millrace`, which keeps attempts, is out of reach: work goes on, and messages released on shutdown count an attempt",
        cause
      )
    )
    this.probe(minProbeDelay)
  }

  private probe(delay: number): void {
    this.probing = setTimeout(() => {
      const opened = Effect.matchEffect(this.open, {
        onSuccess: () =>
          Effect.suspend(() => {
            const wasAvailable = this.isAvailable
            this.found()
            return wasAvailable ? Effect.void : Effect.logInfo("the bucket `millrace` is in reach again")
          }),
        onFailure: () =>
          Effect.sync(() => {
            if (!this.isClosed) this.probe(Math.min(maxProbeDelay, 2 * delay))
          })
      })
      this.options.run(opened)
    }, delay)
    this.probing.unref()
  }

  private found(): void {
    this.probing = undefined
    this.isAvailable = true
  }

  /** Looks for the bucket, creates or widens it where allowed, and writes a record, which a sealed or full one refuses. */
  private readonly open: Effect.Effect<void, unknown> = Effect.suspend(() => {
    const { call, nc } = this.#connection
    const { manage } = this.options
    const mayCreate = manage === "create"
    const info = call("looking for the bucket millrace", (jsm) => jsm.streams.info(bucket)).pipe(
      Effect.catch((error) => mayCreate && isCode(error, streamNotFound) ? this.create : Effect.fail(error))
    )
    return info.pipe(
      Effect.flatMap(({ config }) =>
        mayCreate && config.num_replicas < this.replicas
          // The servers may not be there yet: then fewer replicas are better than none.
          ? Effect.ignore(
            call("widening the bucket millrace", (jsm) => jsm.streams.update(bucket, { num_replicas: this.replicas }))
          )
          : Effect.void
      ),
      Effect.andThen(
        Effect.tryPromise(() => nc.request("$KV.millrace.probe", "", { timeout: answerTimeout }).then(throwRefusal))
      ),
      Effect.timeout(10 * answerTimeout)
    )
  })

  private readonly create = Effect.suspend(() => {
    const config = {
      name: bucket,
      subjects: ["$KV.millrace.>"],
      description,
      max_msgs_per_subject: 1,
      max_age: Duration.toMillis(timeToLive) * 1e6,
      // An aid that is full forgets its oldest records.
      discard: DiscardPolicy.Old,
      storage: this.storage ?? StorageType.File,
      num_replicas: this.replicas,
      allow_rollup_hdrs: true,
      deny_delete: true,
      allow_direct: true
    }
    const add = (config: Partial<StreamConfig> & { readonly name: string }) =>
      this.#connection.call("creating the bucket millrace", (jsm) => jsm.streams.add(config))
    return add(config).pipe(
      Effect.catchIf(
        (error) => isCode(error, maxBytesRequired),
        () => add({ ...config, max_bytes: boundedBytes })
      )
    )
  })
}

/** The position of a group: all up to this sequence of this life of the stream is settled. */
interface FloorRecord {
  readonly origin: string
  readonly sequence: number
}

const floorSubject = ({ stream }: Life, consumer: string): string => `$KV.millrace.${stream}.${consumer}.floor`

interface Stored {
  readonly message?: { readonly data?: string }
  readonly error?: ApiError
}

const subjectOf = (delivery: Recorded): string => {
  // `$JS.ACK.<stream>.<consumer>.` and what comes before it on newer servers' request.
  const tokens = delivery.reply.split(".")
  const at = tokens.length === 9 ? 2 : 4
  return `$KV.millrace.${tokens[at]}.${tokens[at + 1]}.${delivery.sequence}`
}

const textOf = (
  { delivered, due, firstFailedAt, timestamp }: Recorded,
  clockSkew: number,
  how: { readonly released: number; readonly settled: boolean }
): string =>
  JSON.stringify(
    { delivered, due: shifted(due, clockSkew), firstFailedAt, timestamp, ...how } satisfies AttemptRecord
  )

/** Processes have clocks of their own: what they tell each other is by the server's. */
const shifted = (due: number | undefined, skew: number) => due === undefined ? undefined : Math.round(due + skew)

const throwRefusal = (answer: { readonly json: <A>() => A }): void => {
  const { error } = answer.json<{ readonly error?: ApiError }>()
  if (error !== undefined) throw new JetStreamApiError(error)
}

/** Without a ledger the server's own count is used: each delivery counts. */
export const judgeUnrecorded = (delivery: JetStreamDelivery, isInterrupted: boolean): void => {
  delivery.suspect = delivery.delivered > (isInterrupted ? 2 : 1)
}

/**
 * Says which of a message's deliveries count, from its last record and the server's count.
 *
 * Deliveries after the record have left no trace. From `isolateFrom` on a suspect is recorded when it begins: without a
 * record it did not begin. Below, each delivery counts as begun.
 */
export const judge = (
  delivery: JetStreamDelivery,
  record: AttemptRecord | undefined,
  isolateFrom: number,
  isInterrupted: boolean
): void => {
  const recorded = record?.delivered ?? 0
  const unrecorded = delivery.delivered - 1 - recorded
  let attempts = recorded - (record?.released ?? 0)
  for (let i = 0; i < unrecorded; i++) {
    const wasSuspect = i > 0 || record?.settled === false
    if (!wasSuspect || attempts + 1 < isolateFrom) attempts++
  }
  delivery.released = Math.max(0, delivery.delivered - 1 - attempts)
  // One delivery may have been lost with our own connection: then no process died of it.
  delivery.suspect = record?.settled === false || unrecorded > (isInterrupted ? 1 : 0)
  delivery.firstFailedAt = record?.firstFailedAt
  delivery.due = unrecorded === 0 ? record?.due : undefined
}
