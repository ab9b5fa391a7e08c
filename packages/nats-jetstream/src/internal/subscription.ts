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
import { Arrivals } from "./arrivals.ts"
import { type Connection, transport, unauthorized } from "./connection.ts"
import type { JetStreamDelivery } from "./delivery.ts"
import * as names from "./names.ts"
import { Notes } from "./notes.ts"
import { Reader, type Trouble } from "./reader.ts"
import * as resources from "./resources.ts"
import * as settings from "./settings.ts"
import { settling } from "./settling.ts"

type TransportFailure = TransportError.TransportError

/** A request of an idle pull loop stays open this long unless the consumer allows less. */
const requestExpires = 30_000

/** A server that takes longer is not there. */
const answersWithin = Duration.seconds(1)

export const subscribe = Effect.fnUntraced(function*(
  connection: Connection,
  declaring: resources.Declaring,
  mayKeepNotes: Effect.Effect<boolean>,
  inboxPrefix: string,
  options: Transport.SubscribeOptions
): Effect.fn.Return<Transport.Subscription, TransportFailure, Scope.Scope> {
  const badName = names.validateTopic(options.topic) ?? names.validateGroup(options.group)
  if (badName !== undefined) return yield* badName
  const subjects = Context.get(options.settings, settings.Subjects) ?? Arr.of(options.topic)
  const ackWaitGiven = Context.get(options.settings, settings.AckWait) ?? declaring.ackWait
  const wish: resources.ConsumerWish = {
    topic: options.topic,
    group: options.group,
    subjects,
    startFrom: Context.get(options.settings, settings.Start) ?? options.startFrom,
    ackWait: ackWaitGiven === undefined ? undefined : Duration.toMillis(Duration.fromInputUnsafe(ackWaitGiven)),
    maxOwned: options.maxOwned
  }
  const badFilter = subjects.map((subject) => names.validateFilter(subject)).find((error) => error !== undefined)
  if (badFilter !== undefined) return yield* badFilter
  const { deadLetter } = options
  const catching = deadLetter === undefined ? undefined : subjects.find((subject) => names.covers(subject, deadLetter))
  if (catching !== undefined) {
    return yield* TransportError.invalidOption(
      transport,
      "deadLetter",
      deadLetter,
      `the pipeline reads ${catching} and would consume its own dead letters, give a topic outside of that`
    )
  }
  const badWait = wish.ackWait === undefined ? undefined : resources.validateAckWait(wish.ackWait)
  if (badWait !== undefined) return yield* badWait

  const { consumer, stream } = yield* resources.whenReady(
    Effect.gen(function*() {
      const stream = yield* resources.ensureStream(connection, declaring, options.topic, subjects)
      return { stream, consumer: yield* resources.ensureConsumer(connection, declaring, stream, wish) }
    })
  )
  const notes = (yield* mayKeepNotes)
    ? new Notes(connection, consumer.stream_name, consumer.name)
    : undefined
  if (resources.isUnbounded(stream.config)) {
    yield* Effect.logInfo(
      `stream ${stream.config.name} keeps every message for ever: bound it with maxAge, maxMessages or maxBytes, or use retention "until-acked"`
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
  const maxAckPending = consumer.config.max_ack_pending ?? -1
  // Waiting retries are pending at the server: they must leave room for what runs.
  const mostWaiting = maxAckPending > 0
    ? Math.max(1, Math.min(options.waiting, maxAckPending - options.maxOwned))
    : options.waiting

  /** What was sent to us when the connection was lost comes again within that time. */
  let interruptedUntil = 0

  // --- asking

  let wanted = 0
  let waiter: ((exit: Exit.Exit<Arr.NonEmptyReadonlyArray<JetStreamDelivery>, TransportFailure>) => void) | undefined
  let failure: TransportFailure | undefined
  let closed = false
  let healing = false
  /** The engine took its asking back. */
  let withdrawn = false
  /** Something arrived since the last look at the consumer. */
  let active = false
  let dueTimer: NodeJS.Timeout | undefined

  const waitingIsFull = () => {
    const wait = arrivals.fullFor(mostWaiting)
    if (wait === 0) return false
    dueTimer ??= setTimeout(() => {
      dueTimer = undefined
      ask()
    }, wait)
    return true
  }
  const isTooMuch = () => arrivals.ready > wanted || reader.asked > 0 && arrivals.size + reader.asked > wanted
  const ask = () => {
    if (closed || healing || !reader.open) return
    if (isTooMuch()) return retire()
    if (waiter === undefined) return
    reader.stay()
    const open = arrivals.size + reader.asked
    // Small requests cost as much as large ones: while some are open, wait for a quarter to be missing.
    const missing = wanted - open
    if (missing > 0 && (open === 0 || missing * 4 >= wanted) && !waitingIsFull()) reader.ask(missing)
  }
  /** Takes the asking back, and gives back what came all the same. */
  const retire = () => {
    if (closed || !reader.open) return
    reader.retire(() => withdrawn, () => {
      handBack(arrivals.takeOut(wanted, withdrawn))
      if (closed || healing || connection.state() !== "connected") return
      if (!reader.open) reader.begin()
      ask()
    })
  }
  let handedBack = Promise.resolve()
  const handBack = (deliveries: ReadonlyArray<JetStreamDelivery>) => {
    if (deliveries.length === 0) return
    const unheard = Effect.catch(voice.handBack(deliveries), () => Effect.sync(() => arrivals.admit(deliveries)))
    handedBack = handedBack.then(() => runPromise(unheard))
  }
  const give = (): Arr.NonEmptyReadonlyArray<JetStreamDelivery> | undefined => {
    const given = arrivals.give(wanted)
    wanted -= given.length
    return Arr.isArrayNonEmpty(given) ? given : undefined
  }
  const wake = () => {
    const given = waiter === undefined ? undefined : give()
    if (waiter === undefined || given === undefined) return withdrawn ? retire() : ask()
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

  const pull = (max: number) =>
    Effect.callback<Arr.NonEmptyReadonlyArray<JetStreamDelivery>, TransportFailure>((resume) => {
      if (failure !== undefined) return resume(Exit.fail(failure))
      wanted = max
      withdrawn = false
      const given = give()
      waiter = resume
      ask()
      if (given !== undefined) {
        waiter = undefined
        return resume(Exit.succeed(given))
      }
      return Effect.sync(() => {
        waiter = undefined
        wanted = 0
        withdrawn = true
        if (arrivals.size + reader.asked > 0) retire()
      })
    })

  // --- healing

  let floor = consumer.ack_floor.stream_seq
  let created = stream.created

  const remember = (info: ConsumerInfo) => {
    floor = info.ack_floor.stream_seq
  }
  /** Makes sure that what is read exists. A consumer that was deleted begins after what it had settled for certain. */
  const reopen: Effect.Effect<void, TransportFailure> = Effect.gen(function*() {
    const existing = yield* resources.consumerInfo(connection, consumer.stream_name, consumer.name)
    if (existing !== undefined) return remember(existing)
    const found: StreamInfo = yield* resources.ensureStream(connection, declaring, options.topic, subjects)
    const sameStream = found.created === created
    remember(
      yield* resources.ensureConsumer(connection, declaring, found, {
        ...wish,
        startFrom: sameStream ? { sequence: floor + 1 } : "beginning"
      })
    )
    created = found.created
    yield* Effect.logWarning(
      `consumer ${consumer.name} of stream ${consumer.stream_name} was gone and has been created again`
    )
  })
  const heal = (trouble: Trouble) => {
    if (healing || closed || failure !== undefined) return
    healing = true
    const healed = Effect.gen(function*() {
      yield* Effect.promise(() => reader.end())
      yield* connection.whenConnected
      if (trouble !== "missing") yield* Effect.sleep(Duration.millis(50 + 100 * Math.random()))
      yield* resources.untilHealed(reopen)
    })
    runFork(healed).addObserver((exit) => {
      healing = false
      if (closed) return
      if (Exit.isFailure(exit)) return Option.map(Exit.findErrorOption(exit), fail)
      if (connection.state() !== "connected") return
      reader.begin()
      ask()
    })
  }
  const reader = new Reader({
    connection,
    clock,
    subject: `${connection.apiPrefix}.CONSUMER.MSG.NEXT.${consumer.stream_name}.${consumer.name}`,
    inboxPrefix,
    maxBatch: consumer.config.max_batch ?? Infinity,
    expires: Math.min(requestExpires, (consumer.config.max_expires ?? Infinity) / 1e6),
    onChunk(chunk) {
      if (chunk.length === 0) return ask()
      active = true
      const sentSince = connection.sentSince()
      if (now() < sentSince + lease) return arrivals.receive(chunk, sentSince)
      // A peer may have it by now, or else it comes again, and nobody died of it.
      interruptedUntil = Math.max(interruptedUntil, now() + ackWait * 1.5 + 1000)
      ask()
    },
    onTrouble: heal,
    onFailure: fail
  })
  const stopListening = connection.listen({
    lost() {
      interruptedUntil = Infinity
      reader.abandon()
      if (connection.state() === "closed") {
        runFork(Effect.flip(connection.whenConnected)).addObserver((exit) => {
          if (Exit.isSuccess(exit)) fail(exit.value)
        })
      }
    },
    refused({ operation, subject }) {
      if (operation !== "publish") return
      if (subject === reader.options.subject) fail(unauthorized(connection, "reading", subject))
      // Nothing would ever be settled.
      if (subject.startsWith(ackPrefix)) fail(unauthorized(connection, "settling", subject))
    },
    restored() {
      interruptedUntil = now() + ackWait * 1.5 + 1000
      if (closed || healing) return
      reader.begin()
      ask()
    }
  })

  // --- saying

  const voice = settling({
    connection,
    notes,
    now,
    date: () => clock.currentTimeMillisUnsafe(),
    lease,
    confirm: Context.get(options.settings, settings.Acknowledge) === "confirm",
    // What is open here would get them again.
    elsewhereAfter: () => withdrawn || isTooMuch() ? reader.remaining : 0,
    onRetry: (delivery, delay) => arrivals.retried(delivery, delay)
  })
  const arrivals = new Arrivals({
    connection,
    notes,
    now,
    lease,
    interrupted: () => now() < interruptedUntil,
    run: runFork,
    acknowledge: voice.acknowledge,
    onReady: wake
  })
  const extendEvery = Duration.millis(ackWait / 3)
  // What nobody has pulled is kept alive too; what could not be is no longer ours to give.
  const keeping = setInterval(() => {
    const { kept } = arrivals
    if (!Arr.isReadonlyArrayNonEmpty(kept)) return
    runFork(Effect.ignore(Effect.map(voice.extend(kept), (lost) => arrivals.forget(lost))))
  }, ackWait / 3)
  // Where a consumer would begin, were it to be created again.
  const looking = setInterval(() => {
    if (!active) return
    active = false
    const info = resources.consumerInfo(connection, consumer.stream_name, consumer.name)
    runFork(Effect.ignore(Effect.map(info, (info) => info === undefined ? undefined : remember(info))))
  }, 10_000)

  yield* Effect.addFinalizer(() =>
    Effect.gen(function*() {
      closed = true
      stopListening()
      clearInterval(looking)
      clearTimeout(dueTimer)
      if (reader.open && reader.asked > 0) {
        yield* Effect.callback<void>((resume) => {
          reader.stay()
          reader.retire(() => true, () => resume(Effect.void))
        })
      }
      reader.close()
      yield* Effect.promise(() => reader.end())
      yield* Effect.promise(() => handedBack)
      yield* voice.handBack(yield* Effect.promise(() => arrivals.close()))
    }).pipe(
      Effect.timeoutOption(Duration.seconds(5)),
      Effect.ignore,
      Effect.ensuring(Effect.sync(() => clearInterval(keeping)))
    )
  )
  reader.begin()

  return {
    pull,
    settle: (batch) => voice.settle(batch),
    extend: (deliveries) => voice.extend(deliveries),
    extendEvery,
    // A server that has stopped leaves the socket as it was.
    health: Effect.suspend(() =>
      connection.state() === "connected" && reader.open && !healing
        ? Effect.as(Effect.timeout(connection.flush, answersWithin), "consuming" as const)
        : Effect.succeed("reconnecting" as const)
    ).pipe(Effect.orElseSucceed(() => "reconnecting" as const))
  }
})
