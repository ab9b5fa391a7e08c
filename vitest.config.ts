import * as path from "node:path"
import process from "node:process"
import { defineConfig } from "vitest/config"
import { BaseSequencer, type TestSpecification } from "vitest/node"

// Tests start some two hundred programs of this repository: each loads what another one has compiled.
process.env["NODE_COMPILE_CACHE"] ??= path.join(import.meta.dirname, ".cache", "compiled")

/** The longest files: they start first, so that none is left running alone at the end. Those that mostly wait for their
 * brokers stand beside those that keep a core busy. */
const longest = [
  "nats-jetstream/test/faults",
  "stranger/test/stranger",
  "testing/test/conformance.nats",
  "testing/test/simulation",
  "stranger/test/release",
  "testing/test/conformance.redis",
  "testing/test/conformance.redisOldest",
  "nats-jetstream/test/operators",
  "examples/test/idempotent",
  "redis-streams/test/faults",
  "nats-jetstream/test/cluster",
  "testing/test/planted",
  "redis-streams/test/Subscription",
  "cli/test/letters",
  "nats-jetstream/test/Transport",
  "cli/test/command",
  "nats-jetstream/test/soak",
  "cli/test/view",
  "examples/test/demo",
  "cli/test/doctor.redis",
  "redis-streams/test/operators",
  "examples/test/activityLog",
  "testing/test/conformance.mutants",
  "redis-streams/test/crash",
  "nats-jetstream/test/regressions",
  "nats-jetstream/test/processes",
  "redis-streams/test/scale",
  "examples/test/taskQueue",
  "cli/test/odd",
  "examples/test/slowCalls",
  "redis-streams/test/topologies"
]

class LongestFirst extends BaseSequencer {
  override sort(files: Array<TestSpecification>) {
    const rank = ({ moduleId }: TestSpecification) => {
      const index = longest.findIndex((name) => moduleId.endsWith(`${name}.test.ts`))
      return index < 0 ? longest.length : index
    }
    return Promise.resolve(files.sort((one, other) => rank(one) - rank(other)))
  }
}

export default defineConfig({
  test: {
    include: ["packages/*/test/**/*.test.ts", "examples/test/**/*.test.ts", "stranger/test/*.test.ts"],
    // Each file starts its brokers and mostly waits for them: two cores take six files at a time.
    maxWorkers: 6,
    // One number for all files: without isolation the first file of a worker would say how many tests run together.
    maxConcurrency: 24,
    // Effect and the sources are loaded once for each worker, not once for each file: two fifths of the CPU time of core's.
    // So a file leaves nothing behind in its process: no environment, no listener, no patched global.
    isolate: false,
    sequence: { sequencer: LongestFirst },
    testTimeout: 60_000,
    hookTimeout: 120_000,
    // `.ci/run` counts from the second.
    reporters: ["default", ["json", { outputFile: ".cache/test.json" }]]
  }
})
