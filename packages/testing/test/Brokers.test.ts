import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { execFile, spawn } from "node:child_process"
import * as Fs from "node:fs"
import * as Http from "node:http"
import * as Net from "node:net"
import * as Os from "node:os"
import * as Path from "node:path"
import * as Process from "node:process"
import * as Brokers from "../src/Brokers.ts"

/** A raw connection, so that nothing of a client library stands between the test and the server. */
const connect = Effect.fnUntraced(function*({ host, port }: { readonly host: string; readonly port: number }) {
  const socket = yield* Effect.acquireRelease(
    Effect.callback<Net.Socket, Error>((resume) => {
      const socket = Net.connect({ host, port })
      socket.once("connect", () => resume(Effect.succeed(socket)))
      socket.once("error", (error) => resume(Effect.fail(error)))
      return Effect.sync(() => socket.destroy())
    }),
    (socket) => Effect.sync(() => socket.destroy())
  )
  let received = ""
  socket.setEncoding("utf8")
  socket.on("error", () => {})
  socket.on("data", (chunk) => {
    received += chunk
  })
  /** Waits until what came since the last one matches. */
  const expect = (pattern: RegExp) =>
    Effect.callback<RegExpExecArray>((resume) => {
      const look = () => {
        const match = pattern.exec(received)
        if (match === null) return
        received = received.slice(match.index + match[0].length)
        socket.off("data", look)
        resume(Effect.succeed(match))
      }
      socket.on("data", look)
      look()
      return Effect.sync(() => socket.off("data", look))
    })
  return {
    write: (text: string) => Effect.sync(() => void socket.write(text)),
    expect,
    get received() {
      return received
    }
  }
})

/** Sends a Redis command in its inline form and waits for a line that matches. */
const command = (at: { readonly host: string; readonly port: number }, text: string, pattern: RegExp) =>
  Effect.scoped(Effect.gen(function*() {
    const connection = yield* connect(at)
    yield* connection.write(`${text}\r\n`)
    return yield* connection.expect(pattern)
  }))

/** Sends a request over NATS and waits for the reply's body. */
const request = (at: { readonly host: string; readonly port: number }, subject: string, body: string) =>
  Effect.scoped(Effect.gen(function*() {
    const connection = yield* connect(at)
    yield* connection.write(
      `CONNECT {"verbose":false}\r\nSUB inbox 1\r\nPUB ${subject} inbox ${Buffer.byteLength(body)}\r\n${body}\r\n`
    )
    return (yield* connection.expect(/MSG inbox 1 +\d+\r\n(.*)\r\n/))[1]!
  }))

const isRefused = (at: { readonly host: string; readonly port: number }) =>
  Effect.scoped(connect(at)).pipe(
    Effect.as(false),
    Effect.catch((error) => Effect.succeed("code" in error && error.code === "ECONNREFUSED"))
  )

const isAlive = (pid: number): boolean => {
  try {
    return Process.kill(pid, 0)
  } catch {
    return false
  }
}

const until = Effect.fnUntraced(function*(condition: Effect.Effect<boolean>) {
  while (!(yield* condition)) yield* Effect.sleep("10 millis")
})

const setting = (value: string | undefined) =>
  Effect.provide(
    ConfigProvider.layer(ConfigProvider.fromEnv({ env: value === undefined ? {} : { MILLRACE_BROKERS: value } }))
  )

const servers = await Effect.runPromise(Brokers.available)
const inContainers = servers.some(({ provider }) => provider === "container")

/** A server that was fetched, to be put on PATH under its usual name. */
const fetched = (kind: string, line: string): string | undefined => {
  const folder = Path.join(import.meta.dirname, "../../../.cache/servers/bin")
  const names = Fs.existsSync(folder) ? Fs.readdirSync(folder) : []
  const name = names.find((name) => name.startsWith(`${kind}-${line}.`))
  return name === undefined ? undefined : Path.join(folder, name)
}

const onPath = Effect.fnUntraced(function*(kind: string, line: string) {
  const file = fetched(kind, line)
  if (file === undefined) return false
  const folder = yield* Effect.acquireRelease(
    Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "brokers-path-"))),
    (folder) => Effect.sync(() => Fs.rmSync(folder, { recursive: true }))
  )
  Fs.symlinkSync(file, Path.join(folder, `${kind}-server`))
  const before = Process.env["PATH"]
  yield* Effect.acquireRelease(
    Effect.sync(() => Process.env["PATH"] = `${folder}${Path.delimiter}${before}`),
    () => Effect.sync(() => Process.env["PATH"] = before)
  )
  return true
})

describe("Brokers", () => {
  describe.each(servers)("$kind $version ($provider)", ({ kind, version, provider }) => {
    it.live("starts, answers, and keeps its address and data when killed and restarted", () =>
      Effect.gen(function*() {
        const broker = kind === "nats"
          ? yield* Brokers.nats({ version })
          : yield* Brokers[kind]({ version, persistence: "always" })
        assert.strictEqual(broker.kind, kind)
        assert.strictEqual(broker.provider, provider)
        assert.isTrue(broker.version === version || broker.version.startsWith(`${version}.`), broker.version)
        assert.include(broker.url, `:${broker.port}`)
        const write = kind === "nats"
          ? Effect.andThen(
            request(broker, "$JS.API.STREAM.CREATE.S", `{"name":"S","subjects":["s"],"storage":"file"}`),
            request(broker, "s", "kept")
          )
          : command(broker, "SET key kept", /\+OK/)
        const check = kind === "nats"
          ? Effect.map(request(broker, "$JS.API.STREAM.INFO.S", ""), (info) => assert.include(info, `"messages":1,`))
          : command(broker, "GET key", /\$4\r\nkept\r\n/)
        yield* write
        yield* check
        yield* broker.kill
        assert.isTrue(yield* isRefused(broker))
        yield* broker.kill
        yield* broker.stop
        yield* broker.start
        yield* check
        yield* broker.start
        yield* broker.restart
        yield* check
        yield* broker.stop
        assert.isTrue(yield* isRefused(broker))
        yield* broker.start
        yield* check
      }))

    it.live("is silent while paused, and goes on when resumed", () =>
      Effect.gen(function*() {
        const broker = yield* Brokers[kind]({ version })
        const connection = yield* connect(broker)
        yield* connection.write("PING\r\n")
        yield* connection.expect(/PONG\r\n/)
        yield* broker.pause
        yield* connection.write("PING\r\n")
        // Nothing can be waited for here: a server that is not paused has answered long before.
        yield* Effect.sleep("50 millis")
        assert.strictEqual(connection.received, "")
        yield* broker.resume
        yield* connection.expect(/PONG\r\n/)
      }))
  })

  it.live("forgets without persistence", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.redis()
      yield* command(broker, "SET key gone", /\+OK/)
      yield* broker.restart
      yield* command(broker, "GET key", /\$-1\r\n|_\r\n/)
    }))

  it.live("a restart that is interrupted half-way leaves the server up", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.redis()
      const restarting = yield* Effect.forkChild(broker.restart)
      yield* until(Effect.map(isRefused(broker), (refused) => refused || restarting.pollUnsafe() !== undefined))
      yield* Fiber.interrupt(restarting)
      yield* command(broker, "PING", /\+PONG/)
    }))

  it.live("stops and kills a paused server", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.nats()
      yield* broker.pause
      yield* broker.stop
      assert.isTrue(yield* isRefused(broker))
      yield* broker.start
      yield* broker.pause
      yield* broker.kill
      assert.isTrue(yield* isRefused(broker))
      yield* broker.start
      yield* request(broker, "$JS.API.INFO", "")
      yield* broker.pause // and the scope closes
    }))

  it.live("runs several at once", () =>
    Effect.gen(function*() {
      const all = yield* Effect.all(
        [Brokers.redis(), Brokers.redis(), Brokers.valkey(), Brokers.nats(), Brokers.nats()],
        { concurrency: "unbounded" }
      )
      assert.strictEqual(new Set(all.map(({ port }) => port)).size, all.length)
      yield* command(all[0], "SET key first", /\+OK/)
      yield* command(all[1], "GET key", /\$-1\r\n|_\r\n/)
      yield* all[0].kill
      yield* command(all[1], "PING", /\+PONG/)
    }))

  it.live("starts servers of the oldest and newest version", () =>
    Effect.gen(function*() {
      for (const kind of ["redis", "valkey", "nats"] as const) {
        const oldest = yield* Brokers[kind]({ version: "oldest" })
        const newest = yield* Brokers[kind]({ version: "newest" })
        // Programs may reach further than the release lines there are images of.
        const offered = ({ provider }: Brokers.Broker) =>
          servers.filter((server) => server.kind === kind && server.provider === provider)
        assert.isTrue(oldest.version.startsWith(offered(oldest).at(-1)!.version), oldest.version)
        assert.isTrue(newest.version.startsWith(offered(newest)[0]!.version), newest.version)
      }
    }))

  it.live("leaves nothing behind when the scope closes", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const pidFile = Path.join(Os.tmpdir(), `brokers-${Process.pid}.pid`)
      const redis = yield* Scope.provide(Brokers.redis(), scope)
      const nats = yield* Scope.provide(Brokers.nats({ args: inContainers ? [] : ["-P", pidFile] }), scope)
      const redisPid = Number((yield* command(redis, "INFO server", /process_id:(\d+)/))[1])
      const folder = (yield* command(redis, "CONFIG GET dir", /\r\n(\/.*)\r\n/))[1]!
      const natsPid = inContainers ? 0 : Number(Fs.readFileSync(pidFile, "utf8"))
      if (!inContainers) {
        assert.isTrue(isAlive(redisPid) && isAlive(natsPid) && Fs.existsSync(folder))
      }
      yield* redis.pause
      yield* Scope.close(scope, Exit.void)
      assert.isTrue(yield* isRefused(redis))
      assert.isTrue(yield* isRefused(nats))
      if (!inContainers) {
        assert.isFalse(isAlive(redisPid))
        assert.isFalse(isAlive(natsPid))
        assert.isFalse(Fs.existsSync(folder))
        Fs.rmSync(pidFile, { force: true })
      }
    }))

  it.live("leaves nothing behind when the process is killed", () =>
    Effect.gen(function*() {
      const program = `
        import * as Effect from "effect/Effect"
        import * as Brokers from ${JSON.stringify(new URL("../src/Brokers.ts", import.meta.url).href)}
        await Effect.runPromise(Effect.scoped(Effect.gen(function*() {
          const first = yield* Brokers.redis()
          yield* first.kill
          const paused = yield* Brokers.redis()
          yield* paused.pause
          const { host, port, provider } = yield* Brokers.redis()
          console.log(JSON.stringify({ host, port, paused: paused.port, provider }))
          yield* Effect.never
        })))
      `
      const child = spawn(Process.execPath, ["--input-type=module", "-e", program], {
        cwd: Path.join(import.meta.dirname, ".."),
        stdio: ["ignore", "pipe", "inherit"]
      })
      const line = yield* Effect.callback<string>((resume) => {
        child.stdout.once("data", (chunk) => resume(Effect.succeed(String(chunk))))
      })
      const { paused, provider, ...at } = JSON.parse(line) as {
        host: string
        port: number
        paused: number
        provider: Brokers.Provider
      }
      const folder = Path.join((yield* command(at, "CONFIG GET dir", /\r\n(\/.*)\r\n/))[1]!, "../..")
      const isThere = Effect.sync(() => provider !== "container" && Fs.existsSync(folder))
      assert.strictEqual(yield* isThere, provider !== "container")
      child.kill("SIGKILL")
      yield* until(isRefused(at))
      yield* until(isRefused({ ...at, port: paused }))
      yield* until(Effect.map(isThere, (there) => !there))
    }))

  it.live("where an engine has no image and no registry, servers come from elsewhere, and it is asked once", (context) =>
    Effect.gen(function*() {
      if (fetched("redis", "8.6") === undefined) return context.skip("no fetched server to fall back to")
      const asked: Array<string> = []
      const engine = Http.createServer(({ method, url }, response) => {
        asked.push(`${method} ${url}`)
        response.statusCode = url === "/_ping" ? 200 : method === "GET" ? 404 : 500
        response.end(url === "/_ping" ? "OK" : JSON.stringify({ message: "no such host" }))
      })
      yield* Effect.acquireRelease(
        Effect.callback<void>((resume) => void engine.listen(0, "127.0.0.1", () => resume(Effect.void))),
        () => Effect.sync(() => engine.close())
      )
      const address = engine.address()
      const port = typeof address === "object" && address !== null ? address.port : 0
      const program = `
        import * as Effect from "effect/Effect"
        import * as Brokers from ${JSON.stringify(new URL("../src/Brokers.ts", import.meta.url).href)}
        await Effect.runPromise(Effect.scoped(Effect.all([
          Brokers.redis({ version: "8.6" }), Brokers.redis({ version: "8.6" }), Brokers.redis({ version: "8.0" })
        ])))
      `
      const { MILLRACE_BROKERS: _, ...env } = Process.env
      const said = yield* Effect.callback<string>((resume) => {
        execFile(Process.execPath, ["--input-type=module", "-e", program], {
          cwd: Path.join(import.meta.dirname, ".."),
          env: { ...env, DOCKER_HOST: `tcp://127.0.0.1:${port}` }
        }, (_error, _stdout, stderr) => resume(Effect.succeed(stderr)))
      })
      assert.include(
        said,
        "redis 8.6 not in a container: the engine has no image redis:8.6 and cannot pull it: no such host"
      )
      assert.match(said, /redis 8\.6\.\d+ from (packages|path)\n/)
      assert.strictEqual(said.split("redis 8.6 not in a container").length, 2, said)
      assert.deepStrictEqual(asked.filter((what) => what.startsWith("POST")), [
        "POST /images/create?fromImage=redis%3A8.6"
      ])
    }))

  it.effect("does not depend on the clock of the test", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.redis()
      yield* broker.restart
      yield* command(broker, "PING", /\+PONG/)
    }))

  it.live("protects Redis with a password", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.redis({ password: "p w:/é" })
      assert.strictEqual(decodeURIComponent(new URL(broker.url).password), "p w:/é")
      yield* command(broker, "PING", /-NOAUTH/)
      yield* command(broker, `AUTH "p w:/é"\r\nPING`, /\+OK\r\n\+PONG/)
      yield* broker.restart
      yield* command(broker, "PING", /-NOAUTH/)
    }))

  it.live("passes arguments and configuration on", () =>
    Effect.gen(function*() {
      const redis = yield* Brokers.redis({ args: ["--maxmemory", "10mb"] })
      yield* command(redis, "CONFIG GET maxmemory", /10485760/)
      const nats = yield* Brokers.nats({
        sync: "always",
        config: "max_payload: 1KB\nauthorization { users: [{ user: a, password: b }] }"
      })
      const connection = yield* connect(nats)
      const [, info] = yield* connection.expect(/^INFO (.*)\r\n/)
      assert.include(JSON.parse(info!), { max_payload: 1024, auth_required: true, jetstream: true })
    }))

  it.live("tells what a server that does not start has to say", () =>
    Effect.gen(function*() {
      const redis = yield* Effect.flip(Brokers.redis({ args: ["--no-such-directive", "1"] }))
      assert.strictEqual(redis._tag, "BrokersError")
      assert.strictEqual(redis.reason, "start")
      assert.match(redis.message, /no-such-directive/)
      const nats = yield* Effect.flip(Brokers.nats({ config: "no_such_field: 1" }))
      assert.strictEqual(nats.reason, "start")
      assert.match(nats.message, /no_such_field/)
    }))

  it.live("names the versions there are when the requested one is not available", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(Brokers.redis({ version: "99.9" }))
      assert.strictEqual(error.reason, "unavailable")
      assert.match(error.message, /no redis 99\.9 .* redis:99\.9, or put redis-server on PATH/)
    }))

  it.live("refuses a version that is none, and settings without a meaning", () =>
    Effect.gen(function*() {
      const version = yield* Effect.flip(Brokers.nats({ version: "latest" }))
      assert.strictEqual(version.reason, "configuration")
      assert.match(version.message, /"latest" is no version of nats/)
      const environment = yield* Effect.flip(setting("podman")(Brokers.redis()))
      assert.strictEqual(environment.reason, "configuration")
      assert.match(environment.message, /MILLRACE_BROKERS must be/)
    }))

  it.live("allows only the provider that is set", () =>
    Effect.gen(function*() {
      for (const provider of ["container", "path", "packages"] as const) {
        const listed = yield* setting(provider)(Brokers.available)
        assert.deepStrictEqual(listed.filter((server) => server.provider !== provider), [])
        const exit = yield* Effect.exit(setting(provider)(Brokers.redis()))
        if (Exit.isSuccess(exit)) assert.strictEqual(exit.value.provider, provider)
        else assert.isFalse(listed.some(({ kind }) => kind === "redis"))
      }
    }))

  it.live("uses a server on PATH whose version fits", (context) =>
    Effect.gen(function*() {
      if (!(yield* onPath("nats", "2.9"))) return context.skip("no fetched server to put on PATH")
      const only = yield* setting("path")(Brokers.nats())
      assert.strictEqual(only.provider, "path")
      assert.match(only.version, /^2\.9\./)
      const missing = yield* Effect.flip(setting("path")(Brokers.nats({ version: "2.10" })))
      assert.match(missing.message, /On PATH: 2\.9\./)
      if (inContainers) return
      const oldest = yield* Brokers.nats({ version: "oldest" })
      assert.strictEqual(oldest.provider, "path")
      const exact = yield* Brokers.nats({ version: "2" })
      assert.strictEqual(exact.provider, "path")
      // An old server that happens to be there is not the newest.
      const newest = yield* Brokers.nats()
      assert.strictEqual(newest.provider, "packages")
      assert.notMatch(newest.version, /^2\.9\./)
    }))
})
