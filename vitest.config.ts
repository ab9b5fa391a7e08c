import { defineConfig } from "vitest/config"

export default defineConfig({
  test: {
    include: ["packages/*/test/**/*.test.ts", "examples/test/**/*.test.ts", "stranger/test/*.test.ts"],
    // Brokers are started per file; two files at a time is what two cores take.
    maxWorkers: 2,
    testTimeout: 60_000,
    hookTimeout: 120_000,
    // `.ci/run` counts from the second.
    reporters: ["default", ["json", { outputFile: ".cache/test.json" }]]
  }
})
