import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import * as Crypto from "node:crypto"
import * as Os from "node:os"
import type * as Testcontainers from "testcontainers"
import { BrokersError } from "./BrokersError.ts"
import type { Controls } from "./controls.ts"
import { awaitReady } from "./controls.ts"
import type { Engine } from "./engine.ts"
import * as Ports from "./ports.ts"
import { probe } from "./probe.ts"
import * as Reaper from "./reaper.ts"
import { say } from "./say.ts"
import type { Place, Wish } from "./servers.ts"
import { configFile, image, program, serverArgs, usualPort } from "./servers.ts"
import type { Kind } from "./versions.ts"
import { lines } from "./versions.ts"

/** How long, in seconds, a server may take to end after SIGTERM. */
const grace = 5

/** The release line, which is the tag of an image, for a version asked for. */
export const line = (kind: Kind, version: string): string =>
  version === "newest" ? lines[kind][0] : version === "oldest" ? lines[kind].at(-1)! : version

/** What the registry had to say, and, as the last one, that it cannot be reached: nobody waits for it twice. */
const refused = new Map<string, string>()
let unreachable: string | undefined

/** Has the engine pull an image that it lacks; says why it cannot. */
export const refusal = Effect.fnUntraced(function*(
  engine: Engine,
  image: string
): Effect.fn.Return<string | undefined> {
  if ((yield* engine.ask("GET", `/images/${image}/json`, 30_000)).status === 200) return undefined
  let why = refused.get(image) ?? unreachable
  if (why === undefined) {
    yield* say(`pulling ${image}`)
    const answer = yield* engine.ask("POST", `/images/create?fromImage=${encodeURIComponent(image)}`, 10_000)
    if (answer.status === 200 && answer.message === "") return undefined
    why = answer.message || `status ${answer.status}`
    refused.set(image, why)
    if (answer.status !== 200 && answer.status !== 404) unreachable = why
  }
  return `the engine has no image ${image} and cannot pull it: ${why}`
})

const messageOf = (cause: unknown): string => cause instanceof Error ? cause.message : String(cause)

const portIsTaken = /port is already allocated|address already in use/i

/** A tape archive with one file, which is how files get into a container. */
const archive = (name: string, content: string): Buffer => {
  const body = Buffer.from(content)
  const header = Buffer.alloc(512)
  const put = (text: string, at: number) => header.write(text, at, "latin1")
  put(name, 0)
  put("0000644\0", 100)
  put("0000000\0", 108)
  put("0000000\0", 116)
  put(`${body.length.toString(8).padStart(11, "0")}\0`, 124)
  put("00000000000\0", 136)
  put("        ", 148)
  put("0", 156)
  put("ustar\x0000", 257)
  put(`${header.reduce((sum, byte) => sum + byte, 0).toString(8).padStart(6, "0")}\0 `, 148)
  return Buffer.concat([header, body, Buffer.alloc((512 - body.length % 512) % 512 + 1024)])
}

/** Not written in the `import`: a bundler must not look for a package that need not be installed. */
const testcontainers: string = "testcontainers"

/** Finds the engine's client. Loaded here only: it is large, and of no use without an engine. */
const prepare = async () => {
  const { getContainerRuntimeClient } = await (import(testcontainers) as Promise<typeof Testcontainers>)
    .catch((error: { readonly code?: string }) => {
      if (error.code !== "ERR_MODULE_NOT_FOUND") throw error
      throw new Error("the package testcontainers is not installed: npm install --save-dev testcontainers")
    })
  const client = await getContainerRuntimeClient()
  const { host } = client.info.containerRuntime
  return { client, host: isHere(host) ? "127.0.0.1" : host }
}

/** In a container the engine is looked for at its bridge. When that is ours, the engine runs beside us after all. */
const isHere = (host: string): boolean =>
  host === "localhost" ||
  Object.values(Os.networkInterfaces()).some((all) => all?.some(({ address }) => address === host))

type Prepared = Awaited<ReturnType<typeof prepare>>

/**
 * Creates the container. `GenericContainer` would do it for us, but publishes ports on every address of the machine,
 * and waits 10 seconds for those of a server that has ended, and tells nothing of what it wrote.
 */
const create = async ({ client, host }: Prepared, wish: Wish, tag: string, port: number, name: string) => {
  const place: Place = { host: "0.0.0.0", port: usualPort(wish.kind), folder: "/data", name }
  const configAt = "/millrace.conf"
  const container = await client.container.create({
    name,
    Image: tag,
    Cmd: [
      // The image of NATS has its server as the entry point, those of the others start what they are told.
      ...(wish.kind === "nats" ? [] : [program(wish.kind), "--protected-mode", "no"]),
      ...serverArgs(wish, place, configAt)
    ],
    ExposedPorts: { [`${place.port}/tcp`]: {} },
    HostConfig: {
      PortBindings: {
        [`${place.port}/tcp`]: [{ HostIp: host === "127.0.0.1" ? host : "", HostPort: String(port) }]
      }
    }
  })
  if (wish.kind === "nats") {
    await container.putArchive(archive(configAt.slice(1), configFile(wish, place)), { path: "/" })
  }
  return container
}

type Container = Awaited<ReturnType<typeof create>>

/** Each frame of the output begins with eight bytes that tell its stream and length. */
const readOutput = (frames: Buffer): string => {
  let text = ""
  for (let at = 0; at + 8 <= frames.length;) {
    const length = frames.readUInt32BE(at + 4)
    text += frames.toString("utf8", at + 8, at + 8 + length)
    at += 8 + length
  }
  return text.trimEnd()
}

const control = (container: Container, wish: Wish, tag: string, host: string, port: number) => {
  const title = `container ${tag} on port ${port}`
  const state = Effect.promise(() => container.inspect().then(({ State }) => State))
  // The engine refuses what does not apply, and what no longer does because the server has ended meanwhile.
  const command = (applies: (now: { Running: boolean; Paused: boolean }) => boolean, run: () => Promise<unknown>) =>
    Effect.flatMap(state, (now) =>
      applies(now)
        ? Effect.promise(() =>
          run().catch((error: { readonly statusCode?: number | undefined }) => {
            if (error.statusCode !== 304 && error.statusCode !== 409) throw error
          })
        )
        : Effect.void)
  const resume = command(({ Paused }) => Paused, () => container.unpause())
  const kill = Effect.andThen(
    command(({ Running }) => Running, () => container.kill({ signal: "SIGKILL" })),
    Effect.promise(() => container.wait())
  )
  const run = Effect.tryPromise({
    try: () => container.start(),
    catch: (cause) =>
      new BrokersError({ reason: "start", message: `${title} was refused by the engine: ${messageOf(cause)}`, cause })
  }).pipe(
    Effect.andThen(awaitReady({
      title,
      probe: probe(wish.kind, host, port, wish.password),
      gone: Effect.map(state, ({ Running, ExitCode }) => Running ? undefined : `ended with exit code ${ExitCode}`),
      output: Effect.map(
        Effect.promise(() => container.logs({ stdout: true, stderr: true, follow: false, tail: 20 })),
        readOutput
      )
    })),
    Effect.onExit((exit) => exit._tag === "Failure" ? kill : Effect.void)
  )
  return {
    run,
    host,
    port,
    kill,
    stop: Effect.andThen(resume, command(({ Running }) => Running, () => container.stop({ t: grace }))),
    start: Effect.flatMap(state, ({ Running }) => Running ? Effect.void : Effect.asVoid(run)),
    pause: command(({ Paused, Running }) => Running && !Paused, () => container.pause()),
    resume
  }
}

/**
 * Runs the image of a server on a free port; the container is gone when the scope closes. Answers with the reason
 * when the engine does not have what it takes.
 */
export const make = Effect.fnUntraced(function*(
  engine: Engine,
  wish: Wish,
  line: string
): Effect.fn.Return<Controls | string, BrokersError, Scope.Scope> {
  const tag = image(wish.kind, line)
  const missing = yield* refusal(engine, tag)
  if (missing !== undefined) return missing
  const prepared = yield* Effect.result(Effect.tryPromise({ try: prepare, catch: messageOf }))
  if (Result.isFailure(prepared)) return prepared.failure
  const attempt = Effect.gen(function*() {
    const port = yield* Ports.free
    const name = `millrace-${Crypto.randomUUID().slice(0, 8)}`
    const watched = Reaper.container(engine.at, name)
    const container = yield* Effect.acquireRelease(
      Effect.tryPromise({
        try: () => {
          Reaper.watch(watched)
          return create(prepared.success, wish, tag, port, name)
        },
        catch: (cause) =>
          new BrokersError({ reason: "start", message: `the engine refused ${tag}: ${messageOf(cause)}`, cause })
      }),
      (container) =>
        Effect.promise(async () => {
          await container.remove({ force: true, v: true })
          Reaper.forget(watched)
        })
    )
    const { run, ...controls } = control(container, wish, tag, prepared.success.host, port)
    const { version } = yield* run
    return { ...controls, version }
  })
  return yield* Effect.retry(attempt, { times: 4, while: (error) => portIsTaken.test(error.message) })
})
