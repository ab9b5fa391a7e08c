import type { TransportError } from "@millrace/core/TransportError"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Semaphore from "effect/Semaphore"
import { Broker } from "../Broker.ts"
import { isDeadLetterTopic, overview } from "../overview.ts"

/** A group as the page shows it; rates are messages a second, absent where the broker does not tell. */
export interface GroupRow {
  readonly topic: string
  readonly group: string
  readonly lag: number | undefined
  readonly pending: number | undefined
  readonly retries: number | undefined
  /** Milliseconds since the oldest message that is not settled was published. */
  readonly oldest: number | undefined
  readonly consumers: number | undefined
  readonly handled: number | undefined
}

export interface TopicRow {
  readonly topic: string
  readonly messages: number
  readonly published: number | undefined
  readonly dead: boolean
}

export interface Snapshot {
  readonly at: number
  readonly topics: ReadonlyArray<TopicRow>
  readonly groups: ReadonlyArray<GroupRow>
}

interface Sample {
  readonly at: number
  readonly added: ReadonlyMap<string, number>
  readonly open: ReadonlyMap<string, number>
}

const leastAge = 1000

const key = (topic: string, group: string): string => `${topic}\n${group}`

/** Takes looks at the broker, at most one a second, one at a time, whoever asks; with many topics less often. */
export const make = Effect.gen(function*() {
  const broker = yield* Broker
  const turn = yield* Semaphore.make(1)
  let last: Snapshot | undefined
  let took = 0
  let sample: Sample | undefined

  const look = Effect.gen(function*() {
    const startedAt = yield* Clock.currentTimeMillis
    const { topics: all } = yield* overview()
    const retries = yield* Effect.forEach(
      all.flatMap(({ groups, topic }) => groups.map(({ group }) => ({ topic, group }))),
      ({ group, topic }) => Effect.map(broker.retries(topic, group), (n) => [key(topic, group), n] as const),
      { concurrency: 16 }
    )
    const waiting = new Map(retries)
    const at = yield* Clock.currentTimeMillis
    const before = sample
    const seconds = before === undefined ? 0 : (at - before.at) / 1000
    const added = new Map<string, number>()
    const open = new Map<string, number>()
    const topics: Array<TopicRow> = []
    const groups: Array<GroupRow> = []
    for (const { added: total, groups: found, messages, topic } of all) {
      if (total !== undefined) added.set(topic, total)
      const was = before?.added.get(topic)
      const published = total === undefined || was === undefined || seconds === 0 ? undefined : Math.max(0, total - was)
      topics.push({
        topic,
        messages,
        published: published === undefined ? undefined : published / seconds,
        dead: isDeadLetterTopic(topic)
      })
      for (const { consumers, group, lag, oldest, pending } of found) {
        const left = lag === undefined || pending === undefined ? undefined : lag + pending
        if (left !== undefined) open.set(key(topic, group), left)
        const wasOpen = before?.open.get(key(topic, group))
        groups.push({
          topic,
          group,
          lag,
          pending,
          retries: waiting.get(key(topic, group)),
          oldest: oldest === undefined ? undefined : at - oldest,
          consumers: consumers?.length,
          handled: published === undefined || left === undefined || wasOpen === undefined
            ? undefined
            : Math.max(0, published - (left - wasOpen)) / seconds
        })
      }
    }
    sample = { at, added, open }
    took = at - startedAt
    return last = { at, topics, groups }
  })

  return turn.withPermit(
    Effect.flatMap(
      Clock.currentTimeMillis,
      (now): Effect.Effect<Snapshot, TransportError, Broker> =>
        last !== undefined && now - last.at < Math.max(leastAge, 5 * took) ? Effect.succeed(last) : look
    )
  )
})
