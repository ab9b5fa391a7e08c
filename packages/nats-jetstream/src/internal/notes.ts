import type * as TransportError from "@millrace/core/TransportError"
import { DiscardPolicy, JetStreamApiError, StorageType } from "@nats-io/jetstream"
import * as Effect from "effect/Effect"
import * as Semaphore from "effect/Semaphore"
import { type Connection, unexpected } from "./connection.ts"
import type { JetStreamDelivery } from "./delivery.ts"
import { type Declaring, whenReady } from "./resources.ts"

/**
 * What the server does not remember about a message.
 *
 * It counts each delivery and has no way of giving one back, nor does it say why it delivers again. So a note is kept
 * beside it, in a bucket of its own. It is written on the connection of the settlement, before it.
 */
export interface Note {
  /** The delivery, by the server's count, that the note is about. */
  readonly delivered: number
  /** How many up to that one do not count: they were handed back, or never given to a handler. */
  readonly released: number
  /** Whether it was settled (by a retry or a release); otherwise its consumer may have died of it. */
  readonly settled: boolean
  readonly firstFailedAt?: number | undefined
  /** The message's own, which tells it from one with its number in an earlier stream of the same name. */
  readonly timestamp: string
}

const bucket = "KV_millrace"

/** A note outlives what it is about by far. */
const timeToLive = 7 * 24 * 3600 * 1e9

/** Finds or makes the bucket, once for all subscriptions; `false`, said once, where the account may not keep notes. */
export const openNotes = (connection: Connection, declaring: Declaring): Effect.Effect<boolean> => {
  const turn = Semaphore.makeUnsafe(1)
  let opened = declaring.manage === "none" ? false : undefined
  return turn.withPermit(Effect.suspend(() =>
    opened === undefined
      ? Effect.tap(open(connection, declaring), (kept) => Effect.sync(() => opened = kept))
      : Effect.succeed(opened)
  ))
}

const open = Effect.fnUntraced(function*(connection: Connection, declaring: Declaring) {
  const bucketInfo = connection.call("opening the bucket for notes", (jsm) => jsm.streams.info(bucket)).pipe(
    Effect.catch((error) =>
      !(error instanceof JetStreamApiError) || error.code !== 10059 || declaring.manage !== "create"
        ? Effect.fail(error)
        : connection.call("creating the bucket for notes", (jsm) =>
          jsm.streams.add({
            name: bucket,
            subjects: ["$KV.millrace.>"],
            description: "Millrace: releases and retries of messages, to count their attempts",
            max_msgs_per_subject: 1,
            max_age: timeToLive,
            discard: DiscardPolicy.New,
            storage: declaring.storage ?? StorageType.File,
            num_replicas: declaring.replicas ?? 1,
            allow_rollup_hdrs: true,
            deny_delete: true,
            allow_direct: true
          }))
    ),
    Effect.mapError(unexpected("opening the bucket for notes")),
    Effect.as(true)
  )
  return yield* Effect.catch(whenReady(bucketInfo), (error) =>
    Effect.as(
      Effect.logWarning(
        "the account cannot keep notes: a message that is handed back when a process stops counts an attempt",
        error
      ),
      false
    ))
})

const write = ({ delivered, firstFailedAt, timestamp }: JetStreamDelivery, released: number, settled: boolean) =>
  JSON.stringify({ delivered, released, settled, firstFailedAt, timestamp } satisfies Note)

/** The notes of one consumer. */
export class Notes {
  private readonly connection: Connection
  private readonly stream: string
  private readonly consumer: string

  constructor(connection: Connection, stream: string, consumer: string) {
    this.connection = connection
    this.stream = stream
    this.consumer = consumer
  }

  /** A retry was asked for. Losing this makes the next delivery a suspect, no more. */
  retried(delivery: JetStreamDelivery): void {
    this.say(delivery, delivery.released, true)
  }

  /** It has arrived; this delivery does not count until a handler is given it. */
  arrived(delivery: JetStreamDelivery): void {
    this.say(delivery, delivery.released + 1, false)
  }

  /** A handler is about to be given it. */
  begins(delivery: JetStreamDelivery): Effect.Effect<void, TransportError.TransportError> {
    return this.store([delivery], (delivery) => write(delivery, delivery.released, false))
  }

  /** They were handed back; one that may kill is a suspect wherever it goes. */
  released(deliveries: ReadonlyArray<JetStreamDelivery>): Effect.Effect<void, TransportError.TransportError> {
    return this.store(deliveries, (delivery) => write(delivery, delivery.released + 1, !delivery.suspect))
  }

  /** Reads what is known about a redelivered message; `undefined` when that is nothing, or cannot be read. */
  read(delivery: JetStreamDelivery, tries = 3): Promise<Note | undefined> {
    const { apiPrefix, nc } = this.connection
    const request = JSON.stringify({ last_by_subj: this.subjectOf(delivery) })
    return nc.request(`${apiPrefix}.STREAM.MSG.GET.${bucket}`, request, { timeout: 2000 }).then((answer) => {
      const data = answer.json<{ readonly message?: { readonly data?: string } }>().message?.data
      if (data === undefined) return undefined
      const note: Note = JSON.parse(Buffer.from(data, "base64").toString())
      // Another message of that number; or the consumer was made anew, and counts from one again.
      return note.timestamp === delivery.timestamp && note.delivered < delivery.delivered ? note : undefined
    }).catch(() => tries > 1 && !nc.isClosed() ? this.read(delivery, tries - 1) : undefined)
  }

  private subjectOf(delivery: JetStreamDelivery): string {
    return `$KV.millrace.${this.stream}.${this.consumer}.${delivery.id}`
  }

  private say(delivery: JetStreamDelivery, released: number, settled: boolean): void {
    this.connection.nc.publish(this.subjectOf(delivery), write(delivery, released, settled))
  }

  private store(deliveries: ReadonlyArray<JetStreamDelivery>, text: (delivery: JetStreamDelivery) => string) {
    return this.connection.call(
      "keeping notes",
      () =>
        Promise.all(
          deliveries.map((delivery) =>
            this.connection.nc.request(this.subjectOf(delivery), text(delivery), { timeout: 5000 })
          )
        )
    ).pipe(
      Effect.mapError(unexpected("keeping notes")),
      Effect.asVoid
    )
  }
}
