import type { Delivery } from "@millrace/core/Transport"
import * as Arr from "effect/Array"
import type * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type { Command } from "./command.ts"
import { RedisDelivery } from "./entry.ts"
import { hasPaused } from "./pauses.ts"
import { list } from "./reply.ts"
import { evalsha } from "./scripts/script.ts"
import { chunk, settle } from "./scripts/settle.ts"
import type { Server } from "./server.ts"

/** For how long after a pause replies may be read that had waited in a socket. Milliseconds. */
const doubtedFor = 2_000

/** What this process knows of its lease of an entry, see the script `settle`. */
export type Lease = "" | `${"held" | "own"} ${number}`

/** An operation of the script `settle` on one entry. */
export type Operation = readonly [op: string, id: string, count: string, lease: Lease, arg: string]

/** For whom entries are leased, and for how long. */
export interface LeaseOptions {
  readonly key: string
  readonly dues: string
  readonly group: string
  readonly consumer: string
  readonly minIdle: number
}

/** What one consumer of a group says about the entries that it owns. */
export class Leases {
  private readonly server: Server
  private readonly options: LeaseOptions
  private readonly clock: Clock.Clock

  constructor(server: Server, options: LeaseOptions, clock: Clock.Clock) {
    this.server = server
    this.options = options
    this.clock = clock
  }

  /** Commands that do something to many entries. */
  commands(operations: ReadonlyArray<Operation>): ReadonlyArray<Command> {
    const { consumer, dues, group, key } = this.options
    return Arr.chunksOf(operations, chunk).map((some) =>
      evalsha(settle, [key, dues], [group, consumer, ...some.flat()])
    )
  }

  /** Sends them apart from settlements, which may be many. */
  send(operations: ReadonlyArray<Operation>): Effect.Effect<ReadonlyArray<unknown>> {
    return this.server.control.send(this.options.key, this.commands(operations))
  }

  /** The lease of a delivery. */
  of(delivery: RedisDelivery): Lease {
    const { isFirstHand, keptAt } = RedisDelivery.state(delivery)
    return this.since(keptAt, isFirstHand ? "own" : "held")
  }

  /**
   * A lease that was renewed at a time, on the clock of `performance.now`. Its end is the server's to judge: this process may be stopped between now and the
   * moment at which the command is sent.
   */
  since(keptAt: number, how: "held" | "own"): Lease {
    const left = this.options.minIdle - (performance.now() - keptAt)
    return this.hasPaused || left <= 0 ? "" : `${how} ${Math.floor(this.server.clock.now() + left)}`
  }

  /**
   * Whether this process has just stood still for so long that its leases may have ended: then an entry that nobody has
   * may have been settled by a peer, however lately its reply was read.
   */
  get hasPaused(): boolean {
    return hasPaused(this.options.minIdle / 2, doubtedFor)
  }

  extend(delivery: RedisDelivery): Operation {
    return ["extend", delivery.id, String(RedisDelivery.state(delivery).count), this.of(delivery), ""]
  }

  /** A release keeps a suspect a suspect. Of a retry it keeps the due time and the time of the first failure. */
  release(delivery: RedisDelivery, lease: Lease = this.of(delivery)): Operation {
    const { attempt, due, firstFailedAt, id, suspect } = delivery
    const now = this.clock.currentTimeMillisUnsafe()
    const wait = Math.max(0, Math.ceil((due ?? now) - now))
    const isRetry = wait > 0 || firstFailedAt !== undefined && !suspect
    return [
      isRetry ? "releaseRetry" : suspect ? "releaseSuspect" : "release",
      id,
      String(RedisDelivery.state(delivery).count),
      lease,
      isRetry ? `${attempt - 1} ${wait} ${firstFailedAt ?? ""}` : String(attempt - 1)
    ]
  }

  /**
   * Takes back deliveries that nobody has: their consumer was deleted. Not what is being settled: that has left on
   * purpose. An acknowledgement that overtook it is sent again.
   */
  takeBack(deliveries: ReadonlyArray<RedisDelivery>): Effect.Effect<void> {
    const taken = deliveries.filter((delivery) => !RedisDelivery.state(delivery).isSettling)
    if (taken.length === 0) return Effect.void
    const { group, key } = this.options
    const operations = taken.map((delivery): Operation => {
      const { count } = RedisDelivery.state(delivery)
      return ["take", delivery.id, String(count), this.of(delivery), ""]
    })
    return Effect.flatMap(this.send(operations), () => {
      const acknowledged = taken.filter((delivery) => RedisDelivery.state(delivery).isAcknowledged)
      return acknowledged.length === 0
        ? Effect.void
        : Effect.asVoid(this.server.control.send(key, [["XACK", key, group, ...acknowledged.map(({ id }) => id)]]))
    })
  }

  /** Those of deliveries without a group whose entries are gone with it. */
  missing(deliveries: ReadonlyArray<Delivery>): Effect.Effect<ReadonlyArray<Delivery>> {
    const { key } = this.options
    return deliveries.length === 0
      ? Effect.succeed([])
      : Effect.map(
        this.server.control.send(key, deliveries.map(({ id }) => ["XRANGE", key, id, id])),
        (replies) => deliveries.filter((_, i) => Array.isArray(replies[i]) && list(replies[i]).length === 0)
      )
  }
}
