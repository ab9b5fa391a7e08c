/**
 * What authors of transports need beside {@link Transport}: one module, so that the other modules are for users.
 *
 * A transport builds its own `from` on {@link fromTransport}, its own policies on {@link withSetting}, its broker-only
 * operations on {@link received}, and its errors on {@link invalidOption} and {@link redactUrl}. What it publishes for a
 * user is made by {@link outgoing} and given out by {@link send}, which keeps its span and its metrics; the key of a delivery is read by {@link keyOf}. A service that holds a connection is
 * given to {@link showAs}, so that no log shows its password; {@link connectionDetail} says why a connection failed.
 *
 * @since 0.1.0
 */
export { connectionDetail } from "./internal/connectionDetail.ts"
export { showAs } from "./internal/inspection.ts"
export { send } from "./internal/send.ts"
export { type Received, received } from "./Message.ts"
export { fromTransport, withSetting } from "./Pipeline.ts"
export { keyOf, outgoing } from "./Publisher.ts"
export { invalidOption, redactUrl } from "./TransportError.ts"
