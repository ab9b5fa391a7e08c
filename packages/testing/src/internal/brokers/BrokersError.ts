import * as Schema from "effect/Schema"

/**
 * Error raised when a broker cannot be provided or started. Its message says what was tried and what to do.
 *
 * **Details**
 *
 * `reason` tells the cases apart: `unavailable` (no provider has a server of that kind and version), `start` (a server
 * was had but did not come up; the message ends with its own last output) and `configuration` (an option or
 * environment variable has a value that means nothing).
 *
 * @category errors
 * @since 0.1.0
 */
export class BrokersError extends Schema.TaggedError<BrokersError>()("BrokersError", {
  reason: Schema.Literals(["unavailable", "start", "configuration"]),
  message: Schema.String,
  cause: Schema.optionalKey(Schema.Defect())
}) {}
