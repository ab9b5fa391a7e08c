import { assert, describe, it } from "@effect/vitest"
import { DeadLetter, Pipeline, Publisher, Topic, Transport } from "@millrace/core"
import { MemoryTransport, TestHarness } from "@millrace/testing"
import { Context, Data, Duration, Effect, Exit, Fiber, Option, Result, Schedule, Schema, Stream } from "effect"
import * as Arr from "effect/Array"
import { TestClock } from "effect/testing"
import core from "../package.json" with { type: "json" }
import * as letters from "../src/internal/letters.ts"
import { adjust, delivery, survives } from "./fixtures/fake.ts"

const Order = Schema.Struct({ id: Schema.String, total: Schema.Number })
const Orders = Topic.make("orders", { schema: Order, key: (order) => order.id })

class Declined extends Error {
  readonly _tag = "Declined"
}

/** Orders over 10 fail as long as the bank is closed. */
const charging = (group: string, bank: { open: boolean }, handled: Array<string> = []) =>
  Pipeline.from(Orders, { group, startFrom: "beginning" }).pipe(
    Pipeline.mapEffect((order, message) =>
      Effect.suspend(() => {
        if (order.total > 10 && !bank.open) {
          return Effect.fail(new Declined("no funds — нет", { cause: new TypeError("card expired") }))
        }
        handled.push(`${group}:${order.id}:${message.attempt}`)
        return Effect.void
      })
    ),
    Pipeline.retry({ times: 1, schedule: Schedule.spaced("1 minute") })
  )

const filled = (n: number, bank: { open: boolean }) =>
  TestHarness.run(
    Orders,
    charging("bank", bank),
    Array.from({ length: n }, (_, i) => ({ id: `o${i}`, total: i % 2 === 0 ? 5 : 50 }))
  )

describe("record", () => {
  it.effect("holds everything needed to understand it", () =>
    Effect.gen(function*() {
      const report = yield* filled(2, { open: false })
      const { letter, record } = report.deadLettered[0]!
      assert.deepInclude({ ...record }, {
        version: 1,
        sdk: `millrace/${core.version}`,
        topic: "orders",
        id: "2",
        group: "bank",
        pipeline: "orders/bank",
        reason: "exhausted",
        attempts: 2,
        publishedAt: 0,
        firstFailedAt: 0,
        failedAt: 60_000,
        history: []
      })
      assert.deepInclude(record.error, {
        tag: "Declined",
        message: "no funds — нет",
        causes: ["TypeError: card expired"]
      })
      assert.include(record.error.stack, "DeadLetter.test")
      assert.match(letter.headers[DeadLetter.header]!, /^[\x20-\x7e]+$/)
      assert.match(letter.id!, /^memory-\d+\/orders\/0\/orders\/bank\/2$/)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("decodes the original as its topic would", () =>
    Effect.gen(function*() {
      yield* filled(2, { open: false })
      const [letter] = yield* Stream.runCollect(DeadLetter.list("orders.dead"))
      assert.deepStrictEqual(yield* DeadLetter.decode(letter!, Orders), { id: "o1", total: 50 })
      assert.deepStrictEqual(yield* DeadLetter.inspect("orders.dead", letter!.id), Option.some(letter!))
      assert.deepStrictEqual(yield* DeadLetter.inspect("orders.dead", "nope"), Option.none())
    }).pipe(Effect.provide(TestHarness.layer)))
})

describe("redrive", () => {
  it.effect("goes back to the group it failed in; other groups acknowledge it unseen", () =>
    Effect.gen(function*() {
      const bank = { open: false }
      yield* filled(4, bank)
      bank.open = true
      assert.deepStrictEqual(yield* DeadLetter.redrive("orders.dead", { dryRun: true }), { redriven: 2, capped: 0 })
      assert.deepStrictEqual(yield* DeadLetter.redrive("orders.dead", { filter: ({ record }) => record.id === "2" }), {
        redriven: 1,
        capped: 0
      })
      assert.strictEqual((yield* Stream.runCollect(DeadLetter.list("orders.dead"))).length, 1)
      const handled: Array<string> = []
      const other = yield* TestHarness.run(Orders, charging("audit", { open: true }, handled), [])
      const same = yield* TestHarness.run(Orders, charging("bank", bank, handled), [])
      assert.deepStrictEqual(handled, ["audit:o0:1", "audit:o1:1", "audit:o2:1", "audit:o3:1", "bank:o1:1"])
      assert.deepStrictEqual([other.counts.filtered, same.counts.handled], [1, 1])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("what fails again is not a new stranger, and is redriven only so often", () =>
    Effect.gen(function*() {
      const bank = { open: false }
      yield* filled(2, bank)
      for (let times = 0; times < 3; times++) {
        assert.deepStrictEqual(yield* DeadLetter.redrive("orders.dead"), { redriven: 1, capped: 0 })
        yield* TestHarness.run(Orders, charging("bank", bank), [])
      }
      const [letter] = yield* Stream.runCollect(DeadLetter.list("orders.dead"))
      assert.deepStrictEqual(letter!.record.history.map(({ attempts, error, id }) => [id, attempts, error]), [
        ["2", 2, "Declined: no funds — нет"],
        ["3", 2, "Declined: no funds — нет"],
        ["4", 2, "Declined: no funds — нет"]
      ])
      assert.deepStrictEqual(yield* DeadLetter.redrive("orders.dead"), { redriven: 0, capped: 1 })
      assert.deepStrictEqual(yield* DeadLetter.redrive("orders.dead", { cap: 4 }), { redriven: 1, capped: 0 })
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("keeps to its rate", () =>
    Effect.gen(function*() {
      yield* filled(40, { open: false })
      const since = yield* Effect.clockWith((clock) => clock.currentTimeMillis)
      const fiber = yield* Effect.forkChild(DeadLetter.redrive("orders.dead", { rate: 5 }))
      let seconds = 0
      while (fiber.pollUnsafe() === undefined && seconds++ < 20) yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* Fiber.join(fiber), { redriven: 20, capped: 0 })
      const elapsed = (yield* Effect.clockWith((clock) => clock.currentTimeMillis)) - since
      assert.isTrue(elapsed >= 3000 && elapsed <= 5000, `${elapsed} ms`)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a redrive that was cut short between publishing and deleting does not deliver twice", () =>
    Effect.gen(function*() {
      const bank = { open: false }
      yield* filled(2, bank)
      bank.open = true
      const [letter] = yield* Stream.runCollect(DeadLetter.list("orders.dead"))
      yield* DeadLetter.redrive("orders.dead")
      // As if it had been killed before it deleted: the letter is there still.
      const memory = yield* MemoryTransport.MemoryTransport
      const transport = yield* memory.connect
      yield* transport.publish([letters.outgoing("orders.dead", letter!.message, letter!.record)])
      yield* DeadLetter.redrive("orders.dead")
      const handled: Array<string> = []
      yield* TestHarness.run(Orders, charging("bank", bank, handled), [])
      assert.deepStrictEqual(handled, ["bank:o1:1"])
    }).pipe(Effect.provide(TestHarness.layer)))
})

describe("writing", () => {
  it.effect("two groups that fail on one message leave two records, one group leaves one", () =>
    Effect.gen(function*() {
      const bank = { open: false }
      yield* filled(2, bank)
      const report = yield* TestHarness.run(Orders, charging("other", bank), [])
      assert.deepStrictEqual(report.deadLettered.map(({ record }) => [record.group, record.id]), [
        ["bank", "2"],
        ["other", "2"]
      ])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("law 4: a dead letter that cannot be written is tried again, without its handler", () =>
    Effect.gen(function*() {
      let runs = 0
      const harness = yield* TestHarness.make(
        Orders,
        Pipeline.from(Orders, { group: "bank", startFrom: "beginning" }).pipe(
          Pipeline.mapEffect(() => Effect.andThen(Effect.sync(() => runs++), Effect.fail("no"))),
          Pipeline.retry({ times: 0 })
        )
      )
      // There is room for the message, but not for the record beside it.
      yield* harness.publish({ id: "x".repeat(100), total: 1 })
      const { groups: [group] } = yield* Effect.flip(harness.runUntilIdle("1 hour"))
      assert.deepStrictEqual([runs, group!.pending.length + group!.delayed.length], [1, 1])
    }).pipe(Effect.provide(MemoryTransport.layer({ history: true, minIdle: "1 hour", maxBody: 400 })), Effect.scoped))

  it.effect("dead letters that the broker refuses are in health, until it stores one", () =>
    Effect.gen(function*() {
      const transport = yield* Transport.Transport
      const refusal = new Publisher.PublishError({
        topic: "orders.dead",
        reason: new Publisher.Refused({ detail: "full" })
      })
      let isFull = true
      const filling = Transport.Transport.of({
        ...transport,
        publish: (messages) =>
          isFull && messages[0].topic === "orders.dead"
            ? Effect.succeed([Result.fail(refusal)])
            : transport.publish(messages)
      })
      const running = yield* Effect.provideService(
        Pipeline.start(charging("bank", { open: false })),
        Transport.Transport,
        filling
      )
      yield* Publisher.publish(Orders, { id: "o1", total: 50 })
      yield* adjust("2 minutes")
      const health = yield* running.health
      assert.deepInclude(health, { state: "impaired", reason: `dead letters are not stored: ${refusal.message}` })
      isFull = false
      yield* adjust("1 minute")
      assert.strictEqual((yield* running.health).state, "consuming")
      assert.strictEqual((yield* running.counts).deadLettered, 1)
      // On-receive no letter is tried again.
      isFull = true
      const careless = yield* Effect.provideService(
        Pipeline.start(
          Pipeline.from(Orders, { group: "shop", startFrom: "beginning" }).pipe(
            Pipeline.tap(() => Effect.fail("no")),
            Pipeline.ackPolicy("on-receive")
          )
        ),
        Transport.Transport,
        filling
      )
      yield* adjust("1 second")
      assert.strictEqual((yield* careless.health).state, "impaired")
      yield* adjust("3 minutes")
      assert.strictEqual((yield* careless.health).state, "consuming")
    }).pipe(Effect.scoped, Effect.provide(MemoryTransport.layer())))

  it.effect("a dead letter that is refused for what it holds is no trouble of the pipeline while others are stored", () =>
    Effect.gen(function*() {
      const transport = yield* Transport.Transport
      const reason = new Publisher.Refused({ detail: "not this one" })
      const refusal = Result.fail(new Publisher.PublishError({ topic: "orders.dead", reason }))
      const picky = Transport.Transport.of({
        ...transport,
        publish: (messages) =>
          messages[0].topic === "orders.dead" && new TextDecoder().decode(messages[0].body).includes("odd")
            ? Effect.succeed([refusal])
            : transport.publish(messages)
      })
      const running = yield* Effect.provideService(
        Pipeline.start(charging("bank", { open: false })),
        Transport.Transport,
        picky
      )
      yield* Publisher.publish(Orders, { id: "odd", total: 50 })
      yield* adjust("2 minutes")
      // Nothing tells whether the next one would be stored.
      assert.strictEqual((yield* running.health).state, "impaired")
      yield* Publisher.publish(Orders, { id: "o1", total: 50 })
      for (let minute = 0; minute < 5; minute++) {
        yield* adjust("65 seconds")
        assert.strictEqual((yield* running.health).state, "consuming", `minute ${minute}`)
      }
      const counts = yield* running.counts
      assert.strictEqual(counts.deadLettered, 1)
      assert.isAbove(counts.unsettled, 5)
    }).pipe(Effect.scoped, Effect.provide(MemoryTransport.layer())))

  it.effect("discard deletes what is selected", () =>
    Effect.gen(function*() {
      yield* filled(6, { open: false })
      assert.strictEqual(yield* DeadLetter.discard("orders.dead", { dryRun: true }), 3)
      assert.strictEqual(yield* DeadLetter.discard("orders.dead", { limit: 2 }), 2)
      assert.strictEqual((yield* Stream.runCollect(DeadLetter.list("orders.dead"))).length, 1)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("messages that are no dead letters are passed over", () =>
    Effect.gen(function*() {
      yield* Publisher.publish(Topic.make("orders.dead", { schema: Order }), { id: "stray", total: 1 })
      assert.strictEqual((yield* Stream.runCollect(DeadLetter.list("orders.dead"))).length, 0)
    }).pipe(Effect.provide(TestHarness.layer)))
})

const collect = (topic: string, options?: DeadLetter.ListOptions) => Stream.runCollect(DeadLetter.list(topic, options))

const idsOf = (letters: ReadonlyArray<DeadLetter.DeadLetter>) => letters.map(({ record }) => record.id)

/** A letter as its writer would make it, of a message that was never published. */
const forge = Effect.fnUntraced(function*(
  deadLetters: string,
  given: Partial<DeadLetter.Record>,
  body = "{}",
  headers: Record<string, string> = {}
) {
  const { transport, of } = yield* Effect.gen(function*() {
    const transport = yield* Transport.Transport
    return { transport, of: { origin: "elsewhere", key: undefined, attempt: 1, redelivered: false, suspect: false } }
  })
  const record = new DeadLetter.Record({
    version: 1,
    sdk: "test",
    topic: "orders",
    id: "1",
    group: "bank",
    pipeline: "orders/bank",
    reason: "exhausted",
    attempts: 1,
    publishedAt: 0,
    failedAt: 0,
    error: { tag: "Error", message: "no", causes: [] },
    history: [],
    ...given
  })
  const letter = letters.outgoing(deadLetters, {
    ...of,
    id: record.id,
    topic: record.topic,
    headers,
    publishedAt: 0,
    body: new TextEncoder().encode(body),
    fields: undefined
  }, record)
  return {
    letter,
    publish: (part: Transport.Outgoing) => Effect.map(transport.publish([part]), Arr.map(Result.getOrThrow))
  }
})

describe("reading", () => {
  it.effect("a page is read from either end, and from a letter on", () =>
    Effect.gen(function*() {
      yield* filled(10, { open: false })
      const [first, second] = yield* collect("orders.dead")
      assert.deepStrictEqual(idsOf(yield* collect("orders.dead", { limit: 2, reverse: true })), ["10", "8"])
      assert.deepStrictEqual(idsOf(yield* collect("orders.dead", { limit: 2, after: second!.id })), ["6", "8"])
      assert.deepStrictEqual(idsOf(yield* collect("orders.dead", { before: second!.id })), [first!.record.id])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("one letter is read with one request", () =>
    Effect.gen(function*() {
      yield* filled(10, { open: false })
      const transport = yield* Transport.Transport
      const [, letter] = yield* collect("orders.dead")
      let requests = 0
      const counting = Transport.Transport.of({
        ...transport,
        browse: () => Stream.die("browsed"),
        get: (topic, id) => (requests++, transport.get(topic, id))
      })
      const found = yield* Effect.provideService(
        DeadLetter.inspect("orders.dead", letter!.id),
        Transport.Transport,
        counting
      )
      assert.deepStrictEqual(found, Option.some(letter!))
      assert.strictEqual(requests, 1)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("criteria select by id, group, reason, tag, text and time", () =>
    Effect.gen(function*() {
      for (
        const given of [
          { id: "a", failedAt: 1, error: { tag: "Declined", message: "No funds", causes: [] } },
          {
            id: "b",
            failedAt: 2,
            group: "audit",
            error: { tag: "Timeout", message: "", causes: ["Error: FUNDS api"] }
          },
          { id: "c", failedAt: 3, reason: "undecodable" as const }
        ]
      ) {
        const { letter, publish } = yield* forge("orders.dead", given)
        yield* publish(letter)
      }
      const found = (criteria: DeadLetter.Criteria) =>
        Effect.map(collect("orders.dead", { filter: DeadLetter.matching(criteria) }), idsOf)
      assert.deepStrictEqual(yield* found({ text: "funds" }), ["a", "b"])
      assert.deepStrictEqual(yield* found({ text: "funds", group: "audit" }), ["b"])
      assert.deepStrictEqual(yield* found({ tag: "Declined" }), ["a"])
      assert.deepStrictEqual(yield* found({ reason: "undecodable" }), ["c"])
      assert.deepStrictEqual(yield* found({ failedFrom: 2, failedUntil: 2 }), ["b"])
      assert.deepStrictEqual(yield* found({ ids: ["a", "3"] }), ["a", "c"])
      assert.deepStrictEqual(yield* found({ topic: "refunds" }), [])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a letter in two pieces is read and redriven whole, from either end, and not without its second half", () =>
    Effect.gen(function*() {
      yield* filled(0, { open: true })
      const { letter, publish } = yield* forge("orders.dead", {}, "0123456789")
      const [rest, head] = letters.split(letter)
      yield* publish(rest)
      yield* publish({ ...rest, id: undefined, headers: { "millrace-rest-of": "another" } })
      yield* publish(head)
      for (const reverse of [false, true]) {
        const [read, ...none] = yield* collect("orders.dead", { reverse })
        assert.deepStrictEqual(none, [])
        assert.strictEqual(new TextDecoder().decode(read!.message.body), "0123456789")
        assert.deepStrictEqual(read!.ids, ["3", "1"])
        assert.deepStrictEqual(read!.message.headers, {})
      }
      assert.strictEqual((yield* DeadLetter.redrive("orders.dead")).redriven, 1)
      const transport = yield* Transport.Transport
      const left = yield* Stream.runCollect(transport.browse("orders.dead"))
      assert.deepStrictEqual(left.map(({ id }) => id), ["2"])

      yield* publish({ ...head, id: "again" })
      const [alone] = yield* collect("orders.dead")
      assert.isTrue(alone!.incomplete)
      const { redriven, refused } = yield* DeadLetter.redrive("orders.dead")
      assert.deepStrictEqual([redriven, refused?.count], [0, 1])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a forged second piece makes the redriven message neither a letter nor one of another group", () =>
    Effect.gen(function*() {
      yield* filled(0, { open: true })
      const { letter, publish } = yield* forge("orders.dead", {}, "0123456789")
      const [, head] = letters.split(letter)
      const forged = { "millrace-group": "other", "millrace-dead-letter": "{}", "millrace-split": "x", own: "stays" }
      const [rest] = letters.split({ ...letter, headers: forged })
      // As another program may write it: with the records that belong to the first piece.
      const headers = JSON.stringify(forged)
      const body = new TextEncoder().encode(`${headers}56789`)
      yield* publish({ ...rest, body, headers: { ...rest.headers, "millrace-header-bytes": String(headers.length) } })
      yield* publish(head)
      assert.strictEqual((yield* DeadLetter.redrive("orders.dead")).redriven, 1)
      const transport = yield* Transport.Transport
      const [message] = yield* Stream.runCollect(transport.browse("orders"))
      const { "millrace-history": history, ...others } = message!.headers
      assert.include(history, "\"attempts\":1")
      assert.deepStrictEqual(others, { "millrace-group": "bank", own: "stays" })
    }).pipe(Effect.provide(TestHarness.layer)))
})

describe("a letter of a letter, in two pieces", () => {
  it.effect("keeps headers, key and the first record through reading and redriving", () =>
    Effect.gen(function*() {
      yield* filled(2, { open: false })
      const [first] = yield* collect("orders.dead")
      const transport = yield* Transport.Transport
      const [stored] = yield* Stream.runCollect(transport.browse("orders.dead"))
      const record = new DeadLetter.Record({ ...recordOf("repair"), topic: "orders.dead", id: stored!.id })
      for (const part of letters.split(letters.outgoing("orders.dead.dead", stored!, record))) {
        yield* transport.publish([part])
      }
      const [second] = yield* collect("orders.dead.dead")
      assert.deepStrictEqual(second!.earlier.map(({ error }) => error.tag), ["Declined"])
      assert.deepStrictEqual([second!.message.key, second!.ids.length], ["o1", 2])
      yield* DeadLetter.discard("orders.dead")
      assert.strictEqual((yield* DeadLetter.redrive("orders.dead.dead", { group: "repair" })).redriven, 1)
      const [again] = yield* collect("orders.dead")
      assert.deepStrictEqual({ ...again!.record }, { ...first!.record })
      assert.deepStrictEqual(yield* DeadLetter.decode(again!, Orders), { id: "o1", total: 50 })
    }).pipe(Effect.provide(TestHarness.layer)))
})

describe("a letter says what happened, to everybody", () => {
  it.effect("the letter of a redriven message is for every group, and the redriven message is none", () =>
    Effect.gen(function*() {
      const bank = { open: false }
      yield* filled(2, bank)
      yield* DeadLetter.redrive("orders.dead")
      const memory = yield* MemoryTransport.MemoryTransport
      const redriven = (yield* memory.published).at(-1)!
      assert.deepStrictEqual(Object.keys(redriven.headers).sort(), [
        "content-type",
        "millrace-group",
        "millrace-history",
        "millrace-key"
      ])
      const report = yield* TestHarness.run(Orders, charging("bank", bank), [])
      const [{ letter }] = report.deadLettered as [typeof report.deadLettered[0]]
      assert.deepStrictEqual(Object.keys(letter.headers).sort(), [
        "content-type",
        "millrace-dead-letter",
        "millrace-key"
      ])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a header may have a name that objects have too", () =>
    Effect.gen(function*() {
      const names = ["constructor", "__proto__", "tostring"]
      const headers = Object.fromEntries(names.map((name) => [name, `of ${name}`]))
      const { letter, publish } = yield* forge("orders.dead", {}, "{}", headers)
      yield* publish(letter)
      for (const part of letters.split({ ...letter, id: "another" })) yield* publish(part)
      for (const { message } of yield* collect("orders.dead")) {
        assert.deepStrictEqual(Object.keys(message.headers).filter((name) => names.includes(name)), names)
      }
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("the letter of a letter keeps the first record, and a redrive gives it back", () =>
    Effect.gen(function*() {
      yield* filled(2, { open: false })
      const Dead = Topic.make("orders.dead", { schema: Order })
      const repair = Pipeline.from(Dead, { group: "repair", startFrom: "beginning" }).pipe(
        Pipeline.map(() => {
          throw new Error("repair is broken")
        }),
        Pipeline.retry({ times: 0 })
      )
      yield* TestHarness.run(Dead, repair, [])
      const [second] = yield* collect("orders.dead.dead")
      assert.strictEqual(second!.record.error.message, "repair is broken")
      assert.deepStrictEqual(second!.earlier.map(({ error }) => error.tag), ["Declined"])
      yield* DeadLetter.discard("orders.dead")
      assert.strictEqual((yield* DeadLetter.redrive("orders.dead.dead")).redriven, 1)
      const [first] = yield* collect("orders.dead")
      assert.deepStrictEqual([first!.record.error.tag, first!.earlier], ["Declined", []])
      assert.deepStrictEqual(yield* DeadLetter.decode(first!, Orders), { id: "o1", total: 50 })
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("fields that carry our headers are left out of letter and redriven message", () =>
    Effect.sync(() => {
      const bytes = new Uint8Array()
      const delivery: Transport.Delivery = {
        id: "1",
        origin: "o",
        topic: "events",
        key: undefined,
        headers: { "millrace-group": "g" },
        body: bytes,
        fields: new Map([["user", bytes], ["millrace-group", bytes], ["millrace-dead-letter", bytes]]),
        attempt: 1,
        redelivered: false,
        suspect: false,
        publishedAt: 0
      }
      const { fields } = letters.outgoing("events.dead", delivery, {
        ...({} as DeadLetter.Record),
        ...recordOf("g")
      })
      assert.deepStrictEqual([...fields!.keys()], ["user"])
    }))
})

const recordOf = (group: string) =>
  new DeadLetter.Record({
    version: 1,
    sdk: "test",
    topic: "events",
    id: "1",
    group,
    pipeline: "p",
    reason: "exhausted",
    attempts: 1,
    publishedAt: 0,
    failedAt: 0,
    error: { tag: "E", message: "", causes: [] },
    history: []
  })

describe("a redrive that cannot be right", () => {
  for (const rate of [0, -1, NaN, Infinity]) {
    it.effect(`the rate ${rate} is refused by name`, () =>
      Effect.gen(function*() {
        const error = yield* Effect.flip(DeadLetter.redrive("orders.dead", { rate }))
        assert.deepInclude(error.reason, { _tag: "InvalidOption", option: "rate" })
      }).pipe(Effect.provide(TestHarness.layer)))
  }

  it.effect("caps and limits are whole numbers", () =>
    Effect.gen(function*() {
      for (const options of [{ cap: -1 }, { cap: NaN }, { limit: 1.5 }, { limit: -1 }]) {
        const error = yield* Effect.flip(DeadLetter.redrive("orders.dead", options))
        assert.strictEqual(error.reason._tag, "InvalidOption")
      }
      assert.strictEqual(
        (yield* Effect.flip(DeadLetter.discard("orders.dead", { limit: NaN }))).reason._tag,
        "InvalidOption"
      )
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a group that cannot be is refused by name", () =>
    Effect.gen(function*() {
      for (const group of ["", 5 as never]) {
        const error = yield* Effect.flip(DeadLetter.redrive("orders.dead", { group }))
        assert.deepInclude(error.reason, { _tag: "InvalidOption", option: "group" })
      }
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a filter chooses only letters for which it returns true: no promise, and not nothing", () =>
    Effect.gen(function*() {
      yield* filled(2, { open: false })
      const letters = (yield* Stream.runCollect(DeadLetter.list("orders.dead"))).length
      const promising = async () => false
      const exits = [
        yield* Effect.exit(DeadLetter.discard("orders.dead", { filter: promising as never })),
        yield* Effect.exit(DeadLetter.redrive("orders.dead", { filter: promising as never }))
      ]
      for (const exit of exits) {
        assert.include(String(exit), "filter is an async function: give a function that returns")
      }
      assert.strictEqual(yield* DeadLetter.discard("orders.dead", { filter: (() => {}) as never }), 0)
      assert.strictEqual((yield* Stream.runCollect(DeadLetter.list("orders.dead"))).length, letters)
      assert.isAbove(letters, 0)
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("letters for impossible, foreign and strange topics stay, and do not hold up those behind them", () =>
    Effect.gen(function*() {
      yield* filled(2, { open: false })
      const transport = yield* Transport.Transport
      yield* transport.subscribe({
        topic: "admin",
        group: "root",
        startFrom: "beginning",
        maxOwned: 1,
        isolateFrom: Infinity,
        timeout: undefined,
        settings: Context.empty()
      })
      for (const topic of ["", "admin", "orders.dead"]) {
        const { letter, publish } = yield* forge("orders.dead", { topic, group: "root", id: `forged ${topic}` })
        yield* publish(letter)
      }
      const { letter, publish } = yield* forge("orders.dead", { id: "good" })
      yield* publish(letter)
      const { redriven, refused } = yield* DeadLetter.redrive("orders.dead")
      assert.deepStrictEqual([redriven, refused?.count], [2, 3])
      assert.match(refused!.first[1]!.detail, /topic admin, which does not belong to orders.dead/)
      const allowed = yield* DeadLetter.redrive("orders.dead", { to: ["admin"], dryRun: true })
      assert.deepStrictEqual([allowed.redriven, allowed.refused?.count], [1, 2])
    }).pipe(Effect.provide(TestHarness.layer), Effect.scoped))

  it.effect("a letter for a group that is gone stays until a group is given", () =>
    Effect.gen(function*() {
      yield* filled(2, { open: false })
      const { letter, publish } = yield* forge("orders.dead", { id: "x", group: "renamed" })
      yield* publish(letter)
      const dry = yield* DeadLetter.redrive("orders.dead", { dryRun: true })
      assert.deepStrictEqual([dry.redriven, dry.refused?.count], [1, 1])
      const { redriven, refused } = yield* DeadLetter.redrive("orders.dead")
      assert.deepStrictEqual([redriven, refused?.count], [1, 1])
      assert.match(refused!.first[0]!.detail, /group renamed of topic orders does not exist any more: .* such as bank/)
      assert.deepStrictEqual(yield* DeadLetter.redrive("orders.dead", { group: "bank" }), { redriven: 1, capped: 0 })
      const memory = yield* MemoryTransport.MemoryTransport
      assert.strictEqual((yield* memory.published).at(-1)!.headers["millrace-group"], "bank")
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("a letter without room for its history is redriven without it; one that is too large stays", () =>
    Effect.gen(function*() {
      yield* filled(0, { open: true })
      const transport = yield* Transport.Transport
      const memory = yield* MemoryTransport.MemoryTransport
      for (const id of ["near", "over", "small"]) {
        const { letter, publish } = yield* forge("orders.dead", { id }, "x".repeat(id === "small" ? 1 : 500))
        yield* publish(letter)
      }
      const tight = Transport.Transport.of({
        ...transport,
        publish: (messages) =>
          Effect.flatMap(
            Effect.forEach(messages, (message) => {
              const size = JSON.stringify(message.headers).length + message.body.byteLength
              const limit = message.id?.includes("over") ? 500 : 550
              return size <= limit
                ? transport.publish([message])
                : Effect.succeed([
                  Result.fail(
                    new Publisher.PublishError({
                      topic: message.topic,
                      reason: new Publisher.TooLarge({ size, limit })
                    })
                  )
                ])
            }),
            (results) => Effect.succeed(results.flat())
          )
      })
      const answer = yield* Effect.provideService(DeadLetter.redrive("orders.dead"), Transport.Transport, tight)
      assert.deepStrictEqual([answer.redriven, answer.refused?.count], [2, 1])
      const published = (yield* memory.published).filter(({ topic }) => topic === "orders")
      assert.deepStrictEqual(published.map(({ headers }) => "millrace-history" in headers).sort(), [false, true])
    }).pipe(Effect.provide(TestHarness.layer)))

  it.effect("an outage is waited for, and an interruption in it loses and doubles nothing", () =>
    Effect.gen(function*() {
      const bank = { open: false }
      yield* filled(200, bank)
      const transport = yield* Transport.Transport
      let published = 0
      const failing = Transport.Transport.of({
        ...transport,
        publish: (messages) =>
          published++ < 12
            ? transport.publish(messages)
            : Effect.succeed(messages.map(({ topic }) =>
              Result.fail(new Publisher.PublishError({ topic, reason: new Publisher.NotSent({ detail: "down" }) }))
            ))
      })
      const fiber = yield* Effect.forkChild(
        Effect.provideService(DeadLetter.redrive("orders.dead"), Transport.Transport, failing)
      )
      yield* TestClock.adjust("1 minute")
      assert.isUndefined(fiber.pollUnsafe())
      yield* Fiber.interrupt(fiber)
      assert.isTrue(Exit.isFailure(yield* Fiber.await(fiber)))
      const left = (yield* collect("orders.dead")).length
      assert.isTrue(left > 0 && left < 100, `${left} left`)
      assert.deepStrictEqual(yield* DeadLetter.redrive("orders.dead"), { redriven: left, capped: 0 })
      const handled: Array<string> = []
      bank.open = true
      yield* TestHarness.run(Orders, charging("bank", bank, handled), [])
      assert.strictEqual(new Set(handled).size, 100)
      assert.strictEqual(handled.length, 100)
    }).pipe(Effect.provide(TestHarness.layer)))
})

describe("an error that cannot be shown", () => {
  // was: an error whose message is no string is released uncounted for ever instead of dead-lettered
  it.effect("is dead-lettered when its message is no string", () => {
    class Http extends Data.TaggedError("Http")<{ readonly message: any }> {}
    return survives(
      (from) =>
        from.pipe(
          Pipeline.tap((n) => n === 1 ? Effect.fail(new Http({ message: { status: 500 } })) : Effect.void),
          Pipeline.retry({ times: 0 })
        ),
      delivery(1),
      undefined,
      "1 Terminate"
    )
  })

  // was: an error that cannot be shown (BigInt, no prototype) is released uncounted for ever
  it.effect("is dead-lettered when it has a BigInt and no prototype", () =>
    survives(
      (from) =>
        from.pipe(
          Pipeline.tap((n) => n === 1 ? Effect.fail(Object.assign(Object.create(null), { n: 1n })) : Effect.void),
          Pipeline.retry({ times: 0 })
        ),
      delivery(1),
      undefined,
      "1 Terminate"
    ))

  // was: an error whose message throws is dead-lettered all the same
  it.effect("is dead-lettered when reading its message throws", () => {
    class Spiteful extends Error {
      readonly _tag = "Spiteful"
      override get message(): string {
        throw new Error("no message for you")
      }
    }
    return survives(
      (from) =>
        from.pipe(
          Pipeline.tap((n) => n === 1 ? Effect.fail(new Spiteful()) : Effect.void),
          Pipeline.retry({ times: 0 })
        ),
      delivery(1),
      undefined,
      "1 Terminate"
    )
  })

  // was: the same with on-receive is an uncaught exception, which ends the process
  it.effect("is dead-lettered with on-receive", () =>
    survives((from) =>
      from.pipe(
        Pipeline.map((n) => {
          if (n === 1) throw Object.assign(new Error(), { message: 500 })
        }),
        Pipeline.ackPolicy("on-receive")
      )
    ))
})

describe("the size of a record", () => {
  // was: a message close to the largest size can never be dead-lettered: it comes back for ever
  it.effect("lets a message close to the largest size be dead-lettered, and read again", () =>
    Effect.gen(function*() {
      const Text = Topic.make("text", { schema: Schema.String })
      const memory = yield* MemoryTransport.MemoryTransport
      const running = yield* Pipeline.start(
        Pipeline.from(Text, { group: "test", startFrom: "beginning" }).pipe(
          Pipeline.tap(() => Effect.fail("no")),
          Pipeline.retry({ times: 0 })
        )
      )
      const text = "x".repeat(900)
      yield* Publisher.publish(Text, text)
      yield* adjust("1 minute")
      assert.strictEqual((yield* running.counts).deadLettered, 1)
      const [letter] = yield* Stream.runCollect(DeadLetter.list("text.dead"))
      assert.strictEqual(yield* DeadLetter.decode(letter!, Text), text)
      assert.strictEqual(yield* DeadLetter.discard("text.dead"), 1)
      assert.strictEqual((yield* memory.sizes).get("text.dead"), 0)
      assert.strictEqual((yield* memory.groups)[0]!.pending.length, 0)
    }).pipe(Effect.provide(MemoryTransport.layer({ maxBody: 1000, minIdle: Duration.infinity }))))
})
