import * as Message from "@millrace/core/Message"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Settlement from "@millrace/core/Settlement"
import * as TransportAuthor from "@millrace/core/TransportAuthor"
import * as Clock from "effect/Clock"
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

/**
 * Handles 300 messages while `disturb` strikes, each time that so many are handled; every delivery and acknowledgement is
 * on record.
 */
const disturbed = Effect.fnUntraced(function*(
  name: string,
  disturb: Effect.Effect<unknown, unknown>,
  strikes: ReadonlyArray<number> = [80, 180]
) {
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
  for (const share of strikes) {
    yield* rig.until(`${share} are handled`, () => values.size >= share, 60_000)
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
  ),

  test(
    "X2",
    "law 5",
    "half-open connections under load, which nobody is told of: nothing confirmed is lost",
    function*() {
      const { halfOpen } = yield* rig.Rig
      yield* disturbed("x2", halfOpen, [80])
    },
    { needs: ["halfOpen"], alone: true }
  ),

  test(
    "X5",
    "law 4",
    "a broker that refuses to store for a while loses nothing, and no handler runs beyond its limit",
    function*() {
      const { claimAfter, refuse, transport } = yield* rig.Rig
      const topic = rig.numbers("x5")
      const attempts: Array<string> = []
      yield* rig.publish(transport, topic, rig.range(6))
      const { running, stop } = yield* rig.start(
        rig.from(transport, topic).pipe(
          Pipeline.tap((n, { attempt }) => {
            attempts.push(`${n}/${attempt}`)
            return n % 2 === 0 ? Effect.fail("never good") : Effect.sleep(20)
          }),
          Pipeline.retry({ times: 1, schedule: rig.after(100) }),
          Pipeline.concurrency(8)
        )
      )
      yield* Effect.scoped(Effect.gen(function*() {
        yield* rig.bounded("the broker refuses", refuse)
        yield* rig.until("second attempts are made", () => attempts.some((attempt) => attempt.endsWith("/2")))
        yield* rig.pass(2 * claimAfter)
      }))
      yield* rig.eventually(
        "all are settled",
        running.counts,
        ({ deadLettered, handled }) => deadLettered === 3 && handled === 3
      )
      yield* stop
      assert.deepEqual(
        attempts.toSorted(),
        ["0/1", "0/2", "1/1", "2/1", "2/2", "3/1", "4/1", "4/2", "5/1"]
      )
      assert.deepEqual(rig.texts(yield* rig.browse(transport, `${topic.name}.dead`)).toSorted(), ["0", "2", "4"])
    },
    { needs: ["refuse"], alone: true }
  ),

  test("X6", "law 5", "a slow network, and one with little bandwidth: nothing confirmed is lost", function*() {
    const { shape } = yield* rig.Rig
    let strikes = 0
    yield* Effect.ensuring(
      disturbed(
        "x6",
        Effect.suspend(() =>
          shape(strikes++ === 0 ? { latency: 50, bandwidth: Infinity } : { latency: 5, bandwidth: 200_000 })
        ),
        // With this latency, each message takes a tenth of a second to publish.
        [80, 120]
      ),
      Effect.ignore(shape({ latency: 0, bandwidth: Infinity }))
    )
  }, { needs: ["shape"], alone: true }),

  test("X8", "law 2", "a wall clock that jumps, forwards or back, loses nothing and burns no attempt", function*() {
    const { connect } = yield* rig.Rig
    const clock = yield* Clock.clockWith(Effect.succeed)
    let skew = 0
    const jumping: Clock.Clock = Object.assign(Object.create(clock) as Clock.Clock, {
      currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + skew,
      currentTimeMillis: Effect.sync(() => clock.currentTimeMillisUnsafe() + skew),
      currentTimeNanosUnsafe: () => clock.currentTimeNanosUnsafe() + BigInt(skew) * 1_000_000n,
      currentTimeNanos: Effect.sync(() => clock.currentTimeNanosUnsafe() + BigInt(skew) * 1_000_000n)
    })
    const topic = rig.numbers("x8")
    const handled: Array<number> = []
    const attempts = new Map<string, number>()
    const transport = yield* Effect.provideService(rig.bounded("it connects", connect), Clock.Clock, jumping)
    const { running, stop } = yield* Effect.provideService(
      rig.start(
        rig.from(transport, topic).pipe(
          Pipeline.tap((n, { attempt }) => {
            attempts.set(`${n}/${attempt}`, (attempts.get(`${n}/${attempt}`) ?? 0) + 1)
            return n % 5 === 0 && attempt === 1
              ? Effect.fail("once")
              : Effect.andThen(Effect.sleep(5), Effect.sync(() => handled.push(n)))
          }),
          Pipeline.retry({ times: 1, schedule: rig.after(300) }),
          Pipeline.concurrency(4)
        )
      ),
      Clock.Clock,
      jumping
    )
    for (const [round, jump] of [3_600_000, -7_200_000, 3_600_000].entries()) {
      yield* rig.publish(transport, topic, rig.range(20).map((n) => 20 * round + n))
      yield* rig.until("some are handled", () => handled.length >= 20 * round + 4)
      skew += jump
      yield* rig.until("all are handled", () => handled.length >= 20 * (round + 1))
    }
    const { deadLettered, lost } = yield* running.counts
    yield* stop
    assert.deepEqual(handled.toSorted((a, b) => a - b), rig.range(60))
    assert.deepEqual({ deadLettered, lost, most: Math.max(...attempts.values()) }, {
      deadLettered: 0,
      lost: 0,
      most: 1
    })
  }, { needs: ["connect"], alone: true }),

  test(
    "X9",
    "law 3",
    "three processes replaced one after the other under load: each message is handled once, at attempt 1",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("x9")
      const handled: Array<string> = []
      const process = Effect.gen(function*() {
        const peer = yield* rig.connect
        return yield* rig.start(
          rig.from(peer.transport, topic, { prefetch: 4 }).pipe(
            Pipeline.tap((n, { attempt }) =>
              Effect.andThen(Effect.sleep(10), Effect.sync(() => handled.push(`${n}/${attempt}`)))
            ),
            Pipeline.concurrency(4)
          )
        )
      })
      const fleet = [yield* process, yield* process, yield* process]
      yield* rig.publish(transport, topic, rig.range(240))
      for (const replaced of rig.range(6)) {
        const before = handled.length
        yield* rig.until("work goes on", () => handled.length >= Math.min(240, before + 20))
        fleet.push(yield* process)
        yield* fleet[replaced]!.stop
      }
      yield* rig.until("all are handled", () => handled.length >= 240)
      for (const { stop } of fleet.slice(6)) yield* stop
      assert.deepEqual(handled.toSorted(), rig.range(240).map((n) => `${n}/1`).toSorted())
    },
    { needs: ["connect", "uncountedRelease"] }
  ),

  test(
    "X10",
    "law 5",
    "another node leads, again and again: nothing confirmed is lost, every duplicate is a redelivery",
    function*() {
      const { changeLeader } = yield* rig.Rig
      yield* disturbed("x10", changeLeader)
    },
    { needs: ["changeLeader"], alone: true }
  ),

  test(
    "X11",
    "contract",
    "a group that is deleted while it is consumed is made again, and consumption goes on",
    function*() {
      const { deleteGroup, transport } = yield* rig.Rig
      const topic = rig.numbers("x11")
      const seen = new Set<number>()
      const { running, stop } = yield* rig.start(rig.from(transport, topic).pipe(Pipeline.map((n) => void seen.add(n))))
      for (const n of [1, 2, 3]) {
        yield* rig.publish(transport, topic, [n])
        yield* rig.until(`${n} is handled`, () => seen.has(n))
        yield* rig.bounded("the group is deleted", deleteGroup(topic.name, "g"))
      }
      yield* rig.publish(transport, topic, [4])
      yield* rig.until("4 is handled", () => seen.has(4))
      const health = yield* rig.eventually("it consumes", running.health, ({ state }) => state === "consuming")
      assert.equal(health.state, "consuming")
      yield* stop
    },
    { needs: ["deleteGroup"] }
  ),

  test(
    "X12",
    "contract",
    "a topic that is deleted while it is consumed is made again: its new life has another origin, and loses no output",
    function*() {
      const { deleteTopic, transport } = yield* rig.Rig
      const topic = rig.numbers("x12")
      const out = rig.rename(topic, `${topic.name}.out`)
      const lives = new Set<string>()
      const { running, stop } = yield* rig.start(
        rig.from(transport, topic).pipe(
          Pipeline.tap((_, message) => {
            const delivery = TransportAuthor.received(message)?.delivery
            return Effect.sync(() => lives.add(`${delivery?.origin}`))
          }),
          Pipeline.to(out)
        )
      )
      for (const n of [1, 2, 3]) {
        yield* rig.publish(transport, topic, [n])
        yield* rig.eventually(`${n} is handled`, running.counts, ({ handled }) => handled === n)
        yield* rig.bounded("the topic is deleted", deleteTopic(topic.name))
      }
      yield* stop
      assert.equal(lives.size, 3, [...lives].join(", "))
      assert.deepEqual(rig.texts(yield* rig.browse(transport, out.name)), ["1", "2", "3"])
    },
    { needs: ["deleteTopic"] }
  ),

  test(
    "X13",
    "law 1",
    "the consumers of a group deleted while they work: what they own is handled, and no handler is interrupted",
    function*() {
      const { deleteConsumers, transport } = yield* rig.Rig
      const topic = rig.numbers("x13")
      const handled = new Set<number>()
      let open = false
      let begun = 0
      let interrupted = 0
      const { stop } = yield* rig.start(
        rig.from(transport, topic, { prefetch: 4 }).pipe(
          Pipeline.tap((n) =>
            Effect.gen(function*() {
              begun++
              while (!open) yield* Effect.sleep(5)
              handled.add(n)
            }).pipe(Effect.onInterrupt(() => Effect.sync(() => interrupted++)))
          ),
          Pipeline.concurrency(2)
        )
      )
      yield* rig.publish(transport, topic, rig.range(6))
      yield* rig.until("two run", () => begun === 2)
      yield* rig.bounded("the consumers are deleted", deleteConsumers(topic.name, "g"))
      yield* rig.pass(500)
      open = true
      yield* rig.until("all are handled", () => handled.size === 6)
      yield* rig.publish(transport, topic, [6])
      yield* rig.until("the next is handled", () => handled.size === 7)
      yield* stop
      assert.equal(interrupted, 0)
    },
    { needs: ["deleteConsumers"], alone: true }
  )
]
