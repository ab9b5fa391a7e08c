import type * as Duration from "effect/Duration"
import type { Headers } from "./headers.ts"
import type { DurationHint } from "./hint.ts"

/**
 * Options of one publish.
 *
 * @category models
 * @since 0.1.0
 */
export interface PublishOptions {
  /**
   * Names are sent in lower case; `body` and `millrace-*` are refused. Headers that describe the message they came with
   * (`content-type`, our own headers) are left out, so that the headers of a message can be forwarded as they are.
   */
  readonly headers?: Headers | undefined
  /** The same id is stored once, on brokers that deduplicate and for as long as they do. */
  readonly id?: string | undefined
  /** The message is not delivered before. Default none; refused where the broker has no delayed delivery. */
  readonly delay?: Duration.Input | DurationHint | undefined
}
