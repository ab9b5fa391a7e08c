import type * as Description from "../Description.ts"

/** A topic as plain data. */
export const describeTopic = (self: {
  readonly name: string
  readonly codec: { readonly contentType: string }
  readonly key: unknown
  readonly headers?: unknown
}): Description.Topic => ({
  topic: self.name,
  contentType: self.codec.contentType,
  headers: self.headers !== undefined,
  key: self.key !== undefined
})
