import type { Outgoing } from "@millrace/core/Transport"
import type * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import type { Argument, Command } from "./command.ts"
import { appendFields, written } from "./entry.ts"
import * as keys from "./keys.ts"
import { text } from "./reply.ts"
import * as adds from "./scripts/add.ts"
import { evalsha } from "./scripts/script.ts"
import type { ServerClock } from "./serverClock.ts"
import type { Settings, Trim } from "./settings.ts"

const longestDelay = 100 * 365 * 86_400_000

/** The hashes of ids around a period, as the scripts take them. */
interface Ids {
  readonly period: number
  readonly keys: ReadonlyArray<string>
}

/** Nothing was stored: the reply is the server's time, from which the periods of ids are computed. */
export const isClock = (reply: unknown): boolean =>
  Array.isArray(reply) && reply.length === 2 && !Array.isArray(reply[0]) && text(reply[0]) === "clock"

/** Makes the commands that publish. */
export class PublishCommands {
  private readonly settings: Settings
  private readonly clock: ServerClock
  /** Topics that hold dead letters, which no bound trims. */
  private readonly unbounded: ReadonlySet<string>
  private readonly keepFor: string
  private readonly length: string
  private readonly ids = new Map<string, Ids>()

  constructor(settings: Settings, clock: ServerClock, unbounded: ReadonlySet<string>) {
    this.settings = settings
    this.clock = clock
    this.unbounded = unbounded
    this.keepFor = String(settings.deduplication * 3)
    this.length = String(settings.deduplication)
  }

  of(key: string, message: Outgoing): Command {
    if (this.isOnce(message)) return this.once(key, [message])
    const bound = this.boundOf(message.topic)
    if (message.delay === undefined && bound === undefined) {
      const command: Array<Argument> = ["XADD", key, "*"]
      appendFields(command, message)
      return command
    }
    if (message.delay !== undefined) {
      const { args, ids } = this.noted(key, message.id ?? "")
      args.push(
        String(Math.min(longestDelay, Math.max(0, Math.ceil(Duration.toMillis(message.delay))))),
        `delayed-${crypto.randomUUID()}`,
        key,
        ...lengthOf(bound)
      )
      return evalsha(adds.delay, [keys.delayed(key), ...ids], appendFields(args, message))
    }
    return bound?.by === "age"
      ? evalsha(adds.add, [key], appendFields([howOf(bound), String(bound.age)], message))
      : appendFields(["XADD", key, ...lengthOf(bound)], message)
  }

  /** Whether the message is stored by `once`. */
  isOnce(message: Outgoing): boolean {
    return message.id !== undefined && message.delay === undefined
  }

  /** Stores messages of one topic, each unless its id was used before; with several, the replies are one array. */
  once(key: string, messages: Arr.NonEmptyReadonlyArray<Outgoing>): Command {
    const bound = this.boundOf(messages[0].topic)
    const { args, ids } = this.noted(key, "")
    args.push(...(bound?.by === "age" ? [howOf(bound), String(bound.age)] : ["", ""]))
    const shared = lengthOf(bound)
    args.push(String(shared.length), ...shared)
    let before: Outgoing["headers"] | undefined
    for (const message of messages) {
      args.push(message.id ?? "", "")
      const from = args.length
      if (message.fields === undefined && message.headers === before) {
        args.push(written(message.body))
        continue
      }
      appendFields(args, message)
      args[from - 1] = String(args.length - from)
      before = message.fields === undefined ? message.headers : undefined
    }
    return evalsha(adds.addOnce, [key, ...ids], args)
  }

  /** Whether the topic is trimmed by age, for which the server's time is needed. */
  isTrimmedByAge({ topic }: Outgoing): boolean {
    return this.boundOf(topic)?.by === "age"
  }

  /** The entry without its id, and without a script. `now`: the server's time, where the topic is trimmed by age. */
  add(key: string, message: Outgoing, now = 0): Command {
    const bound = this.boundOf(message.topic)
    const trim = bound?.by === "age" ? ["MINID", howOf(bound), String(now - bound.age), "*"] : lengthOf(bound)
    return appendFields(["XADD", key, ...trim], message)
  }

  find(key: string, id: string): Command {
    const { args, ids } = this.noted(key, id)
    return evalsha(adds.findOnce, [key, ...ids], args)
  }

  note(key: string, id: string, entry: string): Command {
    const { args, ids } = this.noted(key, id)
    return evalsha(adds.noteOnce, [key, ...ids], [...args, entry])
  }

  private boundOf(topic: string): Trim | undefined {
    return this.unbounded.has(topic) ? undefined : this.settings.bound
  }

  /** Arguments that the scripts with ids begin with, and the hashes of ids. */
  private noted(key: string, id: string): { readonly args: Array<Argument>; readonly ids: ReadonlyArray<string> } {
    const period = Math.floor(this.clock.now() / this.settings.deduplication)
    let ids = this.ids.get(key)
    if (ids?.period !== period) {
      if (this.ids.size >= maxKeys) this.ids.clear()
      ids = { period, keys: [period - 2, period - 1, period, period + 1].map((at) => keys.published(key, at)) }
      this.ids.set(key, ids)
    }
    return { args: [id, this.keepFor, String(period), this.length], ids: ids.keys }
  }
}

const howOf = (bound: Trim): string => bound.exact ? "=" : "~"

/** Arguments of XADD that bound the length, and the id that the server gives. */
const lengthOf = (bound: Trim | undefined): ReadonlyArray<string> =>
  bound?.by === "length" ? ["MAXLEN", howOf(bound), String(bound.length), "*"] : ["*"]

/** Topics may be made of ids. */
const maxKeys = 10_000
