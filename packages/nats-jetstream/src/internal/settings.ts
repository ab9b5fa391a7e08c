import type * as Arr from "effect/Array"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import type { StartFrom } from "../Options.ts"

/** The subjects to read, where that is not just the topic's own. */
export const Subjects = Context.Reference<Arr.NonEmptyReadonlyArray<string> | undefined>(
  "@millrace/nats-jetstream/Subjects",
  { defaultValue: () => undefined }
)

export const Start = Context.Reference<StartFrom | undefined>("@millrace/nats-jetstream/Start", {
  defaultValue: () => undefined
})

/** How long the server waits for a settlement or a sign of life before it gives the message to another. */
export const AckWait = Context.Reference<Duration.Duration | undefined>("@millrace/nats-jetstream/AckWait", {
  defaultValue: () => undefined
})

/** Whether an acknowledgement is written and believed, or confirmed by the server one by one. */
export const Acknowledge = Context.Reference<"write" | "confirm">("@millrace/nats-jetstream/Acknowledge", {
  defaultValue: () => "write"
})

/** The stream to read, whatever subjects it takes. */
export const StreamName = Context.Reference<string | undefined>("@millrace/nats-jetstream/StreamName", {
  defaultValue: () => undefined
})
