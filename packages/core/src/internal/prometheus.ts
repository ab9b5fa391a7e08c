import { instruments } from "./instruments.ts"
import type { Instrument } from "./series.ts"

/** The words that the Collector appends for a unit; a unit in braces says what is counted and is left out. */
const unitNames: Readonly<Record<string, string>> = { s: "seconds", ms: "milliseconds", By: "bytes", "1": "ratio" }

const known = new Map<string, Instrument>(Object.values(instruments).map((instrument) => [instrument.name, instrument]))

/** The name that the OpenTelemetry Collector gives to a metric of ours in Prometheus; other names are left alone. */
export const prometheusName = (name: string): string => {
  const instrument = known.get(name)
  if (instrument === undefined) return name
  const unit = unitNames[instrument.unit]
  const words = name.replace(/[^A-Za-z0-9]+/g, "_").split("_")
  if (unit !== undefined && !words.includes(unit)) words.push(unit)
  if (instrument.type === "counter") words.push("total")
  return words.join("_")
}
