/**
 * Slow calls, several at a time: a request that takes 300 ms, as one to a language model does.
 */
import { Pipeline, Topic } from "@millrace/core"
import { Schema } from "effect"
import { setTimeout } from "node:timers/promises"

export const Prompts = Topic.make("prompts", { schema: Schema.Struct({ id: Schema.Int, prompt: Schema.String }) })

/** A model that does not exist; a real client takes the signal just so. */
const complete = async (prompt: string, signal: AbortSignal): Promise<string> => {
  await setTimeout(300, undefined, { signal })
  return `${prompt}: that is a good question`
}

export const make = (concurrency: number) =>
  Pipeline.from(Prompts, { group: "completions", startFrom: "beginning" }).pipe(
    Pipeline.mapPromise(({ prompt }, { signal }) => complete(prompt, signal)),
    Pipeline.timeout("10 seconds"),
    Pipeline.concurrency(concurrency)
  )
