import { assert, describe, it } from "@effect/vitest"
import { Concurrency, LimitAlgorithm } from "@millrace/core"

/**
 * A downstream of `capacity` servers that each take `service` ms, and a consumer with an endless backlog: what does not
 * find a server waits, and beyond `timeout` fails. Plain discrete events, no clock.
 */
interface Downstream {
  readonly capacity: number
  readonly service: number
  readonly timeout?: number
  readonly failing?: number
}

const simulate = (
  limit: Concurrency.Limit,
  phases: ReadonlyArray<{ readonly for: number; readonly is: Downstream }>
) => {
  let now = 0
  let good = 0
  let random = 1
  const next = () => (random = (random * 48271) % 2147483647) / 2147483647
  const ends: Array<{ readonly at: number; readonly latency: number; readonly failed: boolean }> = []
  let servers: Array<number> = []
  const limits: Array<number> = []
  for (const { for: length, is } of phases) {
    const end = now + length
    servers = Array.from({ length: is.capacity }, (_, i) => servers[i] ?? now)
    while (now < end) {
      while (limit.tryTakeUnsafe()) {
        let free = 0
        for (let i = 1; i < servers.length; i++) if (servers[i]! < servers[free]!) free = i
        const begins = Math.max(now, servers[free]!)
        const latency = begins + is.service * (0.9 + 0.2 * next()) - now
        const late = is.timeout !== undefined && latency > is.timeout
        // A timed-out call was sent all the same: the server works on it for nothing.
        servers[free] = begins + is.service
        const failed = late || next() < (is.failing ?? 0)
        const took = late ? is.timeout! : latency
        ends.push({ at: now + took, latency: took, failed })
      }
      let first = 0
      for (let i = 1; i < ends.length; i++) if (ends[i]!.at < ends[first]!.at) first = i
      const [done] = ends.splice(first, 1)
      now = done!.at
      if (!done!.failed) good++
      limit.sampleUnsafe?.({ endedAt: now, latency: done!.latency, failed: done!.failed })
      limit.releaseUnsafe()
      limits.push(limit.max)
    }
  }
  return { good, limits, last: limits.at(-1)! }
}

type Phases = Parameters<typeof simulate>[1]

/** Whatever the algorithm, the best of the fixed limits is the same: it is looked for once. */
const best = (phases: Phases) => {
  let good: number | undefined
  return {
    phases,
    good: () =>
      good ??= Math.max(
        ...[1, 4, 8, 16, 20, 24, 32, 40, 48, 64, 128].map((max) => simulate(Concurrency.make(max), phases).good)
      )
  }
}

const changes = {
  "latency 10 to 200 ms": best([
    { for: 60_000, is: { capacity: 40, service: 10, timeout: 1000 } },
    { for: 60_000, is: { capacity: 40, service: 200, timeout: 1000 } }
  ]),
  "capacity halved": best([
    { for: 60_000, is: { capacity: 40, service: 100, timeout: 1000 } },
    { for: 60_000, is: { capacity: 20, service: 100, timeout: 1000 } }
  ]),
  "errors, and then none": best([
    { for: 60_000, is: { capacity: 40, service: 50, timeout: 1000 } },
    { for: 2_000, is: { capacity: 40, service: 50, timeout: 1000, failing: 0.5 } },
    { for: 60_000, is: { capacity: 40, service: 50, timeout: 1000 } }
  ])
}

const algorithms = {
  aimd: () => LimitAlgorithm.aimd({ latency: 300 }),
  gradient: () => LimitAlgorithm.gradient()
}

for (const [name, algorithm] of Object.entries(algorithms)) {
  describe(`adaptive, ${name}`, () => {
    const adaptive = (options?: { readonly max?: number }) =>
      Concurrency.makeAdaptive({ max: options?.max ?? 128, algorithm: algorithm(), eventLoopDelay: Infinity })

    for (const [change, { good, phases }] of Object.entries(changes)) {
      it(`goodput is at least 95 % of the best fixed limit: ${change}`, () =>
        assert.isAtLeast(simulate(adaptive(), phases).good / good(), 0.95))
    }

    it("does not run away under modest overload (a known fault of limits that average their own queue)", () => {
      const { limits } = simulate(adaptive({ max: 10_000 }), [{ for: 300_000, is: { capacity: 20, service: 100 } }])
      assert.isBelow(Math.max(...limits.slice(-1000)), 20 * 4)
    })

    it("does not take steady timeouts for a steady latency", () => {
      const { last } = simulate(adaptive({ max: 1000 }), [
        { for: 10_000, is: { capacity: 100, service: 20 } },
        { for: 120_000, is: { capacity: 1, service: 5_000, timeout: 500 } }
      ])
      assert.isAtMost(last, 2)
    })

    it("does not ignore drops", () => {
      const phases = [
        { for: 30_000, is: { capacity: 100, service: 20 } },
        { for: 20_000, is: { capacity: 100, service: 20, failing: 0.5 } }
      ]
      assert.isAtLeast(simulate(adaptive(), phases.slice(0, 1)).last, 64)
      assert.isAtMost(simulate(adaptive(), phases).last, 2)
    })

    it("a few failures of the messages themselves are no overload", () => {
      const { last } = simulate(adaptive(), [{ for: 60_000, is: { capacity: 100, service: 20, failing: 0.02 } }])
      assert.isAtLeast(last, 64)
    })

    it("does not grow while it is not used", () => {
      const limit = adaptive()
      for (let i = 0; i < 10_000; i++) {
        limit.tryTakeUnsafe()
        limit.sampleUnsafe!({ endedAt: i * 20, latency: 10, failed: false })
        limit.releaseUnsafe()
      }
      assert.isAtMost(limit.max, 3)
    })

    it("stays within its bounds", () => {
      const limit = Concurrency.makeAdaptive({ min: 4, max: 16, algorithm: algorithm(), eventLoopDelay: Infinity })
      assert.strictEqual(limit.max, 4)
      const { limits } = simulate(limit, [
        { for: 30_000, is: { capacity: 100, service: 10 } },
        { for: 600_000, is: { capacity: 1, service: 1000, failing: 0.9 } }
      ])
      assert.strictEqual(Math.max(...limits), 16)
      assert.strictEqual(limits.at(-1), 4)
      assert.strictEqual(limit.ceiling, 16)
    })
  })
}
