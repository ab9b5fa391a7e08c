/**
 * The rows that this project does not meet: the limit of each, by the profiles in docs/benchmarks.md, and the attempts to raise it.
 */
import { type Row, verdict } from "./row.ts"
import { markdown } from "./table.ts"

interface Limit {
  readonly rows: string
  /** Which rows it is about, by their beginnings. */
  readonly of: ReadonlyArray<string>
  readonly profile: string
  readonly tried: string
}

const limits: ReadonlyArray<Limit> = [
  {
    rows: "consume, function: rate and CPU of raw",
    of: ["consume, function, Redis", "consume, function, JetStream", "against FastStream"],
    profile:
      "`decode` (JSON, the same in both) is the largest function; all that is ours is spread over about thirty functions of a tenth of a microsecond or less: the attempt, its lease, its settlement and the answer to it. The raw loop has none of them. On Redis the pipeline waits for the server between two reads",
    tried:
      "flat steps without a fiber; a check instead of a walk through the schema for plain structs; one settlement command a turn; one look at the clock in 16 handlers; arrays in place of maps; reads of 256 beside the handlers (no difference seen); a prefetch of 1,024 in place of 512 (rate 1.09 (0.98 – 1.21) on Redis, 1.12 (0.99 – 1.27) on JetStream); giving way to the event loop when a read has been asked for (1.00 (0.92 – 1.09))"
  },
  {
    rows: "consume, Effect",
    of: ["consume, Effect, Redis", "consume, Effect, JetStream"],
    profile: "beside that a fiber, a Scope and a Context for each message",
    tried:
      "no fiber for an Effect that has ended when it is returned; one Scope an attempt, and only where an Effect runs"
  },
  {
    rows: "memory, of its bare loop",
    of: ["consume, function, memory", "consume, Effect, memory", "retry and dead letters"],
    profile: "`decode` is half of it, and the engine does on memory what it does on a broker",
    tried: "as above"
  },
  {
    rows: "handlers that wait",
    of: ["consume, promise that waits", "consume, Effect that waits"],
    profile:
      "timers, promises and writes are the largest part, the same in both; messages end a few at a time, and the pipeline reads and settles in smaller numbers than the raw pool does",
    tried:
      "one continuation for a promise, without a promise of our own; a settlement waits up to 32 turns for others; the pull is refilled when half is gone"
  },
  {
    rows: "1 % failures",
    of: ["1 % failures"],
    profile:
      "a failure writes its due time beside the stream and is handed out again by a script: about seven commands, and a read that is ended for it; the `Error` with its stack is the user's",
    tried:
      "retries of one turn are recorded by one script, and due ones handed out together; the error is described only where its line is written, which took a quarter of what a failure costs here"
  },
  {
    rows: "publish, 500 fibers",
    of: ["publish, "],
    profile:
      "each of them is a fiber, a queue entry and a completion of its own, and the raw loop has promises: 500 fibers of Effect that wait for a callback take 1.2 to 2.1 µs each before anything is published, and a sixth of the time is garbage collection",
    tried:
      "publishes of a turn are one write and one completion; no generators on the way; bodies of ASCII are written as texts, and encoded into the memory that buffers share (0.17 µs, 0.55 before)"
  },
  {
    rows: "map then to",
    of: ["map then to"],
    profile:
      "on Redis the CPU of the process: decoding, encoding, the attempt, its settlement and its output, where the raw loop has the first two and a shorter id, and keeps ids in one hash that never shrinks while it runs. On JetStream the writes of the client and the parsing of confirmations are the largest part",
    tried:
      "outputs of a turn are published together, and on Redis stored by one script (7.0 commands a message before) that takes three arguments for each (six before); half of them are on their way while the other half is handled (0.64 and 0.55 of raw, 0.54 and 0.39 before both); encoding without a walk through the schema; confirmations answered in two halves (rate 1.01 (0.92 – 1.10) at 64 and 0.95 (0.84 – 1.08) at 256 of that without)"
  },
  {
    rows: "p99 at half load",
    of: ["p99 at 50 %", "lone message"],
    profile:
      "the pipeline takes more CPU a message than the raw loop, so that half of what the raw loop sustains is more than half of what the pipeline does",
    tried: "settlements do not wait for a full batch; requests on credit stay open"
  },
  {
    rows: "metrics on, unsampled spans",
    of: ["metrics on", "unsampled spans"],
    profile:
      "a reading of the clock for each message and the numbers of its series; of an unsampled span the decision alone",
    tried:
      "one reading of the clock between two handlers, in place of three; the series of handled messages is looked up once a run; the decision about a span comes before any closure or Effect"
  },
  {
    rows: "bodies of 16 and 256 KB",
    of: ["bodies of"],
    profile: "parsing and decoding, the same in both, and the copies of sockets",
    tried: "what is asked for is bounded by bytes, so that less is in memory at a time"
  },
  {
    rows: "against BullMQ",
    of: ["consume, against BullMQ", "add and process, against BullMQ"],
    profile:
      "what limits consuming, for which see there; the values are above the bounds, their intervals are not always",
    tried: "as for consuming; a run on a quieter machine gave 8.99 (8.60 – 9.40)"
  },
  {
    rows: "several processes",
    of: ["growth from"],
    profile: "four processes and a broker share two cores: what grows is how the machine divides them",
    tried: "nothing beyond what a message costs, for which see consume"
  },
  {
    rows: "resident memory",
    of: ["resident memory"],
    profile: "V8's heap; with the heap bounded, the resident memory stands still",
    tried: "the table of seen messages is resident before the first sample; other allocators make no difference"
  },
  {
    rows: "lines of code",
    of: ["lines of code"],
    profile: "docs/decisions/0008-rooms-of-the-engine.md counts them by what they are for",
    tried: "duplicates and unused code are deleted; without later work core alone would be above the bound"
  },
  {
    rows: "1,000 JetStream subscriptions",
    of: ["1000 subscriptions"],
    profile:
      "the process computes for about two thirds of the time (requests, answers, Effects), and a quarter of all is for 2,000 lookups of streams by subject; the server creates 2,000 streams and 1,000 consumers",
    tried:
      "pipelines that start together look at all streams once, and look for the bucket of attempts once: 5,000 calls, where they made 9,700. Without the lookups the start took 2.2 s in place of 2.9, but another stream may take the subject"
  }
]

/** The table for the docs. */
export const table = (): string =>
  markdown(
    ["row", "what the profile shows", "what was tried"],
    limits.map(({ profile, rows, tried }) => [rows, profile, tried])
  )

/** What there is to say about rows of a run that are not met, or that the run cannot tell. */
export const text = (rows: ReadonlyArray<Row>): string => {
  const open = rows.filter((row) => row.estimate !== undefined && verdict(row) !== "met")
  return limits
    .filter(({ of }) => open.some(({ what }) => of.some((beginning) => what.startsWith(beginning))))
    .map(({ profile, rows, tried }) => `${rows}\n  profile: ${profile}\n  tried:   ${tried}`)
    .join("\n")
}
