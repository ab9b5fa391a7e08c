import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import type * as Message from "../Message.ts"
import type { Delivery } from "../Transport.ts"
import type { Program } from "./program.ts"

/** What a source promises of its messages beside the common fields: typed headers, and a transport's own. */
export const preparation = (
  program: Program
): ((message: Message.Any, delivery: Delivery) => Exit.Exit<unknown, unknown>) | undefined => {
  const { extend, topic } = program.source
  const schema = "headers" in topic
    ? topic.headers as Schema.ConstraintCodec<unknown, Message.Headers> | undefined
    : undefined
  if (schema === undefined && extend === undefined) return undefined
  const decode = schema === undefined ? undefined : Schema.decodeUnknownExit(schema)
  return (message, delivery) => {
    if (decode !== undefined) {
      const exit = decode(delivery.headers)
      if (Exit.isFailure(exit)) return exit
      Object.assign(message, { typedHeaders: exit.value })
    }
    try {
      extend?.(message, delivery)
      return Exit.void
    } catch (error) {
      return Exit.die(error)
    }
  }
}
