import * as DeadLetter from "@millrace/core/DeadLetter"
import * as Argument from "effect/cli/Argument"
import * as Flag from "effect/cli/Flag"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as shared from "./shared.ts"

export const topic = Argument.String("topic").pipe(
  Argument.withDescription("A dead-letter topic, such as orders.dead")
)

export const filters = {
  tag: Flag.String("tag").pipe(Flag.withDescription("With this error tag"), Flag.optional),
  text: Flag.String("text").pipe(Flag.withDescription("With this text in the error"), Flag.optional),
  reason: Flag.Literals("reason", DeadLetter.DeadLetterReason.literals).pipe(
    Flag.withDescription("Given up for this reason"),
    Flag.optional
  ),
  failedGroup: Flag.String("of-group").pipe(Flag.withDescription("Failed in this group"), Flag.optional),
  from: Flag.String("from").pipe(Flag.withDescription("Failed in this topic"), Flag.optional),
  olderThan: shared.duration("older-than").pipe(Flag.withDescription("Failed longer ago than this"), Flag.optional),
  newerThan: shared.duration("newer-than").pipe(Flag.withDescription("Failed not longer ago than this"), Flag.optional)
}

export interface Filters {
  readonly tag: Option.Option<string>
  readonly text: Option.Option<string>
  readonly reason: Option.Option<DeadLetter.DeadLetterReason>
  readonly failedGroup: Option.Option<string>
  readonly from: Option.Option<string>
  readonly olderThan: Option.Option<number>
  readonly newerThan: Option.Option<number>
}

const criteria = (given: Filters, now: number): DeadLetter.Criteria => ({
  tag: Option.getOrUndefined(given.tag),
  text: Option.getOrUndefined(given.text),
  reason: Option.getOrUndefined(given.reason),
  group: Option.getOrUndefined(given.failedGroup),
  topic: Option.getOrUndefined(given.from),
  failedUntil: Option.isSome(given.olderThan) ? now - given.olderThan.value : undefined,
  failedFrom: Option.isSome(given.newerThan) ? now - given.newerThan.value : undefined
})

export const filterOf = (given: Filters, more: DeadLetter.Criteria = {}) =>
  Effect.map(Clock.currentTimeMillis, (now) => DeadLetter.matching({ ...criteria(given, now), ...more }))
