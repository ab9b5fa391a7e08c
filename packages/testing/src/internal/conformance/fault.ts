import * as Message from "@millrace/core/Message"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Settlement from "@millrace/core/Settlement"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as assert from "node:assert/strict"
import * as rig from "./rig.ts"

const { test } = rig

/** Publishes each value until the broker has confirmed it: what is confirmed must be handled. */
const publishing = (
  transport: rig.Process["transport"],
  topic: Parameters<typeof rig.publish<number>>[1],
  values: ReadonlyArray<number>
) =>
  Effect.forEach(
    values,
    (n) =>
      rig.publish(transport, topic, [n], () => ({ id: `id-${n}` })).pipe(
        Effect.retry(Schedule.spaced(50)),
        Effect.andThen(Effect.sleep(2))
      ),
    { discard: true }
  )

/** Handles 300 messages while `disturb` strikes twice; every delivery and acknowledgement is on record. */
const disturbed = Effect.fnUntraced(function*(name: string, disturb: Effect.Effect<void, unknown>) {
  const { claimAfter, transport } = yield* rig.Rig
  const topic = rig.numbers(name)
  const deliveries = new Map<string, Array<{ readonly attempt: number; readonly redelivered: boolean }>>()
  const values = new Map<string, number>()
  const { running, stop } = yield* rig.start(
    rig.from(transport, topic).pipe(
      Pipeline.tap((n, { attempt, id, redelivered }) =>
        Effect.gen(function*() {
          deliveries.set(id, [...deliveries.get(id) ?? [], { attempt, redelivered }])
          yield* Effect.sleep(5)
          values.set(id, n)
        })
      ),
      Pipeline.concurrency(8)
    )
  )
  const publisher = yield* Effect.forkChild(publishing(transport, topic, rig.range(300)))
  for (const share of [80, 180]) {
    yield* rig.until(`${share} are handled`, () => values.size >= share)
    yield* rig.bounded("the fault strikes", disturb)
  }
  yield* rig.until("the publisher is done", () => publisher.pollUnsafe() !== undefined, 60_000)
  yield* publisher.pollUnsafe()!
  const missing = () => {
    const handled = new Set(values.values())
    return rig.range(300).filter((n) => !handled.has(n))
  }
  yield* rig.until("all that was confirmed is handled", () => missing().length === 0, 60_000).pipe(
    Effect.catchDefect(() => Effect.die(new Error(`confirmed, and not handled: ${missing().join(" ")}`)))
  )
  yield* rig.eventually("it consumes", running.health, ({ state }) => state === "consuming")
  yield* rig.pass(2 * claimAfter)
  const { deadLettered } = yield* running.counts
  yield* stop
  assert.equal(deadLettered, 0, "a fault of the broker dead-letters nothing")
  for (const [id, times] of deliveries) {
    let last = 1
    times.forEach(({ attempt, redelivered }, i) => {
      assert.ok(redelivered || i === 0 && attempt === 1, `message ${id} was delivered again without a cause`)
      assert.ok(attempt >= last, `the attempts of message ${id} go back`)
      last = attempt
    })
  }
})

export const fault: ReadonlyArray<rig.Test> = [
  test(
    "X1",
    "law 5",
    "connections cut under load: nothing confirmed is lost, every duplicate is a redelivery",
    function*() {
      const { cut } = yield* rig.Rig
      yield* disturbed("x1", cut)
    },
    { needs: ["cut"], alone: true }
  ),

  test(
    "X3",
    "law 5",
    "a broker restarted under load: nothing confirmed is lost, every duplicate is a redelivery",
    function*() {
      const { restart } = yield* rig.Rig
      yield* disturbed("x3", restart)
    },
    { needs: ["restart"], alone: true }
  ),

  test(
    "X4",
    "law 5",
    "a settlement during an outage waits for the connection or ends in a redelivery, and never lies",
    function*() {
      const { claimAfter, restart, transport } = yield* rig.Rig
      const topic = rig.numbers("x4")
      const answers: Array<string> = []
      const { stop } = yield* rig.start(
        rig.from(transport, topic).pipe(
          Pipeline.tap((n, message) =>
            Effect.gen(function*() {
              if (message.attempt === 1) yield* Effect.exit(restart)
              answers.push(`${n}/${message.attempt} ${yield* Message.settle(message, Settlement.ack)}`)
            })
          )
        )
      )
      yield* rig.publish(transport, topic, [1])
      yield* rig.until("its settlement is answered", () => answers.length > 0, 60_000)
      yield* rig.pass(3 * claimAfter)
      yield* stop
      const other = yield* rig.subscribe(transport, topic.name)
      const again = rig.texts(yield* rig.gather(other, 2 * claimAfter))
      // `false` says that it was no longer ours: the acknowledgement of a former owner stands all the same.
      const told = answers.findIndex((answer) => answer.endsWith("true"))
      if (told >= 0) assert.deepEqual([...answers.slice(told + 1), ...again], [], `answers: ${answers.join(", ")}`)
    },
    { needs: ["restart"], alone: true }
  ),

  test(
    "X7",
    "law 8",
    "a process paused beyond the claim time loses its message: its handler is told, and settles nothing",
    function*() {
      const topic = rig.numbers("x7")
      const zombie = yield* rig.connect
      const peer = yield* rig.connect
      const attempts: Array<string> = []
      let aborted = false
      let letPeerEnd = false
      const first = yield* rig.start(
        rig.from(zombie.transport, topic).pipe(
          Pipeline.tap((_, { attempt, signal }) => {
            attempts.push(`zombie ${attempt}`)
            signal.addEventListener("abort", () => aborted = true)
            return Effect.never
          })
        )
      )
      yield* rig.publish(peer.transport, topic, [1])
      yield* rig.until("the handler runs", () => attempts.length === 1)
      yield* zombie.freeze
      const second = yield* rig.start(
        rig.from(peer.transport, topic).pipe(
          Pipeline.tap((_, { attempt }) =>
            Effect.gen(function*() {
              attempts.push(`peer ${attempt}`)
              while (!letPeerEnd) yield* Effect.sleep(5)
            })
          )
        )
      )
      yield* rig.until("a peer takes it over", () => attempts.length === 2)
      yield* zombie.thaw
      yield* rig.until("the zombie's signal aborts", () => aborted)
      yield* rig.eventually("the zombie counts it as lost", first.running.counts, ({ lost }) => lost === 1)
      letPeerEnd = true
      yield* rig.eventually(
        "the peer settles it",
        second.running.counts,
        ({ handled, lost }) => handled === 1 && lost === 0
      )
      yield* first.stop
      yield* second.stop
      assert.deepEqual(attempts, ["zombie 1", "peer 2"])
    },
    { needs: ["connect", "ownership"] }
  )
]
