import * as path from "node:path"
import process from "node:process"
import { defineConfig } from "vitest/config"
import { BaseSequencer, type TestSpecification } from "vitest/node"

// Tests start some two hundred programs of this repository: each loads what another one has compiled.
process.env["NODE_COMPILE_CACHE"] ??= path.join(import.meta.dirname, ".cache", "compiled")

/**
 * The order of the files, by what their paths hold. Those that mostly wait for a broker come first: they are sensitive to
 * a busy machine, and leave it idle. Those that keep a core busy follow. In both parts the longest start first, so that
 * none is left running alone at the end.
 */
const order = [
  "nats-jetstream/test/faults",
  "testing/test/conformance.nats",
  "testing/test/conformance.redis",
  "nats-jetstream/test/operators",
  "redis-streams/test/faults",
  "nats-jetstream/test/cluster",
  "redis-streams/test/Subscription",
  "nats-jetstream/test/soak",
  "nats-jetstream/test/Transport",
  "redis-streams/test/operators",
  "nats-jetstream/test/regressions",
  "redis-streams/test/crash",
  "nats-jetstream/test/processes",
  "redis-streams/test/scale",
  "nats-jetstream/",
  "redis-streams/",
  "stranger/test/stranger",
  "stranger/test/release",
  "examples/test/idempotent",
  "cli/test/letters",
  "cli/test/command.test",
  "cli/test/view",
  "examples/test/demo",
  "examples/test/activityLog",
  "testing/test/simulation",
  "testing/test/planted",
  "cli/test/doctor.redis",
  "testing/test/conformance.mutants",
  "cli/",
  "examples/",
  "testing/"
]

class InOrder extends BaseSequencer {
  override sort(files: Array<TestSpecification>) {
    const rank = ({ moduleId }: TestSpecification) => {
      const index = order.findIndex((part) => moduleId.includes(`/${part}`))
      return index < 0 ? order.length : index
    }
    return Promise.resolve(files.sort((one, other) => rank(one) - rank(other)))
  }
}

export default defineConfig({
  test: {
    globalSetup: "packages/testing/test/fetchServers.ts",
    include: ["packages/*/test/**/*.test.ts", "examples/test/**/*.test.ts", "stranger/test/*.test.ts"],
    // Each file starts its brokers and mostly waits for them: two cores take six files at a time.
    maxWorkers: 6,
    // One number for all files: without isolation the first file of a worker would say how many tests run together.
    maxConcurrency: 24,
    // Effect and the sources are loaded once for each worker, not once for each file: two fifths of the CPU time of core's.
    // So a file leaves nothing behind in its process: no environment, no listener, no patched global.
    isolate: false,
    sequence: { sequencer: InOrder },
    testTimeout: 120_000,
    hookTimeout: 120_000,
    // `.ci/run` counts from the second.
    reporters: ["default", ["json", { outputFile: ".cache/test.json" }]]
  }
})
