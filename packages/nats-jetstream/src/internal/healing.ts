import type { TransportError } from "@millrace/core/TransportError"
import type { ConsumerInfo } from "@nats-io/jetstream"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import { mismatch } from "./comparison.ts"
import type { Connection } from "./connection.ts"
import { consumerInfo, type ConsumerSpec, ensureConsumer } from "./consumers.ts"
import type { Condition } from "./health.ts"
import type { Position } from "./position.ts"
import type { Trouble } from "./pullLoop.ts"
import { untilHealed } from "./recovery.ts"
import { type Declaring, ensureStream, type StreamSpec } from "./streams.ts"

export interface HealingOptions {
  readonly connection: Connection
  readonly declaring: Declaring
  readonly consumer: ConsumerInfo
  readonly spec: ConsumerSpec
  readonly streamSpec: StreamSpec
  readonly condition: Condition
  readonly position: Position
  readonly run: <E>(effect: Effect.Effect<void, E>) => Fiber.Fiber<void, E>
  /** Ends the requests that are open. */
  readonly endRequests: () => Promise<void>
  /** The stream was created again: what was read before is void. */
  readonly onRenewed: () => void
  readonly onHealed: () => void
  readonly onFailure: (error: TransportError) => void
}

/** Creates again what a subscription reads, for as long as that may help. */
export class Healing {
  readonly #options: HealingOptions
  private healing = false
  /** Consecutive troubles without a message in between. */
  private troubles = 0

  constructor(options: HealingOptions) {
    this.#options = options
  }

  get isHealing(): boolean {
    return this.healing
  }

  /** The server refuses requests again and again: what it says is in health. */
  get isImpaired(): boolean {
    return this.troubles >= impairedAfter
  }

  /** Requests are answered with messages. */
  recovered(): void {
    this.troubles = 0
    this.#options.condition.clear("requests")
  }

  heal(trouble: Trouble): void {
    const { connection, endRequests, onFailure, onHealed, run } = this.#options
    this.healing = true
    this.troubles++
    this.report(trouble)
    const isFirst = trouble._tag === "missing" && this.troubles === 1
    const delay = Math.min(maxDelay, 50 * 2 ** (this.troubles - 1)) * (0.5 + Math.random())
    const healed = Effect.promise(endRequests).pipe(
      Effect.andThen(connection.whenConnected),
      Effect.andThen(isFirst ? Effect.void : Effect.sleep(Duration.millis(delay))),
      Effect.andThen(untilHealed(this.reopen))
    )
    run(healed).addObserver((exit) => {
      this.healing = false
      if (Exit.isSuccess(exit)) onHealed()
      else Option.map(Exit.findErrorOption(exit), onFailure)
    })
  }

  private report(trouble: Trouble): void {
    const { condition, connection, consumer, run } = this.#options
    if (trouble._tag === "refused" && this.troubles === impairedAfter) {
      condition.impair("requests", `consumer ${consumer.name} refuses requests: ${trouble.detail}`)
      // The pipeline logs why its health is impaired.
      run(Effect.logDebug(
        `consumer ${consumer.name} of stream ${consumer.stream_name} refuses requests for messages: ${trouble.detail}`
      ))
    }
    const complaint = connection.complaint()
    if (trouble._tag === "silent" && complaint !== undefined) {
      condition.impair("silence", `${trouble.detail} of consumer ${consumer.name}: ${complaint}`)
    }
  }

  /** Makes sure that what is read exists. */
  private readonly reopen: Effect.Effect<void, TransportError> = Effect.gen({ self: this }, function*() {
    const { connection, consumer, declaring, onRenewed, position, spec, streamSpec } = this.#options
    const found = yield* ensureStream(connection, declaring, streamSpec)
    // Requests and settlements name the stream: this subscription cannot go on with another one.
    if (found.config.name !== consumer.stream_name) {
      return yield* mismatch(
        `the stream of ${spec.topic}`,
        `${consumer.stream_name}, which group ${spec.group} reads: start the pipeline again to read the other one`,
        found.config.name
      )
    }
    const life = connection.lives.note(found)
    const isSameLife = life.origin === position.life.origin
    if (!isSameLife) {
      position.renew(life)
      onRenewed()
    }
    const existing = yield* consumerInfo(connection, consumer.stream_name, consumer.name)
    if (existing !== undefined) return position.remember(existing)
    const startFrom = isSameLife ? { sequence: position.floor + 1 } : "beginning"
    position.remember(yield* ensureConsumer(connection, declaring, found, { ...spec, startFrom }))
    yield* Effect.logWarning(
      `consumer ${consumer.name} of stream ${consumer.stream_name} was gone and has been created again`
    )
  })
}

/** Refusals in a row before health and log say so. */
const impairedAfter = 5

/** Milliseconds between tries while the consumer refuses requests. */
const maxDelay = 5000
