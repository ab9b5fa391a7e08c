import type * as Transport from "@millrace/core/Transport"
import type * as TransportError from "@millrace/core/TransportError"
import type * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { type Connection, interrupted, notConnected, unexpected } from "./connection.ts"
import { JetStreamDelivery } from "./delivery.ts"
import type { AttemptLedger, Recorded } from "./ledger.ts"
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
  readonly ordered: boolean
  /** Milliseconds during which a released message would come back to this process. */
  readonly releaseDelay: () => number
  /** A later delivery of the same message is here. */
  readonly isSuperseded: (delivery: JetStreamDelivery) => boolean
  readonly onRetry: (delivery: JetStreamDelivery, delay: number) => void
}

/**
 * Tells the server about deliveries.
 *
 * The server answers none of it: it has arrived when the server has answered a flush that was written behind it. The
 * server does not check who speaks, so that is done here: a delivery that was not extended in time may be a peer's, and
 * gets nothing but an acknowledgement. About a delivery of an earlier life of the stream nothing is said at all.
 */
export const settling = (options: SettlingOptions) => {
  const { confirm, connection, date, isSuperseded, lease, ledger, now, onRetry, ordered, releaseDelay } = options
  /** When the server acts on a retry that was written: after that the delivery is nobody's. */
  const due = new WeakMap<JetStreamDelivery, number>()
  const released = new WeakSet<JetStreamDelivery>()
  /** Releases of an ordered subscription: the server delivers again in the order in which they are written. */
  let held: Array<JetStreamDelivery> = []
  let holding: NodeJS.Timeout | undefined
  /** The release that was written last. */
  let lastWritten: Addressed | undefined

  /** The lease has not ended, and nothing was said about the delivery that returns it. No peer can have a void one. */
  const isOurs = (delivery: JetStreamDelivery, time: number) =>
    delivery.isVoid || (time < delivery.heldUntil && !due.has(delivery) && !released.has(delivery))

  const write = (delivery: { readonly reply: string }, payload: Uint8Array) =>
    connection.nc.publish(delivery.reply, payload)

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
      if (delivery.isVoid) {
        if (settlement._tag === "Retry" || settlement._tag === "Release") lost.push(delivery)
        continue
      }
      const wasReleased = released.has(delivery)
      const isRepeated = settlement._tag === "Release" ? wasReleased : settlement._tag === "Retry" && due.has(delivery)
      const owned = isRepeated
        ? time < delivery.heldUntil && !isSuperseded(delivery)
        : isOurs(delivery, time)
      if (!owned) lost.push(delivery)
      switch (settlement._tag) {
        case "Ack":
          if (confirm) acks.push(delivery)
          else write(delivery, ack)
          break
        case "Release":
          if (owned && !wasReleased) releases.push(delivery)
          break
        case "Retry": {
          const delay = settlement.after === undefined ? defaultDelay : Duration.toMillis(settlement.after)
          // Once it is due the server may have acted on it.
          if (owned && time < (due.get(delivery) ?? Infinity)) {
            due.set(delivery, time + delay)
            delivery.firstFailedAt ??= date()
            onRetry(delivery, delay)
            ledger.retried(delivery)
            write(delivery, nak(delay))
          }
          break
        }
        case "Terminate":
          if (owned) write(delivery, term(connection.nc.info?.version, settlement.reason))
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

  const release = (releases: ReadonlyArray<JetStreamDelivery>): Effect.Effect<void> =>
    releases.length === 0 ? Effect.void : Effect.map(Effect.promise(() => ledger.released(releases)), () => {
      for (const delivery of releases) released.add(delivery)
      held.push(...releases)
      if (ordered) holding ??= setTimeout(writeReleases, holdReleases)
      else writeReleases()
    })

  /** `last`: the subscription closes, nothing is open any more, and these are released too. */
  const writeReleases = (last?: ReadonlyArray<Addressed>) => {
    clearTimeout(holding)
    holding = undefined
    const delay = releaseDelay()
    // A released message that is delayed would come behind unread ones.
    if (ordered && delay > 0 && last === undefined) {
      holding = setTimeout(writeReleases, delay)
      return undefined
    }
    const payload = delay > 0 ? nak(delay) : releaseNow
    const all = [...held, ...last ?? []].sort((one, other) => Number(one.sequence) - Number(other.sequence))
    held = []
    if (connection.state() !== "connected") return undefined
    const final = last === undefined ? undefined : all.pop()
    for (const delivery of all) write(lastWritten = delivery, payload)
    return final === undefined ? undefined : { reply: final.reply, payload }
  }

  /**
   * Writes the last releases. The server answers a flush before it has taken up settlements that were written before that;
   * once it has answered the last release, the next process finds all of them in their order.
   */
  const confirmReleases = (last: ReadonlyArray<Addressed>) =>
    Effect.suspend(() => {
      // Without a last one, the answer about a release that was written before comes behind all of them.
      const final = writeReleases(last) ?? (lastWritten && { reply: lastWritten.reply, payload: working })
      return final === undefined
        ? connection.flush
        : connection.call("releasing", () =>
          connection.nc.request(final.reply, final.payload, { timeout: confirmTimeout }))
    })

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
        const owned = delivery instanceof JetStreamDelivery && isOurs(delivery, time)
        if (!owned) lost.push(delivery)
        else extended.push(delivery)
      }
      if (connection.state() !== "connected") {
        lose(lost)
        return lost.length > 0 ? Effect.succeed(lost) : Effect.fail(interrupted("extend", notConnected))
      }
      for (const delivery of extended) if (!delivery.isVoid) write(delivery, working)
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
        if (delivery.isVoid) return Effect.succeed(true)
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
        return Effect.andThen(release(deliveries.filter((delivery) => isOurs(delivery, time))), connection.flush)
      }),
    /** Releases the last deliveries, and hands over retries that wait. */
    close: (deliveries: ReadonlyArray<JetStreamDelivery>, retries: ReadonlyArray<Recorded>) =>
      Effect.suspend(() => {
        const time = now()
        return release(deliveries.filter((delivery) => isOurs(delivery, time))).pipe(
          Effect.andThen(retries.length === 0 ? Effect.void : Effect.promise(() => ledger.handedOver(retries))),
          Effect.andThen(confirmReleases(retries))
        )
      })
  }
}

/** A message that can be addressed: its reply subject, and its place in the stream. */
type Addressed = Pick<Recorded, "reply" | "sequence">

/** How long an ordered subscription waits for releases of earlier messages, in milliseconds. */
const holdReleases = 250

/** Acknowledges and waits until the server has confirmed each; there is nothing to confirm of a void one. */
export const confirmAll = (
  connection: Connection,
  deliveries: ReadonlyArray<JetStreamDelivery>
): Effect.Effect<void, TransportError.TransportError> =>
  connection.call(
    "confirming acknowledgements",
    () =>
      Promise.all(
        deliveries.filter(({ isVoid }) => !isVoid)
          .map(({ reply }) => connection.nc.request(reply, ack, { timeout: confirmTimeout }))
      )
  ).pipe(
    Effect.mapError(unexpected("confirming acknowledgements")),
    Effect.asVoid
  )
