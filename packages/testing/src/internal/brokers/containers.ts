import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { BrokersError } from "./BrokersError.ts"
import type { Controls } from "./controls.ts"
import type { Wish } from "./servers.ts"
import type { Kind } from "./versions.ts"
import { lines } from "./versions.ts"

/** A Docker engine that answers. */
export interface Engine {
  readonly socket: string
}

/** The engine, or why there is none. */
export const engine: Effect.Effect<Engine | string> = Effect.succeed("no Docker engine answers")

/** The release line, which is the tag of an image, for a version asked for. */
export const line = (kind: Kind, version: string): string =>
  version === "newest" ? lines[kind][0] : version === "oldest" ? lines[kind].at(-1)! : version

export const refusal = (_engine: Engine, _image: string): Effect.Effect<string | undefined> => Effect.succeed("not yet")

export const make = (_engine: Engine, _wish: Wish, _line: string): Effect.Effect<Controls | string, BrokersError, Scope.Scope> =>
  Effect.succeed("not yet")
