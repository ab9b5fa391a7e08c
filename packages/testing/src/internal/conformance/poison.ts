import * as Codec from "@millrace/core/Codec"
import * as DeadLetter from "@millrace/core/DeadLetter"
import * as Pipeline from "@millrace/core/Pipeline"
import * as Topic from "@millrace/core/Topic"
import type { Delivery } from "@millrace/core/Transport"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import * as assert from "node:assert/strict"
import * as rig from "./rig.ts"

const { test } = rig

/** The reasons and attempts of dead letters, with what they hold. */
const buried = (letters: ReadonlyArray<Delivery>) =>
  letters.map((letter) => {
    const record = DeadLetter.fromHeaders(letter.headers)
    assert.ok(Exit.isSuccess(record), `no record of a dead letter: ${JSON.stringify(letter.headers)}`)
    const { attempts, reason } = record.value
    return { bytes: Buffer.from(letter.body).toString("latin1"), reason, attempts }
  })

const raw = (transport: rig.Process["transport"], topic: string, bodies: ReadonlyArray<string | Uint8Array>) =>
  rig.bounded(
    "publishing bytes",
    Effect.forEach(
      bodies,
      (body) => transport.publish([rig.outgoing(topic, body, { headers: { from: "elsewhere" } })]),
      {
        discard: true
      }
    )
  )

export const poison: ReadonlyArray<rig.Test> = [
  test(
    "P1",
    "law 6",
    "bytes that cannot be decoded are dead-lettered at attempt 1 as they were, and the pipeline goes on",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = rig.numbers("p1")
      const handled: Array<number> = []
      yield* raw(transport, topic.name, ["1", Uint8Array.from([0xff, 0xfe, 0x00, 0x0a]), "{\"broken\":", "", "2"])
      const { running, stop } = yield* rig.start(rig.from(transport, topic).pipe(Pipeline.map((n) => handled.push(n))))
      yield* rig.eventually(
        "all are settled",
        running.counts,
        ({ deadLettered, handled }) => deadLettered + handled === 5
      )
      yield* stop
      assert.deepEqual(handled, [1, 2])
      const letters = yield* rig.browse(transport, `${topic.name}.dead`)
      assert.deepEqual(
        buried(letters),
        ["\xff\xfe\x00\x0a", "{\"broken\":", ""].map((bytes) => ({ bytes, reason: "undecodable", attempts: 1 }))
      )
      assert.deepEqual(letters.map(({ headers }) => headers["from"]), ["elsewhere", "elsewhere", "elsewhere"])
    }
  ),

  test(
    "P2",
    "law 6",
    "a body that does not fit the schema is dead-lettered at attempt 1, and says what it lacks",
    function*() {
      const { transport } = yield* rig.Rig
      const topic = Topic.make(rig.fresh("p2"), { schema: Schema.Struct({ id: Schema.String, total: Schema.Number }) })
      yield* raw(transport, topic.name, [
        "{\"id\":\"a\"}",
        "{\"id\":\"b\",\"total\":\"much\"}",
        "{\"id\":\"c\",\"total\":1}"
      ])
      const { running, stop } = yield* rig.start(rig.from(transport, topic))
      yield* rig.eventually(
        "all are settled",
        running.counts,
        ({ deadLettered, handled }) => deadLettered === 2 && handled === 1
      )
      yield* stop
      const letters = yield* rig.browse(transport, `${topic.name}.dead`)
      assert.deepEqual(buried(letters).map(({ attempts, reason }) => `${reason} at ${attempts}`), [
        "undecodable at 1",
        "undecodable at 1"
      ])
      assert.match(letters[0]!.headers[DeadLetter.header]!, /total/)
    }
  ),

  test("P3", "law 1", "a message deleted while it was pending stops nobody", function*() {
    const { claimAfter, transport } = yield* rig.Rig
    const topic = rig.numbers("p3")
    const mortal = yield* rig.connect
    yield* rig.publish(transport, topic, rig.range(4))
    const subscription = yield* rig.subscribe(mortal.transport, topic.name)
    const taken = yield* rig.take(subscription, 3)
    yield* rig.bounded("removing", transport.remove(topic.name, [taken[1]!.id]))
    yield* mortal.crash
    const other = yield* rig.subscribe(transport, topic.name)
    const rest = yield* rig.gather(other, 60_000, 3)
    assert.deepEqual(rig.texts(rest).filter((text) => text !== "1").toSorted(), ["0", "2", "3"])
    yield* rig.publish(transport, topic, [9])
    assert.deepEqual(rig.texts(yield* rig.gather(other, 20 * claimAfter, 1)), ["9"])
  }, { needs: ["connect"] }),

  test("P4", "law 2", "a defect is retried and dead-lettered like a failure, without asking while", function*() {
    const { transport } = yield* rig.Rig
    const topic = rig.numbers("p4")
    const attempts: Array<number> = []
    let asked = 0
    const { running, stop } = yield* rig.start(
      rig.from(transport, topic).pipe(
        Pipeline.map((n, { attempt }) => {
          if (n !== 1) return n
          attempts.push(attempt)
          throw new RangeError("a bug")
        }),
        Pipeline.mapEffect((n) => n > 1 ? Effect.fail("often") : Effect.succeed(n)),
        Pipeline.retry({ times: 2, schedule: rig.after(20), while: () => (asked++, false) })
      )
    )
    yield* rig.publish(transport, topic, [0, 1])
    yield* rig.eventually(
      "both are settled",
      running.counts,
      ({ deadLettered, handled }) => deadLettered + handled === 2
    )
    yield* stop
    assert.deepEqual({ attempts, asked }, { attempts: [1, 2, 3], asked: 0 })
    const letters = yield* rig.browse(transport, `${topic.name}.dead`)
    assert.deepEqual(buried(letters), [{ bytes: "1", reason: "exhausted", attempts: 3 }])
  }),

  test(
    "P5",
    "law 2",
    "a message that kills its process is dead-lettered after its limit and takes no neighbour with it",
    function*() {
      const topic = rig.numbers("p5")
      const good = new Map<number, number>()
      const kills: Array<number> = []
      let dead = 0
      let publisher: rig.Process["transport"] | undefined
      for (let life = 0; life < 10 && dead === 0; life++) {
        const mortal = yield* rig.connect
        if (publisher === undefined) yield* rig.publish(publisher = mortal.transport, topic, rig.range(60))
        const before = kills.length
        const { outcomes, stop } = yield* rig.start(
          rig.from(mortal.transport, topic, { drainTimeout: 0, prefetch: 8 }).pipe(
            Pipeline.tap((n, { attempt }) =>
              Effect.suspend(() => {
                if (n === 30) {
                  kills.push(attempt)
                  return Effect.andThen(mortal.crash, Effect.never)
                }
                return Effect.andThen(Effect.sleep(5), Effect.sync(() => good.set(n, (good.get(n) ?? 0) + 1)))
              })
            ),
            Pipeline.retry({ times: 2, schedule: rig.after(20) }),
            Pipeline.concurrency(8)
          )
        )
        const isDead = () => outcomes.some(({ _tag }) => _tag === "DeadLettered")
        yield* rig.until(
          `life ${life} ends, or the killer is dead-lettered`,
          () => kills.length > before || isDead(),
          60_000
        )
        if (isDead()) {
          yield* rig.until("all others are handled", () => good.size === 59, 60_000)
          dead = outcomes.filter(({ _tag }) => _tag === "DeadLettered").length
          yield* stop
        }
      }
      assert.deepEqual({ kills, dead, good: good.size }, { kills: [1, 2, 3], dead: 1, good: 59 })
      const survivor = yield* rig.connect
      const letters = yield* rig.browse(survivor.transport, `${topic.name}.dead`)
      assert.deepEqual(buried(letters).map(({ bytes, reason }) => ({ bytes, reason })), [{
        bytes: "30",
        reason: "crashed"
      }])
    },
    { needs: ["connect"] }
  ),

  test(
    "P6",
    "law 6",
    "a message of a newer version is kept as it was, and the newer codec reads it from there",
    function*() {
      const { transport } = yield* rig.Rig
      const v1 = Schema.Struct({ version: Schema.Literal(1), total: Schema.Number })
      const v2 = Schema.Struct({ version: Schema.Literal(2), total: Schema.String, currency: Schema.String })
      const old = Topic.make(rig.fresh("p6"), { schema: v1 })
      const renewed = Topic.make(old.name, { schema: v2 })
      yield* rig.publish(transport, old, [{ version: 1, total: 1 }])
      yield* rig.publish(transport, renewed, [{ version: 2, total: "2.00", currency: "EUR" }])
      const { running, stop } = yield* rig.start(rig.from(transport, old))
      yield* rig.eventually(
        "both are settled",
        running.counts,
        ({ deadLettered, handled }) => deadLettered === 1 && handled === 1
      )
      yield* stop
      const [letter] = yield* rig.browse(transport, `${old.name}.dead`)
      assert.deepEqual(yield* Codec.json(v2).decode(letter!), { version: 2, total: "2.00", currency: "EUR" })
    }
  ),

  test(
    "P7",
    "law 2",
    "an isolated suspect counts no attempt before it begins, and one from then on",
    function*() {
      const topic = rig.numbers("p7")
      const attempts: Array<number> = []
      const process = Effect.fnUntraced(function*(begins: boolean) {
        const mortal = yield* rig.connect
        if (attempts.length === 0) yield* rig.publish(mortal.transport, topic, [1])
        const subscription = yield* rig.subscribe(mortal.transport, topic.name, { isolateFrom: 2 })
        const delivery = yield* rig.one(subscription)
        attempts.push(delivery.attempt)
        assert.equal(delivery.suspect, attempts.length > 1)
        if (begins) assert.equal(yield* rig.bounded("its attempt begins", subscription.begin(delivery)), true)
        yield* mortal.crash
      })
      for (const begins of [true, false, false, true, false]) yield* process(begins)
      assert.deepEqual(attempts, [1, 2, 2, 2, 3])
    },
    { needs: ["connect"] }
  ),

  test("P8", "law 2", "no more suspects are given than are wanted, and the others are", function*() {
    const { claimAfter, transport } = yield* rig.Rig
    const topic = rig.numbers("p8")
    const mortal = yield* rig.connect
    yield* rig.publish(transport, topic, rig.range(3))
    const left = yield* rig.subscribe(mortal.transport, topic.name)
    yield* rig.take(left, 3)
    yield* mortal.crash
    yield* rig.publish(transport, topic, [10, 11])
    const subscription = yield* rig.subscribe(transport, topic.name, { isolateFrom: 2 })
    const taken: Array<Delivery> = []
    /** Takes whatever comes with at most `suspects` suspects in hand, for so long. */
    const pull = Effect.fnUntraced(function*(suspects: number, millis: number, enough: () => boolean) {
      const held = () => taken.filter(({ suspect }) => suspect).length
      const pulling = Effect.flatMap(
        Effect.suspend(() => subscription.pull({ ...rig.demand(5), suspects: suspects - held() })),
        (deliveries) => Effect.sync(() => taken.push(...deliveries))
      )
      const fiber = yield* Effect.forkChild(Effect.forever(pulling))
      const extending = Effect.suspend(() => {
        const [first, ...rest] = taken
        return first === undefined ? Effect.void : Effect.asVoid(subscription.extend([first, ...rest]))
      })
      const end = (yield* Clock.currentTimeMillis) + millis
      while (!enough() && (yield* Clock.currentTimeMillis) < end) {
        yield* extending
        yield* rig.pass(claimAfter / 10)
      }
      yield* Fiber.interrupt(fiber)
      assert.ok(held() <= suspects, `${held()} suspects at once`)
    })
    yield* pull(0, 3 * claimAfter, () => false)
    assert.deepEqual(rig.texts(taken).toSorted(), ["10", "11"], "fresh messages come, suspects do not")
    yield* rig.settle(subscription, taken.splice(0), { _tag: "Ack" })
    const seen: Array<string> = []
    for (let n = 0; n < 3; n++) {
      yield* pull(1, 60_000, () => taken.length === 1)
      seen.push(...rig.texts(taken))
      yield* rig.settle(subscription, taken.splice(0), { _tag: "Ack" })
    }
    assert.deepEqual(seen.toSorted(), ["0", "1", "2"])
  }, { needs: ["connect"] })
]
