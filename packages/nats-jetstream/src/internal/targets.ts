import type { PublishError } from "@millrace/core/Publisher"
import * as Result from "effect/Result"
import type { PendingMessage } from "./encoding.ts"

/** Topics whose stream refuses everything: it is full or sealed, or a permission is missing. Until it takes a message. */
export class Targets {
  private readonly refusals = new Map<string, string>()

  /** Remembers the answers to messages. */
  note(
    messages: ReadonlyArray<PendingMessage>,
    answers: ReadonlyArray<Result.Result<unknown, PublishError>>
  ): void {
    for (let i = 0; i < answers.length; i++) {
      const answer = answers[i]!
      const { expectations, message: { topic } } = messages[i]!
      if (Result.isSuccess(answer)) {
        if (this.refusals.size > 0) this.refusals.delete(topic)
        continue
      }
      const { reason } = answer.failure
      const isRefusal = reason._tag === "Unauthorized" || (reason._tag === "Refused" && expectations === undefined)
      if (isRefusal && (this.refusals.has(topic) || this.refusals.size < maxTopics)) {
        this.refusals.set(topic, answer.failure.message)
      }
    }
  }

  /** Why a topic takes nothing now. */
  refusal(topic: string): string | undefined {
    return this.refusals.get(topic)
  }
}

/** Topics may be subjects made of ids. */
const maxTopics = 1000
