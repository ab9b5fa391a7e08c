/**
 * Headers of a message; names are lower-case. `content-type`, `traceparent` and `millrace-*` are reserved.
 *
 * @category models
 * @since 0.1.0
 */
export interface Headers {
  readonly [name: string]: string
}
