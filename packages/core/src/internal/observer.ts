import type { Outcome } from "../Telemetry.ts"

/** The observer of a program that has none. */
export const noObserver: (outcome: Outcome) => void = () => {}
