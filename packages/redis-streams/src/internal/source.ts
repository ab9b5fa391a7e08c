import * as Context from "effect/Context"

/** What `RedisStreams.from` says beside the common options. */
export interface SourceSettings {
  readonly startFrom?: string | undefined
  readonly block?: number | undefined
  readonly minIdle?: number | undefined
}

export const Source: Context.Reference<SourceSettings> = Context.Reference<SourceSettings>(
  "@millrace/redis-streams/Source",
  { defaultValue: () => ({}) }
)

/** What `RedisStreams.removeOnSuccess` says. */
export const RemoveOnSuccess: Context.Reference<boolean> = Context.Reference<boolean>(
  "@millrace/redis-streams/RemoveOnSuccess",
  { defaultValue: () => false }
)
