import type { TransportError } from "@millrace/core/TransportError"
import * as Effect from "effect/Effect"
import { ErrorReply } from "redis"
import type { Session } from "./dial.ts"
import { codeOf, isPassing, isRedirect, text, transportError } from "./reply.ts"
import type { Server } from "./server.ts"

/** A subscription whose read has failed. */
export interface Healed {
  readonly options: { readonly key: string }
  readonly fail: (error: TransportError) => void
  /** Creates its group again. */
  readonly recreated: Effect.Effect<void, Error>
}

/** Does what a failed read asks for, and knows why nothing can be read meanwhile. */
export class ReadHealing {
  private readonly server: Server
  private readonly group: string
  private readonly drop: (session: Session, error: Error) => void
  /** Failed turns in a row. */
  private failures = 0
  private reason: string | undefined

  constructor(server: Server, group: string, drop: (session: Session, error: Error) => void) {
    this.server = server
    this.group = group
    this.drop = drop
  }

  /** Why nothing can be read now; pipelines log it with their health. */
  get trouble(): string | undefined {
    return this.reason
  }

  succeeded(): void {
    this.failures = 0
    this.reason = undefined
  }

  private readonly pause: Effect.Effect<void> = Effect.suspend(() =>
    Effect.sleep(Math.min(50 * 2 ** this.failures++, 2_000) * (0.5 + Math.random() / 2))
  )

  /** `session`: the connection of the read; absent for what older entries ask for. */
  heal(session: Session | undefined, error: Error, subscriptions: ReadonlyArray<Healed>): Effect.Effect<void> {
    const code = codeOf(error)
    // A connection that was lost is made again by itself.
    if (!(error instanceof ErrorReply)) return session === undefined ? this.pause : Effect.void
    if (code === "NOGROUP") {
      return Effect.forEach(subscriptions, (subscription) => subscription.recreated, { discard: true }).pipe(
        Effect.matchEffect({
          onFailure: (error) => Effect.sync(() => this.stuck(`creating group ${this.group} again`, error)),
          onSuccess: () => Effect.sync(() => this.reason = undefined)
        }),
        Effect.andThen(Effect.suspend(() => this.failures++ > 0 ? this.pause : Effect.void))
      )
    }
    if (code === "WRONGTYPE" || code === "NOPERM" || code === "NOAUTH") {
      return Effect.forEach(subscriptions, (subscription) => this.failIfWrong(subscription, error), { discard: true })
    }
    // A slot that has moved: the next connection goes where the cluster says.
    const hasMoved = this.server.settings.topology === "cluster" && isRedirect(error)
    this.stuck(`reading for group ${this.group}`, error)
    return session !== undefined && (hasMoved || isPassing(error))
      ? Effect.andThen(this.pause, Effect.sync(() => this.drop(session, error)))
      : this.pause
  }

  private stuck(operation: string, error: Error): void {
    this.reason = transportError(operation, this.server.settings.label, error).message
  }

  /** Of several streams read together only some may be to blame. */
  private failIfWrong(subscription: Healed, error: ErrorReply): Effect.Effect<void> {
    const { key } = subscription.options
    const beside = { key, expected: "a stream" }
    const fail = Effect.sync(() =>
      subscription.fail(transportError(`reading ${key}`, this.server.settings.label, error, beside))
    )
    if (codeOf(error) !== "WRONGTYPE") return fail
    return Effect.matchEffect(this.server.control.one(key, ["TYPE", key]), {
      onFailure: () => fail,
      onSuccess: (type) => text(type) === "stream" || text(type) === "none" ? Effect.void : fail
    })
  }
}
