import type { TransportError } from "@millrace/core/TransportError"
import * as Effect from "effect/Effect"
import { stored } from "./browsing.ts"
import type { Connection } from "./connection.ts"
import { JetStreamDelivery } from "./delivery.ts"
import { idOf, type Life } from "./life.ts"
import { backoff } from "./recovery.ts"

export interface GivenUpOptions {
  readonly connection: Connection
  readonly stream: string
  readonly consumer: string
  /** The present life of the stream. */
  readonly life: () => Life
  readonly run: (effect: Effect.Effect<void>) => unknown
  readonly receive: (delivery: JetStreamDelivery) => void
}

/** One process of the group is told of each message. */
const queue = "millrace"

/** How often a message is asked for; longer than a cluster takes to elect a leader. */
const maxTries = 20

/** What the server says of a message that has reached `max_deliver`. */
interface Advisory {
  readonly stream_seq: number
  readonly deliveries: number
}

/**
 * An operator may set `max_deliver` on a consumer that is read. A message that reaches it is not delivered again, also
 * after the option was restored. The server tells who subscribes to its advisories: the message is read from the stream,
 * and given to the engine to be dead-lettered. Its settlement removes it from a work queue.
 *
 * A user without the permission to subscribe is not told: then the message stays in the stream.
 */
export const hearGivenUp = ({ connection, consumer, life, receive, run, stream }: GivenUpOptions): () => void => {
  const { nc } = connection
  const read = ({ deliveries, stream_seq: seq }: Advisory) => {
    const id = idOf(life(), seq)
    const reason = `the server gave it up after ${deliveries} deliveries, the max_deliver of consumer ${consumer}`
    return stored({ connection, stream, topic: stream }, { seq }).pipe(
      Effect.retry({ schedule: backoff, times: maxTries }),
      Effect.matchEffect({
        onFailure: (error) => Effect.logError(`message ${id} stays in stream ${stream}: ${reason}`, error),
        onSuccess: (message) =>
          Effect.sync(() => {
            if (message === undefined) return
            const { body: data, headers, subject, time } = message
            const reply = `$JS.ACK.${stream}.${consumer}.${deliveries + 1}.${seq}.0.${nanosOf(time)}.0`
            const delivery = new JetStreamDelivery({ subject, reply, data }, life(), headers)
            delivery.givenUp = reason
            receive(delivery)
          })
      })
    )
  }
  const subscription = nc.subscribe(`$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.${stream}.${consumer}`, {
    queue,
    callback: (error, msg) => {
      if (error === null) run(read(msg.json<Advisory>()))
    }
  })
  return () => {
    if (!nc.isClosed()) subscription.unsubscribe()
  }
}

/**
 * An operator may set `headers_only` on a consumer that is read: until that is restored, bodies are read from the stream.
 * `undefined`: the message is there no longer.
 */
export const withBody = (
  connection: Connection,
  delivery: JetStreamDelivery
): Effect.Effect<JetStreamDelivery | undefined, TransportError> => {
  const { life, reply, sequence } = delivery
  const { stream } = life
  return Effect.map(stored({ connection, stream, topic: stream }, { seq: Number(sequence) }), (message) => {
    if (message === undefined) return undefined
    const { body: data, headers, subject } = message
    return new JetStreamDelivery({ subject, reply, data }, life, headers)
  })
}

/** A point in time, as the server writes it, in nanoseconds. */
const nanosOf = (time: string): bigint => {
  const [, seconds = time, fraction = ""] = /^(.+?)(?:\.(\d+))?Z$/.exec(time) ?? []
  return BigInt(Date.parse(`${seconds}Z`)) * 1_000_000n + BigInt(fraction.padEnd(9, "0"))
}
