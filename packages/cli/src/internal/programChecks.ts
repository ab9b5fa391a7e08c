import { bad, type Finding, type Given, ok, unknown } from "./findings.ts"
import { duration } from "./text.ts"

/** Every check of what the operator says about the programs. `lease`: how long a delivery stays without a sign of life. */
export const programChecks = (
  kind: "redis" | "nats",
  { drainTimeout, gracePeriod, handlerTimeout }: Given,
  lease: { readonly name: string; readonly millis: number } | undefined
): ReadonlyArray<Finding> => {
  const findings: Array<Finding> = []
  if (lease !== undefined) {
    const id = `${kind}/claim-time`
    const seen = `${lease.name} ${duration(lease.millis)}`
    findings.push(
      handlerTimeout === undefined
        ? unknown(
          id,
          `${seen}; how long handlers take is not known here`,
          "a handler that blocks the event loop for longer is taken over and runs twice",
          "give --handler-timeout"
        )
        : handlerTimeout > lease.millis
        ? bad(
          "warning",
          id,
          `${seen}, handlers up to ${duration(handlerTimeout)}`,
          "running handlers are kept alive, unless one blocks the event loop that long: then its message is taken over and runs twice",
          `raise ${lease.name} above ${duration(handlerTimeout)}, or move blocking work into a worker thread`
        )
        : ok(id, `${seen}, handlers up to ${duration(handlerTimeout)}`)
    )
  }
  const id = `${kind}/drain`
  findings.push(
    gracePeriod === undefined
      ? unknown(
        id,
        `drainTimeout ${duration(drainTimeout)}; the platform's grace period is not known here`,
        "a process that is killed while it drains burns an attempt of each running message",
        "give --grace-period (Kubernetes: terminationGracePeriodSeconds, 30s unless set)"
      )
      : gracePeriod < drainTimeout + 5000
      ? bad(
        "error",
        id,
        `drainTimeout ${duration(drainTimeout)}, grace period ${duration(gracePeriod)}`,
        "the platform kills processes that still drain: their messages burn an attempt and wait for the claim time",
        `a drainTimeout of at most ${duration(Math.max(1000, gracePeriod - 5000))}, or a longer grace period`
      )
      : ok(id, `drainTimeout ${duration(drainTimeout)}, grace period ${duration(gracePeriod)}`)
  )
  return findings
}
