/** Servers that want to know who connects, and that show who they are. */
import { assert, describe, it } from "@effect/vitest"
import * as Publisher from "@millrace/core/Publisher"
import * as Settlement from "@millrace/core/Settlement"
import * as Topic from "@millrace/core/Topic"
import { type Health, Transport } from "@millrace/core/Transport"
import type { TransportError } from "@millrace/core/TransportError"
import * as Brokers from "@millrace/testing/Brokers"
import * as Proxy from "@millrace/testing/Proxy"
import { nkeys } from "@nats-io/nats-core"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { execFileSync } from "node:child_process"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createServer as createTlsServer } from "node:tls"
import { inspect } from "node:util"
import * as JetStream from "../src/JetStream.ts"
import { logged, publish, settle, skipsInContainers, subscribe, take, text, until, versions } from "./nats.ts"

const local = it.live.skipIf(await skipsInContainers("TLS and leaf nodes"))

const folder = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "millrace-"))),
  (folder) => Effect.sync(() => rmSync(folder, { recursive: true, force: true }))
)

/** Declares, publishes, reads and settles. */
const works = (options: JetStream.Options) =>
  Effect.gen(function*() {
    yield* publish("orders", ["a"])
    const subscription = yield* subscribe("orders")
    const taken = yield* take(subscription, 1)
    assert.deepStrictEqual(taken.map(text), ["a"])
    yield* settle(subscription, taken, Settlement.ack)
    yield* until(JetStream.consumerInfo("orders", "group"), (info) => info.lag === 0)
  }).pipe(Effect.scoped, Effect.provide(Layer.fresh(JetStream.layer(options))))

/** The error, in which there is none of the secrets, however it is printed. */
const refused = (options: JetStream.Options, ...secrets: ReadonlyArray<string>) =>
  Effect.map(
    Effect.flip(Effect.scoped(Layer.build(JetStream.layer(options)))) as Effect.Effect<TransportError>,
    (error) => {
      const printed = `${error} ${error.stack} ${JSON.stringify(error)} ${inspect(error, { depth: Infinity })}`
      for (const secret of secrets) assert.notInclude(printed, secret)
      return error
    }
  )

const secretOf = (pair: ReturnType<typeof nkeys.createUser>) => new TextDecoder().decode(pair.getSeed())

/** What `nsc` makes: an operator, who vouches for accounts, who vouch for users. */
const operated = () => {
  const [operator, system, account, user] = [
    nkeys.createOperator(),
    nkeys.createAccount(),
    nkeys.createAccount(),
    nkeys.createUser()
  ]
  const base64 = (bytes: string | Uint8Array) => Buffer.from(bytes).toString("base64url")
  const jwt = (issuer: typeof operator, subject: typeof operator, nats: object) => {
    const claims = { iat: 1, iss: issuer.getPublicKey(), sub: subject.getPublicKey(), jti: "test", name: "test", nats }
    const signed = `${base64(JSON.stringify({ typ: "JWT", alg: "ed25519-nkey" }))}.${base64(JSON.stringify(claims))}`
    return `${signed}.${base64(issuer.sign(new TextEncoder().encode(signed)))}`
  }
  const all = { subs: -1, data: -1, payload: -1 }
  const core = { ...all, imports: -1, exports: -1, wildcards: true, conn: -1, leaf: -1 }
  const jetstream = { mem_storage: -1, disk_storage: -1, streams: -1, consumer: -1 }
  const vouchFor = (subject: typeof operator, limits: object) =>
    jwt(operator, subject, { type: "account", version: 2, limits })
  return {
    config: [
      `operator: ${jwt(operator, operator, { type: "operator", version: 2 })}`,
      `system_account: ${system.getPublicKey()}`,
      "resolver: MEMORY",
      "resolver_preload: {",
      `  ${system.getPublicKey()}: ${vouchFor(system, core)}`,
      `  ${account.getPublicKey()}: ${vouchFor(account, { ...core, ...jetstream })}`,
      "}"
    ].join("\n"),
    seed: secretOf(user),
    /** As `nsc generate creds` writes it. */
    credentials: (seed: string) =>
      [
        "-----BEGIN NATS USER JWT-----",
        jwt(account, user, { type: "user", version: 2, pub: {}, sub: {}, ...all }),
        "------END NATS USER JWT------",
        "",
        "************************* IMPORTANT *************************",
        "-----BEGIN USER NKEY SEED-----",
        seed,
        "------END USER NKEY SEED------"
      ].join("\n")
  }
}

describe.each(versions)("on nats-server %s", (version) => {
  it.live("user and password", () =>
    Effect.gen(function*() {
      const config = `authorization { user: app, password: "p@ss/w0rd%25" }`
      const { host, port } = yield* Brokers.nats({ version, config })
      yield* works({ url: `nats://app:${encodeURIComponent("p@ss/w0rd%25")}@${host}:${port}` })
      const error = yield* refused({ url: `nats://app:wr0ng@${host}:${port}` }, "wr0ng")
      assert.strictEqual(error.reason._tag, "Unauthorized")
    }).pipe(Effect.scoped))

  it.live("a login that is refused later is in health until it is accepted, without a secret", () =>
    logged((lines) =>
      Effect.gen(function*() {
        const server = (password: string) =>
          Brokers.nats({ version, config: `authorization { user: app, password: ${password} }` })
        const right = yield* server("s3cret")
        const wrong = yield* server("another")
        const target = { host: right.host, port: right.port }
        const proxy = yield* Proxy.make(target)
        yield* Effect.gen(function*() {
          const subscription = yield* subscribe("orders")
          target.port = wrong.port
          yield* proxy.cut
          const isRefused = ({ reason = "" }: Health) => /the server refuses the login/.test(reason)
          const health = yield* until(subscription.health, isRefused)
          assert.strictEqual(health.state, "reconnecting")
          assert.notInclude(JSON.stringify(health) + lines.join(), "s3cret")
          target.port = right.port
          yield* until(subscription.health, ({ state }) => state === "consuming")
        }).pipe(
          Effect.scoped,
          Effect.provide(Layer.fresh(JetStream.layer({ url: `nats://app:s3cret@${proxy.host}:${proxy.port}` })))
        )
      }).pipe(Effect.scoped)
    ))

  it.live("a user with inboxes of its own", () =>
    Effect.gen(function*() {
      const { host, port } = yield* Brokers.nats({
        version,
        config: `authorization { users: [{ user: a, password: a, permissions: { subscribe: "_INBOX_a.>" } }] }`
      })
      yield* works({ url: `nats://a:a@${host}:${port}`, inboxPrefix: "_INBOX_a" })
      // Without its prefix no answer arrives: that is said at once, not after a timeout.
      yield* Effect.gen(function*() {
        const error = yield* Effect.flip(subscribe("orders"))
        assert.match(error.message, /no permission to subscribe to _INBOX\.\S+, where answers arrive: .*inboxPrefix/)
        const refusal = yield* Effect.flip(Publisher.publish(Topic.make("orders", { schema: Schema.String }), "a"))
        assert.match(refusal.message, /where answers arrive/)
      }).pipe(Effect.provide(JetStream.layer({ url: `nats://a:a@${host}:${port}` })), Effect.timeout("10 seconds"))
    }).pipe(Effect.scoped))

  it.live("an nkey", () =>
    Effect.gen(function*() {
      const [known, stranger] = [nkeys.createUser(), nkeys.createUser()]
      const { url } = yield* Brokers.nats({
        version,
        config: `authorization { users: [{ nkey: ${known.getPublicKey()} }] }`
      })
      yield* works({ url, nkey: Redacted.make(secretOf(known)) })
      const seed = secretOf(stranger)
      const error = yield* refused({ url, nkey: Redacted.make(seed) }, seed)
      assert.strictEqual(error.reason._tag, "Unauthorized")
      const broken = yield* refused({ url, nkey: Redacted.make(seed.slice(1)) }, seed.slice(1))
      assert.match(broken.message, /nkey is "<redacted>": give the seed of a user/)
    }).pipe(Effect.scoped))

  it.live("a credentials file", () =>
    Effect.gen(function*() {
      const { config, credentials, seed } = operated()
      const { url } = yield* Brokers.nats({ version, config })
      yield* works({ url, credentials: Redacted.make(credentials(seed)) })
      const stranger = secretOf(nkeys.createUser())
      const error = yield* refused({ url, credentials: Redacted.make(credentials(stranger)) }, stranger)
      assert.strictEqual(error.reason._tag, "Unauthorized")
      const broken = yield* refused({ url, credentials: Redacted.make(`path/to/${seed}`) }, seed)
      assert.match(broken.message, /credentials is "<redacted>": give the text of a credentials file/)
    }).pipe(Effect.scoped))

  local("TLS: a certificate that nobody vouches for is refused, one's own is presented", () =>
    Effect.gen(function*() {
      const at = yield* folder
      const [key, cert] = [join(at, "key.pem"), join(at, "cert.pem")]
      const subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
      const options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", cert]
      execFileSync("openssl", ["req", ...options, ...subject], { stdio: "ignore" })
      const { host, port } = yield* Brokers.nats({
        version,
        config: `tls { cert_file: "${cert}", key_file: "${key}", ca_file: "${cert}", verify: true }`
      })
      const own = { ca: readFileSync(cert, "utf8"), cert: readFileSync(cert, "utf8"), key: readFileSync(key, "utf8") }
      yield* works({ url: `tls://${host}:${port}`, tls: own })
      yield* works({ url: `nats://${host}:${port}`, tls: { caFile: cert, certFile: cert, keyFile: key } })
      const unknown = yield* refused({ url: `tls://${host}:${port}` })
      assert.strictEqual(unknown.reason._tag, "Unreachable")
      assert.match(inspect(unknown.reason), /self.signed certificate/)
      const line = own.key.split("\n")[1]!
      const anonymous = yield* refused({
        url: `tls://${host}:${port}`,
        tls: { ca: own.ca },
        connectTimeout: "1 second"
      }, line)
      assert.include(["Unreachable", "Unauthorized"], anonymous.reason._tag)
      const plain = yield* Brokers.nats({ version })
      const missing = yield* refused({ url: `tls://${plain.host}:${plain.port}`, tls: own }, line)
      assert.match(inspect(missing.reason), /tls/)
    }).pipe(Effect.scoped))

  local("TLS from the first byte: its option is named where it was not given", () =>
    Effect.gen(function*() {
      const at = yield* folder
      const [key, cert] = [join(at, "key.pem"), join(at, "cert.pem")]
      const options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", cert]
      const subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
      execFileSync("openssl", ["req", ...options, ...subject], { stdio: "ignore" })
      // As a NATS server with handshake_first, which `Brokers` could not look at.
      const server = createTlsServer({ key: readFileSync(key), cert: readFileSync(cert) }).on(
        "tlsClientError",
        () => {}
      )
      yield* Effect.acquireRelease(
        Effect.callback<void>((resume) => {
          server.listen(0, "127.0.0.1", () => resume(Effect.void))
        }),
        () => Effect.sync(() => server.close())
      )
      const address = server.address()
      const url = `tls://127.0.0.1:${typeof address === "object" ? address?.port : 0}`
      const tls = { ca: readFileSync(cert, "utf8") }
      assert.match((yield* refused({ url, tls })).message, /encrypted from the first byte: .*handshakeFirst/)
    }).pipe(Effect.scoped))

  local("TLS by IP: the certificate has to name that address", () =>
    Effect.gen(function*() {
      const at = yield* folder
      const served = (name: string, names: string) =>
        Effect.gen(function*() {
          const [key, cert] = [join(at, `${name}.key`), join(at, `${name}.pem`)]
          const options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", cert]
          const subject = ["-subj", `/CN=${name}`, "-addext", `subjectAltName=${names}`]
          execFileSync("openssl", ["req", ...options, ...subject], { stdio: "ignore" })
          const { port } = yield* Brokers.nats({ version, config: `tls { cert_file: "${cert}", key_file: "${key}" }` })
          return { port, tls: { ca: readFileSync(cert, "utf8") } }
        })
      const byAddress = yield* served("address", "IP:127.0.0.1")
      const byName = yield* served("name", "DNS:localhost")
      yield* works({ url: `tls://127.0.0.1:${byAddress.port}`, tls: byAddress.tls })
      yield* works({ url: `tls://localhost:${byName.port}`, tls: byName.tls })
      const wrong = yield* refused({ url: `tls://127.0.0.1:${byName.port}`, tls: byName.tls })
      assert.strictEqual(wrong.reason._tag, "Unreachable")
      assert.match(inspect(wrong.reason), /127\.0\.0\.1 is not in the cert's list/)
    }).pipe(Effect.scoped))

  local(
    "a JetStream domain, seen from a leaf node that has one too, by its name or its API prefix",
    () =>
      Effect.gen(function*() {
        const [leafPort, hubFolder, leafFolder] = [yield* Brokers.freePort, yield* folder, yield* folder]
        const domain = (name: string, folder: string) => `jetstream { domain: ${name}, store_dir: "${folder}" }`
        const hub = yield* Brokers.nats({
          version,
          config: `${domain("hub", hubFolder)}\nleafnodes { listen: "127.0.0.1:${leafPort}" }`
        })
        const leaf = yield* Brokers.nats({
          version,
          config: `${domain("spoke", leafFolder)}
leafnodes { remotes: [{ url: "nats://127.0.0.1:${leafPort}" }], reconnect: 1 }`
        })
        const declared = Transport.use((transport) => transport.declare("orders", "output")).pipe(
          Effect.provide(Layer.fresh(JetStream.layer({ url: leaf.url, domain: "hub" })))
        )
        yield* Effect.retry(declared, { times: 5 })
        yield* works({ url: leaf.url, domain: "hub" })
        yield* publish("orders", ["b"]).pipe(
          Effect.provide(Layer.fresh(JetStream.layer({ url: leaf.url, apiPrefix: "$JS.hub.API" })))
        )
        const onHub = JetStream.streamInfo("orders").pipe(
          Effect.provide(Layer.fresh(JetStream.layer({ url: hub.url })))
        )
        assert.strictEqual((yield* onHub).messages, 2)
        const onLeaf = JetStream.streamInfo("orders").pipe(
          Effect.provide(Layer.fresh(JetStream.layer({ url: leaf.url })))
        )
        assert.match((yield* Effect.flip(onLeaf)).message, /stream of orders is absent/)
      }).pipe(Effect.scoped)
  )
})
