import type * as Transport from "@millrace/core/Transport"
import type * as TransportError from "@millrace/core/TransportError"
import type { ConsumerInfo } from "@nats-io/jetstream"
import * as Effect from "effect/Effect"
import { firstFrom } from "./browsing.ts"
import { ask, type Connection } from "./connection.ts"
import { filterOf, groupKey } from "./consumers.ts"
import * as names from "./names.ts"
import { findStream } from "./streams.ts"

/** What each group of a topic has still to do. A durable consumer is a group, whoever created it. */
export const groups = Effect.fnUntraced(function*(
  connection: Connection,
  topic: string
): Effect.fn.Return<ReadonlyArray<Transport.GroupInfo>, TransportError.TransportError> {
  const info = yield* findStream(connection, topic)
  if (info === undefined) return []
  const stream = info.config.name
  const all = yield* ask(connection, `listing the consumers of ${stream}`, async (jsm) => {
    const found: Array<ConsumerInfo> = []
    for await (const consumer of jsm.consumers.list(stream)) found.push(consumer)
    return found
  })
  const reading = all.filter(({ config }) =>
    config.durable_name !== undefined && filterOf(config, info).some((filter) => names.covers(filter, topic))
  )
  return yield* Effect.forEach(
    reading,
    (consumer) =>
      left(connection, consumer, consumer.config.metadata?.[groupKey] ?? names.groupOf(topic, consumer.name), [topic])
  )
})

/** What a consumer has still to do; `subjects` are those that it reads. */
export const left = (
  connection: Connection,
  { ack_floor, num_ack_pending, num_pending, stream_name }: ConsumerInfo,
  group: string,
  subjects: ReadonlyArray<string>
): Effect.Effect<Transport.GroupInfo, TransportError.TransportError> =>
  Effect.map(
    num_pending + num_ack_pending === 0
      ? Effect.succeed([])
      : Effect.forEach(subjects, (subject) => firstFrom(connection, stream_name, subject, ack_floor.stream_seq + 1)),
    (found): Transport.GroupInfo => {
      const times = found.filter((time) => time !== undefined)
      return {
        group,
        lag: num_pending,
        pending: num_ack_pending,
        ...times.length === 0 ? {} : { oldest: Math.min(...times) }
      }
    }
  )
