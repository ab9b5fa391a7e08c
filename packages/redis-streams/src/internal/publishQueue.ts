import type { Outgoing } from "@millrace/core/Transport"
import type * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import type { Command } from "./command.ts"
import { Lost } from "./connection.ts"
import { isClock, type PublishCommands } from "./publishCommands.ts"
import { list, refusal, text } from "./reply.ts"

/** A publish that waits for its turn. */
interface Waiting {
  readonly key: string
  readonly messages: ReadonlyArray<Outgoing>
  readonly resume: (replies: Effect.Effect<ReadonlyArray<unknown>>) => void
}

/**
 * Collects publishes and sends them as one write for each turn of the event loop, with one completion for all of them. A
 * lone publish goes out at once; when the last write was less than a millisecond ago, the queue waits for the turn to end.
 */
export class PublishQueue {
  private readonly options: {
    /** Sends commands that concern one node, and gives their replies in order. */
    readonly send: (key: string, commands: ReadonlyArray<Command>) => Effect.Effect<ReadonlyArray<unknown>>
    readonly isUp: (key: string) => boolean
    readonly commands: PublishCommands
    /** Which queue a key belongs to: in a cluster keys live on different nodes. */
    readonly placeOf: (key: string) => string
  }
  private readonly queues = new Map<string, Array<Waiting>>()
  private lastFlush = -Infinity
  private isScheduled = false

  constructor(options: PublishQueue["options"]) {
    this.options = options
  }

  /** Resolves to the replies. Interrupted before its turn, or while there is no connection, nothing is sent. */
  publish(key: string, messages: ReadonlyArray<Outgoing>): Effect.Effect<ReadonlyArray<unknown>> {
    return Effect.callback((resume) => {
      const waiting: Waiting = { key, messages, resume }
      const place = this.options.placeOf(key)
      const queue = this.queues.get(place)
      if (queue === undefined) this.queues.set(place, [waiting])
      else queue.push(waiting)
      this.schedule()
      return Effect.sync(() => {
        const queue = this.queues.get(place)
        const at = queue?.indexOf(waiting) ?? -1
        if (at >= 0) queue!.splice(at, 1)
      })
    })
  }

  private schedule(): void {
    if (this.isScheduled) return
    this.isScheduled = true
    if (performance.now() - this.lastFlush < 1) setImmediate(this.flush)
    else queueMicrotask(this.flush)
  }

  private readonly flush = (): void => {
    this.isScheduled = false
    this.lastFlush = performance.now()
    const queues = [...this.queues.values()]
    this.queues.clear()
    for (const queue of queues) this.flushQueue(queue)
  }

  private flushQueue(queue: ReadonlyArray<Waiting>): void {
    const { commands, isUp, send } = this.options
    const [first] = queue
    if (first === undefined) return
    // Without a connection each caller waits for itself: only some may find room, and one may be interrupted.
    if (!isUp(first.key)) {
      for (const { key, messages, resume } of queue) {
        resume(Effect.suspend(() => send(key, messages.map((message) => commands.of(key, message)))))
      }
      return
    }
    const turn = new Turn(commands)
    for (const { key, messages } of queue) for (const message of messages) turn.add(key, message)
    const { made } = turn
    Effect.runFork(send(first.key, made)).addObserver((exit) => {
      const replies = turn.repliesOf(
        exit._tag === "Success" ? exit.value : made.map(() => new Lost(true, new Error("interrupted")))
      )
      let at = 0
      for (const { messages, resume } of queue) resume(Effect.succeed(replies.slice(at, at += messages.length)))
    })
  }
}

/** One script stores so many messages, of about so many bytes: the server does nothing else meanwhile. */
const maxTogether = 128
const maxTogetherBytes = 256 * 1024

/** Messages that one command publishes: one, or several of a topic that have ids. */
interface Part {
  readonly key: string
  readonly messages: Arr.NonEmptyArray<Outgoing>
  bytes: number
}

/** The commands of one turn. The messages of a topic keep their order. */
class Turn {
  private readonly commands: PublishCommands
  private readonly parts: Array<Part> = []
  /** By key: what the next message with an id may join. */
  private readonly open = new Map<string, Part>()
  /** Of each message: its part. */
  private readonly places: Array<Part> = []

  constructor(commands: PublishCommands) {
    this.commands = commands
  }

  add(key: string, message: Outgoing): void {
    const bytes = message.body.byteLength
    const open = this.open.get(key)
    const isOnce = this.commands.isOnce(message)
    if (isOnce && open !== undefined && open.messages.length < maxTogether && open.bytes + bytes <= maxTogetherBytes) {
      open.messages.push(message)
      open.bytes += bytes
      this.places.push(open)
      return
    }
    const part: Part = { key, messages: [message], bytes }
    this.parts.push(part)
    this.places.push(part)
    if (isOnce) this.open.set(key, part)
    else this.open.delete(key)
  }

  get made(): ReadonlyArray<Command> {
    return this.parts.map(({ key, messages }) =>
      messages.length === 1 ? this.commands.of(key, messages[0]) : this.commands.once(key, messages)
    )
  }

  /** The replies of the messages, from those of the commands. */
  repliesOf(replies: ReadonlyArray<unknown>): ReadonlyArray<unknown> {
    const left = new Map(this.parts.map((part, i) => [part, split(replies[i], part.messages.length)]))
    return this.places.map((part) => left.get(part)!.next().value)
  }
}

/** What a command replies concerns all of its messages, unless the script could tell them apart. */
function* split(reply: unknown, count: number): Generator<unknown, undefined> {
  const replies = count === 1 || isClock(reply) || !Array.isArray(reply) ? undefined : reply
  for (let i = 0; i < count; i++) {
    if (replies === undefined) yield reply
    else {
      const [error, state] = list(replies[i])
      yield state === 2 ? refusal(text(error)) : replies[i]
    }
  }
}
