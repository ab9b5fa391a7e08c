/**
 * One flag chooses the broker: every example runs on all three.
 */
import { NodeRuntime, NodeServices } from "@effect/platform-node"
import { type Publisher, type Transport, TransportError } from "@millrace/core"
import { JetStream } from "@millrace/nats-jetstream"
import { RedisStreams } from "@millrace/redis-streams"
import { MemoryTransport } from "@millrace/testing"
import { Console, Data, type Duration, Effect, type Layer, Option, Redacted, Runtime } from "effect"
import { Command, Flag } from "effect/cli"

/** `--redis URL` and `--nats URL`; neither means in memory. A URL may hold a password, so it is redacted. */
export const flags = {
  redis: Flag.Redacted("redis").pipe(
    Flag.withMetavar("URL"),
    Flag.withDescription("Run on Redis or Valkey, e.g. redis://localhost:6379"),
    Flag.optional
  ),
  nats: Flag.Redacted("nats").pipe(
    Flag.withMetavar("URL"),
    Flag.withDescription("Run on NATS JetStream, e.g. nats://localhost:4222"),
    Flag.optional
  )
}

export interface Flags {
  readonly redis: Option.Option<Redacted.Redacted<string>>
  readonly nats: Option.Option<Redacted.Redacted<string>>
}

/** Somebody sits and waits. */
const connectTimeout = "3 seconds"

export interface Options {
  /** A message is gone from the broker once every group has acknowledged it. */
  readonly retention?: "until-acked" | undefined
  /** How long the messages of a process that died wait before another takes them over; default 30 seconds. */
  readonly claimAfter?: Duration.Input | undefined
}

/** The broker that the flags choose, as a Layer: nothing else in a program knows which one it is. */
export const layer = (
  flags: Flags,
  options?: Options
): Layer.Layer<Transport.Transport, TransportError.TransportError> => {
  const { claimAfter, retention } = options ?? {}
  if (Option.isSome(flags.redis)) {
    return RedisStreams.layer({ url: flags.redis.value, retention, connectTimeout, claim: { minIdle: claimAfter } })
  }
  if (Option.isSome(flags.nats)) {
    return JetStream.layer({ url: flags.nats.value, retention, connectTimeout, ackWait: claimAfter })
  }
  return MemoryTransport.layer({ retention, minIdle: claimAfter })
}

/** Where it runs, for people; without the password. */
export const describe = (flags: Flags): string =>
  Option.match(Option.orElse(flags.redis, () => flags.nats), {
    onNone: () => "in memory",
    onSome: (url) => `on ${TransportError.redactUrl(Redacted.value(url))}`
  })

type Failure = TransportError.TransportError | Publisher.PublishError

/** Its reason has been printed; the process ends with exit code 1. */
class Failed extends Data.TaggedError("Failed") {
  override readonly [Runtime.errorReported] = false
}

/** Runs a command as this process. A broker that cannot be used is one line and exit code 1, not a stack. */
export const runMain = <Name extends string, Input, Context>(
  command: Command.Command<Name, Input, Context, Failure, Command.Environment>
): void =>
  Command.run(command, { version: "0.1.0" }).pipe(
    Effect.catchTag(
      ["TransportError", "PublishError"],
      (error) => Effect.andThen(Console.error(error.message), Effect.fail(new Failed()))
    ),
    Effect.provide(NodeServices.layer),
    NodeRuntime.runMain
  )
