import type { Finding } from "../findings.ts"
import type { ServerFacts } from "./facts.ts"

/** One check of a server. */
export type Check = (facts: ServerFacts) => Finding | ReadonlyArray<Finding>

export const allowConfig = "allow it for this check: ACL SETUSER <user> +config|get +info"

export const number = (text: string | undefined): number | undefined => {
  const n = Number(text)
  return text === undefined || text === "" || !Number.isFinite(n) ? undefined : n
}

/** A parameter, from `CONFIG GET` or, where `INFO` has it too, from there. */
export const parameter = ({ config, info }: ServerFacts, name: string): string | undefined =>
  config?.get(name) ?? info?.get(name.replaceAll("-", "_"))
