// Lines of a file become products and, if they are cheap, offers. A line that the catalogue refuses is looked at, mended and sent again.
import { NodeRuntime } from "@effect/platform-node"
import { DeadLetter, Pipeline, Publisher, Topic } from "@millrace/core"
import { RedisStreams } from "@millrace/redis-streams"
import { Config, Console, Context, Data, Effect, Layer, Ref, Schedule, Schema, Stream } from "effect"

class Refused extends Data.TaggedError("Refused")<{ readonly sku: string; readonly why: string }> {}
class Catalogue extends Context.Service<Catalogue, {
  readonly add: (sku: string) => Effect.Effect<void, Refused>
  readonly open: Effect.Effect<void>
  readonly skus: Effect.Effect<ReadonlyArray<string>>
}>()("Catalogue") {
  static readonly layer = Layer.effect(
    Catalogue,
    Effect.gen(function*() {
      const isOpen = yield* Ref.make(false)
      const skus = yield* Ref.make<ReadonlyArray<string>>([])
      return {
        add: (sku) =>
          Effect.gen(function*() {
            if (sku.startsWith("x") && !(yield* Ref.get(isOpen))) {
              return yield* new Refused({ sku, why: "unknown supplier" })
            }
            yield* Ref.update(skus, (all) => [...all, sku])
          }),
        open: Ref.set(isOpen, true),
        skus: Ref.get(skus)
      }
    })
  )
}

const Lines = Topic.make("import:lines", { schema: Schema.Struct({ sku: Schema.String, cents: Schema.Int }) })
const Offers = Topic.make("import:offers", { schema: Schema.Struct({ sku: Schema.String }) })

const importing = Pipeline.from(Lines, { group: "importing" }).pipe(
  Pipeline.tap((line) => Catalogue.use((catalogue) => catalogue.add(line.sku))),
  Pipeline.to(Offers, (line) => line.cents < 1000 ? [{ sku: line.sku }] : []),
  Pipeline.retry({ times: 3, schedule: Schedule.spaced("10 millis"), while: (error) => error._tag !== "Refused" }),
  Pipeline.deadLetter("import:dead"),
  Pipeline.concurrency(8)
)
const offered: Array<string> = []
const offering = Pipeline.from(Offers, { group: "offering" }).pipe(
  Pipeline.tap((offer) => Effect.sync(() => offered.push(offer.sku)))
)

const program = Effect.gen(function*() {
  const catalogue = yield* Catalogue
  const lines = yield* Pipeline.start(importing)
  const offers = yield* Pipeline.start(offering)
  yield* Publisher.publishAll(Lines, [{ sku: "a", cents: 500 }, { sku: "b", cents: 5000 }, { sku: "x1", cents: 100 }])
  const wait = (enough: Effect.Effect<boolean>) =>
    Effect.repeat(Effect.andThen(Effect.sleep("20 millis"), enough), { until: (is) => is })
  yield* wait(Effect.map(lines.counts, ({ deadLettered, handled }) => deadLettered === 1 && handled === 2))
  yield* Stream.runForEach(
    DeadLetter.list("import:dead"),
    ({ record }) => Console.log(record.reason, record.attempts, record.error.tag, record.error.message)
  )
  yield* catalogue.open
  const { redriven } = yield* DeadLetter.redrive("import:dead", { to: ["import:lines"] })
  yield* wait(Effect.map(offers.counts, ({ handled }) => handled === 2))
  yield* Console.log("redriven", redriven, (yield* catalogue.skus).join(), offered.sort().join())
})

program.pipe(
  Effect.scoped,
  Effect.provide(Layer.merge(Catalogue.layer, RedisStreams.layerConfig({ url: Config.Redacted("REDIS_URL") }))),
  NodeRuntime.runMain
)
