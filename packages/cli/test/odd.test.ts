/** Names, ids, bytes, rights and servers as nobody wishes them, and the command's answers. */
import { assert, describe, it } from "@effect/vitest"
import { Brokers } from "@millrace/testing"
import { Effect, Layer } from "effect"
import { spawn } from "node:child_process"
import { createServer } from "node:net"
import process from "node:process"
import { fileURLToPath } from "node:url"
import { createClient } from "redis"
import { Command, json, millrace } from "./cli.ts"

const main = fileURLToPath(new URL("../src/internal/main.ts", import.meta.url))

const on = (kind: "redis" | "nats", url: string) =>
  Effect.provide(Layer.succeed(Command, { name: kind, flags: [`--${kind}`, url], open: undefined }))

/** A server that takes connections and says nothing; gives its port. */
const silent = Effect.map(
  Effect.acquireRelease(
    Effect.callback<ReturnType<typeof createServer>>((resume) => {
      const server = createServer((socket) => void socket.on("error", () => {}))
      server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
    }),
    (server) => Effect.sync(() => server.close())
  ),
  (server) => {
    const address = server.address()
    return typeof address === "object" && address !== null ? address.port : 0
  }
)

for (const kind of ["redis", "valkey"] as const) {
  describe(`odd things on ${kind}`, () => {
    it.live("ids that are no dates, names of any text, fields that are bytes", () =>
      Effect.gen(function*() {
        const { url } = yield* Brokers[kind]()
        const client = yield* Effect.acquireRelease(
          Effect.promise(() => createClient({ url, RESP: 2 }).on("error", () => {}).connect()),
          (client) => Effect.sync(() => client.destroy())
        )
        const highest = "18446744073709551615-18446744073709551615"
        const names = ["a b:c", "\u6ce8\u6587", "__proto__", "x\u001b[2J\ny", "{a}*[b]?", "n".repeat(400)]
        yield* Effect.promise(async () => {
          await client.sendCommand(["XADD", "far", highest, "body", "{}"])
          await client.sendCommand(["XGROUP", "CREATE", "far", "g", "0"])
          await client.sendCommand(["XREADGROUP", "GROUP", "g", "c", "STREAMS", "far", ">"])
          await client.sendCommand(["XADD", "bytes", "1-0", Buffer.from([0x61]), Buffer.from([0, 0xff]), "t", "text"])
          for (const name of names) await client.sendCommand(["XADD", name, "1-0", "body", "{}"])
        })
        yield* Effect.gen(function*() {
          const shown = yield* millrace("show", "far", highest)
          assert.match(shown.out, /published no date$/m)
          assert.match(shown.out, /held by c of group g/)
          for (const command of [["tail", "far"], ["inspect", "far"], ["lag"], ["doctor", "--topic", "far"]]) {
            assert.strictEqual((yield* millrace(...command)).error, "", command.join(" "))
          }
          assert.deepStrictEqual((yield* json("show", "bytes", "1-0")).fields, { a: { base64: "AP8=" }, t: "text" })
          assert.match((yield* millrace("show", "bytes", "1-0")).out, /^a: 2 bytes$/m)
          for (const name of names) {
            assert.strictEqual((yield* json("show", name, "1-0")).topic, name)
            for (const command of [["inspect", name], ["tail", name], ["show", name, "1-0"], ["dead", "list", name]]) {
              const { code, error, out } = yield* millrace(...command)
              assert.deepStrictEqual([code, error], [0, ""], command.join(" "))
              assert.notInclude(out, "\u001b")
            }
          }
          for (const id of ["", "x", "-", "+", "$", "1-x", "1e3", `${highest}0`, "1-0\n2-0"]) {
            const { code, error } = yield* millrace("show", "bytes", id)
            assert.strictEqual(code, 1, id)
            assert.match(error, /^millrace: there is no message [^\n]+ in topic bytes: an id is like 1700000000000-0$/)
          }
          for (const delay of ["99999999999d", "1e9d", "-1s"]) {
            assert.strictEqual((yield* millrace("publish", "bytes", "{}", `--delay=${delay}`)).code, 2)
          }
          assert.strictEqual((yield* millrace("lag", "--watch", "--interval", "0s")).code, 2)
          assert.strictEqual((yield* json("inspect", "bytes")).topics[0].messages, 1)
        }).pipe(on("redis", url))
      }))

    it.live("a user with rights to some keys sees those, and how many are left out", () =>
      Effect.gen(function*() {
        const { host, port, url } = yield* Brokers[kind]()
        for (const topic of ["app.orders", "app.orders.dead", "others", "others.dead"]) {
          yield* on("redis", url)(millrace("publish", topic, "{}", "--create"))
        }
        yield* Effect.promise(async () => {
          const client = await createClient({ url, RESP: 2 }).on("error", () => {}).connect()
          await client.sendCommand(["ACL", "SETUSER", "app", "on", ">pw", "~app.*", "+@all"])
          client.destroy()
        })
        yield* someTopics.pipe(on("redis", `redis://app:pw@${host}:${port}`))
      }))
  })
}

/** `app.orders` and `app.orders.dead` are seen, `others` and `others.dead` are not. */
const someTopics = Effect.gen(function*() {
  const overview = yield* millrace("inspect")
  assert.match(overview.out, /^app\.orders +1 /m)
  assert.match(overview.out, /^2 topics left out: this user may not look at them$/m)
  assert.deepInclude(yield* json("inspect"), { denied: 2 })
  assert.deepInclude(yield* json("lag"), { denied: 2, groups: [] })
  const dead = yield* json("dead", "list")
  assert.deepStrictEqual([dead.topics.map(({ topic }: any) => topic), dead.denied], [["app.orders.dead"], 1])
  for (const command of [["inspect", "others"], ["tail", "others"], ["dead", "list", "others.dead"]]) {
    const { code, error, out } = yield* millrace(...command)
    assert.deepStrictEqual([code, out], [2, ""], command.join(" "))
    assert.match(error, /^millrace: .* refused .*$/)
    assert.notInclude(error, "pw@")
  }
})

describe("odd things on NATS", () => {
  it.live("a user with rights to some streams sees those, and how many are left out", () =>
    Effect.gen(function*() {
      const streams = ["app_orders", "app_orders_dead"]
      const allowed = [
        "app.>",
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.LIST",
        ...streams.flatMap((name) => [`$JS.API.*.*.${name}`, `$JS.API.*.*.${name}.>`, `$JS.API.*.*.*.${name}`])
      ].map((subject) => `"${subject}"`)
      const { host, port } = yield* Brokers.nats({
        config: `authorization { users: [
  { user: all, password: pw }
  { user: app, password: pw, permissions: { publish: [${allowed.join(", ")}], subscribe: ["_INBOX.>"] } }
] }
no_auth_user: all`
      })
      for (const topic of ["app.orders", "app.orders.dead", "others", "others.dead"]) {
        const { error } = yield* on("nats", `nats://${host}:${port}`)(millrace("publish", topic, "{}", "--create"))
        assert.strictEqual(error, "")
      }
      yield* someTopics.pipe(on("nats", `nats://app:pw@${host}:${port}`))
    }))
})

describe("a server that says nothing", () => {
  it.live("is one line, and the process ends", () =>
    Effect.gen(function*() {
      const port = yield* silent
      const ended = (flag: string, url: string) =>
        Effect.callback<readonly [number | null, string]>((resume) => {
          const child = spawn(process.execPath, [main, "lag", flag, url], { stdio: ["ignore", "ignore", "pipe"] })
          let error = ""
          child.stderr.on("data", (chunk) => error += chunk)
          child.once("close", (code) => resume(Effect.succeed([code, error])))
          return Effect.sync(() => child.kill("SIGKILL"))
        })
      const runs = [["--redis", `redis://127.0.0.1:${port}`], ["--nats", `nats://127.0.0.1:${port}`]] as const
      for (const [code, error] of yield* Effect.forEach(runs, ([flag, url]) => ended(flag, url), { concurrency: 2 })) {
        assert.strictEqual(code, 2)
        assert.match(error, /^millrace: [^\n]*cannot connect[^\n]*\n$/)
      }
    }))
})
