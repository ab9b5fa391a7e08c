/**
 * Publishing from anywhere: a request handler, a script, or a message handler as a plain side effect.
 *
 * A publish inside a handler is repeated when the handler is retried, unless it is given an `id`; the step
 * `Pipeline.to` derives one from its source.
 *
 * @since 0.1.0
 */
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Predicate from "effect/Predicate"
import * as Result from "effect/Result"
import { exitOf } from "./internal/exit.ts"
import { type Invalid, invalidFunction } from "./internal/invalid.ts"
import { outgoingOf, refuse, refused } from "./internal/outgoing.ts"
import type { PublishError } from "./internal/publishError.ts"
import type { PublishOptions } from "./internal/publishOptions.ts"
import { send } from "./internal/send.ts"
import { isTopic } from "./internal/topic.ts"
import type * as Topic from "./Topic.ts"
import { type Outgoing, type Published, Transport } from "./Transport.ts"

export {
  NotSent,
  OutcomeUnknown,
  PublishError,
  PublishErrorReason,
  Refused,
  TooLarge,
  Unencodable
} from "./internal/publishError.ts"
export type {
  /**
   * @category models
   * @since 0.1.0
   */
  PublishOptions
} from "./internal/publishOptions.ts"

/**
 * Publishes one value and waits for the broker's confirmation.
 *
 * @category publishing
 * @since 0.1.0
 */
export const publish = <A, RD, RE>(
  topic: Topic.Topic<A, RD, RE>,
  value: A,
  options?: PublishOptions
): Effect.Effect<Published, PublishError, Transport | RE> =>
  Effect.withFiber(({ context }) =>
    Effect.flatMapEager(
      outgoingOf(topic, value, options, context),
      (message) =>
        Transport.use((transport) =>
          Effect.flatMap(give(transport, topic.name, [message]), (results) => Effect.fromResult(results[0]!))
        )
    )
  )

/**
 * Publishes many values in order, as one pipelined write, and waits for all confirmations.
 *
 * **Gotchas**
 *
 * When it fails, with the first failure, others may have been published: give each an `id` to publish again safely.
 *
 * @category publishing
 * @since 0.1.0
 */
export const publishAll = <A, RD, RE>(
  topic: Topic.Topic<A, RD, RE>,
  values: Iterable<A>,
  options?: (value: A, index: number) => PublishOptions
): Effect.Effect<ReadonlyArray<Published>, PublishError, Transport | RE> =>
  Effect.withFiber(({ context }) => {
    const invalid = invalidMany(values, options)
    if (invalid !== undefined) return Effect.fail(refused(isTopic(topic) ? topic.name : String(topic), invalid))
    const made = Array.from(values, (value, index) => outgoingOf(topic, value, options?.(value, index), context))
    return Effect.flatMapEager(allOf(made), (messages) =>
      Arr.isReadonlyArrayNonEmpty(messages)
        ? Transport.use((transport) =>
          Effect.flatMap(give(transport, topic.name, messages), (results) => Effect.fromResult(Result.all(results)))
        )
        : Effect.succeed([]))
  })

const invalidMany = (values: unknown, options: unknown): Invalid | undefined =>
  Predicate.isIterable(values) && typeof values !== "string"
    ? invalidFunction("options of publishAll", options)
    : { option: "values of publishAll", value: values, remedy: "give an array of values" }

/** An `Exit` where all of them are. */
const allOf = <A, E, R>(effects: ReadonlyArray<Effect.Effect<A, E, R>>): Effect.Effect<ReadonlyArray<A>, E, R> => {
  const values: Array<A> = []
  for (const effect of effects) {
    const exit = exitOf(effect)
    if (exit === undefined) return Effect.all(effects)
    if (Exit.isFailure(exit)) return Exit.failCause(exit.cause)
    values.push(exit.value)
  }
  return Exit.succeed(values)
}

/** The broker decides which names a topic may have. */
const give = (
  transport: Transport["Service"],
  topic: string,
  messages: Arr.NonEmptyReadonlyArray<Outgoing>
): Effect.Effect<ReadonlyArray<Result.Result<Published, PublishError>>, PublishError> => {
  const remedy = transport.nameRemedy("topic", topic)
  return remedy === undefined
    ? send(transport, messages)
    : Effect.fail(refuse({ option: "topic", value: topic, remedy }))
}
