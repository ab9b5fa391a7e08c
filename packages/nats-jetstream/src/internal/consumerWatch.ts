import type { TransportError } from "@millrace/core/TransportError"
import type { ConsumerInfo, ConsumerUpdateConfig, JetStreamManager, StreamInfo } from "@nats-io/jetstream"
import * as Effect from "effect/Effect"
import { differences } from "./comparison.ts"
import { ask, type Connection } from "./connection.ts"
import { consumerDifferences, consumerInfo, type ConsumerSpec } from "./consumers.ts"
import type { Condition } from "./health.ts"
import * as names from "./names.ts"
import type { Position } from "./position.ts"
import { type Declaring, infoOf, storedElsewhere } from "./streams.ts"

export interface ConsumerWatchOptions {
  readonly connection: Connection
  readonly declaring: Declaring
  /** As it was when the subscription began. */
  readonly consumer: ConsumerInfo
  readonly spec: ConsumerSpec
  readonly stream: StreamInfo
  readonly condition: Condition
  readonly position: Position
  readonly run: (effect: Effect.Effect<void>) => unknown
  /** Messages are here, or are expected. */
  readonly isBusy: () => boolean
  /** There is nothing to look at now. */
  readonly isAway: () => boolean
}

/**
 * Options that are restored when an operator has edited them, with what says that they are off. Whoever changes the filter
 * means another pipeline.
 */
const restored: Pick<
  ConsumerUpdateConfig,
  "ack_wait" | "max_deliver" | "backoff" | "max_ack_pending" | "headers_only" | "inactive_threshold"
> = { ack_wait: 0, max_deliver: -1, backoff: [], max_ack_pending: -1, headers_only: false, inactive_threshold: 0 }

/** How often the consumer is compared with what was declared, while messages flow. Milliseconds. */
const watchEvery = 3000

/** While nothing flows, the consumer is looked at each so many times `watchEvery`. */
const maxIdleTicks = 3

/** An edit that is repeated is meant: it is not undone more often than this. */
const maxRepairs = 2

/** Sees that an operator has edited the consumer that is read, and restores or reports it. */
export class ConsumerWatch {
  private readonly options: ConsumerWatchOptions
  /** What was said last, so that each state is said once. */
  private reported: string | undefined
  private repairs = 0
  /** Something arrived since the last look. */
  private active = false
  private looking = false
  private idleTicks = 0
  private readonly timer: NodeJS.Timeout

  constructor(options: ConsumerWatchOptions) {
    this.options = options
    this.timer = setInterval(() => this.tick(), watchEvery)
  }

  /** Something has arrived. */
  note(): void {
    this.active = true
  }

  close(): void {
    clearInterval(this.timer)
  }

  private tick(): void {
    const { isAway, isBusy } = this.options
    if (isAway() || (!this.active && ++this.idleTicks < maxIdleTicks)) return
    this.idleTicks = 0
    this.active = isBusy()
    this.look()
  }

  /** Looks now, unless that is under way. */
  look(): void {
    const { position, run } = this.options
    if (this.looking) return
    this.looking = true
    const looked = Effect.flatMap(this.compared, (info) => {
      if (info !== undefined) position.remember(info)
      return position.keep
    })
    run(Effect.ensuring(Effect.ignore(looked), Effect.sync(() => void (this.looking = false))))
  }

  /** `undefined`: the consumer is gone, which the open requests say too. */
  private readonly compared: Effect.Effect<ConsumerInfo | undefined, TransportError> = Effect.gen({
    self: this
  }, function*() {
    const { connection, consumer } = this.options
    const found = yield* consumerInfo(connection, consumer.stream_name, consumer.name)
    if (found === undefined) return undefined
    const restorable = this.changedOptions(found)
    const mayRepair = Object.keys(restorable).length > 0 && this.repairs < maxRepairs &&
      this.options.declaring.manage === "create"
    if (mayRepair) this.repairs++
    const info = mayRepair ? yield* this.repair(found, restorable) : found
    // A user that may not look at the stream reads on.
    const stream = (yield* Effect.orElseSucceed(infoOf(connection, consumer.stream_name), () => undefined)) ??
      this.options.stream
    const edits = this.editsOf(info, stream)
    const isFirst = edits.length > 0 && this.reported !== edits.join("; ")
    if (edits.length === 0) this.settled()
    else {
      this.reported = edits.join("; ")
      this.options.condition.impair("edit", this.reported)
      // The pipeline logs why its health is impaired.
      if (isFirst) yield* Effect.logDebug(this.reported)
    }
    return info
  })

  private settled(): void {
    if (this.reported === undefined) return
    this.reported = undefined
    this.options.condition.clear("edit")
  }

  private editsOf(info: ConsumerInfo, stream: StreamInfo): ReadonlyArray<string> {
    const { consumer, spec } = this.options
    const name = `consumer ${info.name} of stream ${info.stream_name}`
    const ackWait = (consumer.config.ack_wait ?? 0) / 1e6
    // The lease of everything that is owned was derived from it.
    const differences = consumerDifferences(info, { ...spec, ackWait }, stream)
    const moved = storedElsewhere(stream.config, spec.subjects)
    const takes = (subject: string, { config }: StreamInfo) =>
      config.subjects?.some((taken) => names.covers(taken, subject)) === true
    const untaken = spec.subjects.filter((subject) => takes(subject, this.options.stream) && !takes(subject, stream))
    return [
      ...moved === undefined ? [] : [`${moved.name} is ${moved.found} while it is read; expected ${moved.expected}`],
      ...untaken.map((subject) => `stream ${info.stream_name} no longer takes ${subject} while it is read`),
      ...differences.map(({ expected, found, name: option }) =>
        `${option} of ${name} was changed to ${found} while it is read; expected ${expected}`
      ),
      ...info.paused === true ? [`${name} is paused by an operator`] : []
    ]
  }

  /** As they were, those of `restored` that have been edited. */
  private changedOptions(info: ConsumerInfo): Partial<ConsumerUpdateConfig> {
    const before = this.options.consumer.config
    const wanted = Object.entries(restored).map(([option, off]) =>
      [option, Object.entries(before).find(([name]) => name === option)?.[1] ?? off] as const
    )
    const edited = differences(info.config, Object.fromEntries(wanted)).map(({ name }) => name)
    return Object.fromEntries(wanted.filter(([option]) => edited.includes(option)))
  }

  private repair(info: ConsumerInfo, options: Partial<ConsumerUpdateConfig>) {
    const { connection } = this.options
    const update = (jsm: JetStreamManager) => jsm.consumers.update(info.stream_name, info.name, options)
    return ask(connection, `restoring consumer ${info.name}`, update).pipe(
      Effect.tap(() =>
        Effect.logWarning(
          `${
            Object.keys(options).join(", ")
          } of consumer ${info.name} of stream ${info.stream_name} was changed while it is read, and has been restored`
        )
      )
    )
  }
}
