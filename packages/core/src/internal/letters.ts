import type * as Cause from "effect/Cause"
import type * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as DeadLetter from "../DeadLetter.ts"
import type { PublishError } from "../Publisher.ts"
import type { Delivery, Transport } from "../Transport.ts"
import type { Program } from "./program.ts"
import { publishUntilAnswered } from "./publish.ts"
import { deadLetterTopic } from "./validate.ts"
import { sdk } from "./version.ts"

/** Writes the dead letters of one pipeline. */
export class Letters {
  private readonly program: Program
  private readonly topic: string
  private readonly transport: Transport["Service"]
  private readonly clock: Clock.Clock

  static of(program: Program, transport: Transport["Service"], clock: Clock.Clock): Letters | undefined {
    const topic = deadLetterTopic(program)
    return topic === undefined ? undefined : new Letters(program, topic, transport, clock)
  }

  private constructor(program: Program, topic: string, transport: Transport["Service"], clock: Clock.Clock) {
    this.program = program
    this.topic = topic
    this.transport = transport
    this.clock = clock
  }

  /** Ends when the broker has confirmed it, in two pieces where one would be too large. */
  write(
    delivery: Delivery,
    cause: Cause.Cause<unknown>,
    reason: DeadLetter.Reason
  ): Effect.Effect<unknown, PublishError> {
    const failedAt = this.clock.currentTimeMillisUnsafe()
    const firstFailedAt = delivery.firstFailedAt ?? (delivery.attempt === 1 ? failedAt : undefined)
    const record = new DeadLetter.Record({
      version: 1,
      sdk,
      topic: delivery.topic,
      id: delivery.id,
      group: this.program.source.group,
      pipeline: this.program.name,
      reason,
      attempts: delivery.attempt,
      publishedAt: delivery.publishedAt,
      ...(firstFailedAt === undefined ? {} : { firstFailedAt }),
      failedAt,
      error: DeadLetter.describe(cause),
      history: DeadLetter.historyOf(delivery.headers)
    })
    const letter = DeadLetter.outgoing(this.topic, delivery, record)
    const publish = (part: typeof letter) => publishUntilAnswered(this.transport, part)
    return Effect.catchReason(
      publish(letter),
      "PublishError",
      "TooLarge",
      () => Effect.forEach(DeadLetter.split(letter), publish, { discard: true })
    )
  }
}
