import type { Transport } from "@millrace/core/Transport"
import { TransportError } from "@millrace/core/TransportError"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Crypto from "node:crypto"
import * as Fs from "node:fs"
import * as Http from "node:http"
import { fileURLToPath } from "node:url"
import { Broker } from "../Broker.ts"
import { Failure } from "../Output.ts"
import * as api from "./api.ts"
import * as snapshots from "./snapshot.ts"

interface Options {
  readonly port: number
  readonly mayRedrive: boolean
}

const own = (name: string) => fileURLToPath(new URL(`../../../web/${name}`, import.meta.url))

const library = (name: string) => fileURLToPath(import.meta.resolve(name))

/** The libraries of the page are read from where they are installed. */
const files: Record<string, { readonly file: () => string; readonly type: string }> = {
  "/app.js": { file: () => own("app.js"), type: "text/javascript" },
  "/html.js": { file: () => own("html.js"), type: "text/javascript" },
  "/charts.js": { file: () => own("charts.js"), type: "text/javascript" },
  "/style.css": { file: () => own("style.css"), type: "text/css" },
  "/lib/preact.js": { file: () => library("preact").replace(/[^/\\]+$/, "preact.module.js"), type: "text/javascript" },
  "/lib/hooks.js": {
    file: () => library("preact/hooks").replace(/[^/\\]+$/, "hooks.module.js"),
    type: "text/javascript"
  },
  "/lib/htm.js": { file: () => library("htm"), type: "text/javascript" },
  "/lib/uplot.js": { file: () => library("uplot").replace(/[^/\\]+$/, "uPlot.esm.js"), type: "text/javascript" },
  "/lib/uplot.css": { file: () => library("uplot").replace(/[^/\\]+$/, "uPlot.min.css"), type: "text/css" }
}

const importMap = JSON.stringify({
  imports: {
    "preact": "/lib/preact.js",
    "preact/hooks": "/lib/hooks.js",
    "htm": "/lib/htm.js",
    "uplot": "/lib/uplot.js"
  }
})

const importMapHash = Crypto.createHash("sha256").update(importMap).digest("base64")

const headers = {
  "cache-control": "no-store",
  "content-security-policy":
    `default-src 'none'; script-src 'self' 'sha256-${importMapHash}'; style-src 'self'; img-src 'self' data:; ` +
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff"
}

const maxBody = 64 * 1024

const bodyOf = async (request: Http.IncomingMessage): Promise<string | undefined> => {
  const chunks: Array<Buffer> = []
  let size = 0
  for await (const chunk of request) {
    size += chunk.length
    if (size > maxBody) return undefined
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString("utf8")
}

const isSame = (given: string | ReadonlyArray<string> | undefined, wanted: string): boolean => {
  if (typeof given !== "string") return false
  const [one, other] = [Buffer.from(given), Buffer.from(wanted)]
  return one.length === other.length && Crypto.timingSafeEqual(one, other)
}

/** Serves the page on loopback for as long as the scope lives; gives its address. */
export const serve = Effect.fnUntraced(function*(
  { mayRedrive, port }: Options
): Effect.fn.Return<string, Failure, Broker | Transport | Scope.Scope> {
  const broker = yield* Broker
  const snapshot = yield* snapshots.make
  const context = yield* Effect.context<Broker | Transport>()
  const token = Crypto.randomBytes(32).toString("hex")
  const about = { broker: broker.transport.address, server: broker.server, mayRedrive }
  const page = Fs.readFileSync(own("page.html"), "utf8")
    .replace("{{importmap}}", importMap)
    .replace("{{token}}", mayRedrive ? token : "")

  const send = (response: Http.ServerResponse, status: number, type: string, body: string | Buffer) => {
    response.writeHead(status, { ...headers, "content-type": `${type}; charset=utf-8` }).end(body)
  }
  const refuse = (response: Http.ServerResponse, status: number, message: string) =>
    send(response, status, "application/json", JSON.stringify({ error: message }))

  /** A name that an attacker has pointed at this machine is not ours. */
  const isOurs = (request: Http.IncomingMessage): boolean => {
    const { port } = request.socket.address() as { readonly port?: number }
    return [`127.0.0.1:${port}`, `localhost:${port}`].includes(request.headers.host ?? "")
  }

  const answer = async (response: Http.ServerResponse, effect: Effect.Effect<unknown, unknown, Broker | Transport>) => {
    const exit = await Effect.runPromiseExitWith(context)(effect)
    if (exit._tag === "Failure") {
      const [reason] = exit.cause.reasons
      const error = reason?._tag === "Fail" ? reason.error : reason?._tag === "Die" ? reason.defect : undefined
      // The request is wrong, or the broker has not answered.
      const status = error instanceof TransportError && error.reason._tag === "InvalidOption" ? 400 : 502
      return refuse(response, status, error instanceof Error ? error.message : "interrupted")
    }
    if (exit.value instanceof api.Refusal) return refuse(response, exit.value.status, exit.value.message)
    send(response, 200, "application/json", JSON.stringify(exit.value))
  }

  const redrive = async (request: Http.IncomingMessage, response: Http.ServerResponse) => {
    if (!mayRedrive) return refuse(response, 403, "this page is read only: start it with --allow-redrive")
    const { "content-type": type, origin, "x-millrace-token": given } = request.headers
    if (origin !== `http://${request.headers.host}` || type !== "application/json" || !isSame(given, token)) {
      return refuse(response, 403, "this request is not of the page itself")
    }
    const body = await bodyOf(request)
    return body === undefined ? refuse(response, 413, "too large") : answer(response, api.redrive(body))
  }

  const handle = async (request: Http.IncomingMessage, response: Http.ServerResponse) => {
    if (!isOurs(request)) return refuse(response, 421, "ask 127.0.0.1 or localhost")
    const url = new URL(`http://localhost${request.url ?? "/"}`)
    if (request.method === "POST" && url.pathname === "/api/redrive") return redrive(request, response)
    if (request.method !== "GET") return refuse(response, 405, "read only")
    if (url.pathname === "/") return send(response, 200, "text/html", page)
    const file = Object.hasOwn(files, url.pathname) ? files[url.pathname] : undefined
    if (file !== undefined) return send(response, 200, file.type, Fs.readFileSync(file.file()))
    const read = api.read(url.pathname, url.searchParams, about, snapshot)
    return read === undefined ? refuse(response, 404, "there is nothing here") : answer(response, read)
  }

  const server = Http.createServer((request, response) => {
    handle(request, response).catch(() => response.destroy())
  })
  yield* Effect.acquireRelease(
    Effect.callback<void, Failure>((resume) => {
      server.once(
        "error",
        (error) => resume(Effect.fail(new Failure(`cannot listen on port ${port}: ${error.message}`)))
      )
      server.listen(port, "127.0.0.1", () => resume(Effect.void))
    }),
    () =>
      Effect.callback<void>((resume) => {
        server.close(() => resume(Effect.void))
        server.closeAllConnections()
      })
  )
  const address = server.address()
  return `http://127.0.0.1:${typeof address === "object" && address !== null ? address.port : port}/`
})
