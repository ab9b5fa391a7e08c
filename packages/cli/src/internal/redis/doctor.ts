import * as Effect from "effect/Effect"
import type { Finding, Given } from "../findings.ts"
import type { Admin, Target } from "./admin.ts"
export const examine = (_admin: Admin, _target: Target, _given: Given): Effect.Effect<ReadonlyArray<Finding>, Error> =>
  Effect.succeed([])
