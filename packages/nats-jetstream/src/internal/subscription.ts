import type * as Transport from "@millrace/core/Transport"
import * as TransportError from "@millrace/core/TransportError"
import type { ConsumerInfo, StreamInfo } from "@nats-io/jetstream"
import * as Arr from "effect/Array"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { type Connection, transport, unauthorized } from "./connection.ts"
import { consumerInfo, type ConsumerSpec, ensureConsumer, validateAckWait } from "./consumers.ts"
import { ConsumerWatch } from "./consumerWatch.ts"
import type { JetStreamDelivery } from "./delivery.ts"
import { Condition } from "./health.ts"
import { Inbox } from "./inbox.ts"
import { isUnbounded } from "./keeping.ts"
import type { AttemptLedger } from "./ledger.ts"
import * as names from "./names.ts"
import { PullLoop, type Trouble } from "./pullLoop.ts"
import { untilHealed, whenReady } from "./recovery.ts"
import * as settings from "./settings.ts"
import { settling } from "./settling.ts"
import { hearGivenUp, withBody } from "./storedDelivery.ts"
import { type Declaring, ensureStream, type StreamSpec, warnOfMirror } from "./streams.ts"
import type { Targets } from "./targets.ts"

type TransportFailure = TransportError.TransportError

/** A request of an idle pull loop stays open this long unless the consumer allows less. */
const requestExpires = 30_000

/** A server that takes longer is not there. */
const answersWithin = Duration.seconds(1)

export const subscribe = Effect.fnUntraced(function*(
  connection: Connection,
  declaring: Declaring,
  ledger: AttemptLedger,
  targets: Targets,
  options: Transport.SubscribeOptions
): Effect.fn.Return<Transport.Subscription, TransportFailure, Scope.Scope> {
  const streamName = Context.get(options.settings, settings.StreamName)
  const badName = names.validateTopic(options.topic) ?? names.validateGroup(options.group) ??
    (streamName === undefined ? undefined : names.validateStream(streamName, "stream"))
  if (badName !== undefined) return yield* badName
  const given = Context.get(options.settings, settings.Subjects)
  const topicSpec: StreamSpec = {
    topic: options.topic,
    subjects: given ?? Arr.of(options.topic),
    purpose: "source",
    name: streamName
  }
  const ackWaitGiven = Context.get(options.settings, settings.AckWait) ?? declaring.ackWait
  const asked: ConsumerSpec = {
    topic: options.topic,
    group: options.group,
    // A stream that is read by its name is read whole.
    subjects: given ?? (streamName === undefined ? [options.topic] : []),
    startFrom: Context.get(options.settings, settings.Start) ?? options.startFrom,
    ackWait: ackWaitGiven === undefined
      ? undefined
      : Duration.toMillis(Duration.fromInputUnsafe(ackWaitGiven as Duration.Input)),
    maxOwned: options.maxOwned
  }
  const mode = Context.get(options.settings, settings.Acknowledge)
  if (mode !== "write" && mode !== "confirm") {
    return yield* TransportError.invalidOption(transport, "acknowledge", mode, "write \"write\" or \"confirm\"")
  }
  const badFilter = asked.subjects.map((subject) => names.validateFilter(subject)).find((error) => error !== undefined)
  if (badFilter !== undefined) return yield* badFilter
  const { deadLetter } = options
  const catching = deadLetter === undefined
    ? undefined
    : asked.subjects.find((subject) => names.covers(subject, deadLetter))
  if (catching !== undefined) {
    return yield* TransportError.invalidOption(
      transport,
      "deadLetter",
      deadLetter,
      `the pipeline reads ${catching} and would consume its own dead letters, give a topic outside of that`
    )
  }
  const badWait = asked.ackWait === undefined ? undefined : validateAckWait(asked.ackWait)
  if (badWait !== undefined) return yield* badWait

  const { consumer, stream } = yield* whenReady(
    Effect.gen(function*() {
      const stream = yield* ensureStream(connection, declaring, topicSpec)
      const startFrom = yield* startOf(connection, ledger, stream, asked)
      return { stream, consumer: yield* ensureConsumer(connection, declaring, stream, { ...asked, startFrom }) }
    })
  )
  const spec: ConsumerSpec = { ...asked, name: consumer.name }
  yield* ledger.serve(stream.config)
  if (given !== undefined) yield* warnOfMirror(connection, topicSpec, stream)
  if (isUnbounded(stream.config)) {
    yield* Effect.logInfo(
      `stream ${stream.config.name} never removes a message: bound it with maxAge, maxMessages or maxBytes, or use retention "until-acked"`
    )
  }
  const clock = yield* Clock.clockWith(Effect.succeed)
  const context = yield* Effect.context<never>()
  const runFork = Effect.runForkWith(context)
  const runPromise = Effect.runPromiseWith(context)
  const now = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6

  const ackWait = (consumer.config.ack_wait ?? 0) / 1e6
  const ackPrefix = `$JS.ACK.${consumer.stream_name}.${consumer.name}.`
  /** A little less than the server gives: its clock started before the message arrived. */
  const lease = ackWait * 0.9
  /** What was sent to us when the connection was lost comes again within that time. */
  let interruptedUntil = 0

  // --- asking

  /** What is still wanted; a pull replaces it, what is given reduces it. */
  let wanted: Transport.Demand = nothing
  let waiter: ((exit: Exit.Exit<Arr.NonEmptyReadonlyArray<JetStreamDelivery>, TransportFailure>) => void) | undefined
  let failure: TransportFailure | undefined
  let closed = false
  let healing = false
  /** The engine has withdrawn its demand. */
  let withdrawn = false
  const withdrawals: Array<() => void> = []
  let releaseTimer: NodeJS.Timeout | undefined
  /** Something arrived since the last look at the consumer. */
  let active = false
  let dueTimer: NodeJS.Timeout | undefined
  /** The first request of `gather` was sent. */
  let gathered = false
  /** Of recent messages, in bytes. */
  let averageSize = 0

  /** The server chooses what it sends: beyond `fresh` it is asked for as many messages as there are due retries. */
  const credit = (): number => {
    if (wanted.fresh >= wanted.total) return wanted.total
    // One reading of the clock: a retry that became due between two would be neither counted nor waited for.
    const time = now()
    const due = inbox.due(time)
    const nextDue = inbox.nextDue(time)
    clearTimeout(dueTimer)
    if (Number.isFinite(nextDue)) dueTimer = setTimeout(wake, nextDue)
    return Math.min(wanted.total, wanted.fresh + due)
  }
  const isTooMuch = () => {
    const { counted } = inbox
    return counted > wanted.total || loop.asked > 0 && !inbox.isGathering && counted + loop.asked > wanted.total
  }
  const ask = () => {
    if (closed || healing || !loop.open) return
    if (withdrawn || isTooMuch()) return retire()
    if (waiter === undefined) return
    loop.stay()
    if (inbox.isGathering) return gather()
    const most = credit()
    const open = inbox.size + loop.asked
    // Small requests cost as much as large ones: while some are open, wait for a quarter to be missing.
    const missing = most - open
    if (missing <= 0 || (open > 0 && missing * 4 < most)) return
    if (wanted.bytes === Infinity) return loop.ask(missing)
    const bytes = wanted.bytes - inbox.bytes - loop.asked * averageSize
    if (bytes > 0 || open === 0) loop.ask(missing, bytes)
  }
  /** Asks for what the process before has released. The first request is not larger than the demand: peers may own it all. */
  const gather = () => {
    const { missing } = inbox
    if (missing === undefined || loop.asked > 0) return
    loop.ask(Math.min(missing, gathered ? maxGather : wanted.total))
    gathered = true
  }
  /** Ends requests that are open beyond what is wanted, and releases deliveries beyond it. */
  const retire = () => {
    if (closed || !loop.open) return
    loop.retire(() => withdrawn, () => {
      if (withdrawn) return withdrawalEnded()
      release(inbox.takeOut(wanted.total, false))
      if (closed || healing || connection.state() !== "connected") return
      if (!loop.open) loop.begin()
      ask()
    })
  }
  const withdrawalEnded = () => {
    for (const resume of withdrawals.splice(0)) resume()
    // What has arrived is for the next pull, if there is one soon; else for a peer.
    clearTimeout(releaseTimer)
    if (withdrawn && !closed) releaseTimer = setTimeout(() => release(inbox.takeOut(0, true)), keepAfterWithdrawal)
  }
  let released = Promise.resolve()
  const release = (deliveries: ReadonlyArray<JetStreamDelivery>) => {
    if (deliveries.length === 0) return
    const unheard = Effect.catch(settle.release(deliveries), () => Effect.sync(() => inbox.admit(deliveries)))
    released = released.then(() => runPromise(unheard))
  }
  const give = (): Arr.NonEmptyReadonlyArray<JetStreamDelivery> | undefined => {
    const given = inbox.give(wanted)
    if (!Arr.isArrayNonEmpty(given)) return undefined
    let { bytes, fresh, suspects } = wanted
    for (const delivery of given) {
      bytes -= delivery.body.length
      if (!delivery.isOwnRetry) fresh--
      if (delivery.suspect && delivery.attempt >= options.isolateFrom) suspects--
    }
    averageSize = 0.8 * averageSize + 0.2 * (wanted.bytes - bytes) / given.length
    wanted = { total: wanted.total - given.length, fresh: Math.max(0, fresh), suspects, bytes: Math.max(0, bytes) }
    return given
  }
  const wake = () => {
    const given = waiter === undefined ? undefined : give()
    if (waiter === undefined || given === undefined) return ask()
    const resume = waiter
    waiter = undefined
    resume(Exit.succeed(given))
  }
  const fail = (error: TransportFailure) => {
    failure ??= error
    const resume = waiter
    waiter = undefined
    resume?.(Exit.fail(failure))
  }

  const endGathering = () => {
    if (!inbox.isGathering) return
    inbox.gathered()
    wake()
  }

  const pull = (demand: Transport.Demand) =>
    Effect.callback<Arr.NonEmptyReadonlyArray<JetStreamDelivery>, TransportFailure>((resume) => {
      if (failure !== undefined) return resume(Exit.fail(failure))
      wanted = demand
      withdrawn = false
      clearTimeout(releaseTimer)
      if (!loop.open && !healing && !closed) loop.begin()
      const given = give()
      waiter = resume
      ask()
      if (given !== undefined) {
        waiter = undefined
        return resume(Exit.succeed(given))
      }
      return Effect.sync(() => {
        waiter = undefined
      })
    })

  const withdraw = Effect.callback<void>((resume) => {
    withdrawn = true
    inbox.gathered()
    wanted = nothing
    clearTimeout(dueTimer)
    if (closed || healing || !loop.open || connection.state() !== "connected") {
      withdrawalEnded()
      return resume(Effect.void)
    }
    withdrawals.push(() => resume(Effect.void))
    retire()
  })

  // --- healing

  const condition = new Condition(() => clock.currentTimeMillisUnsafe())
  /** Settled for certain, or before the group began: a consumer that is created again begins behind it. */
  let floor = floorOf(consumer, stream)
  let life = connection.lives.note(stream)
  let keptFloor = -1

  let { config } = consumer
  const remember = (info: ConsumerInfo) => {
    config = info.config
    floor = Math.max(floor, info.ack_floor.stream_seq)
  }
  /** The server deletes the consumer, and its position, when no process has read it for a while. */
  const keepFloor = Effect.promise(() => {
    if ((consumer.config.inactive_threshold ?? 0) <= 0 || floor === keptFloor) return Promise.resolve()
    keptFloor = floor
    return ledger.keepFloor(life, names.longDurableOf(options.topic, options.group), floor)
  })
  yield* keepFloor
  /** Makes sure that what is read exists. */
  const reopen: Effect.Effect<void, TransportFailure> = Effect.gen(function*() {
    const found: StreamInfo = yield* ensureStream(connection, declaring, topicSpec)
    const current = connection.lives.note(found)
    const isSameLife = current.origin === life.origin
    if (!isSameLife) {
      life = current
      floor = 0
      keptFloor = -1
      inbox.renew()
    }
    const existing = yield* consumerInfo(connection, consumer.stream_name, consumer.name)
    if (existing !== undefined) return remember(existing)
    const startFrom = isSameLife ? { sequence: floor + 1 } : "beginning"
    remember(yield* ensureConsumer(connection, declaring, found, { ...spec, startFrom }))
    yield* Effect.logWarning(
      `consumer ${consumer.name} of stream ${consumer.stream_name} was gone and has been created again`
    )
  })
  /** Consecutive troubles without a message in between. */
  let troubles = 0
  const heal = (trouble: Trouble) => {
    if (healing || closed || failure !== undefined) return
    healing = true
    inbox.gathered()
    troubles++
    if (trouble._tag === "refused" && troubles === impairedAfter) {
      condition.impair("requests", `consumer ${consumer.name} refuses requests: ${trouble.detail}`)
      // The pipeline logs why its health is impaired.
      runFork(Effect.logDebug(
        `consumer ${consumer.name} of stream ${consumer.stream_name} refuses requests for messages: ${trouble.detail}`
      ))
    }
    const complaint = connection.complaint()
    if (trouble._tag === "silent" && complaint !== undefined) {
      condition.impair("silence", `${trouble.detail} of consumer ${consumer.name}: ${complaint}`)
    }
    const delay = Math.min(maxHealDelay, 50 * 2 ** (troubles - 1)) * (0.5 + Math.random())
    const healed = Effect.gen(function*() {
      yield* Effect.promise(() => loop.end())
      yield* connection.whenConnected
      if (trouble._tag !== "missing" || troubles > 1) yield* Effect.sleep(Duration.millis(delay))
      yield* untilHealed(reopen)
    })
    runFork(healed).addObserver((exit) => {
      healing = false
      if (closed) return withdrawalEnded()
      if (Exit.isFailure(exit)) return Option.map(Exit.findErrorOption(exit), fail)
      if (withdrawn) return withdrawalEnded()
      if (connection.state() !== "connected") return
      loop.begin()
      ask()
    })
  }
  const loop = new PullLoop({
    connection,
    clock,
    subject: `${connection.apiPrefix}.CONSUMER.MSG.NEXT.${consumer.stream_name}.${consumer.name}`,
    infoSubject: `${connection.apiPrefix}.CONSUMER.INFO.${consumer.stream_name}.${consumer.name}`,
    life: () => life,
    bounds: () => ({
      maxBatch: config.max_batch || Infinity,
      maxBytes: config.max_bytes || Infinity,
      expires: Math.min(requestExpires, (config.max_expires || Infinity) / 1e6)
    }),
    onChunk(chunk) {
      condition.clear("silence")
      if (chunk.length === 0) {
        // Nothing that was released is left.
        if (loop.asked === 0 && gathered) endGathering()
        return ask()
      }
      active = true
      troubles = 0
      condition.clear("requests")
      const sentSince = connection.sentSince()
      if (now() < sentSince + lease) {
        const whole = chunk.filter((delivery) => !delivery.lacksBody)
        if (whole.length < chunk.length) readBodies(chunk.filter((delivery) => delivery.lacksBody))
        return whole.length === 0 ? ask() : inbox.receive(whole, sentSince)
      }
      // A peer may have it by now, or else it comes again, and no process died of it.
      interruptedUntil = Math.max(interruptedUntil, now() + ackWait * 1.5 + 1000)
      ask()
    },
    onTrouble: heal,
    onFailure: fail
  })
  const stopListening = connection.listen({
    lost() {
      interruptedUntil = Infinity
      inbox.gathered()
      loop.abandon()
      withdrawalEnded()
      if (connection.state() === "closed") {
        runFork(Effect.flip(connection.whenConnected)).addObserver((exit) => {
          if (Exit.isSuccess(exit)) fail(exit.value)
        })
      }
    },
    refused({ operation, subject }) {
      if (operation !== "publish") return
      if (subject === loop.options.subject) fail(unauthorized(connection, "reading", subject))
      // Nothing would ever be settled.
      if (subject.startsWith(ackPrefix)) fail(unauthorized(connection, "settling", subject))
    },
    restored() {
      interruptedUntil = now() + ackWait * 1.5 + 1000
      if (closed || healing || withdrawn) return
      loop.begin()
      ask()
    }
  })

  // --- settling

  const settle = settling({
    connection,
    ledger,
    now,
    date: () => clock.currentTimeMillisUnsafe(),
    lease,
    ordered: options.ordered === true,
    confirm: mode === "confirm",
    // Requests that are open here would be given the released messages.
    releaseDelay: () => withdrawn || isTooMuch() ? loop.remaining : 0,
    isSuperseded: (delivery) => inbox.holdsLater(delivery),
    onRetry: (delivery, delay) => inbox.retried(delivery, delay)
  })
  const inbox = new Inbox({
    ledger,
    now,
    date: () => clock.currentTimeMillisUnsafe(),
    lease,
    isolateFrom: options.isolateFrom,
    ordered: options.ordered === true,
    pending: consumer.num_ack_pending,
    isInterrupted: () => now() < interruptedUntil,
    acknowledge: settle.acknowledge,
    extend: (delivery) => Effect.map(settle.extend([delivery]), (lost) => lost.length === 0),
    postpone: (suspect) => settle.postpone(suspect, ackWait / 2),
    onReady: wake
  })
  const keeping = setInterval(() => {
    const kept = inbox.sweep()
    if (!Arr.isReadonlyArrayNonEmpty(kept)) return
    runFork(Effect.ignore(Effect.map(settle.extend(kept), (lost) => inbox.forget(lost))))
  }, ackWait / 3)
  const watch = new ConsumerWatch({
    connection,
    declaring,
    consumer,
    spec,
    stream,
    condition
  })
  const stopHearing = hearGivenUp({
    connection,
    stream: consumer.stream_name,
    consumer: consumer.name,
    life: () => life,
    run: runFork,
    receive: (delivery) => inbox.receive([delivery])
  })
  let looking = false
  const look = () => {
    if (looking) return
    looking = true
    const looked = Effect.flatMap(watch.look, (info) => {
      if (info !== undefined) remember(info)
      return keepFloor
    })
    runFork(Effect.ensuring(Effect.ignore(looked), Effect.sync(() => looking = false)))
  }
  let idleTicks = 0
  const watching = setInterval(() => {
    if (closed || healing) return
    if (!active && ++idleTicks < maxIdleTicks) return
    idleTicks = 0
    active = inbox.owned > 0 || Number.isFinite(inbox.nextDue())
    look()
  }, watchEvery)
  const readBodies = (deliveries: ReadonlyArray<JetStreamDelivery>) => {
    look()
    runFork(Effect.forEach(deliveries, (delivery) =>
      Effect.match(withBody(connection, delivery), {
        onFailure: () => settle.postpone(delivery, ackWait / 2),
        onSuccess: (whole) => {
          if (whole !== undefined) inbox.receive([whole])
        }
      })))
  }

  yield* Effect.addFinalizer(() =>
    Effect.gen(function*() {
      closed = true
      withdrawalEnded()
      stopListening()
      stopHearing()
      clearInterval(watching)
      clearTimeout(dueTimer)
      clearTimeout(releaseTimer)
      if (loop.open && loop.asked > 0) {
        yield* Effect.callback<void>((resume) => {
          loop.stay()
          loop.retire(() => true, () => resume(Effect.void))
        })
      }
      loop.close()
      yield* Effect.promise(() => loop.end())
      yield* Effect.promise(() => released)
      yield* settle.close(yield* Effect.promise(() => inbox.close()), inbox.waitingRetries)
      if ((consumer.config.inactive_threshold ?? 0) > 0) {
        // The server takes up acknowledgements after it has answered a flush.
        const isCaughtUp = (info: ConsumerInfo | undefined) => info === undefined || info.num_ack_pending === 0
        const info = yield* consumerInfo(connection, consumer.stream_name, consumer.name).pipe(
          Effect.delay("25 millis"),
          Effect.repeat({ times: 9, until: isCaughtUp })
        )
        if (info !== undefined) remember(info)
        yield* keepFloor
      }
    }).pipe(
      Effect.timeoutOption(Duration.seconds(5)),
      Effect.ignore,
      Effect.ensuring(Effect.sync(() => clearInterval(keeping)))
    )
  )
  loop.begin()

  return {
    pull,
    withdraw,
    settle: settle.settle,
    extend: settle.extend,
    begin: settle.begin,
    clientId: consumer.name,
    lease: Duration.millis(lease),
    // A server that has stopped leaves the socket as it was.
    health: Effect.suspend(() => {
      if (connection.state() !== "connected") {
        return Effect.succeed(condition.reconnecting(connection.trouble()))
      }
      if (healing && troubles < impairedAfter) {
        return Effect.succeed(condition.reconnecting("what the pipeline reads is being created again"))
      }
      const refusal = deadLetter === undefined ? undefined : targets.refusal(deadLetter)
      if (refusal === undefined) condition.clear("deadLetter")
      else condition.impair("deadLetter", `dead letters are not stored: ${refusal}`)
      return Effect.match(Effect.timeout(connection.flush, answersWithin), {
        onFailure: () => condition.reconnecting("the server does not answer"),
        onSuccess: () => condition.connected()
      })
    })
  }
})

/**
 * Where the group begins if its consumer is created. Where `consumer_limits` of the stream make the server delete consumers
 * that no process reads, the group goes on behind what it had settled.
 */
const startOf = Effect.fnUntraced(function*(
  connection: Connection,
  ledger: AttemptLedger,
  stream: StreamInfo,
  { group, startFrom, topic }: ConsumerSpec
) {
  if ((stream.config.consumer_limits?.inactive_threshold ?? 0) <= 0) return startFrom
  yield* ledger.serve(stream.config)
  const consumer = names.longDurableOf(topic, group)
  const floor = yield* Effect.promise(() => ledger.floorOf(connection.lives.note(stream), consumer))
  return floor === undefined ? startFrom : { sequence: floor + 1 }
})

/** 2.10 says nothing of the floor before the first acknowledgement, not even of a group that began with "new". */
const floorOf = ({ ack_floor, delivered, num_pending }: ConsumerInfo, stream: StreamInfo): number =>
  ack_floor.consumer_seq > 0 || delivered.consumer_seq > 0
    ? ack_floor.stream_seq
    : Math.max(ack_floor.stream_seq, delivered.stream_seq, num_pending === 0 ? stream.state.last_seq : 0)

const nothing: Transport.Demand = { total: 0, fresh: 0, suspects: 0, bytes: 0 }

/** Milliseconds for which arrivals are kept for a pull after the demand was withdrawn. */
const keepAfterWithdrawal = 1000

/** The most messages that one request of `gather` asks for. */
const maxGather = 512

/** How often the consumer is compared with what was declared, while messages flow. Milliseconds. */
const watchEvery = 3000

/** While nothing flows, the consumer is looked at each so many times `watchEvery`. */
const maxIdleTicks = 3

/** Refusals in a row before health and log say so. */
const impairedAfter = 5

/** Milliseconds between tries while the consumer refuses requests. */
const maxHealDelay = 5000
