/**
 * A task queue: workers share one group, and a task is gone from the broker when it is done.
 */
import { Pipeline, Topic } from "@millrace/core"
import { Effect, Schema } from "effect"

const Task = Schema.Struct({ id: Schema.Int, millis: Schema.Int })
export type Task = typeof Task.Type

export const Tasks = Topic.make("tasks", { schema: Task })

export const worker = (onDone: (task: Task) => Effect.Effect<void>) =>
  Pipeline.from(Tasks, { group: "workers", startFrom: "beginning" }).pipe(
    Pipeline.tap(({ millis }) => Effect.sleep(millis)),
    Pipeline.tap(onDone),
    Pipeline.concurrency(2)
  )
