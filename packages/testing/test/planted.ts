/** Faults that are planted into the engine, one at a time: the simulation must find each of them. */
export interface Planted {
  /** What the engine does wrong. */
  readonly name: string
  readonly law: string
  /** Under `packages/core/src/internal`. */
  readonly file: string
  readonly from: string
  readonly to: string
}

export const planted: ReadonlyArray<Planted> = [
  {
    name: "retries at the deadline of a drain what it has interrupted",
    law: "law 3",
    file: "outcome.ts",
    from: "      case \"interrupted\":\n        return this.released(attempt)",
    to: "      case \"interrupted\":\n        return this.failed(attempt, Cause.die(\"stopped\"))"
  },
  {
    name: "does not stop the handler of a lost message",
    law: "law 8",
    file: "deliveries.ts",
    from: "return handler.interrupt(attempt, new Error(\"another consumer owns this message\"))",
    to: "return"
  },
  {
    name: "publishes each attempt's outputs under other ids",
    law: "law 4",
    file: "outputs.ts",
    from: "${message!.id}/${this.options.path}`",
    to: "${message!.id}/${this.options.path}/${message!.attempt}`"
  },
  {
    name: "runs a suspect beside others, whatever attempts are left",
    law: "law 2",
    file: "isolation.ts",
    from: "return this.limit - delivery.attempt >= 2 ? \"single\" : \"alone\"",
    to: "return \"free\""
  },
  {
    name: "runs two messages of one key at a time",
    law: "law 7",
    file: "keyedQueue.ts",
    from: "if (lane.waiting[0] === waiting && this.mayBegin(lane))",
    to: "if (lane.waiting[0] === waiting)"
  },
  {
    name: "lets the next message of a key overtake a retry",
    law: "law 7",
    file: "keyedQueue.ts",
    from: "if (lane === undefined || this.retries.has(id)) return",
    to: "return"
  },
  {
    name: "begins what it has buffered without asking whether it is still its own",
    law: "law 8",
    file: "ownership.ts",
    from: "this.wasSure = ",
    to: "this.wasSure = true || "
  }
]
