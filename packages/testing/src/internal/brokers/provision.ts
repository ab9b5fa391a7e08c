import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Process from "node:process"
import { BrokersError } from "./BrokersError.ts"
import * as Containers from "./containers.ts"
import type { Controls } from "./controls.ts"
import { engine as findEngine } from "./engine.ts"
import * as OnPath from "./onPath.ts"
import * as Packages from "./packages.ts"
import { say } from "./say.ts"
import * as ServerProcess from "./serverProcess.ts"
import type { Wish } from "./servers.ts"
import { image, program } from "./servers.ts"
import type { Kind } from "./versions.ts"
import { compare, isVersion, kinds, lines, select } from "./versions.ts"

/** Where a server comes from. */
export type Provider = "container" | "path" | "packages"

/** A server that can be had. */
export interface Available {
  readonly kind: Kind
  readonly version: string
  readonly provider: Provider
}

const only: Effect.Effect<Provider | undefined, BrokersError> = Config.Literals(
  ["container", "path", "packages"],
  "MILLRACE_BROKERS"
).pipe(
  Config.withDefault(undefined),
  Effect.mapError((cause) =>
    new BrokersError({
      reason: "configuration",
      message: `MILLRACE_BROKERS must be container, path or packages, or not be set at all: ${cause.message}`,
      cause
    })
  )
)

/** Whether the program on PATH will do without looking for others. */
const isEnough = (wanted: string, found: OnPath.Program): boolean => {
  if (wanted === "newest") return compare(found.version, lines[found.kind][0]) >= 0
  if (wanted === "oldest") return compare(found.version, lines[found.kind].at(-1)!) <= 0
  return select(wanted, [found]) !== undefined
}

const describe = (programs: ReadonlyArray<OnPath.Program>): string =>
  programs.length === 0 ? "none" : programs.map(({ version }) => version).toSorted(compare).join(", ")

/** Finds the server program wished for, or says what there is instead. */
const findProgram = Effect.fnUntraced(function*(
  wish: Wish,
  from: Provider | undefined
): Effect.fn.Return<{ readonly found: OnPath.Program | undefined; readonly looked: ReadonlyArray<string> }> {
  const looked: Array<string> = []
  const path = from === "packages" ? [] : yield* OnPath.find(wish.kind)
  if (from !== "packages") looked.push(`On PATH: ${describe(path)}.`)
  const first = path[0]
  if (from === "path") return { found: select(wish.version, path), looked }
  if (first !== undefined && isEnough(wish.version, first)) return { found: first, looked }
  const fetched = yield* Packages.find
  const packages = "refused" in fetched ? [] : fetched.programs.filter(({ kind }) => kind === wish.kind)
  looked.push(`From packages: ${"refused" in fetched ? fetched.refused : describe(packages)}.`)
  const found = select(wish.version, [...path, ...packages])
  if (found !== undefined && "refused" in fetched) {
    yield* say(`${wish.kind} ${found.version} on PATH is the only one: ${fetched.refused}`)
  }
  return { found, looked }
})

/** Starts the server wished for, from the first provider that has it. */
export const provision = Effect.fnUntraced(function*(
  wish: Wish
): Effect.fn.Return<Controls & { readonly provider: Provider }, BrokersError, Scope.Scope> {
  const { kind, version } = wish
  if (version !== "newest" && version !== "oldest" && !isVersion(version)) {
    return yield* new BrokersError({
      reason: "configuration",
      message: `${JSON.stringify(version)} is no version of ${kind}: write "newest", "oldest" or numbers like "${
        lines[kind][0]
      }"`
    })
  }
  const from = yield* only
  const looked: Array<string> = []
  if (from === undefined || from === "container") {
    const engine = yield* findEngine
    const wanted = Containers.line(kind, version)
    const container = typeof engine === "string" ? engine : yield* Containers.make(engine, wish, wanted)
    if (typeof container !== "string") {
      yield* say(`${kind} ${container.version ?? wanted} from container ${image(kind, wanted)}`)
      return { ...container, provider: "container" }
    }
    looked.push(`In a container: ${container}.`)
    if (from === undefined && (typeof engine !== "string" || Process.env["DOCKER_HOST"])) {
      yield* say(`${kind} ${version} not in a container: ${container}`)
    }
  }
  if (from !== "container") {
    const search = yield* findProgram(wish, from)
    looked.push(...search.looked)
    if (search.found !== undefined) {
      const controls = yield* ServerProcess.make(wish, search.found.file)
      yield* say(`${kind} ${controls.version ?? search.found.version} from ${search.found.provider}`)
      return { ...controls, version: controls.version ?? search.found.version, provider: search.found.provider }
    }
  }
  return yield* new BrokersError({
    reason: "unavailable",
    message: `there is no ${kind} ${version} to be had. ${looked.join(" ")} Ask for a version that is there, ` +
      `start a Docker engine that has or can pull ${image(kind, Containers.line(kind, version))}, ` +
      `or put ${program(kind)} on PATH${from === undefined ? "" : ` (MILLRACE_BROKERS=${from} allows only that)`}.`
  })
})

/** Lists what {@link provision} would find. */
export const available: Effect.Effect<ReadonlyArray<Available>, BrokersError> = Effect.gen(function*() {
  const from = yield* only
  const engine = from === undefined || from === "container" ? yield* findEngine : ""
  const fetched = from === undefined || from === "packages" ? yield* Packages.find : { programs: [] }
  const found: Array<Available> = []
  for (const kind of kinds) {
    const mine: Array<Available> = []
    const add = ({ version, provider }: Available) => {
      if (mine.every((other) => compare(other.version, version) !== 0)) mine.push({ kind, version, provider })
    }
    if (typeof engine !== "string") {
      for (const version of lines[kind]) {
        if ((yield* Containers.refusal(engine, image(kind, version))) === undefined) {
          add({ kind, version, provider: "container" })
        }
      }
    }
    if (from === undefined || from === "path") (yield* OnPath.find(kind)).forEach(add)
    if ("programs" in fetched) fetched.programs.filter((program) => program.kind === kind).forEach(add)
    found.push(...mine.toSorted((a, b) => compare(b.version, a.version)))
  }
  return found
})
