import type * as Transport from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import * as Arr from "effect/Array"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import { type Connection, unauthorized } from "./connection.ts"
import { consumerInfo, type ConsumerSpec, ensureConsumer } from "./consumers.ts"
import { ConsumerWatch } from "./consumerWatch.ts"
import type { JetStreamDelivery } from "./delivery.ts"
import { left } from "./groups.ts"
import { Healing } from "./healing.ts"
import { Condition } from "./health.ts"
import { Inbox } from "./inbox.ts"
import { isUnbounded } from "./keeping.ts"
import type { AttemptLedger } from "./ledger.ts"
import { sequenceIn } from "./life.ts"
import { Position, startOf } from "./position.ts"
import { PullLoop } from "./pullLoop.ts"
import { whenReady } from "./recovery.ts"
import { Requests } from "./requests.ts"
import { settling } from "./settling.ts"
import { hearGivenUp, withBody } from "./storedDelivery.ts"
import { type Declaring, ensureStream, warnOfMirror } from "./streams.ts"
import { specOf } from "./subscriptionSpec.ts"

/** A request of an idle pull loop stays open this long unless the consumer allows less. */
const requestExpires = 30_000

/** A server that sends nothing for so long is not there. Milliseconds. */
const answersWithin = 1000

/**
 * Closing waits for a server that has sent something within that time, in milliseconds, and four times as long at most:
 * what is not released goes to a peer only when its ack wait has ended.
 */
const closesWithin = 5000

/** Reads one consumer: the only room that knows all those a subscription is made of. */
export const subscribe = Effect.fnUntraced(function*(
  connection: Connection,
  declaring: Declaring,
  ledger: AttemptLedger,
  options: Transport.SubscribeOptions
): Effect.fn.Return<Transport.Subscription, TransportError, Scope.Scope> {
  const asked = yield* specOf(declaring, options)
  const { consumer, stream } = yield* whenReady(
    Effect.gen(function*() {
      const stream = yield* ensureStream(connection, declaring, asked.stream)
      const startFrom = yield* startOf(connection, ledger, stream, asked.consumer)
      return {
        stream,
        consumer: yield* ensureConsumer(connection, declaring, stream, { ...asked.consumer, startFrom })
      }
    })
  )
  const spec: ConsumerSpec = { ...asked.consumer, name: consumer.name }
  yield* ledger.serve(stream.config)
  if (asked.isFiltered) yield* warnOfMirror(connection, asked.stream, stream)
  if (isUnbounded(stream.config)) {
    yield* Effect.logInfo(
      `stream ${stream.config.name} never removes a message: bound it with maxAge, maxMessages or maxBytes, or use retention "until-acked"`
    )
  }
  const clock = yield* Clock.clockWith(Effect.succeed)
  const context = yield* Effect.context<never>()
  const runFork = Effect.runForkWith(context)
  const now = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6
  const date = () => clock.currentTimeMillisUnsafe()

  const ackWait = (consumer.config.ack_wait ?? 0) / 1e6
  /** A little less than the server gives: its clock started before the message arrived. */
  const lease = ackWait * 0.9
  /** What was sent to us when the connection was lost comes again within that time. */
  let interruptedUntil = 0
  const mayComeUntil = () => now() + ackWait * 1.5 + 1000

  const condition = new Condition(date)
  const position = new Position({ connection, ledger, consumer, spec, stream })
  yield* position.keep
  const requests = new Requests({
    connection,
    now,
    isolateFrom: options.isolateFrom,
    inbox: () => inbox,
    loop: () => loop,
    isHealing: () => healing.isHealing,
    release: (deliveries) => settle.release(deliveries),
    runPromise: Effect.runPromiseWith(context)
  })
  const healing = new Healing({
    connection,
    declaring,
    consumer,
    spec,
    streamSpec: asked.stream,
    condition,
    position,
    run: runFork,
    endRequests: () => loop.end(),
    onRenewed: () => inbox.renew(),
    onHealed: () => requests.resume(),
    onFailure: requests.fail
  })
  const loop = new PullLoop({
    connection,
    clock,
    subject: `${connection.apiPrefix}.CONSUMER.MSG.NEXT.${consumer.stream_name}.${consumer.name}`,
    infoSubject: `${connection.apiPrefix}.CONSUMER.INFO.${consumer.stream_name}.${consumer.name}`,
    life: () => position.life,
    bounds: () => ({
      maxBatch: position.config.max_batch || Infinity,
      maxBytes: position.config.max_bytes || Infinity,
      expires: Math.min(requestExpires, (position.config.max_expires || Infinity) / 1e6)
    }),
    onChunk(chunk) {
      condition.clear("silence")
      if (chunk.length === 0) return requests.answered()
      watch.note()
      healing.recovered()
      const sentSince = connection.sentSince()
      if (now() < sentSince + lease) {
        const whole = chunk.filter((delivery) => !delivery.lacksBody)
        if (whole.length < chunk.length) readBodies(chunk.filter((delivery) => delivery.lacksBody))
        return whole.length === 0 ? requests.ask() : inbox.receive(whole, sentSince)
      }
      // A peer may have it by now, or else it comes again, and no process died of it.
      interruptedUntil = Math.max(interruptedUntil, mayComeUntil())
      requests.ask()
    },
    onTrouble(trouble) {
      if (healing.isHealing || requests.isOver) return
      inbox.gathered()
      healing.heal(trouble)
    },
    onFailure: requests.fail
  })
  const settle = settling({
    connection,
    ledger,
    now,
    date,
    lease,
    ordered: options.ordered === true,
    confirm: asked.confirm,
    // Requests that are open here would be given the released messages.
    releaseDelay: () => requests.isExcessive ? loop.remaining : 0,
    isSuperseded: (delivery) => inbox.holdsLater(delivery),
    onRetry: (delivery, delay) => inbox.retried(delivery, delay)
  })
  const inbox = new Inbox({
    ledger,
    now,
    date,
    lease,
    isolateFrom: options.isolateFrom,
    ordered: options.ordered === true,
    pending: consumer.num_ack_pending,
    isInterrupted: () => now() < interruptedUntil,
    acknowledge: settle.acknowledge,
    extend: (delivery) => Effect.map(settle.extend([delivery]), (lost) => lost.length === 0),
    postpone: (suspect) => settle.postpone(suspect, ackWait / 2),
    onReady: requests.wake
  })
  const watch = new ConsumerWatch({
    connection,
    declaring,
    consumer,
    spec,
    stream,
    condition,
    position,
    run: runFork,
    isBusy: () => inbox.owned > 0 || Number.isFinite(inbox.nextDue()),
    isAway: () => healing.isHealing
  })
  const readBodies = (deliveries: ReadonlyArray<JetStreamDelivery>) => {
    watch.look()
    runFork(Effect.forEach(deliveries, (delivery) =>
      Effect.match(withBody(connection, delivery), {
        onFailure: () => settle.postpone(delivery, ackWait / 2),
        onSuccess: (whole) => {
          if (whole !== undefined) inbox.receive([whole])
        }
      })))
  }
  const stopHearing = hearGivenUp({
    connection,
    stream: consumer.stream_name,
    consumer: consumer.name,
    life: () => position.life,
    run: runFork,
    receive: (delivery) => inbox.receive([delivery])
  })
  const ackPrefix = `$JS.ACK.${consumer.stream_name}.${consumer.name}.`
  const stopListening = connection.listen({
    lost() {
      interruptedUntil = Infinity
      inbox.gathered()
      loop.abandon()
      requests.withdrawalEnded()
      if (connection.state() === "closed") {
        runFork(Effect.flip(connection.whenConnected)).addObserver((exit) => {
          if (Exit.isSuccess(exit)) requests.fail(exit.value)
        })
      }
    },
    refused({ operation, subject }) {
      if (operation !== "publish") return
      if (subject === loop.options.subject) requests.fail(unauthorized(connection, "reading", subject))
      // Nothing would ever be settled.
      if (subject.startsWith(ackPrefix)) requests.fail(unauthorized(connection, "settling", subject))
    },
    restored() {
      interruptedUntil = mayComeUntil()
      requests.resume()
    }
  })
  const keeping = setInterval(() => {
    const kept = inbox.sweep()
    if (!Arr.isReadonlyArrayNonEmpty(kept)) return
    runFork(Effect.ignore(Effect.map(settle.extend(kept), (lost) => inbox.forget(lost))))
  }, ackWait / 3)
  yield* Effect.addFinalizer(() =>
    Effect.gen(function*() {
      stopListening()
      stopHearing()
      watch.close()
      yield* Effect.promise(() => requests.close())
      yield* settle.close(yield* Effect.promise(() => inbox.close()), inbox.waitingRetries)
      yield* position.close
    }).pipe(
      Effect.raceFirst(connection.untilSilent(closesWithin)),
      Effect.timeoutOption(4 * closesWithin),
      Effect.ignore,
      Effect.ensuring(Effect.sync(() => clearInterval(keeping)))
    )
  )
  loop.begin()

  return {
    pull: requests.pull,
    withdraw: requests.withdraw,
    settle: settle.settle,
    extend: settle.extend,
    begin: settle.begin,
    locate: (ids) =>
      Effect.map(consumerInfo(connection, consumer.stream_name, consumer.name), (info) => {
        if (info !== undefined) position.remember(info)
        const held = inbox.expect(ids)
        // An id of an earlier life of the stream is as good as settled.
        const isSettled = (id: string) => (sequenceIn(position.life, id) ?? 0) <= position.floor
        return { settled: ids.filter((id) => isSettled(id) && !held.has(id)), held: [...held] }
      }),
    group: asked.isFiltered || asked.stream.name !== undefined
      ? Effect.flatMap(consumerInfo(connection, consumer.stream_name, consumer.name), (info) =>
        info === undefined
          ? Effect.succeed(undefined)
          : left(connection, info, options.group, spec.subjects.length === 0 ? [">"] : spec.subjects))
      : undefined,
    clientId: consumer.name,
    lease: Duration.millis(lease),
    // A server that has stopped leaves the socket as it was.
    health: Effect.suspend(() => {
      if (connection.state() !== "connected") {
        return Effect.succeed(condition.reconnecting(connection.trouble()))
      }
      if (healing.isHealing && !healing.isImpaired) {
        return Effect.succeed(condition.reconnecting("what the pipeline reads is being created again"))
      }
      // The answer may come behind a long message.
      const isHeard = () => now() - connection.heardAt() < answersWithin
      return Effect.match(Effect.timeout(connection.flush, answersWithin), {
        onFailure: () => isHeard() ? condition.connected() : condition.reconnecting("the server does not answer"),
        onSuccess: () => condition.connected()
      })
    })
  }
})
