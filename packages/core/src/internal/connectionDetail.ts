import { property } from "./errorDetail.ts"

/**
 * Why a connection failed, in a few words and without a secret: from the code or the text of an error and of its causes.
 * `undefined` when the error says nothing that is known.
 *
 * @category transport authors
 * @since 0.1.0
 */
export const connectionDetail = (cause: unknown): string | undefined => {
  for (const error of chain(cause)) {
    const code = property(error, "code")
    const known = typeof code === "string" ? byCode[code] : undefined
    if (known !== undefined) return `${known} (${String(code)})`
    if (typeof code === "string" && (code.startsWith("CERT_") || code.startsWith("ERR_TLS_"))) {
      return `TLS: the server's certificate is not accepted (${code})`
    }
    if (typeof code === "string" && code.startsWith("ERR_SSL_")) return `${notTls} (${code})`
    const message = property(error, "message")
    const text = typeof message === "string" ? message : typeof error === "string" ? error : ""
    const found = byText.find(([pattern]) => pattern.test(text))
    if (found !== undefined) return found[1]
  }
  return undefined
}

const notTls = "TLS: the server does not speak it here; use the address without TLS, or the TLS port"

const byCode: { readonly [code: string]: string } = {
  ECONNREFUSED: "connection refused",
  ENOTFOUND: "unknown host",
  EAI_AGAIN: "unknown host, the name service does not answer",
  ETIMEDOUT: "no answer in time",
  ECONNRESET: "the server closed the connection",
  EPIPE: "the server closed the connection",
  EHOSTUNREACH: "no route to the host",
  ENETUNREACH: "no route to the network",
  EACCES: "not permitted",
  ENOENT: "no such socket file",
  EPROTO: notTls,
  DEPTH_ZERO_SELF_SIGNED_CERT: "TLS: the server's certificate is self-signed; give its CA",
  SELF_SIGNED_CERT_IN_CHAIN: "TLS: the server's certificate has a CA of its own; give that CA",
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: "TLS: the CA of the server's certificate is unknown; give that CA",
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "TLS: the CA of the server's certificate is unknown; give that CA",
  ERR_TLS_CERT_ALTNAME_INVALID: "TLS: the server's certificate is for another host name",
  CERT_HAS_EXPIRED: "TLS: the server's certificate has expired"
}

const byText: ReadonlyArray<readonly [pattern: RegExp, detail: string]> = [
  [
    /DB index is out of range|invalid DB index/i,
    "the server has no such database; the path of the address is its number"
  ],
  [/SELECT is not allowed in cluster mode/i, "a cluster has database 0 only; take the database out of the address"],
  [/cluster support disabled/i, "the server is no cluster; connect without `cluster`"],
  [/CLUSTERDOWN/, "the cluster is down"],
  [/no such master|knows no master|master name/i, "the Sentinel knows no such master; correct the master's name"],
  [/jetstream not enabled for account/i, "the account has no JetStream; enable it for the account"],
  [/jetstream (is )?not enabled/i, "the server runs without JetStream; start it with `-js`"],
  [/jetstream.*(no responders|503)|no responders.*jetstream/i, "no JetStream server answers; is JetStream enabled?"],
  [/insufficient resources|no suitable peers/i, "the cluster has too few JetStream servers"],
  [/protected mode/i, "the server is in protected mode and accepts local connections only"],
  [/max(imum)? (number of clients|connections)/i, "the server has as many connections as it allows"],
  [/self[- ]signed certificate/i, "TLS: the server's certificate is self-signed; give its CA"],
  [/certificate/i, "TLS: the server's certificate is not accepted"],
  [/tls is required by the server/i, "TLS: the server expects it; write the address with rediss:// or tls://"],
  [/tls.*(required|handshake)|wrong version number/i, "TLS: one side expects it and the other does not speak it"],
  [/does not support 'tls'/i, notTls],
  [/unknown command '?SENTINEL/i, "the server is no Sentinel; give the address of one, or connect without `sentinel`"],
  [/unknown RESP type/i, "the server does not speak the Redis protocol; correct the host and the port"],
  [
    /socket closed|node provided an undefined error|connection disconnected/i,
    "the server closed the connection"
  ],
  [/time(d)? ?out/i, "no answer in time"],
  [/connection (was )?refused/i, "connection refused"]
]

/** The error, its causes, and the errors that it sums up; a name with two addresses fails with two. */
function* chain(error: unknown, depth = 0): Iterable<unknown> {
  if (error === undefined || error === null || depth > 4) return
  yield error
  const errors = property(error, "errors")
  if (Array.isArray(errors)) { for (const each of errors.slice(0, 4)) yield* chain(each, depth + 1) }
  yield* chain(property(error, "cause"), depth + 1)
}
