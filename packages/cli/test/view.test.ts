import { assert, describe, it } from "@effect/vitest"
import { Pipeline, Publisher, Topic } from "@millrace/core"
import { RedisStreams } from "@millrace/redis-streams"
import { Brokers } from "@millrace/testing"
import { Effect, Schema } from "effect"
import { spawn } from "node:child_process"
import * as Fs from "node:fs"
import * as Http from "node:http"
import process from "node:process"
import { fileURLToPath } from "node:url"
import { chromium } from "playwright-core"
import { createClient } from "redis"
import { findChromium } from "./chromium.ts"
import { until } from "./cli.ts"

const main = fileURLToPath(new URL("../src/internal/main.ts", import.meta.url))

/** Runs `millrace view` as its own process until the scope closes; gives the page's address. */
const view = (url: string, ...args: ReadonlyArray<string>) =>
  Effect.flatMap(
    Effect.acquireRelease(
      Effect.sync(() =>
        spawn(process.execPath, [main, "view", "--port", "0", ...args], {
          env: { ...process.env, MILLRACE_REDIS_URL: url },
          stdio: ["ignore", "pipe", "inherit"]
        })
      ),
      (child) =>
        Effect.callback<void>((resume) => {
          if (child.exitCode !== null) return resume(Effect.void)
          child.once("exit", () => resume(Effect.void))
          child.kill("SIGINT")
        })
    ),
    (child) =>
      Effect.callback<string>((resume) => {
        let text = ""
        child.once("exit", (code) => resume(Effect.die(new Error(`millrace view ended with ${code}`))))
        child.stdout.on("data", (chunk) => {
          text += chunk
          const address = /^http:\S+/.exec(text)?.[0]
          if (address !== undefined) resume(Effect.succeed(address))
        })
      })
  )

interface Answer {
  readonly status: number
  readonly headers: Http.IncomingHttpHeaders
  readonly body: string
}

const request = (address: string, path: string, options: Http.RequestOptions = {}, body?: string) =>
  Effect.callback<Answer>((resume) => {
    const asked = Http.request(new URL(path, address), options, (response) => {
      let text = ""
      response.on("data", (chunk) => text += chunk)
      response.on(
        "end",
        () => resume(Effect.succeed({ status: response.statusCode!, headers: response.headers, body: text }))
      )
    })
    asked.end(body)
  })

const Order = Schema.Struct({ id: Schema.String, total: Schema.Number })
const Orders = Topic.make("orders", { schema: Order, key: (order) => order.id })

const payments = (bank: { open: boolean }) =>
  Pipeline.from(Orders, { group: "payments", startFrom: "beginning" }).pipe(
    Pipeline.mapEffect((order) =>
      order.total > 10 && !bank.open
        ? Effect.fail({ _tag: "Declined", message: `no funds for ${order.id}` })
        : Effect.void
    ),
    Pipeline.retry({ times: 0 })
  )

describe("what the page's server refuses", () => {
  it.live(
    "another name, another method, a foreign origin, a wrong token; and anything but reading without --allow-redrive",
    () =>
      Effect.gen(function*() {
        const { url } = yield* Brokers.redis()
        const address = yield* view(url, "--allow-redrive")
        const { host } = new URL(address)
        const page = yield* request(address, "/")
        assert.strictEqual(page.status, 200)
        const policy = String(page.headers["content-security-policy"])
        assert.match(policy, /^default-src 'none'; script-src 'self' 'sha256-[^']+'; style-src 'self'; /)
        assert.notMatch(policy, /unsafe|http/)
        const token = /name="millrace-token" content="(\w{64})"/.exec(page.body)![1]!
        assert.strictEqual((yield* request(address, "/api/overview")).status, 200)
        assert.strictEqual((yield* request(address, "/", { headers: { host: "evil.example" } })).status, 421)
        for (
          const path of [
            "/../package.json",
            "/lib/%2e%2e/%2e%2e/package.json",
            "/lib/..%2fapp.js",
            "/__proto__",
            "/constructor"
          ]
        ) {
          const { status } = yield* request(address, "/", { path })
          assert.strictEqual(status, 404, path)
        }
        assert.strictEqual((yield* request(address, "/api/nothing")).status, 404)
        for (
          const [query, why] of [["before=nonsense", /before is \\"nonsense\\": give the id/], [
            "reason=bored",
            /one of/
          ]] as const
        ) {
          const { body, status } = yield* request(address, `/api/dead?topic=orders.dead&${query}`)
          assert.strictEqual(status, 400, body)
          assert.match(body, why)
        }
        assert.strictEqual((yield* request(address, "/api/overview", { method: "DELETE" })).status, 405)
        const body = JSON.stringify({ topic: "orders.dead", ids: ["1-0"] })
        const good = { origin: `http://${host}`, "content-type": "application/json", "x-millrace-token": token }
        const post = (path: string, headers: Http.OutgoingHttpHeaders) =>
          request(address, path, { method: "POST", headers }, body)
        assert.deepInclude(yield* post("/api/redrive", good), { status: 200, body: "{\"redriven\":0,\"capped\":0}" })
        for (
          const wrong of [
            { origin: "http://evil.example" },
            { "x-millrace-token": "0".repeat(64) },
            { "x-millrace-token": "short" },
            { "x-millrace-token": "\u00e9".padEnd(64, "0") },
            { origin: "null" },
            { "content-type": "text/plain" }
          ]
        ) {
          assert.strictEqual((yield* post("/api/redrive", { ...good, ...wrong })).status, 403, JSON.stringify(wrong))
        }
        const readOnly = yield* view(url)
        const closed = yield* request(readOnly, "/")
        assert.match(closed.body, /name="millrace-token" content=""/)
        const refused = yield* request(readOnly, "/api/redrive", {
          method: "POST",
          headers: { ...good, origin: `http://${new URL(readOnly).host}` }
        }, body)
        assert.strictEqual(refused.status, 403)
      }),
    120_000
  )
})

describe("a broker that restarts", () => {
  it.live("the page shows it again, without being started again", () =>
    Effect.gen(function*() {
      const broker = yield* Brokers.redis({ persistence: "always" })
      const address = yield* view(broker.url)
      const status = Effect.map(request(address, "/api/overview"), ({ status }) => status)
      assert.strictEqual(yield* status, 200)
      yield* broker.kill
      yield* until("the page says so", Effect.map(status, (status) => status === 502))
      yield* broker.start
      yield* until("the page is back", Effect.map(status, (status) => status === 200))
    }), 120_000)
})

describe("a broker with much on it", () => {
  it.live("a thousand topics are one look, and looks are shared", () =>
    Effect.gen(function*() {
      const { url } = yield* Brokers.redis()
      const client = yield* Effect.acquireRelease(
        Effect.promise(() => createClient({ url }).on("error", () => {}).connect()),
        (client) => Effect.sync(() => client.destroy())
      )
      yield* Effect.promise(async () => {
        const batch = client.multi()
        for (let i = 0; i < 1000; i++) {
          batch.addCommand(["XADD", `topic.${i}`, "*", "body", "{}"])
          batch.addCommand(["XGROUP", "CREATE", `topic.${i}`, "g", "0"])
        }
        await batch.execAsPipeline()
      })
      const address = yield* view(url)
      const look = Effect.map(request(address, "/api/overview"), ({ body }) => JSON.parse(body))
      const [first, second] = yield* Effect.all([look, look], { concurrency: 2 })
      assert.deepStrictEqual([first.topics.length, first.groups.length], [1000, 1000])
      assert.deepStrictEqual(first.groups[999], {
        topic: "topic.999",
        group: "g",
        lag: 1,
        pending: 0,
        retries: 0,
        oldest: first.groups[999].oldest,
        consumers: 0
      })
      assert.strictEqual(second.at, first.at)
    }), 120_000)
})

const browser = await findChromium()

describe.skipIf(browser === undefined)("the page in a browser", () => {
  it.live(
    "numbers move, a message is found by its id, a dead letter is redriven, by keyboard and in the dark",
    () =>
      Effect.gen(function*() {
        const { url } = yield* Brokers.redis()
        const bank = { open: false }
        yield* Effect.gen(function*() {
          const running = yield* Pipeline.start(payments(bank))
          for (let i = 0; i < 12; i++) yield* Publisher.publish(Orders, { id: `o${i}`, total: i % 3 === 0 ? 50 : 5 })
          yield* until("four are dead", Effect.map(running.counts, ({ deadLettered }) => deadLettered === 4))
          const address = yield* view(url, "--allow-redrive")
          const shown = yield* Effect.acquireRelease(
            Effect.promise(() =>
              chromium.launch({ executablePath: browser!.path, env: browser!.env, args: ["--no-sandbox"] })
            ),
            (shown) => Effect.promise(() => shown.close())
          )
          const page = yield* Effect.promise(() => shown.newPage({ viewport: { width: 1200, height: 900 } }))
          const problems: Array<string> = []
          const foreign: Array<string> = []
          page.on("console", (message) => {
            if (message.type() === "error" || message.type() === "warning") problems.push(message.text())
          })
          page.on("pageerror", (error) => problems.push(String(error)))
          page.on("request", (request) => {
            if (!request.url().startsWith(address) && !request.url().startsWith("data:")) foreign.push(request.url())
          })
          yield* Effect.promise(() => page.goto(address))
          const handled = page.locator(".card", { hasText: "handled a second" }).locator("b")
          yield* Effect.promise(() => page.locator("[data-lag='orders/payments']", { hasText: /^0$/ }).waitFor())

          // The pipeline stands still: its lag grows on the page, and falls again.
          yield* running.pause
          yield* Effect.forEach(
            Array.from({ length: 25 }, (_, i) => i),
            (i) => Publisher.publish(Orders, { id: `p${i}`, total: 1 })
          )
          yield* Effect.promise(() => page.locator("[data-lag='orders/payments']", { hasText: /^2\d$/ }).waitFor())
          yield* running.resume
          yield* Effect.promise(() => page.locator("[data-lag='orders/payments']", { hasText: /^0$/ }).waitFor())
          yield* until("a rate was shown", Effect.promise(async () => (await handled.textContent()) !== "–"))
          if (process.env["MILLRACE_DOCS"] === "1") {
            for (let i = 0; i < 40; i++) {
              yield* Effect.forEach(
                Array.from({ length: 10 + i % 7 }, (_, j) => j),
                (j) => Publisher.publish(Orders, { id: `q${i}-${j}`, total: 1 })
              )
              yield* Effect.sleep("250 millis")
            }
            Fs.writeFileSync(
              fileURLToPath(new URL("../../../docs/operating-view.png", import.meta.url)),
              yield* Effect.promise(() => page.screenshot())
            )
          }

          const { id } = yield* Publisher.publish(Orders, { id: "wanted", total: 2 })
          yield* Effect.promise(async () => {
            await page.keyboard.press("/")
            await page.keyboard.type(id)
            await page.keyboard.press("Enter")
            await page.locator("pre", { hasText: "wanted" }).waitFor()
          })

          yield* Effect.promise(async () => {
            await page.goto(`${address}#/dead/orders.dead`)
            await page.getByText("Declined: no funds for o9").waitFor()
            await page.getByLabel(/^Choose \d/).first().focus()
            await page.keyboard.press("Space")
          })
          bank.open = true
          yield* Effect.promise(async () => {
            const button = page.getByRole("button", { name: "Redrive 1" })
            await button.focus()
            await page.keyboard.press("Enter")
            await page.getByRole("dialog").waitFor()
            await page.keyboard.press("Escape")
            await page.getByRole("dialog").waitFor({ state: "detached" })
            await button.focus()
            await page.keyboard.press("Enter")
            await page.getByRole("dialog").getByRole("button", { name: "Redrive" }).focus()
            await page.keyboard.press("Enter")
            await page.getByText("1 redriven").waitFor()
            await page.getByText("Declined: no funds for o9").waitFor({ state: "detached" })
          })
          // Names and bodies that would be markup, ids that are no dates, fields without a body, an address typed wrong.
          const raw = yield* Effect.acquireRelease(
            Effect.promise(() => createClient({ url }).on("error", () => {}).connect()),
            (client) => Effect.sync(() => client.destroy())
          )
          const evil = "<img src=x onerror=alert(1)> / a%zz"
          yield* Effect.promise(async () => {
            await raw.sendCommand(["XADD", evil, "99999999999999999-5", "user", "<script>alert(2)</script>"])
            page.on("dialog", (dialog) => problems.push(dialog.message()))
            await page.goto(`${address}#/topic/${encodeURIComponent(evil)}`)
            await page.getByText("{\"user\":\"<script>alert(2)</script>\"}").waitFor()
            await page.keyboard.press("/")
            await page.keyboard.type(`${evil} 99999999999999999-5`)
            await page.keyboard.press("Enter")
            await page.getByText("published no date").waitFor()
            await page.locator("pre", { hasText: "<script>alert(2)</script>" }).waitFor()
            await page.goto(`${address}#/dead/%zz`)
            await page.getByText("No dead letters.").waitFor()
            await page.goto(`${address}#/`)
            await page.getByRole("link", { name: evil }).waitFor()
          })
          const back = () => Effect.promise(() => page.evaluate("getComputedStyle(document.body).backgroundColor"))
          const light = yield* back()
          yield* Effect.promise(() => page.emulateMedia({ colorScheme: "dark" }))
          assert.notStrictEqual(yield* back(), light)
          assert.deepStrictEqual({ problems, foreign }, { problems: [], foreign: [] })
        }).pipe(Effect.provide(RedisStreams.layer({ url })))
      }),
    120_000
  )
})
