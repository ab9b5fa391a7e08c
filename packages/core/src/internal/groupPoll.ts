import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { GroupInfo, Subscription, Transport } from "../Transport.ts"
import type { TransportError } from "../TransportError.ts"

type Groups = Effect.Effect<ReadonlyArray<GroupInfo>, TransportError>

/** Asks a broker about the groups of a topic once, for all pipelines of the process that want to know. */
export class GroupPoll {
  private readonly transport: Transport["Service"]
  private readonly answers = new Map<string, { readonly at: number; readonly groups: Groups }>()

  private static readonly all = new WeakMap<object, GroupPoll>()

  static of(transport: Transport["Service"]): GroupPoll {
    let poll = GroupPoll.all.get(transport)
    if (poll === undefined) GroupPoll.all.set(transport, poll = new GroupPoll(transport))
    return poll
  }

  private constructor(transport: Transport["Service"]) {
    this.transport = transport
  }

  /** The groups of a topic as they were at most `maxAge` milliseconds before `now`. */
  groups(topic: string, maxAge: number, now: number): Groups {
    return this.answer(topic, this.transport.groups(topic), maxAge, now)
  }

  /** The one group that a subscription knows, in the same way. */
  group(topic: string, group: string, ask: Subscription["group"] & {}, maxAge: number, now: number): Groups {
    return this.answer(
      JSON.stringify([topic, group]),
      Effect.map(ask, (info) => info === undefined ? [] : [info]),
      maxAge,
      now
    )
  }

  private answer(about: string, ask: Groups, maxAge: number, now: number): Groups {
    const known = this.answers.get(about)
    if (known !== undefined && now - known.at < maxAge) return known.groups
    const answer = Deferred.makeUnsafe<ReadonlyArray<GroupInfo>, TransportError>()
    this.answers.set(about, { at: now, groups: Deferred.await(answer) })
    return Effect.onExit(ask, (exit) =>
      Effect.sync(() => {
        // The pipeline that asked has stopped: the others know nothing until they ask.
        const isStopped = Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)
        if (isStopped) this.answers.delete(about)
        Deferred.doneUnsafe(answer, isStopped ? Exit.succeed([]) : exit)
      }))
  }
}
