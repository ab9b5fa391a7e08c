import type { Transport } from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Fs from "node:fs"
import type { Broker } from "./Broker.ts"
import * as natsBroker from "./nats/broker.ts"
import { Failure } from "./Output.ts"
import * as redisBroker from "./redis/broker.ts"

/** Which server to talk to, and how. */
export type Target =
  | {
    readonly kind: "redis"
    readonly url: Redacted.Redacted<string>
    readonly cluster: boolean
    readonly sentinel: string | undefined
    readonly keyPrefix: string
  }
  | {
    readonly kind: "nats"
    readonly url: Redacted.Redacted<string>
    readonly domain: string | undefined
    readonly credentials: Redacted.Redacted<string> | undefined
    /** Streams that a command declares may be created. */
    readonly mayCreate: boolean
  }

/** Connects; tests put another broker here. */
export const Open: Context.Reference<(target: Target) => Layer.Layer<Broker | Transport, TransportError>> = Context
  .Reference("@millrace/cli/internal/Open", {
    defaultValue: () => (target: Target) =>
      target.kind === "redis" ? redisBroker.layer(target) : natsBroker.layer(target)
  })

const flags = {
  redis: Flag.Redacted("redis").pipe(
    Flag.withMetavar("URL"),
    Flag.withDescription(
      "Redis or Valkey: redis://user:password@host:6379/0, or valkey://; rediss:// or valkeys:// for TLS [MILLRACE_REDIS_URL]"
    ),
    Flag.optional
  ),
  nats: Flag.Redacted("nats").pipe(
    Flag.withMetavar("URL"),
    Flag.withDescription("NATS with JetStream: nats://host:4222, tls:// for TLS [MILLRACE_NATS_URL]"),
    Flag.optional
  ),
  prefix: Flag.String("prefix").pipe(
    Flag.withDescription("Redis: keyPrefix of the layer"),
    Flag.withDefault("")
  ),
  cluster: Flag.Boolean("cluster").pipe(
    Flag.withDefault(false),
    Flag.withDescription("Redis: the server is a node of a cluster")
  ),
  sentinel: Flag.String("sentinel").pipe(
    Flag.withMetavar("MASTER"),
    Flag.withDescription("Redis: the URL is a Sentinel's; name of the master"),
    Flag.optional
  ),
  domain: Flag.String("domain").pipe(Flag.withDescription("NATS: the JetStream domain"), Flag.optional),
  creds: Flag.File("creds", { mustExist: true }).pipe(
    Flag.withDescription("NATS: a credentials file [MILLRACE_NATS_CREDS]"),
    Flag.optional
  )
}

/** The command without its subcommands; each of those has these flags too. */
export const millrace = Command.make("millrace").pipe(Command.withSharedFlags(flags))

type Flags = Effect.Success<typeof millrace>

const fromEnvironment = (name: string) => Effect.map(Effect.option(Config.Redacted(name)), Option.filter(isGiven))

const isGiven = (secret: Redacted.Redacted<string>) => Redacted.value(secret) !== ""

/** Flags of the other broker, which would be ignored in silence. */
const misplaced = (kind: Target["kind"], flags: Flags): Effect.Effect<void, Failure> => {
  const given = kind === "nats"
    ? [
      ...(flags.prefix === "" ? [] : ["--prefix"]),
      ...(flags.cluster ? ["--cluster"] : []),
      ...(Option.isSome(flags.sentinel) ? ["--sentinel"] : [])
    ]
    : [
      ...(Option.isSome(flags.domain) ? ["--domain"] : []),
      ...(Option.isSome(flags.creds) ? ["--creds"] : [])
    ]
  return given.length === 0
    ? Effect.void
    : Effect.fail(notFor(kind, given))
}

/** The refusal of flags that the other broker has. */
export const notFor = (kind: Target["kind"], given: ReadonlyArray<string>): Failure =>
  new Failure(`${given.join(" and ")}: not for ${kind === "nats" ? "NATS" : "Redis"}, leave it out`)

const targetOf = Effect.fnUntraced(function*(flags: Flags, mayCreate: boolean): Effect.fn.Return<Target, Failure> {
  if (Option.isSome(flags.redis) && Option.isSome(flags.nats)) {
    return yield* Effect.fail(new Failure("give --redis or --nats, not both"))
  }
  const given = Option.isSome(flags.redis) || Option.isSome(flags.nats)
  const redis = given ? flags.redis : yield* fromEnvironment("MILLRACE_REDIS_URL")
  const nats = given ? flags.nats : yield* fromEnvironment("MILLRACE_NATS_URL")
  if (Option.isSome(redis) && Option.isSome(nats)) {
    return yield* Effect.fail(
      new Failure("MILLRACE_REDIS_URL and MILLRACE_NATS_URL are both set: give --redis or --nats")
    )
  }
  if (Option.isSome(redis)) {
    yield* misplaced("redis", flags)
    if (flags.cluster && Option.isSome(flags.sentinel)) {
      return yield* Effect.fail(new Failure("give --cluster or --sentinel, not both"))
    }
    return {
      kind: "redis",
      url: redis.value,
      cluster: flags.cluster,
      sentinel: Option.getOrUndefined(flags.sentinel),
      keyPrefix: flags.prefix
    }
  }
  if (Option.isNone(nats)) {
    return yield* Effect.fail(
      new Failure("which broker? Give --redis redis://localhost:6379 or --nats nats://localhost:4222")
    )
  }
  yield* misplaced("nats", flags)
  const path = Option.isSome(flags.creds)
    ? flags.creds.value
    : Option.getOrUndefined(yield* Effect.option(Config.NonEmptyString("MILLRACE_NATS_CREDS")))
  const credentials = path === undefined ? undefined : yield* Effect.try({
    try: () => Redacted.make(Fs.readFileSync(path, "utf8")),
    catch: () => new Failure(`cannot read the credentials file ${path}`)
  })
  return { kind: "nats", url: nats.value, domain: Option.getOrUndefined(flags.domain), credentials, mayCreate }
})

interface Rights {
  /** Whether streams that the command declares may be created; default: they may not. */
  readonly mayCreate?: boolean
}

/** Runs a command with the broker that these flags or the environment name. */
export const connectedBy =
  (flags: Flags, { mayCreate = false }: Rights = {}) =>
  <A, E, R>(effect: Effect.Effect<A, E, R | Broker | Transport>) =>
    Effect.gen(function*() {
      const open = yield* Open
      return yield* Effect.provide(effect, open(yield* targetOf(flags, mayCreate)))
    })

/** Runs a subcommand with the broker that the flags or the environment name. */
export const connected = <A, E, R>(effect: Effect.Effect<A, E, R | Broker | Transport>, rights?: Rights) =>
  Effect.flatMap(millrace, (flags) => connectedBy(flags, rights)(effect))
