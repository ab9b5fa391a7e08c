import type * as Transport from "@millrace/core/Transport"
import type * as TransportError from "@millrace/core/TransportError"
import type * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { type Connection, interrupted, notConnected, unexpected } from "./connection.ts"
import { JetStreamDelivery } from "./delivery.ts"
import type { Notes } from "./notes.ts"
import { atLeast } from "./resources.ts"

const encoder = new TextEncoder()
const ack = encoder.encode("+ACK")
const working = encoder.encode("+WPI")

/** Never a bare one: the server would deliver again at once, ten thousand times a second. */
const nak = (delay: number) => encoder.encode(`-NAK {"delay":${Math.round(Math.max(1, delay) * 1e6)}}`)
const handBackNow = encoder.encode("-NAK")

const term = (version: string | undefined, reason: string): Uint8Array =>
  // 2.9 leaves a terminated message in a work queue, and knows no reasons.
  atLeast(version, 2, 11)
    ? encoder.encode(`+TERM ${reason.replace(/[\r\n]+/g, " ").slice(0, 500)}`)
    : atLeast(version, 2, 10)
    ? encoder.encode("+TERM")
    : ack

/** How long a settlement waits for the connection before it is given back, to be sent again. */
const patience = Duration.seconds(1)

/** How long a confirmation may take. */
export const confirmTimeout = 5000

/** A retry without a delay of its own. */
const defaultDelay = 1000

export interface SettlingOptions {
  readonly connection: Connection
  readonly notes: Notes | undefined
  readonly now: () => number
  /** Milliseconds since the epoch. */
  readonly date: () => number
  /** How long a delivery is surely ours after a sign of life, in milliseconds. */
  readonly lease: number
  readonly confirm: boolean
  /** Milliseconds for which what is handed back would come back here. */
  readonly elsewhereAfter: () => number
  readonly onRetry: (delivery: JetStreamDelivery, delay: number) => void
}

/**
 * Tells the server about deliveries.
 *
 * What is said is not answered: it has arrived when the server has answered a flush that was written behind it. The
 * server does not check who says it, so that is done here: what has not been kept alive in time may be a peer's by now,
 * and nothing but an acknowledgement is said about it.
 */
export const settling = (options: SettlingOptions) => {
  const { confirm, connection, date, elsewhereAfter, lease, notes, now, onRetry } = options
  /** When the server acts on what was said and not confirmed: after that it is not said again. */
  const due = new WeakMap<JetStreamDelivery, number>()

  const say = (delivery: JetStreamDelivery, words: Uint8Array) => connection.nc.publish(delivery.reply, words)

  const connected = connection.whenConnected.pipe(
    Effect.timeoutOrElse({
      duration: patience,
      orElse: () => Effect.fail(interrupted("settle", notConnected))
    })
  )

  const settle = (
    batch: Arr.NonEmptyReadonlyArray<Transport.Settling>
  ): Effect.Effect<ReadonlyArray<Transport.Delivery>, TransportError.TransportError> =>
    Effect.suspend(() => connection.state() === "connected" ? send(batch) : Effect.andThen(connected, settle(batch)))

  const send = (
    batch: Arr.NonEmptyReadonlyArray<Transport.Settling>
  ): Effect.Effect<ReadonlyArray<Transport.Delivery>, TransportError.TransportError> => {
    const time = now()
    const lost: Array<JetStreamDelivery> = []
    const acks: Array<JetStreamDelivery> = []
    const releases: Array<JetStreamDelivery> = []
    for (const { delivery, settlement } of batch) {
      if (!(delivery instanceof JetStreamDelivery)) continue
      const ours = time < delivery.heldUntil
      if (!ours) lost.push(delivery)
      switch (settlement._tag) {
        case "Ack":
          if (confirm) acks.push(delivery)
          else say(delivery, ack)
          break
        case "Release":
          if (ours) releases.push(delivery)
          break
        case "@millrace/Retry": {
          const delay = settlement.after === undefined ? defaultDelay : Duration.toMillis(settlement.after)
          if (ours && time < (due.get(delivery) ?? Infinity)) {
            due.set(delivery, time + delay)
            delivery.firstFailedAt ??= date()
            onRetry(delivery, delay)
            notes?.retried(delivery)
            say(delivery, nak(delay))
          }
          break
        }
        case "@millrace/Terminate":
          if (ours) say(delivery, term(connection.nc.info?.version, settlement.reason))
      }
    }
    const confirmed = acks.length > 0 ? confirmAll(connection, acks) : Effect.void
    return Effect.map(
      Effect.andThen(Effect.andThen(confirmed, giveBack(releases)), connection.flush),
      () => {
        const heard = now()
        for (const { delivery, settlement } of batch) {
          if (!(delivery instanceof JetStreamDelivery)) continue
          const how = settlement._tag === "Ack" ? "done" : lost.includes(delivery) ? "lost" : "again"
          delivery.owner?.ended(delivery, how, heard)
        }
        return lost
      }
    )
  }

  const giveBack = (releases: ReadonlyArray<JetStreamDelivery>): Effect.Effect<void, TransportError.TransportError> => {
    const ours = releases.filter((delivery) => !due.has(delivery))
    if (ours.length === 0) return Effect.void
    return Effect.map(notes === undefined ? Effect.void : notes.released(ours), () => {
      const wait = elsewhereAfter()
      for (const delivery of ours) {
        due.set(delivery, 0)
        say(delivery, wait > 0 ? nak(wait) : handBackNow)
      }
    })
  }

  const extend = (
    deliveries: Arr.NonEmptyReadonlyArray<Transport.Delivery>
  ): Effect.Effect<ReadonlyArray<Transport.Delivery>, TransportError.TransportError> =>
    Effect.suspend(() => {
      const time = now()
      const lost: Array<Transport.Delivery> = []
      const extended: Array<JetStreamDelivery> = []
      for (const delivery of deliveries) {
        if (!(delivery instanceof JetStreamDelivery) || time >= delivery.heldUntil) lost.push(delivery)
        else extended.push(delivery)
      }
      if (connection.state() !== "connected") {
        for (const delivery of lost) if (delivery instanceof JetStreamDelivery) delivery.owner?.ended(delivery, "lost")
        return lost.length > 0 ? Effect.succeed(lost) : Effect.fail(interrupted("extend", notConnected))
      }
      for (const delivery of extended) say(delivery, working)
      return Effect.map(connection.flush, () => {
        for (const delivery of extended) delivery.heldUntil = time + lease
        for (const delivery of lost) if (delivery instanceof JetStreamDelivery) delivery.owner?.ended(delivery, "lost")
        return lost
      })
    })

  return {
    settle,
    extend,
    /** Of a message that is done; unheard, it is said again when it comes again. */
    acknowledge(delivery: JetStreamDelivery) {
      if (connection.state() === "connected") say(delivery, ack)
    },
    /** Gives back what no handler has seen, on the way out. */
    handBack: (deliveries: ReadonlyArray<JetStreamDelivery>) =>
      Effect.suspend(() => {
        const time = now()
        return Effect.andThen(giveBack(deliveries.filter((delivery) => time < delivery.heldUntil)), connection.flush)
      })
  }
}

/** Acknowledges and waits until the server has confirmed each. */
export const confirmAll = (
  connection: Connection,
  deliveries: ReadonlyArray<JetStreamDelivery>
): Effect.Effect<void, TransportError.TransportError> =>
  connection.call(
    "confirming acknowledgements",
    () =>
      Promise.all(deliveries.map((delivery) => connection.nc.request(delivery.reply, ack, { timeout: confirmTimeout })))
  ).pipe(
    Effect.mapError(unexpected("confirming acknowledgements")),
    Effect.asVoid
  )
