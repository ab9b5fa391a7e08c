/** Judges a history: what became of every message that the broker confirmed, and whether the laws held. */
import type * as DeadLetter from "@millrace/core/DeadLetter"
import type { Fault, Line } from "./journal.ts"

/** What is found on the broker in the end. */
export interface Remains {
  /** Ids in the topic, in its order. */
  readonly topic: ReadonlyArray<string>
  readonly deadLetters: ReadonlyArray<DeadLetter.Record>
  /** The job numbers in the topic of results. */
  readonly done: ReadonlyArray<number>
}

/** Why a message was given to a handler again. */
export type Cause = "retry" | "handed back" | "consumer killed" | Fault

export interface Verdict {
  readonly accepted: number
  readonly begun: number
  readonly handled: number
  readonly deadLetters: number
  readonly lost: number
  readonly repeats: ReadonlyMap<Cause, number>
  /** Attempts that were counted and that no handler saw. */
  readonly burned: number
  /** Milliseconds from a message's being handed back to its being begun by a peer. */
  readonly takeOver: ReadonlyArray<number>
  /** Milliseconds from the end of a fault to the next message that is begun. */
  readonly resumed: ReadonlyArray<number>
  /** Milliseconds from SIGTERM to the end of the process. */
  readonly exits: ReadonlyArray<number>
  readonly faults: number
  /** Sentences; none when all laws held. */
  readonly broken: ReadonlyArray<string>
}

interface Begun {
  readonly index: number
  readonly line: Extract<Line, { _tag: "Begun" }>
  ended?: { readonly at: number; readonly outcome: string }
}

interface Episode {
  readonly fault: Fault
  readonly of: number
  readonly from: number
  to: number
}

/** Milliseconds that a fault goes on to show: the claim time, and a look at what can be claimed. */
const aftermath = 3_500

const causeOf = (
  previous: Begun,
  next: Begun,
  killed: ReadonlyMap<number, number>,
  episodes: ReadonlyArray<Episode>
): Cause | undefined => {
  if (previous.ended?.outcome === "Retried") return "retry"
  if (previous.ended?.outcome === "Released") return "handed back"
  const death = killed.get(previous.line.pid)
  if (death !== undefined && death < next.index) return "consumer killed"
  // Of a process that was paused a peer takes over; it does not take back what the peer has begun.
  return episodes.find(({ from, of, to }) =>
    from < next.line.at && to + aftermath > previous.line.at && (of === 0 || of === previous.line.pid)
  )?.fault
}

export const judge = (
  lines: ReadonlyArray<Line>,
  remains: Remains,
  /** Which jobs must end as dead letters; not given when nobody can know. */
  mustDie: ((n: number) => boolean) | undefined
): Verdict => {
  const numbers = new Map<string, number>()
  const byId = new Map<string, Array<Begun>>()
  const current = new Map<string, Begun>()
  const handled = new Set<string>()
  const buried = new Set<string>()
  const killed = new Map<number, number>()
  const episodes: Array<Episode> = []
  const releasedAt = new Map<string, number>()
  const healedAt: Array<number> = []
  const takeOver: Array<number> = []
  const resumed: Array<number> = []
  const exits: Array<number> = []
  const broken = new Set<string>()
  const orders = new Map<string, Order>()
  /** Where a retry is waited for. */
  const waiting = new Map<string, Order>()
  const position = new Map(remains.topic.map((id, i) => [id, i]))
  const forgets = lines.some((line) => line._tag === "Fault" && line.fault === "broker killed")
  const keys = new Map(lines.flatMap((line) => line._tag === "Begun" ? [[line.id, line.key] as const] : []))
  const processes = new Set(lines.flatMap((line) => line._tag === "Begun" ? [line.pid] : []))
  // Of several processes another one may have what this one has lost.
  const knownPosition = processes.size === 1 ? position : new Map<string, number>()
  const orderOf = ({ id, pid }: { readonly id: string; readonly pid: number }): Order | undefined => {
    const key = keys.get(id) ?? ""
    if (key === "") return undefined
    const order = orders.get(`${pid} ${key}`) ?? new Order(knownPosition)
    orders.set(`${pid} ${key}`, order)
    return order
  }
  let begun = 0

  lines.forEach((line, index) => {
    switch (line._tag) {
      case "Accepted":
        numbers.set(line.id, line.n)
        break
      case "Begun": {
        begun++
        const here = `${line.pid} ${line.id}`
        const now: Begun = { index, line }
        const twice = current.get(here)
        if (twice !== undefined && twice.ended === undefined) broken.add(`${line.id} ran twice in one process`)
        current.set(here, now)
        const all = byId.get(line.id)
        if (all === undefined) byId.set(line.id, [now])
        else all.push(now)
        const released = releasedAt.get(line.id)
        if (released !== undefined) takeOver.push(line.at - released)
        releasedAt.delete(line.id)
        for (const at of healedAt.splice(0)) resumed.push(line.at - at)
        waiting.get(line.id)?.cameBack(line.id)
        waiting.delete(line.id)
        // A broker that was killed may give out as new what it had delivered.
        orderOf(line)?.begin(line, forgets ? undefined : position.get(line.id), broken)
        break
      }
      case "Ended": {
        const of = current.get(`${line.pid} ${line.id}`)
        if (of !== undefined) of.ended ??= line
        const order = orderOf(line)
        // The acknowledgement of a former owner stands.
        const isSettled = handled.has(line.id) || buried.has(line.id)
        const { outcome } = line
        order?.end({ id: line.id, outcome: isSettled && outcome === "Lost" ? "Handled" : outcome })
        if (order !== undefined && (outcome === "Retried" || outcome === "Lost" && !isSettled)) {
          waiting.set(line.id, order)
        }
        if (line.outcome === "Handled" || line.outcome === "Filtered") handled.add(line.id)
        if (line.outcome === "DeadLettered") buried.add(line.id)
        if (line.outcome === "Released") releasedAt.set(line.id, line.at)
        break
      }
      case "Fault":
        episodes.push({ fault: line.fault, of: line.of, from: line.at, to: Infinity })
        break
      case "Healed":
        for (const episode of episodes) {
          if (episode.fault === line.fault && episode.of === line.of) episode.to = Math.min(episode.to, line.at)
        }
        healedAt.push(line.at)
        break
      case "Gone":
        if (line.how === "drained") exits.push(line.after)
        else killed.set(line.of, index)
        if (line.how === "crashed") broken.add(`process ${line.of} crashed`)
        break
      case "Up":
        break
    }
  })

  const onDisk = new Set(remains.topic)
  let lost = 0
  for (const [id, n] of numbers) {
    if (!onDisk.has(id)) broken.add(`the broker itself no longer has ${id}, which it had confirmed`)
    if (!handled.has(id) && !buried.has(id)) {
      lost++
      broken.add(`${id} is lost`)
    }
    if (mustDie !== undefined && buried.has(id) !== mustDie(n)) {
      broken.add(mustDie(n) ? `${id} is no dead letter` : `${id} was dead-lettered without cause`)
    }
  }

  const repeats = new Map<Cause, number>()
  let burned = 0
  for (const [id, all] of byId) {
    let counted = 0
    let excess = 0
    all.forEach((now, i) => {
      const previous = all[i - 1]
      const { attempt, redelivered } = now.line
      if (previous !== undefined) {
        const cause = causeOf(previous, now, killed, episodes)
        if (cause === undefined) broken.add(`${id} was repeated without cause, at attempt ${attempt}`)
        else repeats.set(cause, (repeats.get(cause) ?? 0) + 1)
        if (!forgets && attempt === 1 && !redelivered) broken.add(`${id} was repeated and does not say so`)
        if (!forgets && attempt < previous.line.attempt) {
          broken.add(`the attempt of ${id} went from ${previous.line.attempt} to ${attempt}`)
        }
      }
      if (attempt - 1 - counted > excess) {
        burned += attempt - 1 - counted - excess
        excess = attempt - 1 - counted
      }
      if (now.ended?.outcome !== "Released") counted++
    })
  }

  const letters = new Map<string, number>()
  for (const { id } of remains.deadLetters) letters.set(id, (letters.get(id) ?? 0) + 1)
  for (const [id, count] of letters) {
    if (count > 1) broken.add(`${count} dead letters of ${id}`)
    if (!buried.has(id)) broken.add(`${id} has a dead letter that nobody reports`)
  }
  for (const id of buried) if (!letters.has(id)) broken.add(`the dead letter of ${id} is not there`)

  const done = new Map<number, number>()
  if (mustDie !== undefined) { for (const n of remains.done) done.set(n, (done.get(n) ?? 0) + 1) }
  for (const [n, count] of done) if (count > 1) broken.add(`${count} results of job ${n}`)
  for (const id of handled) {
    const n = mustDie === undefined ? undefined : numbers.get(id)
    if (n !== undefined && !done.has(n)) broken.add(`job ${n} was handled and has no result`)
  }

  return {
    accepted: numbers.size,
    begun,
    handled: handled.size,
    deadLetters: letters.size,
    lost,
    repeats,
    burned,
    takeOver,
    resumed,
    exits,
    faults: episodes.length + killed.size,
    broken: [...broken]
  }
}

/** Law 7, of one key in one process. */
class Order {
  private running: string | undefined
  private retrying: string | undefined
  /** Delivered to this process, begun or not, and lost. */
  private readonly lost = new Set<string>()
  private last = -1
  private readonly position: ReadonlyMap<string, number>

  constructor(position: ReadonlyMap<string, number>) {
    this.position = position
  }

  begin(
    { attempt, id, redelivered }: Extract<Line, { _tag: "Begun" }>,
    at: number | undefined,
    broken: Set<string>
  ): void {
    if (this.running !== undefined && this.running !== id) broken.add(`${id} began beside ${this.running} of its key`)
    if (this.retrying !== undefined && this.retrying !== id) {
      broken.add(`${id} overtook ${this.retrying} of its key, which waits for its retry`)
    }
    this.lost.delete(id)
    const here = this.position.get(id) ?? -1
    for (const lost of this.lost) {
      if (this.position.get(lost)! < here) {
        broken.add(`${id} overtook ${lost} of its key, which was lost and comes again`)
      }
    }
    this.running = id
    if (attempt > 1 || redelivered || at === undefined) return
    if (at < this.last) broken.add(`${id} began behind a later one of its key`)
    this.last = at
  }

  /** Here or in another process. */
  cameBack(id: string): void {
    if (this.retrying === id) this.retrying = undefined
    this.lost.delete(id)
  }

  end({ id, outcome }: Pick<Extract<Line, { _tag: "Ended" }>, "id" | "outcome">): void {
    if (this.running === id) this.running = undefined
    if (outcome === "Retried") this.retrying = id
    // Its last attempt was lost before it began: it becomes a dead letter without another one.
    else if (outcome === "DeadLettered" && this.retrying === id) this.retrying = undefined
    if (outcome === "Lost" && this.position.has(id)) this.lost.add(id)
    else this.lost.delete(id)
  }
}

/** The value below which `p` of them lie. */
export const percentile = (values: ReadonlyArray<number>, p: number): number =>
  [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * p))] ?? 0
