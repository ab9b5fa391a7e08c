import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { GroupInfo, Transport } from "../Transport.ts"
import type { TransportError } from "../TransportError.ts"

type Groups = Effect.Effect<ReadonlyArray<GroupInfo>, TransportError>

/** Asks a broker about groups once, for all pipelines of the process that want to know. */
export class GroupPoll {
  private readonly answers = new Map<string, { readonly at: number; readonly groups: Groups }>()

  private static readonly all = new WeakMap<object, GroupPoll>()

  static of(transport: Transport["Service"]): GroupPoll {
    let poll = GroupPoll.all.get(transport)
    if (poll === undefined) GroupPoll.all.set(transport, poll = new GroupPoll())
    return poll
  }

  private constructor() {}

  /** What `ask` has said `about` groups at most `maxAge` milliseconds before `now`, or says now. */
  answer(about: string, ask: Groups, maxAge: number, now: number): Groups {
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
