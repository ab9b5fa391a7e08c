import { durationOf, type Invalid, invalidOf, unknownOption } from "./invalid.ts"
import { make } from "./pipeline.ts"
import { noPolicies } from "./program.ts"
import { isTopic } from "./topic.ts"

const common = ["group", "name", "startFrom", "prefetch", "prefetchBytes", "waiting", "maxBlocked", "drainTimeout"]

/** The pipeline that `Pipeline.from` and `TransportAuthor.fromTransport` type. Never throws: starting fails with bad input. */
export const makeSource = (topic: any, options: any, broker: {
  readonly transport: any
  readonly settings?: any
  readonly extend?: any
  readonly options?: ReadonlyArray<string> | undefined
  readonly invalid?: Invalid | undefined
}): any => {
  const drainTimeout = durationOf("drainTimeout", options?.drainTimeout ?? "30 seconds")
  return make({
    name: options?.name ?? `${topic?.name}/${options?.group}`,
    source: {
      topic,
      group: options?.group,
      startFrom: options?.startFrom ?? "new",
      prefetch: options?.prefetch,
      prefetchBytes: options?.prefetchBytes ?? 16 * 1024 * 1024,
      waiting: options?.waiting ?? 10_000,
      maxBlocked: options?.maxBlocked ?? 10_000,
      drainTimeout: drainTimeout.duration,
      transport: broker.transport,
      extend: broker.extend
    },
    steps: [],
    policies: broker.settings === undefined ? noPolicies : { ...noPolicies, settings: broker.settings },
    invalid: invalidTopic(topic) ??
      (broker.options === undefined ? undefined : unknownOption("from", options, [...common, ...broker.options])) ??
      invalidGroup(options?.group) ?? invalidName(options?.name) ?? invalidStart(options?.startFrom) ??
      drainTimeout.invalid ?? broker.invalid
  })
}

const invalidTopic = (topic: unknown): Invalid | undefined =>
  isTopic(topic)
    ? invalidOf(topic)
    : { option: "topic", value: topic, remedy: "give a topic: Topic.make(name, { schema })" }

const invalidGroup = (group: unknown): Invalid | undefined =>
  typeof group === "string" && group !== ""
    ? undefined
    : { option: "group", value: group, remedy: "name the group: processes of one group share the work" }

const invalidName = (name: unknown): Invalid | undefined =>
  name === undefined || (typeof name === "string" && name !== "")
    ? undefined
    : { option: "name", value: name, remedy: "give a text for logs and metrics, or nothing for topic/group" }

const invalidStart = (startFrom: unknown): Invalid | undefined =>
  startFrom === undefined || startFrom === "new" || startFrom === "beginning"
    ? undefined
    : { option: "startFrom", value: startFrom, remedy: "write \"new\" or \"beginning\"" }
