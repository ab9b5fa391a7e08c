import * as Effect from "effect/Effect"
import { connect } from "node:net"
import { connect as connectTls } from "node:tls"
import type { Address } from "./address.ts"

/**
 * Whether a server speaks TLS where we spoke without, or the other way round: neither side of that misunderstanding
 * gets an error that tells. Sends nothing secret, so that the certificate does not matter.
 */
export const speaksOtherwise = ({ host, path, port }: Address, withTls: boolean): Effect.Effect<boolean> =>
  Effect.callback<boolean>((resume) => {
    const to = path === undefined ? { host, port } : { path }
    const socket = withTls ? connect(to) : connectTls({ ...to, rejectUnauthorized: false })
    const answer = (isOther: boolean) => {
      socket.destroy()
      resume(Effect.succeed(isOther))
    }
    if (withTls) socket.once("connect", () => socket.write("PING\r\n"))
    else socket.once("secureConnect", () => answer(true))
    // A reply of Redis: +PONG, or the error that a login is missing.
    socket.once("data", ([first]) => answer(withTls && (first === 0x2b || first === 0x2d)))
    socket.once("error", (error) => answer(!withTls && /alert/i.test(error.message)))
    socket.once("close", () => answer(false))
    return Effect.sync(() => socket.destroy())
  }).pipe(Effect.timeoutOrElse({ duration: "1 second", orElse: () => Effect.succeed(false) }))
