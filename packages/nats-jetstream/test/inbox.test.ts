import { assert, describe, it } from "@effect/vitest"
import type { JetStreamDelivery } from "../src/internal/delivery.ts"
import { Inbox } from "../src/internal/inbox.ts"
import type { AttemptLedger } from "../src/internal/ledger.ts"

describe("retries of this process", () => {
  it("at each moment a retry is due or waited for, never neither", () => {
    const inbox = new Inbox({
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
    inbox.retried({ sequence: "7", delivered: 1, released: 0 } as JetStreamDelivery, 200)
    const due = 1000 + 200 + 25
    for (const time of [1000, due - 0.001, due, due + 0.001]) {
      assert.deepStrictEqual(
        [inbox.due(time), Number.isFinite(inbox.nextDue(time))],
        time < due ? [0, true] : [1, false]
      )
    }
  })
})
