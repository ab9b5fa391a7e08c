/**
 * @since 0.1.0
 */
export * as Codec from "./Codec.ts"
export * as Concurrency from "./Concurrency.ts"
export * as DeadLetter from "./DeadLetter.ts"
export * as Description from "./Description.ts"
export * as LimitAlgorithm from "./LimitAlgorithm.ts"
export * as Message from "./Message.ts"
export * as Millrace from "./Millrace.ts"
export * as Pipeline from "./Pipeline.ts"
export * as Publisher from "./Publisher.ts"
export * as Settlement from "./Settlement.ts"
export * as Signals from "./Signals.ts"
export * as Telemetry from "./Telemetry.ts"
export * as Topic from "./Topic.ts"
export * as Transport from "./Transport.ts"
export * as TransportAuthor from "./TransportAuthor.ts"
export * as TransportError from "./TransportError.ts"
