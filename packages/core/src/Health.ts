/**
 * Answers the probes of an orchestrator, in any web framework.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Pipeline from "./Pipeline.ts"

/**
 * One pipeline in a {@link Report}. `since` is an ISO date.
 *
 * @category models
 * @since 0.1.0
 */
export interface PipelineReport {
  readonly name: string
  readonly topic: string
  readonly group: string
  readonly state: Pipeline.Health["state"]
  readonly since: string
  readonly reason?: string
  /** Messages of this process that have not begun, and that run. */
  readonly waiting: number
  readonly running: number
}

/**
 * The health of a process.
 *
 * @category models
 * @since 0.1.0
 */
export interface Report {
  /** No pipeline has stopped for good. A broker that is away does not make a process dead: a restart mends nothing. */
  readonly live: boolean
  /** There are pipelines, and each consumes or is paused on purpose. */
  readonly ready: boolean
  /** Why it is not ready, where no pipeline has started. */
  readonly reason?: string
  readonly pipelines: ReadonlyArray<PipelineReport>
}

/**
 * Reports the health of running pipelines, without secrets.
 *
 * @category reporting
 * @since 0.1.0
 */
export const report = (pipelines: Iterable<Pipeline.Running>): Effect.Effect<Report> =>
  Effect.map(Effect.forEach(pipelines, one), (pipelines) => ({
    live: pipelines.every(({ state }) => state !== "stopped"),
    ready: pipelines.length > 0 && pipelines.every(({ state }) => state === "consuming" || state === "paused"),
    // A server for probes may listen before the broker is connected.
    ...(pipelines.length === 0 ? { reason: "no pipeline has started" } : {}),
    pipelines
  }))

const one = (pipeline: Pipeline.Running): Effect.Effect<PipelineReport> =>
  Effect.zipWith(pipeline.health, pipeline.owned, ({ reason, since, state }, owned) => ({
    name: pipeline.name,
    topic: pipeline.topic,
    group: pipeline.group,
    state,
    since: new Date(since).toISOString(),
    ...(reason === undefined ? {} : { reason }),
    ...owned
  }))

/**
 * The answer to a request.
 *
 * @category models
 * @since 0.1.0
 */
export interface Response {
  readonly status: 200 | 404 | 503
  readonly headers: { readonly "content-type": "application/json"; readonly "cache-control": "no-store" }
  readonly body: string
}

/**
 * Answers a request whose path, or URL, ends in `/health` (is the process alive?) or `/ready` (does it consume?): 200, or
 * 503 with the {@link Report} as JSON. Any other path is 404.
 *
 * **Example** (With Node's own server)
 *
 * ```ts
 * import { Health, type Pipeline } from "@millrace/core"
 * import { Effect } from "effect"
 * import { createServer } from "node:http"
 *
 * export const serve = (running: ReadonlyArray<Pipeline.Running>) =>
 *   createServer(async (request, response) => {
 *     const { body, headers, status } = await Effect.runPromise(Health.respond(running, request.url ?? ""))
 *     response.writeHead(status, { ...headers }).end(body)
 *   }).listen(8080)
 * ```
 *
 * @category reporting
 * @since 0.1.0
 */
export const respond = (pipelines: Iterable<Pipeline.Running>, path: string): Effect.Effect<Response> => {
  const probe = /\/(health|ready)\/?(?:[?#].*)?$/.exec(path)?.[1]
  return probe === undefined
    ? Effect.succeed(response(404, { error: "the paths are /health and /ready" }))
    : Effect.map(
      report(pipelines),
      (report) => response((probe === "health" ? report.live : report.ready) ? 200 : 503, report)
    )
}

const response = (status: Response["status"], body: unknown): Response => ({
  status,
  headers: { "content-type": "application/json", "cache-control": "no-store" },
  body: JSON.stringify(body)
})
