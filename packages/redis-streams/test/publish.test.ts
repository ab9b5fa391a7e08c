import { assert } from "@effect/vitest"
import { Proxy, Wait } from "@millrace/testing"
import * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Stream from "effect/Stream"
import { demand, eachServer, fresh, outgoing, Server, subscribing, textOf, transport } from "./redis.ts"

const reasonOf = (result: Result.Result<unknown, { readonly reason: { readonly _tag: string } }>) =>
  Result.isFailure(result) ? result.failure.reason._tag : "published"

eachServer((it) => {
  it.effect("writes what plain clients can read: a field for the body, one for each header", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport({ keyPrefix: "app:" })
      const topic = fresh("wire")
      yield* redis.publish([outgoing(topic, "hello", { headers: { "content-type": "text/plain", tenant: "a" } })])
      const fields = new Map([["user_id", new TextEncoder().encode("1")], [
        "traceparent",
        new TextEncoder().encode("old")
      ]])
      yield* redis.publish([outgoing(topic, "{}", { fields, headers: { traceparent: "new", user_id: "other" } })])
      const entries = yield* run("XRANGE", `app:${topic}`, "-", "+")
      assert.deepStrictEqual(entries.map((entry: any) => entry[1]), [
        ["body", "hello", "content-type", "text/plain", "tenant", "a"],
        ["user_id", "1", "traceparent", "new"]
      ])
    }))

  it.effect("keeps the order of many, and of several topics each", () =>
    Effect.gen(function*() {
      const redis = yield* transport()
      const [a, b] = [fresh("a"), fresh("b")]
      const outcomes = yield* redis.publish(
        Arr.makeBy(2_000, (i) => outgoing(i % 2 === 0 ? a : b, String(i)))
      )
      assert.isTrue(outcomes.every(Result.isSuccess))
      const texts = yield* Stream.runCollect(Stream.map(redis.browse(b), textOf))
      assert.deepStrictEqual(texts, Arr.makeBy(1_000, (i) => String(2 * i + 1)))
      assert.deepStrictEqual(outcomes.filter((_, i) => i % 2 === 1).map((outcome) => Result.getOrThrow(outcome).id), [
        ...yield* Stream.runCollect(Stream.map(redis.browse(b), ({ id }) => id))
      ])
    }))

  it.effect("browse ends at what was the last when it began, and gives nothing for a topic that is not there", () =>
    Effect.gen(function*() {
      const redis = yield* transport()
      const topic = fresh("browse")
      yield* redis.publish(Arr.makeBy(450, (i) => outgoing(topic, String(i))))
      const seen = yield* redis.browse(topic).pipe(
        Stream.tap(() => redis.publish([outgoing(topic, "later")])),
        Stream.runCollect
      )
      assert.deepStrictEqual(seen.map(textOf), Arr.makeBy(450, String))
      assert.deepStrictEqual(yield* Stream.runCollect(redis.browse(fresh("none"))), [])
    }))

  it.effect("takes an id once, for as long as it is remembered", () =>
    Effect.gen(function*() {
      const redis = yield* transport({ deduplicateFor: "400 millis" })
      const topic = fresh("ids")
      const [one, two] = yield* redis.publish([outgoing(topic, "1", { id: "x" }), outgoing(topic, "2", { id: "x" })])
      const first = Result.getOrThrow(one!)
      assert.isFalse(first.duplicate)
      assert.deepStrictEqual(Result.getOrThrow(two!), { id: first.id, duplicate: true })
      yield* Effect.sleep(850)
      const [again] = yield* redis.publish([outgoing(topic, "3", { id: "x" })])
      assert.isFalse(Result.getOrThrow(again!).duplicate)
    }))

  it.effect("of many with ids, those that were there are told apart, and the others keep their order", () =>
    Effect.gen(function*() {
      const redis = yield* transport()
      const topic = fresh("together")
      const [before] = yield* redis.publish([outgoing(topic, "0", { id: "i0" })])
      const ids = Arr.makeBy(600, (i) => `i${i % 500}`)
      const outcomes = yield* redis.publish(Arr.flatMap(ids, (id, i) =>
        // Every tenth without an id between them.
        i % 10 === 0 ? [outgoing(topic, `plain ${i}`), outgoing(topic, id, { id })] : [outgoing(topic, id, { id })]))
      const entries = outcomes.map(Result.getOrThrow)
      const texts = ids.flatMap((id, i) => i % 10 === 0 ? [`plain ${i}`, id] : [id])
      const seen = new Map([["i0", Result.getOrThrow(before!).id]])
      entries.forEach(({ duplicate, id }, i) => {
        const known = seen.get(texts[i]!)
        assert.deepStrictEqual({ duplicate, id }, { duplicate: known !== undefined, id: known ?? id }, texts[i])
        if (known === undefined) seen.set(texts[i]!, id)
      })
      assert.deepStrictEqual(
        yield* Stream.runCollect(Stream.map(redis.browse(topic), textOf)),
        ["0", ...texts.filter((_, i) => !entries[i]!.duplicate)]
      )
    }))

  it.effect("of many with ids, each keeps its own headers and fields, also beside one that was there", () =>
    Effect.gen(function*() {
      const redis = yield* transport()
      const topic = fresh("shapes")
      const [plain, other] = [{ "content-type": "text/plain" }, { "content-type": "text/plain", tenant: "a" }]
      const fields = new Map([["n", new TextEncoder().encode("1")]])
      yield* redis.publish([outgoing(topic, "0", { id: "0" })])
      yield* redis.publish([
        outgoing(topic, "0", { id: "0", headers: plain }),
        outgoing(topic, "1", { id: "1", headers: plain }),
        outgoing(topic, "2", { id: "2", headers: other }),
        outgoing(topic, "3", { id: "3", headers: other, fields }),
        outgoing(topic, "4", { id: "4", headers: other }),
        outgoing(topic, "5", { id: "5", headers: other }),
        outgoing(topic, "6", { id: "6", headers: plain })
      ])
      const { run } = yield* Server
      const entries = (yield* run("XRANGE", topic, "-", "+")) as ReadonlyArray<[string, ReadonlyArray<string>]>
      const [first, second] = [["content-type", "text/plain"], ["content-type", "text/plain", "tenant", "a"]]
      assert.deepStrictEqual(entries.slice(1).map(([, written]) => written), [
        ["body", "1", ...first],
        ["body", "2", ...second],
        ["n", "1", ...second],
        ["body", "4", ...second],
        ["body", "5", ...second],
        ["body", "6", ...first]
      ])
    }))

  it.effect("of many with ids for a key that is no stream, each is refused, and the next topic's are stored", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport()
      const [broken, other] = [fresh("broken"), fresh("other")]
      yield* run("SET", broken, "text")
      const outcomes = yield* redis.publish(
        Arr.makeBy(20, (i) => outgoing(i % 2 === 0 ? broken : other, String(i), { id: String(i) }))
      )
      assert.deepStrictEqual(outcomes.map(reasonOf), Arr.makeBy(20, (i) => i % 2 === 0 ? "Refused" : "published"))
    }))

  it.effect("a delayed message comes when it is due, also when its publisher is gone", () =>
    Effect.gen(function*() {
      const topic = fresh("delay")
      const redis = yield* transport()
      const since = performance.now()
      yield* Effect.scoped(Effect.flatMap(transport(), (gone) =>
        gone.publish([
          outgoing(topic, "late", { delay: Duration.millis(500), id: "d" }),
          outgoing(topic, "twice", { delay: Duration.millis(500), id: "d" }),
          outgoing(topic, "now")
        ])))
      const subscription = yield* redis.subscribe(subscribing(topic))
      assert.strictEqual(textOf((yield* subscription.pull(demand(1)))[0]), "now")
      const [late, ...rest] = yield* subscription.pull(demand(5))
      assert.isAtLeast(performance.now() - since, 490)
      assert.strictEqual(textOf(late!), "late")
      assert.strictEqual(late!.attempt, 1)
      assert.strictEqual(rest.length, 0)
    }))

  it.effect("a delayed message is moved when it is due by its publisher, where no subscription looks", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const topic = fresh("alone")
      const redis = yield* transport()
      yield* redis.publish([
        outgoing(topic, "1", { delay: Duration.millis(100) }),
        outgoing(topic, "2", { delay: Duration.millis(300) })
      ])
      yield* Wait.until("moved", Effect.map(run("XLEN", topic), (n) => n === 2))
    }))

  it.effect("a message that is larger than the server takes is refused as such, and its neighbours are published", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport()
      const topic = fresh("large")
      yield* run("CONFIG", "SET", "proto-max-bulk-len", String(1024 * 1024))
      const large = () => outgoing(topic, new Uint8Array(2_000_000))
      for (let i = 0; i < 2; i++) {
        const outcomes = yield* redis.publish([outgoing(topic, "a"), large(), outgoing(topic, "b")])
        assert.deepStrictEqual(outcomes.map(reasonOf), ["published", "TooLarge", "published"])
      }
      // Lowered while this process believes otherwise, and raised again.
      const other = yield* transport()
      yield* run("CONFIG", "SET", "proto-max-bulk-len", String(512 * 1024 * 1024))
      assert.deepStrictEqual((yield* other.publish([large()])).map(reasonOf), ["published"])
      yield* run("CONFIG", "SET", "proto-max-bulk-len", String(1024 * 1024))
      assert.deepStrictEqual((yield* other.publish([large(), outgoing(topic, "c")])).map(reasonOf), [
        "TooLarge",
        "published"
      ])
      yield* run("CONFIG", "SET", "proto-max-bulk-len", String(512 * 1024 * 1024))
    }))

  it.effect("publishes of one turn go out together, each with its own answer", () =>
    Effect.gen(function*() {
      const { broker, run } = yield* Server
      let writes = 0
      const proxy = yield* Proxy.make(broker, {
        pass: (piece, to) => {
          if (to === "broker" && piece.includes("XADD")) writes++
          return piece
        }
      })
      const redis = yield* transport({ url: proxy.through(broker.url) })
      const topic = fresh("together")
      yield* run("SET", `${topic}-text`, "x")
      const outcomes = yield* Effect.forEach(
        Arr.makeBy(200, (i) => i),
        (i) => redis.publish([outgoing(i === 100 ? `${topic}-text` : topic, String(i))]),
        { concurrency: "unbounded" }
      )
      assert.isAtMost(writes, 10)
      assert.deepStrictEqual(
        outcomes.flatMap((all, i) => all.map(reasonOf).includes("Refused") ? [i] : []),
        [100]
      )
      const stored = yield* Stream.runCollect(redis.browse(topic))
      assert.deepStrictEqual(
        stored.map((one) => [one.id, textOf(one)]),
        outcomes.flatMap(([outcome], i) => Result.isSuccess(outcome!) ? [[outcome.success.id, String(i)]] : [])
      )
    }))

  it.effect("bounds a stream by length or by age", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const exact = yield* transport({ retention: { maxLength: 10, exact: true } })
      const about = yield* transport({ retention: { maxLength: 10 } })
      const young = yield* transport({ retention: { maxAge: "100 millis", exact: true } })
      const [a, b, c] = [fresh("exact"), fresh("about"), fresh("young")]
      yield* exact.publish(Arr.makeBy(500, (i) => outgoing(a, String(i))))
      yield* about.publish(Arr.makeBy(500, (i) => outgoing(b, String(i))))
      yield* young.publish([outgoing(c, "1")])
      yield* Effect.sleep(150)
      yield* young.publish([outgoing(c, "2")])
      assert.strictEqual(yield* run("XLEN", a), 10)
      assert.isBelow(yield* run("XLEN", b), 200)
      assert.strictEqual(yield* run("XLEN", c), 1)
    }))

  it.effect("says that the broker refuses a key of another type, or has no memory left", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport()
      const topic = fresh("text")
      yield* run("SET", topic, "x")
      const other = fresh("ok")
      const [refused, refusedOnce, fine] = yield* redis.publish([
        outgoing(topic, "1"),
        outgoing(topic, "1", { id: "i" }),
        outgoing(other, "1")
      ])
      assert.deepStrictEqual([refused, refusedOnce, fine].map((outcome) => reasonOf(outcome!)), [
        "Refused",
        "Refused",
        "published"
      ])
      yield* run("CONFIG", "SET", "maxmemory", "1")
      const [full] = yield* redis.publish([outgoing(other, "1")])
      yield* run("CONFIG", "SET", "maxmemory", "0")
      assert.strictEqual(reasonOf(full!), "Refused")
    }))

  it.effect("removes entries of a topic whatever their state", () =>
    Effect.gen(function*() {
      const { run } = yield* Server
      const redis = yield* transport()
      const topic = fresh("remove")
      const [one, two] = yield* redis.publish([outgoing(topic, "1"), outgoing(topic, "2")])
      const ids = [Result.getOrThrow(one!).id, Result.getOrThrow(two!).id, "1-1"] as const
      assert.strictEqual(yield* redis.remove(topic, ids), 2)
      assert.strictEqual(yield* run("XLEN", topic), 0)
    }))
})
