import type * as PipelineModule from "@millrace/core/Pipeline"
import type * as TopicModule from "@millrace/core/Topic"
import * as Effect from "effect/Effect"
import type * as JsonSchemaModule from "effect/JsonSchema"
import type * as SchemaModule from "effect/Schema"
import { createRequire } from "node:module"
import * as Path from "node:path"
import process from "node:process"
import { pathToFileURL } from "node:url"
import { Failure } from "../Output.ts"

/** What a module exports, and the modules that made it: they may be other copies than this program's own. */
export interface Loaded {
  readonly pipelines: ReadonlyArray<PipelineModule.AnyPipeline>
  readonly topics: ReadonlyArray<TopicModule.Topic<unknown, unknown, unknown>>
  readonly Pipeline: typeof PipelineModule
  readonly Schema: typeof SchemaModule
  readonly JsonSchema: typeof JsonSchemaModule
}

/** Exported values, those in exported arrays and plain objects too. */
const values = (exported: unknown): ReadonlyArray<unknown> => {
  const found: Array<unknown> = []
  for (const value of Object.values(exported as object)) {
    found.push(value)
    if (Array.isArray(value)) found.push(...value)
    else if (typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype) {
      found.push(...Object.values(value))
    }
  }
  return found
}

const load = async (file: string): Promise<Loaded> => {
  const path = Path.resolve(process.cwd(), file)
  const from = createRequire(path)
  const resolve = (name: string, require: NodeJS.Require): string => {
    try {
      return pathToFileURL(require.resolve(name)).href
    } catch {
      return name
    }
  }
  const pipelineAt = resolve("@millrace/core/Pipeline", from)
  const core = pipelineAt.startsWith("file:") ? createRequire(pipelineAt) : from
  const [Pipeline, Topic, Schema, JsonSchema] = await Promise.all([
    import(pipelineAt) as Promise<typeof PipelineModule>,
    import(resolve("@millrace/core/Topic", from)) as Promise<typeof TopicModule>,
    import(resolve("effect/Schema", core)) as Promise<typeof SchemaModule>,
    import(resolve("effect/JsonSchema", core)) as Promise<typeof JsonSchemaModule>
  ])
  const all = new Set(values(await import(pathToFileURL(path).href)))
  return {
    pipelines: [...all].filter(Pipeline.isPipeline),
    topics: [...all].filter(Topic.isTopic),
    Pipeline,
    Schema,
    JsonSchema
  }
}

/** Imports a module, which runs it: it should declare pipelines and topics, and start nothing. */
export const loadModule = (file: string): Effect.Effect<Loaded, Failure> =>
  Effect.tryPromise({
    try: () => load(file),
    catch: (cause) => new Failure(`cannot load ${file}: ${cause instanceof Error ? cause.message : String(cause)}`)
  }).pipe(
    Effect.filterOrFail(
      ({ pipelines, topics }) => pipelines.length + topics.length > 0,
      () => new Failure(`${file} exports no pipeline and no topic`, 1)
    )
  )
