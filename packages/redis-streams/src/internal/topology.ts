import * as Effect from "effect/Effect"
import type { Address } from "./address.ts"
import { type SlotMap, slotOf } from "./cluster.ts"
import { dial, DialError, type DialOptions, type Session } from "./dial.ts"
import { asError, codeOf, list, text } from "./reply.ts"
import type { Settings } from "./settings.ts"

/** Where a connection for a key has to go, asked again whenever one is made. */
export interface Topology {
  readonly connect: (key: string) => Effect.Effect<Session, DialError>
}

const dialOptions = (settings: Settings): DialOptions => ({
  login: settings.login,
  client: settings.client,
  database: settings.database,
  tls: settings.tls,
  // Less than the Layer waits: its reason is known by then.
  within: Math.min(0.8 * settings.connectTimeout, 5_000)
})

const send = ({ client }: Session, address: Address, command: ReadonlyArray<string>) =>
  Effect.tryPromise({
    try: () => client.sendCommand(command),
    catch: (error) => new DialError({ address, error: asError(error) })
  })

/** Runs one command on a connection of its own. */
const ask = (
  options: DialOptions,
  address: Address,
  command: ReadonlyArray<string>
): Effect.Effect<unknown, DialError> =>
  Effect.acquireUseRelease(
    dial(options, address),
    (session) =>
      Effect.timeoutOrElse(send(session, address, command), {
        duration: options.within,
        orElse: () => Effect.fail(DialError.of(address, `no answer within ${options.within} ms`))
      }),
    ({ client }) => Effect.sync(() => client.destroy())
  )

const firstOf = <A>(
  addresses: ReadonlyArray<Address>,
  f: (address: Address) => Effect.Effect<A, DialError>
): Effect.Effect<A, DialError> =>
  Effect.suspend(() => {
    let isAlone = true
    const ask = (address: Address) =>
      Effect.tapError(f(address), (error) => Effect.sync(() => isAlone &&= error.isAbsent))
    return Effect.mapError(
      addresses.slice(1).reduce((effect, address) => Effect.catch(effect, () => ask(address)), ask(addresses[0]!)),
      ({ address, error }) => new DialError({ address, error, isAlone })
    )
  })

/** The master as the first Sentinel that answers knows it; it must say itself that it is one. */
const sentinel = (settings: Settings, master: string, login: DialOptions["login"]): Topology => {
  const options = dialOptions(settings)
  const asked: DialOptions = { ...options, login, database: 0 }
  const resolve = firstOf(
    settings.seeds,
    (seed) =>
      Effect.flatMap(ask(asked, seed, ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", master]), (reply) => {
        const [host, port] = list(reply)
        return host === undefined
          ? Effect.fail(DialError.of(seed, `this Sentinel knows no master "${master}"`))
          : Effect.succeed({ host: text(host), port: Number(text(port)) })
      })
  )
  const connect = Effect.flatMap(
    resolve,
    (address) =>
      Effect.tap(dial(options, address), (session) =>
        send(session, address, ["ROLE"]).pipe(
          Effect.map((role) => text(list(role)[0])),
          Effect.catchIf(({ error }) => codeOf(error) === "NOPERM", () => Effect.succeed("master")),
          Effect.filterOrFail(
            (role) => role === "master",
            (role) => DialError.of(address, `this server is a ${role}, not the master`)
          ),
          Effect.tapError(() => Effect.sync(() => session.client.destroy()))
        ))
  )
  return { connect: () => connect }
}

/** The node that serves the slot of the key. */
const cluster = (settings: Settings, slots: SlotMap): Topology => {
  const options = { ...dialOptions(settings), database: 0 }
  const refresh = Effect.suspend(() =>
    firstOf(
      [...slots.known(), ...settings.seeds],
      (address) =>
        Effect.tap(
          ask(options, address, ["CLUSTER", "SLOTS"]),
          (reply) => Effect.sync(() => slots.read(reply, address))
        )
    )
  )
  const connect = (key: string) =>
    Effect.suspend(() => {
      const address = slots.get(slotOf(key))
      return address === undefined
        ? Effect.fail(DialError.of(settings.seeds[0], `no node serves slot ${slotOf(key)}`))
        : dial(options, address)
    })
  // What is known may be wrong by now: whoever fails to connect asks again.
  return {
    connect: (key) =>
      Effect.catch(
        Effect.suspend(() =>
          slots.get(slotOf(key)) === undefined ? Effect.andThen(refresh, connect(key)) : connect(key)
        ),
        () => Effect.andThen(refresh, connect(key))
      )
  }
}

/** One node, whatever it serves. */
export const dialAt = (settings: Settings, address: Address): Effect.Effect<Session, DialError> =>
  dial({ ...dialOptions(settings), database: 0 }, address)

export const make = (settings: Settings, slots: SlotMap): Topology =>
  settings.topology === "cluster"
    ? cluster(settings, slots)
    : typeof settings.topology === "object"
    ? sentinel(settings, settings.topology.master, settings.topology.login)
    : { connect: () => firstOf([settings.seeds[0]], (address) => dial(dialOptions(settings), address)) }
