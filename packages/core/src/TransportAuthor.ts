/**
 * The tools of transport authors beside {@link Transport}: one module, so that the other modules are for users.
 *
 * A transport builds its own `from` on {@link fromTransport}, its own policies on {@link withSetting}, its broker-only
 * operations on {@link received}, and its errors on `TransportError.invalidOption` and `TransportError.redactUrl`. It
 * refuses bad options with {@link checkOptions} and {@link durationOf}, and puts the sentences of {@link Hints}
 * into their types. Messages that it publishes for a user are made by {@link outgoing} and sent by {@link send},
 * which keeps their span and their metrics; the key of a delivery is read by {@link keyOf}. A service that holds a
 * connection is given to {@link showAs}, so that no log shows its password; {@link connectionDetail} says why a
 * connection failed. A simulation runs a pipeline with {@link inOtherProcess}.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import { invalidIn, isLimit } from "./Concurrency.ts"
import { addPolicy, addStep } from "./internal/compose.ts"
import { inFlightOf, type Received } from "./internal/inFlight.ts"
import { type Invalid, toError, unknownOption } from "./internal/invalid.ts"
import { programOf } from "./internal/pipeline.ts"
import type { Step } from "./internal/program.ts"
import { makeSource } from "./internal/source.ts"
import type * as Message from "./Message.ts"
import type * as Pipeline from "./Pipeline.ts"
import type { PublishError } from "./Publisher.ts"
import type * as Topic from "./Topic.ts"
import type * as Transport from "./Transport.ts"
import type { TransportError } from "./TransportError.ts"

export { connectionDetail } from "./internal/connectionDetail.ts"
export type { Hints } from "./internal/hint.ts"
export { showAs } from "./internal/inspection.ts"
export { durationOf, type Invalid } from "./internal/invalid.ts"
export { keyOf } from "./internal/key.ts"
export { outgoing } from "./internal/outgoing.ts"
export { quietly } from "./internal/quietly.ts"
export { send } from "./internal/send.ts"
export type { Received }

/**
 * Starts a pipeline on one particular broker: a transport's own `from` is made of it.
 *
 * **Details**
 *
 * `transport` puts that broker's service into `R`, `settings` reach its `subscribe`, and `extend` adds to each message
 * the fields that only that broker's messages have. With `options`, the names of the broker's own options,
 * any other option is refused when the pipeline starts, and so is `invalid`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromTransport = <A, RD, RE, R, M extends Message.Message<A> = Message.Message<A>>(
  topic: Topic.Topic<A, RD, RE>,
  options: Pipeline.FromOptions,
  broker: {
    readonly transport: Effect.Effect<Transport.Transport["Service"], never, R>
    readonly settings?: Context.Context<never> | undefined
    readonly extend?: ((message: Message.Message<A>, delivery: Transport.Delivery) => M) | undefined
    readonly options?: ReadonlyArray<string> | undefined
    readonly invalid?: Invalid | undefined
  }
): Pipeline.Open<M, A, never, R | RD> => makeSource(topic, options, broker)

/**
 * Publishes as `Pipeline.to` does, to another broker than the source's: a transport's own `to` is made of it.
 *
 * @category steps
 * @since 0.1.0
 */
export const toTransport = <M extends Message.Any, A, E, R, B, RD, RE, R2>(
  self: Pipeline.Open<M, A, E, R>,
  transport: Effect.Effect<Transport.Transport["Service"], never, R2>,
  topic: Topic.Topic<B, RD, RE>,
  value: ((value: A, message: M) => B | ReadonlyArray<B>) | undefined
): Pipeline.Open<M, A, E | PublishError, R | RE | R2> =>
  addStep(self, { _tag: "To", topic, f: value, transport: transport as any } as Step)

/**
 * Adds one of a broker's own settings: a transport's own policies are made of it.
 *
 * @category policies
 * @since 0.1.0
 */
export const withSetting: {
  /**
   * Adds one of a broker's own settings: a transport's own policies are made of it.
   */
  <A>(
    reference: Context.Reference<A>,
    value: A
  ): <M extends Message.Any, A, E, R>(self: Pipeline.Pipeline<M, A, E, R>) => Pipeline.Pipeline<M, A, E, R>
  /**
   * Adds one of a broker's own settings: a transport's own policies are made of it.
   */
  <M extends Message.Any, A, E, R, S>(
    self: Pipeline.Pipeline<M, A, E, R>,
    reference: Context.Reference<S>,
    value: S
  ): Pipeline.Pipeline<M, A, E, R>
} = dual(
  3,
  (self: Pipeline.AnyPipeline, reference: Context.Reference<any>, value: any) =>
    addPolicy(self, { settings: Context.add(programOf(self).policies.settings, reference, value) })
)

/**
 * Gives the delivery behind a message; `undefined` for a message that no engine made, such as a test's own.
 *
 * @category accessors
 * @since 0.1.0
 */
export const received = (self: Message.Any): Received | undefined => inFlightOf(self)

/**
 * Returns the pipeline as another process would run it: a `Concurrency.Limit`, which pipelines of this process share,
 * becomes a limit of the pipeline's own, as high as the ceiling. For simulations of several processes in one.
 *
 * @category running
 * @since 0.1.0
 */
export const inOtherProcess = <P extends Pipeline.AnyPipeline>(self: P): P => {
  const { concurrency } = programOf(self).policies
  return isLimit(concurrency) && invalidIn(concurrency) === undefined
    ? addPolicy(self, { concurrency: concurrency.ceiling })
    : self
}

/**
 * Names the first option that `known` does not have, or that is `invalid`. The error never shows the value of an unknown
 * option that is a text: the option may be a misspelt password.
 *
 * @category validation
 * @since 0.1.0
 */
export const checkOptions = (
  transport: string,
  of: string,
  options: unknown,
  known: ReadonlyArray<string>,
  ...invalid: ReadonlyArray<Invalid | undefined>
): TransportError | undefined => {
  const first = unknownOption(of, options, known) ?? invalid.find((one) => one !== undefined)
  return first === undefined ? undefined : toError(transport, first)
}
