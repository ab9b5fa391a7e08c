import type { ConsumerConfig, ConsumerInfo, StreamInfo } from "@nats-io/jetstream"
import * as Effect from "effect/Effect"
import type { StartFrom } from "../Options.ts"
import type { Connection } from "./connection.ts"
import { consumerInfo, type ConsumerSpec } from "./consumers.ts"
import type { AttemptLedger } from "./ledger.ts"
import type { Life } from "./life.ts"
import * as names from "./names.ts"

/** The key of a group's position in the bucket: the consumer is not known before it has been found. */
const keyOf = ({ group, topic }: ConsumerSpec): string => names.longDurableOf(topic, group)

/**
 * Where a group begins if its consumer is created. Where `consumer_limits` of the stream make the server delete consumers
 * that no process reads, the group goes on behind what it had settled.
 */
export const startOf = Effect.fnUntraced(function*(
  connection: Connection,
  ledger: AttemptLedger,
  stream: StreamInfo,
  spec: ConsumerSpec
): Effect.fn.Return<StartFrom> {
  if ((stream.config.consumer_limits?.inactive_threshold ?? 0) <= 0) return spec.startFrom
  yield* ledger.serve(stream.config)
  const floor = yield* Effect.promise(() => ledger.floorOf(connection.lives.note(stream), keyOf(spec)))
  return floor === undefined ? spec.startFrom : { sequence: floor + 1 }
})

export interface PositionOptions {
  readonly connection: Connection
  readonly ledger: AttemptLedger
  /** As it was when the subscription began. */
  readonly consumer: ConsumerInfo
  readonly spec: ConsumerSpec
  readonly stream: StreamInfo
}

/** Where the group stands, and what the server has said of its consumer last. */
export class Position {
  readonly #options: PositionOptions
  /** Settled for certain, or before the group began: a consumer that is created again begins behind it. */
  private settled: number
  private kept = -1
  private present: Life
  private latest: ConsumerConfig

  constructor(options: PositionOptions) {
    this.#options = options
    this.settled = floorOf(options.consumer, options.stream)
    this.present = options.connection.lives.note(options.stream)
    this.latest = options.consumer.config
  }

  get floor(): number {
    return this.settled
  }

  /** Of the stream. */
  get life(): Life {
    return this.present
  }

  get config(): ConsumerConfig {
    return this.latest
  }

  remember(info: ConsumerInfo): void {
    this.latest = info.config
    this.settled = Math.max(this.settled, info.ack_floor.stream_seq)
  }

  /** The stream was created again. */
  renew(life: Life): void {
    this.present = life
    this.settled = 0
    this.kept = -1
  }

  /** The server deletes the consumer, and its position, when no process has read it for a while. */
  private get isLimited(): boolean {
    return (this.#options.consumer.config.inactive_threshold ?? 0) > 0
  }

  /** Keeps the position, where the server may forget it. */
  readonly keep: Effect.Effect<void> = Effect.promise(() => {
    if (!this.isLimited || this.settled === this.kept) return Promise.resolve()
    this.kept = this.settled
    return this.#options.ledger.keepFloor(this.present, keyOf(this.#options.spec), this.settled)
  })

  /** Keeps the position when all has been settled. */
  readonly close = Effect.suspend(() => {
    if (!this.isLimited) return Effect.void
    const { connection, consumer } = this.#options
    // The server takes up acknowledgements after it has answered a flush.
    const isCaughtUp = (info: ConsumerInfo | undefined) => info === undefined || info.num_ack_pending === 0
    return consumerInfo(connection, consumer.stream_name, consumer.name).pipe(
      Effect.delay("25 millis"),
      Effect.repeat({ times: 9, until: isCaughtUp }),
      Effect.flatMap((info) => {
        if (info !== undefined) this.remember(info)
        return this.keep
      })
    )
  })
}

/** 2.10 says nothing of the floor before the first acknowledgement, not even of a group that began with "new". */
const floorOf = ({ ack_floor, delivered, num_pending }: ConsumerInfo, stream: StreamInfo): number =>
  ack_floor.consumer_seq > 0 || delivered.consumer_seq > 0
    ? ack_floor.stream_seq
    : Math.max(ack_floor.stream_seq, delivered.stream_seq, num_pending === 0 ? stream.state.last_seq : 0)
