import { bad, type Finding, ok } from "../findings.ts"
import { covers, filtersOf, overlap } from "./consumerChecks.ts"
import type { StreamFacts } from "./facts.ts"

/** Whether published messages are confirmed, kept and read. */
export const retentionChecks = ({ consumers, info: { config } }: StreamFacts, at: string): ReadonlyArray<Finding> => {
  const findings: Array<Finding> = []
  if (config.no_ack) {
    findings.push(
      bad(
        "error",
        "nats/no-ack",
        "no_ack",
        "publishes are never confirmed: they time out, and dead letters are never known to be stored",
        `nats stream edit ${at} --ack`,
        at
      )
    )
  }
  if (config.retention === "interest" && consumers.length === 0) {
    findings.push(
      bad(
        "error",
        "nats/interest",
        "retention interest, no consumer",
        "what is published is confirmed and dropped at once",
        "start a group, or use retention limits",
        at
      )
    )
  }
  if (config.retention === "workqueue" && consumers.length > 0) {
    const filters = consumers.flatMap(({ config: consumer }) => filtersOf(consumer, config.subjects ?? []))
    const left = (config.subjects ?? []).filter((subject) =>
      !subject.startsWith("millrace-delayed.") && !filters.some((filter) => covers(filter, subject))
    )
    findings.push(
      left.length === 0
        ? ok("nats/work-queue", "every subject of the work queue has a group", at)
        : bad(
          "warning",
          "nats/work-queue",
          `no group reads all of ${left.join(", ")}`,
          "messages there are never handled and never deleted",
          "start a group for them, or take the subject out of the stream",
          at
        )
    )
    // From 2.10 on the server refuses the second one; before that only where one filter holds the other.
    const both = filters.flatMap((one, i) =>
      filters.slice(i + 1).flatMap((other) => overlap(one, other) ? [`${one} and ${other}`] : [])
    )
    if (both.length > 0) {
      findings.push(bad(
        "error",
        "nats/work-queue-overlap",
        `two groups of a work queue read the same subjects: ${both[0]}`,
        "whichever acknowledges first deletes the message for both",
        "use retention limits, or separate subjects",
        at
      ))
    }
  }
  return findings
}
