import { checkOptions, durationOf } from "@millrace/core/TransportAuthor"
import { invalidOption, type TransportError } from "@millrace/core/TransportError"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type { Options } from "../Options.ts"

const transport = "redis"

const known: { readonly [of: string]: ReadonlyArray<string> } = {
  layer: [
    "url",
    "username",
    "password",
    "credentials",
    "database",
    "tls",
    "cluster",
    "sentinel",
    "connectTimeout",
    "answerTimeout",
    "consumer",
    "keyPrefix",
    "concurrency",
    "block",
    "claim",
    "retention",
    "forgetConsumersAfter",
    "deduplicateFor",
    "offline"
  ],
  cluster: ["nodes"],
  sentinel: ["master", "nodes", "password"],
  claim: ["minIdle"],
  retention: ["maxLength", "maxAge", "exact"],
  offline: ["wait", "max"]
}

const shownType = (value: unknown): object | number | boolean =>
  typeof value === "number" || typeof value === "boolean"
    ? value
    : { toString: () => value === "" ? "empty" : "of another type" }

/** What some groups of options may be instead. */
const words: { readonly [of: string]: ReadonlyArray<unknown> } = {
  cluster: [true, false],
  retention: ["until-acked", "acknowledged"]
}

export const isSecret = (value: unknown): boolean => typeof value === "string" || Redacted.isRedacted(value)

const isText = (value: unknown): boolean => typeof value === "string"

/** Options that have the wrong type. None of them is shown: a misplaced password is one. */
const checkTypes = (options: Options): TransportError | undefined => {
  const { cluster, retention, sentinel } = options
  const nodes = typeof cluster === "object" ? cluster.nodes : []
  const types: ReadonlyArray<
    readonly [option: string, value: unknown, is: (value: unknown) => boolean, remedy: string]
  > = [
    ["username", options.username, isText, "give a text"],
    ["password", options.password, isSecret, "give a text, or a Redacted one"],
    ["consumer", options.consumer, isText, "give a text"],
    ["keyPrefix", options.keyPrefix, isText, "give a text"],
    ["tls", options.tls, (tls) => typeof tls === "object" && tls !== null, "give the options of node:tls"],
    [
      "credentials",
      options.credentials,
      (source) => typeof source === "function" || Effect.isEffect(source),
      "give a function or an Effect that returns { username, password }"
    ],
    [
      "offline.max",
      options.offline?.max,
      (max) => max === Infinity || (Number.isInteger(max) && max as number >= 0),
      "give a whole number of messages"
    ],
    ["sentinel.master", sentinel && (sentinel.master ?? ""), (name) => isText(name) && name !== "", "give its name"],
    ["sentinel.password", sentinel?.password, isSecret, "give a text, or a Redacted one"],
    ["sentinel.nodes", sentinel?.nodes, Array.isArray, "give a list of host:port"],
    ["cluster.nodes", nodes ?? "", Array.isArray, "give a list of host:port"],
    [
      "retention.exact",
      typeof retention === "object" ? retention.exact : undefined,
      (exact) => typeof exact === "boolean",
      "give true or false"
    ]
  ]
  for (const [option, value, is, remedy] of types) {
    if (value !== undefined && !is(value)) return invalidOption(transport, option, shownType(value), remedy)
  }
  return undefined
}

const formOf = (of: string, words: ReadonlyArray<unknown>): string =>
  `give ${[...words.map((word) => JSON.stringify(word)), `{ ${known[of]!.join(", ")} }`].join(" or ")}`

/** Options from JavaScript, or behind a cast: names that do not exist, durations that are none, no URL. */
export const checkNames = (options: Options): TransportError | undefined => {
  const wrong = checkOptions(transport, "layer", options, known["layer"]!)
  if (wrong !== undefined) return wrong
  if (typeof options.url !== "string" && !Redacted.isRedacted(options.url)) {
    const shown = options.url === undefined ? undefined : shownType(options.url)
    return invalidOption(transport, "url", shown, "give redis://host:port")
  }
  const { claim, cluster, offline, retention, sentinel } = options
  for (const [of, group] of Object.entries({ claim, cluster, offline, retention, sentinel })) {
    if (group === undefined || words[of]?.includes(group) === true) continue
    if (typeof group !== "object") return invalidOption(transport, of, group, formOf(of, words[of] ?? []))
    const wrong = checkOptions(transport, of, group, known[of]!)
    if (wrong !== undefined) return wrong
  }
  const mistyped = checkTypes(options)
  if (mistyped !== undefined) return mistyped
  const durations = {
    connectTimeout: options.connectTimeout,
    answerTimeout: options.answerTimeout,
    block: options.block,
    "claim.minIdle": claim?.minIdle,
    "retention.maxAge": typeof retention === "object" ? retention.maxAge : undefined,
    forgetConsumersAfter: options.forgetConsumersAfter,
    deduplicateFor: options.deduplicateFor,
    "offline.wait": offline?.wait
  }
  for (const [option, input] of Object.entries(durations)) {
    const invalid = input === undefined ? undefined : durationOf(option, input).invalid
    if (invalid !== undefined) return invalidOption(transport, option, input, invalid.remedy)
  }
  return undefined
}
