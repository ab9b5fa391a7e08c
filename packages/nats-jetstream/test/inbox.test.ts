import { assert, describe, it } from "@effect/vitest"
import { JetStreamDelivery } from "../src/internal/delivery.ts"
import { Inbox } from "../src/internal/inbox.ts"
import type { AttemptLedger } from "../src/internal/ledger.ts"
import { lifeOf } from "../src/internal/life.ts"
import { demand } from "./nats.ts"

const make = () =>
  new Inbox({
    now: () => 1000,
    date: () => 0,
    lease: 30_000,
    isolateFrom: 2,
    ordered: false,
    pending: 0,
    ledger: {} as AttemptLedger,
    isInterrupted: () => false,
    acknowledge() {},
    extend: () => assert.fail("nothing is extended"),
    postpone() {},
    onReady() {}
  })

const life = lifeOf({ config: { name: "orders" }, created: "2026-01-01T00:00:00Z" })

const arrival = (sequence: number, delivered = 1) =>
  new JetStreamDelivery({
    subject: "orders",
    reply: `$JS.ACK.orders.group.${delivered}.${sequence}.1.0.0`,
    data: new Uint8Array()
  }, life)

describe("a message that is delivered again before a pull has taken it", () => {
  // was: it went behind messages that had arrived after it, and counted an attempt that never began
  it("keeps its place and its attempt, whatever the server remembers", () => {
    for (const delivered of [2, 1]) {
      const inbox = make()
      inbox.receive([arrival(1), arrival(2)])
      inbox.receive([arrival(1, delivered)])
      assert.deepStrictEqual(
        inbox.give(demand(10)).map(({ attempt, redelivered, sequence }) => [sequence, attempt, redelivered]),
        [["1", 1, true], ["2", 1, false]]
      )
    }
  })
})

describe("a message that its key waits for", () => {
  it("is given while there is room for retries only", () => {
    const inbox = make()
    inbox.receive([arrival(1), arrival(2)])
    const retriesOnly = demand(1, { fresh: 0 })
    assert.deepStrictEqual(inbox.give(retriesOnly), [])
    const [, id] = [arrival(1).id, arrival(2).id]
    assert.deepStrictEqual([...inbox.expect([id, arrival(3).id])], [id])
    assert.deepStrictEqual(inbox.give(retriesOnly).map((delivery) => delivery.id), [id])
  })
})

describe("retries of this process", () => {
  it("at each moment a retry is due or waited for, never neither", () => {
    const inbox = make()
    inbox.retried({ sequence: "7", delivered: 1, released: 0, mayHaveBegun: true } as JetStreamDelivery, 200)
    const due = 1000 + 200 + 25
    for (const time of [1000, due - 0.001, due, due + 0.001]) {
      assert.deepStrictEqual(
        [inbox.due(time), Number.isFinite(inbox.nextDue(time))],
        time < due ? [0, true] : [1, false]
      )
    }
  })
})
