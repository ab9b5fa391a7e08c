import * as Arr from "effect/Array"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Stream from "effect/Stream"
import type { PublishError } from "../Publisher.ts"
import type { Outgoing, Transport } from "../Transport.ts"
import type { TransportError } from "../TransportError.ts"
import { isUnanswered, wait } from "./publish.ts"
import { store } from "./send.ts"

/** A dead letter to redrive. */
export interface Item {
  readonly id: string
  readonly ids: Arr.NonEmptyReadonlyArray<string>
  readonly incomplete: boolean
  readonly topic: string
  readonly group: string
  /** The message to publish; each next one is smaller than the one before. */
  readonly messages: Arr.NonEmptyReadonlyArray<Outgoing>
}

interface Options {
  readonly group: string | undefined
  readonly to: ReadonlyArray<string> | undefined
  readonly dryRun: boolean
}

const maxRefusals = 20
const maxTopics = 1_000

/** One redrive: publishes and deletes letters, and counts them. */
export class Redrive {
  redriven = 0
  private refusals = 0
  private readonly first: Array<{ readonly id: string; readonly detail: string }> = []
  private readonly groups = new Map<string, ReadonlySet<string>>()
  private readonly transport: Transport["Service"]
  private readonly topic: string
  private readonly options: Options

  constructor(transport: Transport["Service"], topic: string, options: Options) {
    this.transport = transport
    this.topic = topic
    this.options = options
  }

  get refused() {
    return this.refusals === 0 ? {} : { refused: { count: this.refusals, first: this.first.slice() } }
  }

  readonly step = (items: Arr.NonEmptyReadonlyArray<Item>): Effect.Effect<void, TransportError> =>
    Effect.flatMap(Effect.filter(items, (item) => this.isAllowed(item)), (allowed) => {
      if (this.options.dryRun) {
        this.redriven += allowed.length
        return Effect.void
      }
      return this.publish(allowed.map((item) => ({ item, size: 0 })), 0)
    })

  private refuse(id: string, detail: string): void {
    if (this.refusals++ < maxRefusals) this.first.push({ id, detail })
  }

  private isAllowed(item: Item): Effect.Effect<boolean, TransportError> {
    const detail = this.problem(item)
    if (detail !== undefined) {
      this.refuse(item.id, detail)
      return Effect.succeed(false)
    }
    if (this.options.group !== undefined) return Effect.succeed(true)
    return Effect.map(this.groupsOf(item.topic), (groups) => {
      if (groups.has(item.group)) return true
      const others = [...groups].join(", ")
      this.refuse(
        item.id,
        `group ${item.group} of topic ${item.topic} does not exist any more: give the group that is to handle it` +
          (others === "" ? "" : `, such as ${others}`)
      )
      return false
    })
  }

  private problem({ group, incomplete, topic }: Item): string | undefined {
    const remedy = this.transport.nameRemedy("topic", topic)
    if (remedy !== undefined) return `${JSON.stringify(topic)} cannot be a topic: ${remedy}`
    if (!isTarget(topic, this.topic, this.options.to)) {
      return `it claims to come from topic ${topic}, which does not belong to ${this.topic}: if that is right, allow it with the option "to"`
    }
    if (incomplete) return "its second half is not stored any more"
    const groupRemedy = this.options.group === undefined ? this.transport.nameRemedy("group", group) : undefined
    return groupRemedy === undefined ? undefined : `${JSON.stringify(group)} cannot be a group: ${groupRemedy}`
  }

  private groupsOf(topic: string): Effect.Effect<ReadonlySet<string>, TransportError> {
    const known = this.groups.get(topic)
    if (known !== undefined) return Effect.succeed(known)
    return Effect.map(this.transport.groups(topic), (infos) => {
      const groups = new Set(infos.map(({ group }) => group))
      if (this.groups.size >= maxTopics) this.groups.clear()
      this.groups.set(topic, groups)
      return groups
    })
  }

  /** Published letters are deleted before an interruption takes effect; only the wait for the broker is interrupted. */
  private publish(
    items: ReadonlyArray<{ readonly item: Item; readonly size: number }>,
    attempt: number
  ): Effect.Effect<void, TransportError> {
    if (!Arr.isReadonlyArrayNonEmpty(items)) return Effect.void
    return Effect.flatMap(
      Effect.uninterruptible(Effect.gen({ self: this }, function*() {
        const results = yield* store(this.transport, Arr.map(items, ({ item, size }) => item.messages[size]!))
        const again: Array<{ readonly item: Item; readonly size: number }> = []
        const published: Array<string> = []
        let unanswered = false
        for (let i = 0; i < items.length; i++) {
          const { item, size } = items[i]!
          const result = results[i]!
          if (Result.isSuccess(result)) {
            this.redriven++
            published.push(...item.ids)
          } else if (isUnanswered(result.failure)) {
            unanswered = true
            again.push({ item, size })
          } else if (mayFit(result.failure) && size + 1 < item.messages.length) {
            again.push({ item, size: size + 1 })
          } else {
            this.refuse(item.id, result.failure.message)
          }
        }
        if (Arr.isArrayNonEmpty(published)) yield* this.transport.remove(this.topic, published)
        return { again, unanswered }
      })),
      ({ again, unanswered }) =>
        unanswered
          ? Effect.andThen(wait(attempt), this.publish(again, attempt + 1))
          : this.publish(again, 0)
    )
  }
}

/** A limit on headers shows as a refusal. */
const mayFit = ({ reason }: PublishError): boolean => reason._tag === "TooLarge" || reason._tag === "Refused"

const isTarget = (topic: string, deadLetters: string, to: ReadonlyArray<string> | undefined): boolean => {
  if (to !== undefined) return to.includes(topic)
  // `orders.dead` belongs to `orders`, and to `orders.created` where the source has wildcards.
  const base = deadLetters.replace(/[^A-Za-z0-9][A-Za-z0-9]*$/, "")
  return isBelow(deadLetters, topic) || (base !== deadLetters && topic !== deadLetters && isBelow(topic, base))
}

const isBelow = (topic: string, base: string): boolean =>
  base !== "" && topic.startsWith(base) && /^[^A-Za-z0-9]/.test(topic.slice(base.length))

/** Waits so that `rate` letters a second pass, evenly; without a rate it does not wait. */
const pacer = (rate: number | undefined): (count: number) => Effect.Effect<void> => {
  if (rate === undefined) return () => Effect.void
  let next = -Infinity
  return (count) =>
    Effect.flatMap(Clock.currentTimeMillis, (now) => {
      const start = Math.max(now, next)
      next = start + count * 1000 / rate
      return start > now ? Effect.sleep(start - now) : Effect.void
    })
}

const maxStep = 128

/** Single letters at first, so that what is wrong with all of them shows after a few; then more and more at a time. */
export const inSteps = <E, R>(
  items: Stream.Stream<Item, E, R>,
  rate: number | undefined,
  step: (items: Arr.NonEmptyReadonlyArray<Item>) => Effect.Effect<void, E>
): Effect.Effect<void, E, R> => {
  const most = rate === undefined ? maxStep : Math.min(maxStep, Math.max(1, Math.floor(rate / 10)))
  const pace = pacer(rate)
  let gathered: Array<Item> = []
  let steps = 0
  const flush = Effect.suspend(() => {
    const ready = gathered
    if (!Arr.isArrayNonEmpty(ready)) return Effect.void
    gathered = []
    steps++
    return Effect.andThen(pace(ready.length), step(ready))
  })
  const enough = () => gathered.length >= Math.min(most, steps < 8 ? 1 : 2 ** Math.min(steps - 7, 10))
  return Effect.andThen(
    Stream.runForEach(items, (item) => {
      gathered.push(item)
      return enough() ? flush : Effect.void
    }),
    flush
  )
}
