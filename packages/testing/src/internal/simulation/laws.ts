import * as DeadLetter from "@millrace/core/DeadLetter"
import type * as Settlement from "@millrace/core/Settlement"
import type * as Telemetry from "@millrace/core/Telemetry"
import type { Delivery, Demand, Outgoing, Settling } from "@millrace/core/Transport"
import * as Duration from "effect/Duration"
import * as Exit from "effect/Exit"
import { dedupWindow } from "../memory/broker.ts"
import type { World } from "./world.ts"

type Tag = Settlement.Settlement["_tag"]

/**
 * A law that did not hold: `law 1` to `law 8`, or `contract`, and when, in milliseconds since the beginning.
 *
 * @category models
 * @since 0.1.0
 */
export interface Violation {
  readonly law: string
  readonly at: number
  readonly text: string
}

/** All that is known of one message of the source. */
interface Passage {
  readonly id: string
  readonly outgoing: Outgoing
  readonly sequence: number
  readonly isPoison: boolean
  deliveries: number
  /** Releases that were said, and those of them that arrived. */
  readonly released: { said: number; arrived: number }
  /** The last one: whoever has it may settle it. */
  holding: Holding | undefined
  /** The one before it. */
  before: Holding | undefined
  isSettled: boolean
  /** A handler, or a dead letter, has done with it. */
  isDone: boolean
  /** The place that it had in a process which waits for its retry, or has lost it, whoever else has had it since. */
  readonly awaited: Map<string, number>
  /** It has ended a process. */
  isKiller: boolean
  /** Attempts that ended by its own failure, or were left unsettled for another reason than a killer. */
  otherwiseSpent: number
}

/** One delivery to one process. */
interface Holding {
  readonly passage: Passage
  readonly worker: string
  readonly delivery: Delivery
  /** Its attempt does not count until the transport has recorded that it begins. */
  isUncounted: boolean
  /** A retry that is not due yet. */
  isEarly: boolean
  keptAt: number
  /** A peer had it already when it came: no process can know. */
  cameLate: boolean
  /** Its place among all that has reached its process: a retry that comes back keeps it. */
  place: number | undefined
  said: Tag | undefined
  arrived: Tag | undefined
  isConfirmed: boolean
  due: number
  outcome: Telemetry.Outcome["_tag"] | undefined
  hasBegun: boolean
  /** Its process was ended by this killer. */
  killer: string | undefined
  /** Its handler was stopped from outside, other than by a timeout, while its process was stopping. */
  isStopped: boolean
}

export interface LawOptions {
  readonly topic: string
  readonly minIdle: number
  readonly keepsKeys: boolean
  readonly attempts: number
  /** What a published message says: see `Simulation.Options`. */
  readonly outputOf: (message: Outgoing) => string | undefined
  /** What the broker has taken, of every topic. */
  readonly published: () => ReadonlyArray<Outgoing>
}

/** Watches what passes between processes and their broker, and holds it against the laws. */
export class Laws {
  private readonly notes: Array<{ readonly at: number; readonly text: () => string }> = []
  readonly violations: Array<Violation> = []
  private readonly world: World
  private readonly options: LawOptions
  private readonly passages = new Map<string, Passage>()
  private readonly holdings = new Map<Delivery, Holding>()
  private readonly fresh = new Map<string, number>()
  private readonly running = new Map<string, Set<Holding>>()
  private readonly letters = new Map<string, DeadLetter.Record>()
  private readonly publications = new Map<string, number>()
  private readonly afterwards: Array<() => void> = []
  private telling = 0
  private places = 0
  private seen = 0

  constructor(world: World, options: LawOptions) {
    this.world = world
    this.options = options
  }

  /** One line for each event, written when it is read: most runs are never read. */
  get trace(): ReadonlyArray<string> {
    return this.notes.map(({ at, text }) => `${(at / 1000).toFixed(3)} ${text()}`)
  }

  note(text: () => string): void {
    this.notes.push({ at: this.world.now, text })
  }

  private hold(law: string, holds: boolean, text: () => string): void {
    if (holds) return
    const violation = { law, at: this.world.now, text: text() }
    this.violations.push(violation)
    this.note(() => `VIOLATION of ${law}: ${violation.text}`)
  }

  /** What the broker gives out while it is told something is noted afterwards. */
  atOnce<A>(tell: () => A): A {
    this.telling++
    try {
      return tell()
    } finally {
      if (--this.telling === 0) { for (const note of this.afterwards.splice(0)) note() }
    }
  }

  published(id: string, outgoing: Outgoing, isPoison: boolean): void {
    this.note(() => `${id} is published`)
    this.passages.set(id, {
      id,
      outgoing,
      isPoison,
      sequence: this.passages.size,
      deliveries: 0,
      released: { said: 0, arrived: 0 },
      holding: undefined,
      before: undefined,
      isSettled: false,
      isDone: false,
      awaited: new Map(),
      isKiller: false,
      otherwiseSpent: 0
    })
  }

  /** The broker gives messages to a process. */
  delivered(worker: string, demand: Demand, isolateFrom: number, deliveries: ReadonlyArray<Delivery>): void {
    if (this.telling > 0) {
      return void this.afterwards.push(() => this.delivered(worker, demand, isolateFrom, deliveries))
    }
    const { now } = this.world
    this.note(() => `${worker} is given ${deliveries.map(({ attempt, id }) => `${id}#${attempt}`).join(" ")}`)
    const isIsolated = ({ attempt, suspect }: Delivery) => suspect && attempt >= isolateFrom
    const holds = (most: number, counted: ReadonlyArray<Delivery>, name: string) =>
      this.hold(
        "contract",
        counted.length <= most,
        () => `${worker} asked for ${most} ${name}, was given ${counted.length}`
      )
    holds(demand.total, deliveries, "in all")
    holds(demand.suspects, deliveries.filter(isIsolated), "suspects")
    for (const delivery of deliveries) {
      const { attempt, id } = delivery
      const passage = this.passages.get(id)
      if (passage === undefined) {
        this.hold("law 1", false, () => `${worker} was given ${id}, which nobody published`)
        continue
      }
      const { outgoing, released } = passage
      const previous = passage.holding
      if (previous !== undefined && previous.arrived === undefined && previous.isUncounted) {
        released.said++
        released.arrived++
      }
      const { body, headers, key } = delivery
      const isWhole = key === outgoing.key &&
        (body === outgoing.body || Buffer.compare(body, outgoing.body) === 0) &&
        (headers === outgoing.headers || JSON.stringify(headers) === JSON.stringify(outgoing.headers))
      this.hold("contract", isWhole, () => `${id} is not what was published`)
      this.hold("law 5", !passage.isSettled, () => `${worker} was given ${id} after it was settled for good`)
      const most = 1 + passage.deliveries - released.arrived
      const isCounted = attempt <= most && attempt >= 1 + passage.deliveries - released.said
      this.hold("law 2", isCounted, () => `${worker} was given ${id} as attempt ${attempt}, and it is ${most}`)
      if (previous === undefined) {
        const isNext = passage.sequence > (this.fresh.get(worker) ?? -1)
        this.hold("contract", isNext, () => `${worker} was given ${id} after later ones`)
        this.fresh.set(worker, passage.sequence)
      } else if (previous.arrived === undefined) {
        const isClaim = now - previous.keptAt >= this.options.minIdle - 1
        this.hold("law 8", isClaim, () => `${worker} was given ${id}, which ${previous.worker} keeps`)
        if (previous.killer === undefined) passage.otherwiseSpent++
        this.hold(
          "law 2",
          delivery.suspect || previous.isUncounted || previous.isEarly,
          () => `${id} was never settled by ${previous.worker} and is no suspect`
        )
      } else {
        this.hold(
          "law 2",
          now >= previous.due - 1 || delivery.due !== undefined,
          () => `${worker} was given ${id} before its retry was due`
        )
      }
      passage.deliveries++
      passage.before = previous
      const holding = passage.holding = {
        passage,
        worker,
        delivery,
        isUncounted: isIsolated(delivery),
        isEarly: delivery.due !== undefined,
        keptAt: now,
        cameLate: false,
        place: previous?.worker === worker && previous.arrived === "Retry" ? previous.place : undefined,
        said: undefined,
        arrived: undefined,
        isConfirmed: false,
        due: 0,
        outcome: undefined,
        hasBegun: false,
        killer: undefined,
        isStopped: false
      }
      this.holdings.set(delivery, holding)
    }
    holds(demand.fresh, deliveries.filter((delivery) => !this.isRetryOf(worker, delivery)), "fresh")
  }

  /** The process requested this attempt, and it comes back to it. */
  isRetryOf(worker: string, { id }: Delivery): boolean {
    const holding = this.passages.get(id)?.before
    return holding?.worker === worker && holding.arrived === "Retry"
  }

  /** The broker has on record that the attempt of an isolated suspect begins. */
  recorded(delivery: Delivery): void {
    const holding = this.holdings.get(delivery)
    if (holding !== undefined) holding.isUncounted = false
  }

  /** They have reached the engine. */
  received(deliveries: ReadonlyArray<Delivery>): void {
    for (const delivery of deliveries) {
      const holding = this.holdings.get(delivery)
      if (holding === undefined) continue
      holding.cameLate = holding.passage.holding !== holding
      holding.place ??= this.places++
    }
  }

  /** The engine settles, or does so again. */
  said(worker: string, batch: ReadonlyArray<Settling>): void {
    this.note(() =>
      `${worker} says ${batch.map(({ delivery, settlement }) => `${delivery.id} ${short(settlement._tag)}`).join(", ")}`
    )
    for (const { delivery, settlement: { _tag } } of batch) {
      const holding = this.holdings.get(delivery)
      if (holding === undefined) continue
      const isSame = holding.said === undefined || (holding.said === _tag && !holding.isConfirmed)
      this.hold("law 1", isSame, () => `${worker} settled ${delivery.id} twice: ${holding.said}, then ${_tag}`)
      const isFinal = _tag === "Retry" || _tag === "Terminate"
      this.hold(
        "law 3",
        !holding.isStopped || !isFinal,
        () => `${worker} was stopped, and ${short(_tag)} ${delivery.id}`
      )
      if (_tag === "Release" && holding.said === undefined) holding.passage.released.said++
      holding.said = _tag
    }
  }

  /** The broker has been told, and says which of them the process did not own. */
  arrived(worker: string, batch: ReadonlyArray<Settling>, lost: ReadonlyArray<Delivery>): void {
    for (const { delivery, settlement } of batch) {
      const holding = this.holdings.get(delivery)
      if (holding === undefined || holding.arrived !== undefined) continue
      const { passage } = holding
      const isOwner = passage.holding === holding
      const isLost = lost.includes(delivery)
      const { _tag } = settlement
      this.hold(
        "law 8",
        !isOwner || !isLost || passage.isSettled,
        () => `${worker} was told that it lost ${delivery.id}, which nobody took`
      )
      this.hold(
        "law 8",
        isOwner || isLost || _tag === "Ack",
        () => `${worker} could ${short(_tag)} ${delivery.id}, which ${passage.holding?.worker} owns`
      )
      if (isLost) continue
      holding.arrived = _tag
      if (_tag === "Release") passage.released.arrived++
      if (_tag === "Retry") passage.awaited.set(worker, passage.awaited.get(worker) ?? holding.place!)
      if (_tag === "Retry") passage.otherwiseSpent++
      if (_tag === "Retry") holding.due = this.world.now + Duration.toMillis(settlement.after ?? 0)
      if (_tag === "Ack" || _tag === "Terminate") passage.isSettled = true
      if (_tag === "Terminate" && holding.outcome === "DeadLettered") {
        this.look()
        this.hold("law 4", this.letters.has(delivery.id), () => `${delivery.id} was terminated without a dead letter`)
      }
    }
  }

  confirmed(batch: ReadonlyArray<Settling>): void {
    for (const { delivery } of batch) {
      const holding = this.holdings.get(delivery)
      if (holding !== undefined) holding.isConfirmed = true
    }
  }

  /** The broker goes on keeping them for the process. */
  extended(deliveries: ReadonlyArray<Delivery>, lost: ReadonlyArray<Delivery>): void {
    for (const delivery of deliveries) {
      const holding = this.holdings.get(delivery)
      if (holding !== undefined && !lost.includes(delivery)) holding.keptAt = this.world.now
    }
  }

  /** A handler begins; gives what is to be called when it has ended. */
  begun(worker: string, delivery: Delivery): (isStopped: boolean) => void {
    const { attempt, id, key } = delivery
    this.note(() => `${worker} begins ${id}#${attempt}`)
    const running = this.running.get(worker) ?? new Set()
    this.running.set(worker, running)
    const holding = this.holdings.get(delivery)
    if (holding === undefined) return () => {}
    const { passage } = holding
    const peer = passage.holding!
    // A step further on, the process may not know yet what has happened since it began.
    const isOurs = peer === holding || holding.cameLate || holding.hasBegun
    holding.hasBegun = true
    this.hold("law 8", isOurs, () => `${worker} begins ${id}, which ${peer.worker} took from it`)
    const { attempts, keepsKeys } = this.options
    this.hold("law 2", attempt <= Math.max(2, attempts), () => `${worker} begins ${id} for the ${attempt}th time`)
    if (keepsKeys && key !== undefined) {
      const place = passage.awaited.get(worker) ?? holding.place!
      for (const other of running) {
        this.hold("law 7", other.delivery.key !== key, () => `${worker} runs ${other.delivery.id} and ${id} of one key`)
      }
      for (const earlier of this.passages.values()) {
        if (earlier === passage) break
        const head = earlier.holding
        const waits = earlier.outgoing.key === key && !earlier.isPoison && !earlier.isSettled &&
          head?.worker === worker &&
          head.place! < place && (head.outcome === undefined || head.outcome === "Retried")
        this.hold("law 7", !waits, () => `${worker} begins ${id} before ${earlier.id} of the same key`)
      }
    }
    this.isolates(worker, holding, running)
    running.add(holding)
    return (isStopped) => {
      running.delete(holding)
      holding.isStopped = isStopped && this.stoppingWorkers.has(worker)
      this.note(() => `${worker} ends ${id}#${attempt}`)
    }
  }

  /** A suspect with one attempt left, or none, runs alone; with two, beside no other suspect of that degree. */
  private isolates(worker: string, holding: Holding, running: ReadonlySet<Holding>): void {
    const left = ({ delivery: { attempt, suspect } }: Holding) => suspect ? this.options.attempts - attempt : Infinity
    const isAlone = (one: Holding) => left(one) <= 1
    const isSingle = (one: Holding) => left(one) === 2
    for (const other of running) {
      const both = () => `${worker} runs ${holding.delivery.id} beside ${other.delivery.id}, one of which may be poison`
      this.hold("law 2", !isAlone(holding) && !isAlone(other), both)
      this.hold("law 2", !isSingle(holding) || !isSingle(other), both)
    }
  }

  /** The process no longer owns it, and its handler has had a moment to end. */
  stopped(worker: string, delivery: Delivery): void {
    const holding = this.holdings.get(delivery)
    const runs = holding !== undefined && (this.running.get(worker)?.has(holding) ?? false)
    this.hold("law 8", !runs, () => `${worker} has lost ${delivery.id}, and its handler was not stopped`)
  }

  private readonly stoppingWorkers = new Set<string>()

  stopping(worker: string): void {
    this.note(() => `${worker} is told to stop`)
    this.stoppingWorkers.add(worker)
  }

  outcome(worker: string, { _tag, delivery }: Telemetry.Outcome): void {
    this.note(() => `${worker} reports ${delivery.id} ${_tag}`)
    const holding = this.holdings.get(delivery)
    if (holding === undefined) return
    holding.outcome = _tag
    const { awaited } = holding.passage
    if (_tag === "Lost" && holding.place !== undefined) awaited.set(worker, awaited.get(worker) ?? holding.place)
    if (_tag === "Handled" || _tag === "Filtered" || _tag === "Discarded") holding.passage.isDone = true
  }

  /** A handler has ended its process, and all that it owned is left behind. */
  killed(worker: string, killer: Delivery): void {
    this.note(() => `${worker} is killed by ${killer.id}`)
    for (const passage of this.passages.values()) {
      const { holding } = passage
      if (passage.isSettled || holding?.worker !== worker || holding.arrived !== undefined) continue
      holding.killer = killer.id
      if (holding.delivery === killer) passage.isKiller = true
    }
  }

  /** A process has ended without a message's doing. */
  crashed(worker: string): void {
    this.running.get(worker)?.clear()
  }

  /** A process has ended in peace. */
  drained(worker: string, wasDisturbed: boolean): void {
    this.note(() => `${worker} has drained`)
    for (const { holding, id } of this.passages.values()) {
      const isLeft = holding?.worker === worker && holding.place !== undefined && holding.said === undefined &&
        holding.outcome !== "Lost"
      this.hold("law 3", !isLeft || wasDisturbed, () => `${worker} has drained and left ${id} unsettled`)
    }
  }

  /** Looks at what the broker has taken since. */
  look(): void {
    const published = this.options.published()
    for (; this.seen < published.length; this.seen++) {
      const { headers, topic } = published[this.seen]!
      const record = headers[DeadLetter.header] === undefined ? undefined : DeadLetter.fromHeaders(headers)
      const letter = record !== undefined && Exit.isSuccess(record) ? record.value : undefined
      const isSource = topic === this.options.topic
      const name = letter !== undefined
        ? `${letter.topic}/${letter.id}`
        : isSource
        ? undefined
        : this.options.outputOf(published[this.seen]!)
      if (name !== undefined) {
        const before = this.publications.get(`${topic}\n${name}`) ?? -Infinity
        const isNew = this.world.now - before >= dedupWindow
        this.hold("law 4", isNew, () => `${topic} has ${name} twice`)
        this.publications.set(`${topic}\n${name}`, this.world.now)
      }
      const passage = letter?.topic === this.options.topic ? this.passages.get(letter.id) : undefined
      if (letter === undefined || passage === undefined) continue
      this.note(() => `${letter.id} is dead-lettered: ${letter.reason}`)
      this.letters.set(letter.id, letter)
      this.hold(
        "law 2",
        letter.reason !== "crashed" || passage.isKiller || passage.otherwiseSpent > 0,
        () => `${letter.id} has ended no process, and is dead-lettered for it`
      )
      passage.isDone = true
    }
  }

  /** Nothing is under way any more. */
  ended(isIdle: boolean): void {
    this.look()
    const left = [...this.passages.values()].filter(({ isSettled }) => !isSettled).map(({ id }) => id)
    this.hold("law 1", isIdle, () => `it does not come to rest; not settled: [${left.join(", ")}]`)
    for (const { id, isDone, isPoison, isSettled } of this.passages.values()) {
      this.hold("law 1", isSettled || !isIdle, () => `${id} was never settled`)
      this.hold("law 1", isDone || !isSettled, () => `${id} is lost: settled, and neither handled nor dead-lettered`)
      const letter = this.letters.get(id)
      if (!isPoison || letter === undefined) continue
      // Processes may have died around it before any looked at it.
      const isRight = letter.reason === "undecodable" || letter.reason === "crashed"
      this.hold("law 6", isRight, () => `${id} is undecodable and ${letter.reason}`)
    }
  }
}

const short = (tag: Tag): string => tag.toLowerCase()
