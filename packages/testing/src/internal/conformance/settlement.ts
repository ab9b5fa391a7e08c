import * as Message from "@millrace/core/Message"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Settlement from "@millrace/core/Settlement"
import { OperationFailed, TransportError } from "@millrace/core/TransportError"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as TestClock from "effect/testing/TestClock"
import * as assert from "node:assert/strict"
import * as rig from "./rig.ts"

const { test } = rig

const { ack, release } = Settlement
const { retry, terminate } = rig

/** What a test says of a delivery: the body, and how it came. */
const shown = (
  delivery: Parameters<typeof rig.textOf>[0] & { readonly attempt: number; readonly redelivered: boolean }
) => ({
  value: rig.textOf(delivery),
  attempt: delivery.attempt,
  redelivered: delivery.redelivered
})

const idsOf = (deliveries: ReadonlyArray<{ readonly id: string }>) => deliveries.map(({ id }) => id)

export const settlement: ReadonlyArray<rig.Test> = [
  test("S1", "law 1", "what is acknowledged never comes again, and what is not does", function*() {
    const { claimAfter } = yield* rig.Rig
    const topic = rig.numbers("s1")
    const mortal = yield* rig.connect
    const peer = yield* rig.connect
    yield* rig.publish(mortal.transport, topic, rig.range(10))
    const subscription = yield* rig.subscribe(mortal.transport, topic.name)
    const taken = yield* rig.take(subscription, 10)
    assert.deepEqual(idsOf(yield* rig.settle(subscription, taken.slice(1), ack)), [])
    yield* mortal.crash
    const other = yield* rig.subscribe(peer.transport, topic.name)
    const again = yield* rig.gather(other, 3 * claimAfter + 2000)
    assert.deepEqual(again.map(shown), [{ value: "0", attempt: 2, redelivered: true }])
  }, { needs: ["connect"] }),

  test("S2", "law 2", "a retry brings the same message again, as the next attempt and not as a suspect", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("s2")
    yield* rig.publish(transport, topic, [7], () => ({ headers: { note: "kept" } }))
    const subscription = yield* rig.subscribe(transport, topic.name)
    let delivery = yield* rig.one(subscription)
    const { id } = delivery
    for (const attempt of [1, 2, 3]) {
      assert.deepEqual(
        { ...shown(delivery), id: delivery.id, suspect: delivery.suspect, note: delivery.headers["note"] },
        { value: "7", attempt, redelivered: attempt > 1, id, suspect: false, note: "kept" }
      )
      assert.deepEqual(idsOf(yield* rig.settle(subscription, delivery, retry(20))), [])
      delivery = yield* rig.one(subscription)
    }
    yield* rig.settle(subscription, delivery, ack)
  }),

  test("S3", "law 2", "a retry does not come before its delay, while what is behind it goes on", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("s3")
    yield* rig.publish(transport, topic, [1, 2])
    const subscription = yield* rig.subscribe(transport, topic.name)
    const first = yield* rig.one(subscription)
    const since = yield* Clock.currentTimeMillis
    yield* rig.settle(subscription, first, retry("600 millis"))
    const second = yield* rig.one(subscription)
    yield* rig.settle(subscription, second, ack)
    const again = yield* rig.one(subscription)
    const elapsed = (yield* Clock.currentTimeMillis) - since
    assert.deepEqual([first, second, again].map(rig.textOf), ["1", "2", "1"])
    assert.ok(elapsed >= 590, `it came after ${elapsed} ms`)
    yield* rig.settle(subscription, again, ack)
  }),

  test("S4", "law 1", "what is terminated never comes again, here or at a peer", function*() {
    const { claimAfter } = yield* rig.Rig
    const topic = rig.numbers("s4")
    const mortal = yield* rig.connect
    const peer = yield* rig.connect
    yield* rig.publish(mortal.transport, topic, [1, 2])
    const subscription = yield* rig.subscribe(mortal.transport, topic.name)
    const [first] = yield* rig.take(subscription, 2)
    assert.deepEqual(idsOf(yield* rig.settle(subscription, first!, terminate("no use"))), [])
    yield* mortal.crash
    const other = yield* rig.subscribe(peer.transport, topic.name)
    assert.deepEqual(rig.texts(yield* rig.gather(other, 3 * claimAfter + 2000)), ["2"])
  }, { needs: ["connect"] }),

  test("S5", "contract", "remove deletes messages whatever their state, and says how many there were", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("s5")
    const published = yield* rig.publish(transport, topic, rig.range(5))
    const subscription = yield* rig.subscribe(transport, topic.name)
    const [done, pending] = yield* rig.take(subscription, 2)
    yield* rig.settle(subscription, done!, ack)
    const ids = [done!.id, pending!.id, published[3]!.id] as const
    assert.equal(yield* rig.bounded("removing", transport.remove(topic.name, ids)), 3)
    assert.equal(yield* rig.bounded("removing", transport.remove(topic.name, ids)), 0)
    assert.deepEqual(rig.texts(yield* rig.browse(transport, topic.name)), ["2", "4"])
    assert.deepEqual(rig.texts(yield* rig.gather(subscription, 60_000, 2)), ["2", "4"])
  }),

  test(
    "S6",
    "law 1",
    "the first settlement is final: a second says so, and a failure after it is only counted",
    function*() {
      const { claimAfter, transport } = yield* rig.Rig
      const topic = rig.numbers("s6")
      const answers: Array<boolean> = []
      let attempts = 0
      const { running, stop } = yield* rig.start(
        rig.from(transport, topic).pipe(
          Pipeline.tap((_, message) =>
            Effect.gen(function*() {
              attempts++
              answers.push(yield* Message.settle(message, ack))
              answers.push(yield* Message.settle(message, retry(1)))
              return yield* Effect.fail("too late")
            })
          ),
          Pipeline.retry({ times: 3, schedule: rig.after(1) })
        )
      )
      yield* rig.publish(transport, topic, [1])
      yield* rig.eventually(
        "the failure is counted",
        running.counts,
        ({ failedAfterSettle }) => failedAfterSettle === 1
      )
      yield* rig.pass(2 * claimAfter)
      const { deadLettered, retried } = yield* running.counts
      yield* stop
      assert.deepEqual({ answers, attempts, deadLettered, retried }, {
        answers: [true, false],
        attempts: 1,
        deadLettered: 0,
        retried: 0
      })
      assert.deepEqual(yield* rig.browse(transport, `${topic.name}.dead`), [])
    }
  ),

  test(
    "S7",
    "law 5",
    "settlements that failed on their way are sent again, whether or not they had arrived",
    function*() {
      const { claimAfter, transport } = yield* rig.Rig
      const topic = rig.numbers("s7")
      const lost = new TransportError({
        transport: transport.name,
        reason: new OperationFailed({ operation: "settle" })
      })
      let calls = 0
      const handled: Array<string> = []
      const confirmed = new Set<string>()
      // The first goes nowhere; the second arrives, and its answer is lost; so does the fourth.
      const faulty = {
        ...transport,
        subscribe: (options: Parameters<typeof transport.subscribe>[0]) =>
          Effect.map(transport.subscribe(options), (subscription) => ({
            ...subscription,
            settle: (batch: Parameters<typeof subscription.settle>[0]) =>
              Effect.suspend(() => {
                calls++
                if (calls === 1) return Effect.fail(lost)
                const said = subscription.settle(batch)
                if (calls === 2 || calls === 4) return Effect.andThen(said, Effect.fail(lost))
                return Effect.tap(said, () =>
                  Effect.sync(() => {
                    for (const { delivery, settlement } of batch) {
                      if (settlement._tag === "Ack") confirmed.add(delivery.id)
                    }
                  }))
              })
          }))
      }
      const { running, stop } = yield* rig.start(
        rig.from(faulty, topic).pipe(
          Pipeline.mapEffect((n, { attempt }) => {
            handled.push(`${n}/${attempt}`)
            return n % 2 === 0 && attempt === 1 ? Effect.fail("once") : Effect.void
          }),
          Pipeline.retry({ times: 4, schedule: rig.after(20) }),
          Pipeline.concurrency(4)
        )
      )
      yield* rig.publish(transport, topic, [1, 2, 3, 4])
      yield* rig.until("all acknowledgements are confirmed", () => confirmed.size === 4)
      yield* rig.pass(2 * claimAfter)
      const { resettled } = yield* running.counts
      yield* stop
      assert.ok(resettled >= 2, `only ${resettled} settlements were sent again`)
      assert.deepEqual(handled.sort(), ["1/1", "2/1", "2/2", "3/1", "4/1", "4/2"])
      const other = yield* rig.subscribe(transport, topic.name)
      assert.deepEqual(rig.texts(yield* rig.gather(other, 2 * claimAfter)), [])
    }
  ),

  test("S8", "law 1", "acknowledgements out of order do not settle what is between them", function*() {
    const topic = rig.numbers("s8")
    const mortal = yield* rig.connect
    const peer = yield* rig.connect
    yield* rig.publish(mortal.transport, topic, rig.range(6))
    const subscription = yield* rig.subscribe(mortal.transport, topic.name)
    const taken = yield* rig.take(subscription, 6)
    for (const index of [5, 3, 0]) yield* rig.settle(subscription, taken[index]!, ack)
    yield* mortal.crash
    const other = yield* rig.subscribe(peer.transport, topic.name)
    const again = yield* rig.gather(other, 60_000, 3)
    assert.deepEqual(rig.texts(again).toSorted(), ["1", "2", "4"])
  }, { needs: ["connect"] }),

  test("S9", "law 1", "a batch of mixed settlements settles each as it says", function*() {
    const { capabilities, claimAfter, transport } = yield* rig.Rig
    const topic = rig.numbers("s9")
    yield* rig.publish(transport, topic, rig.range(4))
    const subscription = yield* rig.subscribe(transport, topic.name)
    const [acked, retried, released, terminated] = yield* rig.take(subscription, 4)
    const lost = yield* rig.bounded(
      "the broker takes a batch",
      subscription.settle([
        { delivery: acked!, settlement: ack },
        { delivery: retried!, settlement: retry(100) },
        { delivery: released!, settlement: release },
        { delivery: terminated!, settlement: terminate("no use") }
      ])
    )
    assert.deepEqual(idsOf(lost), [])
    const again = yield* rig.gather(subscription, 2 * claimAfter + 2000)
    assert.deepEqual(again.map(shown).sort((a, b) => a.value.localeCompare(b.value)), [
      { value: "1", attempt: 2, redelivered: true },
      { value: "2", attempt: capabilities.uncountedRelease ? 1 : 2, redelivered: true }
    ])
  }),

  test("S10", "law 8", "a handler of five times the claim time keeps its message, while a peer is hungry", function*() {
    const { claimAfter, transport } = yield* rig.Rig
    const topic = rig.numbers("s10")
    const peer = yield* rig.connect
    const mine: Array<number> = []
    const theirs: Array<number> = []
    let aborted = false
    let ended = false
    const worker = yield* rig.start(
      rig.from(transport, topic).pipe(
        Pipeline.tap((_, { attempt, signal }) => {
          mine.push(attempt)
          signal.addEventListener("abort", () => aborted = true)
          return Effect.andThen(Effect.sleep(5 * claimAfter), Effect.sync(() => ended = true))
        })
      )
    )
    yield* rig.publish(transport, topic, [1])
    yield* rig.until("the handler runs", () => mine.length === 1)
    const hungry = yield* rig.start(
      rig.from(peer.transport, topic).pipe(
        Pipeline.tap((_, { attempt }) => Effect.sync(() => theirs.push(attempt)))
      )
    )
    yield* rig.until("the handler ends", () => ended, 60_000)
    yield* worker.stop
    yield* rig.pass(claimAfter)
    yield* hungry.stop
    assert.deepEqual({ mine, theirs, aborted }, { mine: [1], theirs: [], aborted: false })
  }, { needs: ["connect"] }),

  test("S11", "law 5", "the same batch sent again changes nothing", function*() {
    const { capabilities, claimAfter, transport } = yield* rig.Rig
    const topic = rig.numbers("s11")
    yield* rig.publish(transport, topic, rig.range(4))
    const subscription = yield* rig.subscribe(transport, topic.name)
    const [acked, retried, released, terminated] = yield* rig.take(subscription, 4)
    const batch = [
      { delivery: acked!, settlement: ack },
      { delivery: retried!, settlement: retry(400) },
      { delivery: released!, settlement: release },
      { delivery: terminated!, settlement: terminate("no use") }
    ] as const
    yield* rig.bounded("the broker takes a batch", subscription.settle(batch))
    const lost = yield* rig.bounded("the broker takes it again", subscription.settle(batch))
    assert.ok(!idsOf(lost).includes(retried!.id), "a retry that has arrived is not lost")
    const again = yield* rig.gather(subscription, 3 * claimAfter + 1000)
    assert.deepEqual(again.map(shown).sort((a, b) => a.value.localeCompare(b.value)), [
      { value: "1", attempt: 2, redelivered: true },
      { value: "2", attempt: capabilities.uncountedRelease ? 1 : 2, redelivered: true }
    ])
  }),

  test(
    "S12",
    "law 8",
    "a zombie can neither keep, retry, release nor terminate what a peer has taken over",
    function*() {
      const { claimAfter } = yield* rig.Rig
      const topic = rig.numbers("s12")
      const zombie = yield* rig.connect
      const peer = yield* rig.connect
      yield* rig.publish(zombie.transport, topic, [1])
      const subscription = yield* rig.subscribe(zombie.transport, topic.name)
      const old = yield* rig.one(subscription)
      const other = yield* rig.subscribe(peer.transport, topic.name)
      const taken = yield* rig.one(other)
      assert.deepEqual(
        { ...shown(taken), id: taken.id, suspect: taken.suspect },
        { value: "1", attempt: 2, redelivered: true, id: old.id, suspect: true }
      )
      assert.deepEqual(idsOf(yield* rig.bounded("extending", subscription.extend([old]))), [old.id])
      for (const settlement of [retry(1), release, terminate("mine")]) {
        assert.deepEqual(
          idsOf(yield* rig.settle(subscription, old, settlement)),
          [old.id],
          `${settlement._tag} by a former owner`
        )
      }
      assert.deepEqual(idsOf(yield* rig.bounded("extending", other.extend([taken]))), [], "the peer still owns it")
      yield* subscription.close
      const third = yield* rig.subscribe(zombie.transport, topic.name)
      assert.deepEqual(rig.texts(yield* rig.gather(third, claimAfter / 2)), [], "nobody else is given it")
      assert.deepEqual(idsOf(yield* rig.settle(other, taken, retry(20))), [])
      const again = (yield* Effect.raceFirst(rig.gather(third, 60_000, 1), rig.gather(other, 60_000, 1)))[0]!
      assert.equal(again.attempt, 3, "only what the owner said was counted")
    },
    { needs: ["connect", "ownership"] }
  ),

  test("S13", "law 8", "an acknowledgement by a former owner stands", function*() {
    const { claimAfter } = yield* rig.Rig
    const topic = rig.numbers("s13")
    const slow = yield* rig.connect
    const peer = yield* rig.connect
    yield* rig.publish(slow.transport, topic, [1])
    const subscription = yield* rig.subscribe(slow.transport, topic.name)
    const old = yield* rig.one(subscription)
    const other = yield* rig.subscribe(peer.transport, topic.name)
    yield* rig.one(other)
    yield* rig.settle(subscription, old, ack)
    yield* peer.crash
    const third = yield* rig.subscribe(slow.transport, topic.name)
    assert.deepEqual(rig.texts(yield* rig.gather(third, 3 * claimAfter + 2000)), [])
  }, { needs: ["connect"] }),

  test("S14", "law 3", "what is released goes to a peer at once, as the same attempt", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("s14")
    const peer = yield* rig.connect
    yield* rig.publish(transport, topic, rig.range(5))
    const subscription = yield* rig.subscribe(transport, topic.name)
    const other = yield* rig.subscribe(peer.transport, topic.name)
    for (const round of [1, 2, 3]) {
      const taken = yield* rig.take(round % 2 === 1 ? subscription : other, 5)
      assert.deepEqual(
        taken.map(shown).map(({ attempt, redelivered }) => ({ attempt, redelivered })),
        rig.range(5).map(() => ({
          attempt: 1,
          redelivered: round > 1
        }))
      )
      assert.ok(taken.every(({ suspect }) => !suspect), "what was handed back is not suspected of anything")
      if (round === 3) yield* rig.settle(subscription, taken, ack)
      else yield* rig.settle(round % 2 === 1 ? subscription : other, taken, release)
    }
  }, { needs: ["connect", "uncountedRelease"] }),

  test("S15", "law 2", "manual: what a handler forgets to settle is reported, and delivered again", function*() {
    const { claimAfter, transport } = yield* rig.Rig
    const topic = rig.numbers("s15")
    const peer = yield* rig.connect
    const attempts: Array<number> = []
    const manual = <T>(self: T & ReturnType<typeof rig.from<number>>) =>
      self.pipe(
        Pipeline.tap((_, message) => {
          attempts.push(message.attempt)
          return message.attempt === 1 ? Effect.void : Message.settle(message, ack)
        }),
        Pipeline.ackPolicy("manual", { settleWithin: "100 millis" })
      )
    const forgetful = yield* rig.start(manual(rig.from(transport, topic)))
    yield* rig.publish(transport, topic, [1])
    yield* rig.eventually("it is reported", forgetful.running.counts, ({ unsettled }) => unsettled === 1)
    const careful = yield* rig.start(manual(rig.from(peer.transport, topic)))
    yield* rig.until("it is delivered again", () => attempts.length >= 2)
    yield* rig.pass(2 * claimAfter)
    yield* forgetful.stop
    yield* careful.stop
    assert.deepEqual(attempts, [1, 2])
  }, { needs: ["connect"] }),

  test("S16", "law 4", "a retry keeps when the message failed first, for whichever process has it next", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("s16")
    const peer = yield* rig.connect
    yield* rig.publish(transport, topic, [1])
    const subscription = yield* rig.subscribe(transport, topic.name)
    const first = yield* rig.one(subscription)
    assert.equal(first.firstFailedAt, undefined)
    yield* rig.settle(subscription, first, retry(20))
    const second = yield* rig.one(subscription)
    const failedAt = second.firstFailedAt
    assert.ok(failedAt !== undefined)
    yield* rig.settle(subscription, second, retry("300 millis"))
    yield* subscription.close
    const other = yield* rig.subscribe(peer.transport, topic.name)
    const third = yield* rig.one(other)
    assert.equal(third.firstFailedAt, failedAt)
    yield* rig.settle(other, third, release)
    const fourth = yield* rig.one(other)
    assert.deepEqual([fourth.attempt, fourth.firstFailedAt], [3, failedAt])
    yield* rig.settle(other, fourth, ack)
  }, { needs: ["connect"] }),

  test("S17", "law 3", "a release counts no attempt at attempt 2 either, here and at a peer", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("s17")
    const peer = yield* rig.connect
    yield* rig.publish(transport, topic, [1])
    const subscription = yield* rig.subscribe(transport, topic.name)
    yield* rig.settle(subscription, yield* rig.one(subscription), retry(20))
    for (let round = 0; round < 3; round++) {
      const again = yield* rig.one(subscription)
      assert.equal(again.attempt, 2)
      yield* rig.settle(subscription, again, release)
    }
    yield* subscription.close
    const other = yield* rig.subscribe(peer.transport, topic.name)
    const again = yield* rig.one(other)
    assert.equal(again.attempt, 2)
    yield* rig.settle(other, again, ack)
  }, { needs: ["connect", "uncountedRelease"] }),

  test("S18", "law 8", "an extension keeps every delivery that it names, while a peer is hungry", function*() {
    const { claimAfter, transport } = yield* rig.Rig
    const topic = rig.numbers("s18")
    const peer = yield* rig.connect
    yield* rig.publish(transport, topic, rig.range(5))
    const subscription = yield* rig.subscribe(transport, topic.name)
    const [first, ...rest] = yield* rig.take(subscription, 5)
    const other = yield* rig.subscribe(peer.transport, topic.name)
    const theirs = yield* Effect.forkChild(rig.gather(other, 3 * claimAfter))
    while (theirs.pollUnsafe() === undefined) {
      assert.deepEqual(idsOf(yield* rig.bounded("extending", subscription.extend([first!, ...rest]))), [])
      yield* rig.pass(claimAfter / 5)
    }
    assert.deepEqual(rig.texts(yield* theirs.pollUnsafe()!), [])
    assert.deepEqual(idsOf(yield* rig.settle(subscription, [first!, ...rest], ack)), [])
  }, { needs: ["connect", "ownership"] }),

  test("S19", "law 8", "settling many names those that a peer has taken over, and only those", function*() {
    const { claimAfter } = yield* rig.Rig
    const topic = rig.numbers("s19")
    const slow = yield* rig.connect
    const peer = yield* rig.connect
    yield* rig.publish(slow.transport, topic, rig.range(4))
    const subscription = yield* rig.subscribe(slow.transport, topic.name)
    const [first, second, third, fourth] = yield* rig.take(subscription, 4)
    const other = yield* rig.subscribe(peer.transport, topic.name)
    const taking = yield* Effect.forkChild(rig.take(other, 2))
    while (taking.pollUnsafe() === undefined) {
      yield* rig.bounded("extending", subscription.extend([first!, third!]))
      yield* rig.pass(claimAfter / 5)
    }
    const taken = yield* taking.pollUnsafe()!
    assert.deepEqual(rig.texts(taken).toSorted(), ["1", "3"])
    const lost = yield* rig.settle(subscription, [first!, second!, third!, fourth!], terminate("mine"))
    assert.deepEqual(idsOf(lost).toSorted(), idsOf([second!, fourth!]).toSorted())
    yield* rig.settle(other, taken, ack)
    assert.deepEqual(rig.texts(yield* rig.gather(other, 2 * claimAfter)), [])
  }, { needs: ["connect", "ownership"] }),

  test(
    "S20",
    "law 5",
    "a settlement belongs to one delivery: an earlier delivery of this consumer changes nothing for the next",
    function*() {
      const { transport } = yield* rig.Rig
      // A delivery after a release has the same count as the one before.
      for (const first of [retry(20), release]) {
        const topic = rig.numbers(`s20-${first._tag}`)
        yield* rig.publish(transport, topic, [1])
        const subscription = yield* rig.subscribe(transport, topic.name)
        const earlier = yield* rig.one(subscription)
        yield* rig.settle(subscription, earlier, first)
        const present = yield* rig.one(subscription)
        for (const settlement of [retry(20), release, terminate("late")]) {
          assert.deepEqual(
            idsOf(yield* rig.settle(subscription, earlier, settlement)),
            [earlier.id],
            `${settlement._tag} of an earlier delivery`
          )
        }
        assert.deepEqual(idsOf(yield* rig.bounded("extending", subscription.extend([earlier]))), [earlier.id])
        assert.deepEqual(rig.texts(yield* rig.gather(subscription, 200)), [], "the present delivery goes on")
        assert.deepEqual(idsOf(yield* rig.bounded("extending", subscription.extend([present]))), [])
        assert.deepEqual(idsOf(yield* rig.settle(subscription, present, retry(20))), [])
        const next = yield* rig.one(subscription)
        assert.equal(next.attempt, present.attempt + 1)
        yield* rig.settle(subscription, next, ack)
      }
    },
    { needs: ["ownership"] }
  ),

  test("S21", "law 2", "a delay is kept to the millisecond that the clocks allow, however odd", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("s21")
    const delays = [249, 449, 1049]
    yield* rig.publish(transport, topic, delays)
    const subscription = yield* rig.subscribe(transport, topic.name)
    const since = yield* Clock.currentTimeMillis
    for (const delivery of yield* rig.take(subscription, 3)) {
      yield* rig.settle(subscription, delivery, retry(Number(rig.textOf(delivery))))
    }
    for (const delay of delays) {
      const again = yield* rig.one(subscription)
      const elapsed = (yield* Clock.currentTimeMillis) - since
      assert.equal(rig.textOf(again), String(delay))
      assert.ok(elapsed >= delay - 10, `a retry after ${delay} ms came after ${elapsed} ms`)
      yield* rig.settle(subscription, again, ack)
    }
  }),

  test("S22", "law 2", "a delay of hours is not cut", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("s22")
    yield* rig.publish(transport, topic, [1])
    const subscription = yield* rig.subscribe(transport, topic.name)
    yield* rig.settle(subscription, yield* rig.one(subscription), retry("3 hours"))
    const pulling = yield* Effect.forkChild(subscription.pull(rig.demand(1)), { startImmediately: true })
    yield* TestClock.adjust("179 minutes")
    yield* rig.pass(1000)
    assert.equal(pulling.pollUnsafe(), undefined, "it came early")
    yield* TestClock.adjust("50 seconds")
    yield* rig.until("it comes", () => pulling.pollUnsafe() !== undefined)
  }, { needs: ["testClock"] }),

  test(
    "S23",
    "law 1",
    "a delivery that is neither settled nor extended comes again, to its only consumer too",
    function*() {
      const { claimAfter, transport } = yield* rig.Rig
      const topic = rig.numbers("s23")
      yield* rig.publish(transport, topic, [1])
      const subscription = yield* rig.subscribe(transport, topic.name)
      const neglected = yield* rig.one(subscription)
      const suspect = { value: "1", attempt: 2, redelivered: true, id: neglected.id, suspect: true }
      const again = yield* rig.one(subscription)
      assert.deepEqual({ ...shown(again), id: again.id, suspect: again.suspect }, suspect)
      yield* rig.settle(subscription, again, release)
      const released = yield* rig.one(subscription)
      assert.deepEqual({ ...shown(released), id: released.id, suspect: released.suspect }, suspect, "a release")
      assert.deepEqual(idsOf(yield* rig.settle(subscription, released, ack)), [])
      assert.deepEqual(rig.texts(yield* rig.gather(subscription, 2 * claimAfter)), [])
    }
  ),

  test("S24", "law 1", "manual: a message that its handler forgets is handled again by the only process", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("s24")
    const attempts: Array<number> = []
    const { running, stop } = yield* rig.start(
      rig.from(transport, topic).pipe(
        Pipeline.tap((_, message) => {
          attempts.push(message.attempt)
          return message.attempt === 1 ? Effect.void : Message.settle(message, ack)
        }),
        Pipeline.ackPolicy("manual", { settleWithin: "100 millis" })
      )
    )
    yield* rig.publish(transport, topic, [1])
    yield* rig.until("it is handled again", () => attempts.length === 2)
    const { unsettled } = yield* running.counts
    yield* stop
    assert.deepEqual({ attempts, unsettled }, { attempts: [1, 2], unsettled: 1 })
  }),

  test(
    "S25",
    "law 2",
    "a settlement by hand follows the policies: limit, schedule, dead letter and counts",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("s25")
      const attempts: Array<string> = []
      const { running, stop } = yield* rig.start(
        rig.from(transport, topic).pipe(
          Pipeline.tap((n, message) => {
            attempts.push(`${n}/${message.attempt}`)
            return Message.settle(message, n === 1 ? Settlement.retry(20) : Settlement.terminate("no use"))
          }),
          Pipeline.retry({ times: 2, schedule: rig.after(20) })
        )
      )
      yield* rig.publish(transport, topic, [1, 2])
      yield* rig.eventually("both are dead-lettered", running.counts, ({ deadLettered }) => deadLettered === 2)
      const { handled, retried } = yield* running.counts
      yield* stop
      assert.deepEqual(attempts.toSorted(), ["1/1", "1/2", "1/3", "2/1"])
      assert.deepEqual({ handled, retried }, { handled: 0, retried: 2 })
      const letters = yield* rig.browse(transport, `${topic.name}.dead`)
      assert.deepEqual(rig.texts(letters).toSorted(), ["1", "2"])
    }
  )
]
