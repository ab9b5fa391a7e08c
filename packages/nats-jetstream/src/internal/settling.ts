import type * as Transport from "@millrace/core/Transport"
import type * as TransportError from "@millrace/core/TransportError"
import type * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { type Connection, interrupted, notConnected, unexpected } from "./connection.ts"
import { JetStreamDelivery } from "./delivery.ts"
import type { AttemptLedger } from "./ledger.ts"
import { atLeast } from "./server.ts"

const encoder = new TextEncoder()
const ack = encoder.encode("+ACK")
const working = encoder.encode("+WPI")

/** The server counts in nanoseconds; longer delays are cut. */
const maxDelay = 365 * 24 * 3600_000

/** Never without a delay, and never with one that the server cannot read: it would deliver again at once, in a hot loop. */
const nak = (delay: number) => {
  const millis = Number.isNaN(delay) ? 1 : Math.min(maxDelay, Math.max(1, delay))
  return encoder.encode(`-NAK {"delay":${Math.round(millis * 1e6)}}`)
}
const releaseNow = encoder.encode("-NAK")

const term = (version: string | undefined, reason: string): Uint8Array =>
  // 2.9 leaves a terminated message in a work queue, and knows no reasons.
  atLeast(version, 2, 11)
    ? encoder.encode(`+TERM ${reason.replace(/[\r\n]+/g, " ").slice(0, 500)}`)
    : atLeast(version, 2, 10)
    ? encoder.encode("+TERM")
    : ack

/** How long a settlement waits for the connection before the engine is told to send it again. */
const connectionTimeout = Duration.seconds(1)

/** How long a confirmation may take. */
export const confirmTimeout = 5000

/** A retry without a delay of its own. */
const defaultDelay = 1000

export interface SettlingOptions {
  readonly connection: Connection
  readonly ledger: AttemptLedger
  readonly now: () => number
  /** Milliseconds since the epoch. */
  readonly date: () => number
  /** How long a delivery is surely ours after a sign of life, in milliseconds. */
  readonly lease: number
  readonly confirm: boolean
  /** Milliseconds during which a released message would come back to this process. */
  readonly releaseDelay: () => number
  readonly onRetry: (delivery: JetStreamDelivery, delay: number) => void
}

/**
 * Tells the server about deliveries.
 *
 * The server answers none of it: it has arrived when the server has answered a flush that was written behind it. The
 * server does not check who speaks, so that is done here: a delivery that was not extended in time may be a peer's, and
 * gets nothing but an acknowledgement.
 */
export const settling = (options: SettlingOptions) => {
  const { confirm, connection, date, lease, ledger, now, onRetry, releaseDelay } = options
  /** When the server acts on a settlement that was written and not confirmed: after that it is not written again. */
  const due = new WeakMap<JetStreamDelivery, number>()

  const write = (delivery: JetStreamDelivery, payload: Uint8Array) => connection.nc.publish(delivery.reply, payload)

  const whenConnected = connection.whenConnected.pipe(
    Effect.timeoutOrElse({
      duration: connectionTimeout,
      orElse: () => Effect.fail(interrupted("settle", notConnected))
    })
  )

  const settle = (
    batch: Arr.NonEmptyReadonlyArray<Transport.Settling>
  ): Effect.Effect<ReadonlyArray<Transport.Delivery>, TransportError.TransportError> =>
    Effect.suspend(() =>
      connection.state() === "connected" ? send(batch) : Effect.andThen(whenConnected, settle(batch))
    )

  const send = (
    batch: Arr.NonEmptyReadonlyArray<Transport.Settling>
  ): Effect.Effect<ReadonlyArray<Transport.Delivery>, TransportError.TransportError> => {
    const time = now()
    const lost: Array<JetStreamDelivery> = []
    const acks: Array<JetStreamDelivery> = []
    const releases: Array<JetStreamDelivery> = []
    for (const { delivery, settlement } of batch) {
      if (!(delivery instanceof JetStreamDelivery)) continue
      const isOurs = time < delivery.heldUntil
      if (!isOurs) lost.push(delivery)
      switch (settlement._tag) {
        case "Ack":
          if (confirm) acks.push(delivery)
          else write(delivery, ack)
          break
        case "Release":
          if (isOurs) releases.push(delivery)
          break
        case "Retry": {
          const delay = settlement.after === undefined ? defaultDelay : Duration.toMillis(settlement.after)
          if (isOurs && time < (due.get(delivery) ?? Infinity)) {
            due.set(delivery, time + delay)
            delivery.firstFailedAt ??= date()
            onRetry(delivery, delay)
            ledger.retried(delivery)
            write(delivery, nak(delay))
          }
          break
        }
        case "Terminate":
          if (isOurs) write(delivery, term(connection.nc.info?.version, settlement.reason))
          break
        default:
          settlement satisfies never
      }
    }
    const confirmed = acks.length > 0 ? confirmAll(connection, acks) : Effect.void
    return Effect.map(
      Effect.andThen(Effect.andThen(confirmed, release(releases)), connection.flush),
      () => {
        const heard = now()
        for (const { delivery, settlement } of batch) {
          if (!(delivery instanceof JetStreamDelivery)) continue
          const how = settlement._tag === "Ack" ? "done" : lost.includes(delivery) ? "lost" : "again"
          delivery.ended(how, heard)
        }
        return lost
      }
    )
  }

  const release = (releases: ReadonlyArray<JetStreamDelivery>): Effect.Effect<void> => {
    const ours = releases.filter((delivery) => !due.has(delivery))
    if (ours.length === 0) return Effect.void
    return Effect.map(Effect.promise(() => ledger.released(ours)), () => {
      const delay = releaseDelay()
      for (const delivery of ours) {
        if (connection.state() !== "connected") return
        due.set(delivery, 0)
        write(delivery, delay > 0 ? nak(delay) : releaseNow)
      }
    })
  }

  const lose = (deliveries: ReadonlyArray<Transport.Delivery>) => {
    for (const delivery of deliveries) if (delivery instanceof JetStreamDelivery) delivery.ended("lost")
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
        lose(lost)
        return lost.length > 0 ? Effect.succeed(lost) : Effect.fail(interrupted("extend", notConnected))
      }
      for (const delivery of extended) write(delivery, working)
      return Effect.map(connection.flush, () => {
        // A redelivery that arrived meanwhile has ended the lease.
        for (const delivery of extended) if (now() < delivery.heldUntil) delivery.heldUntil = time + lease
        lose(lost)
        return lost
      })
    })

  return {
    settle,
    extend,
    begin: (delivery: Transport.Delivery): Effect.Effect<boolean, TransportError.TransportError> =>
      Effect.suspend(() => {
        if (!(delivery instanceof JetStreamDelivery)) return Effect.succeed(false)
        const stillOurs = Effect.sync(() => {
          if (now() < delivery.heldUntil) return true
          delivery.ended("lost")
          return false
        })
        return now() >= delivery.heldUntil
          ? stillOurs
          : Effect.andThen(
            Effect.andThen(whenConnected, Effect.promise(() => ledger.begin(delivery))),
            stillOurs
          )
      }),
    /** Acknowledges a message that is done; unheard, it is acknowledged when it comes again. */
    acknowledge(delivery: JetStreamDelivery) {
      if (connection.state() === "connected") write(delivery, ack)
    },
    /** Releases a suspect that finds no room: it stays a suspect, and comes again after a while. */
    postpone(delivery: JetStreamDelivery, delay: number) {
      ledger.arrived(delivery)
      if (connection.state() === "connected") write(delivery, nak(delay))
    },
    /** Releases deliveries that no handler has begun. */
    release: (deliveries: ReadonlyArray<JetStreamDelivery>) =>
      Effect.suspend(() => {
        const time = now()
        return Effect.andThen(release(deliveries.filter((delivery) => time < delivery.heldUntil)), connection.flush)
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
