import { assert, describe, it } from "@effect/vitest"
import { Message, Pipeline, Publisher, Settlement, Telemetry, Topic, Transport } from "@millrace/core"
import { MemoryTransport } from "@millrace/testing"
import { parser } from "@prometheus-io/lezer-promql"
import { Deferred, Duration, Effect, Layer, Metric, Schedule, Schema } from "effect"
import { PrometheusMetrics } from "effect/observability"
import { TestClock } from "effect/testing"
import * as Fs from "node:fs"
import * as Path from "node:path"
import parsePrometheus from "parse-prometheus-text-format"
import * as Yaml from "yaml"

const folder = Path.join(import.meta.dirname, "../../../dashboards")
const read = (file: string) => Fs.readFileSync(Path.join(folder, file), "utf8")

interface Selector {
  readonly metric: string
  readonly labels: ReadonlyArray<{ readonly name: string; readonly operator: string; readonly value: string }>
}

/** The selectors of a PromQL expression, and the labels that it groups by; fails where the expression does not parse. */
const analyse = (
  expression: string
): { readonly selectors: ReadonlyArray<Selector>; readonly by: ReadonlyArray<string> } => {
  const text = expression.replaceAll("$__rate_interval", "5m").replaceAll("\"$topic\"", "\".*\"").replaceAll(
    "\"$group\"",
    "\".*\""
  )
  const selectors: Array<{ metric: string; labels: Array<Selector["labels"][number]> }> = []
  const by: Array<string> = []
  parser.parse(text).iterate({
    enter: (node) => {
      const slice = text.slice(node.from, node.to)
      assert.isFalse(node.type.isError, `${expression} does not parse at ${node.from}`)
      if (node.name === "VectorSelector") selectors.push({ metric: "", labels: [] })
      if (node.name === "Identifier" && node.node.parent?.name === "VectorSelector") selectors.at(-1)!.metric = slice
      if (node.name === "UnquotedLabelMatcher") {
        const [, name, operator, value] = /^(\w+)\s*(=~|!~|!=|=)\s*"(.*)"$/.exec(slice)!
        selectors.at(-1)!.labels.push({ name: name!, operator: operator!, value: value! })
      }
      if (node.name === "LabelName" && node.node.parent?.name === "GroupingLabels") by.push(slice)
    }
  })
  return { selectors, by }
}

interface Panel {
  readonly title: string
  readonly targets?: ReadonlyArray<{ readonly expr: string; readonly legendFormat: string }>
}
interface Rules {
  readonly groups: ReadonlyArray<{ readonly rules: ReadonlyArray<{ readonly alert: string; readonly expr: string }> }>
}

const panels = (JSON.parse(read("millrace.json")) as { readonly panels: ReadonlyArray<Panel> }).panels
const rules = (Yaml.parse(read("alerts.yaml")) as Rules).groups.flatMap(({ rules }) => rules)
const expressions = [
  ...panels.flatMap(({ targets, title }) => (targets ?? []).map(({ expr }) => ({ title, expr }))),
  ...rules.map(({ alert, expr }) => ({ title: alert, expr }))
]

interface Sample {
  readonly name: string
  readonly labels: { readonly [name: string]: string }
  readonly value: number
}

/** What a Prometheus server would store. The parser merges labelled histograms, so it is given each line without types. */
const samplesOf = (text: string): ReadonlyArray<Sample> => {
  assert.isAbove(parsePrometheus(text).length, 5)
  return parsePrometheus(text.replaceAll(/^#.*\n/gm, "")).flatMap(({ metrics, name }) =>
    metrics.map(({ labels = {}, value }) => ({ name, labels, value: Number(value) }))
  )
}

const matches = ({ labels, metric }: Selector) => (sample: Sample): boolean =>
  sample.name === metric && labels.every(({ name, operator, value }) => {
    const given = sample.labels[name] ?? ""
    const isMatch = operator.endsWith("~") ? new RegExp(`^(?:${value})$`).test(given) : given === value
    return operator.startsWith("!") ? !isMatch : isMatch
  })

const exported = PrometheusMetrics.format({ metricNameMapper: Telemetry.prometheusName })

const Orders = Topic.make("orders", { schema: Schema.Number })

/** Every kind of end, in some messages; a large one waits. */
const work = (message: Message.Message<number>, released: Deferred.Deferred<void>) => {
  if (message.value > 1000) return Deferred.await(released)
  switch (message.value % 5) {
    case 0:
      return Effect.fail("declined")
    case 1:
      return Effect.andThen(Message.settle(message, Settlement.ack), Effect.fail("too late"))
    case 2:
      return Effect.fail(Settlement.terminate("no use"))
    default:
      return Effect.sleep("1 millis")
  }
}

const scenario = Effect.gen(function*() {
  const released = yield* Deferred.make<void>()
  let health: Transport.Health = { state: "consuming", since: 0 }
  const transport = yield* Transport.Transport
  const unsteady: typeof transport = {
    ...transport,
    subscribe: (options) =>
      Effect.map(
        transport.subscribe(options),
        (subscription) => ({ ...subscription, health: Effect.sync(() => health) })
      )
  }
  const start = (group: string, discard: boolean) => {
    const pipeline = Pipeline.from(Orders, { group, startFrom: "beginning" }).pipe(
      Pipeline.filter((n) => n % 7 !== 0),
      Pipeline.mapEffect((_, message) => work(message, released)),
      Pipeline.concurrency(4),
      Pipeline.retry({ times: 1, schedule: Schedule.spaced("10 millis") })
    )
    return Pipeline.start(discard ? Pipeline.discard(pipeline) : pipeline).pipe(
      Effect.provideService(Transport.Transport, unsteady)
    )
  }
  const running = [yield* start("payments", false), yield* start("audit", true)]
  const ended = ({ deadLettered, discarded, failedAfterSettle, filtered, handled }: Pipeline.Counts) =>
    deadLettered + discarded + failedAfterSettle + filtered + handled
  /** Moves the clock until it holds: the test waits for no timer and for no time. */
  const until = (holds: Effect.Effect<boolean>): Effect.Effect<void> =>
    Effect.flatMap(holds, (isSo) => isSo ? Effect.void : Effect.andThen(TestClock.adjust("10 millis"), until(holds)))
  let published = 0
  const round = Effect.gen(function*() {
    yield* Publisher.publishAll(Orders, Array.from({ length: 40 }, (_, n) => n))
    published += 40
    yield* until(Effect.map(
      Effect.forEach(running, ({ counts }) => counts),
      (counts) => counts.every((counts) => ended(counts) === published)
    ))
  })
  /** What is exported once the next look and the next poll are over. */
  const seen = Effect.gen(function*() {
    yield* TestClock.adjust("1 second")
    return samplesOf(yield* exported)
  })
  yield* round
  const before = yield* seen
  yield* round
  // A handler that runs in each group, a backlog, an outage.
  yield* Publisher.publish(Orders, 1003)
  yield* until(Effect.map(
    Effect.forEach(running, ({ owned }) => owned),
    (owned) => owned.every(({ running }) => running === 1)
  ))
  for (const { pause } of running) yield* pause
  yield* Publisher.publishAll(Orders, [3, 4, 8])
  const paused = yield* seen
  const lags = paused.filter(({ name }) => name === "millrace_lag")
  assert.deepStrictEqual(lags.map(({ value }) => value), [3, 3])
  health = { state: "impaired", since: 0, reason: "full" }
  yield* Deferred.succeed(released, undefined)
  for (const { resume } of running) yield* resume
  return { before, after: [paused, yield* seen] }
}).pipe(
  Effect.scoped,
  Effect.provide([
    MemoryTransport.layer(),
    Telemetry.layerPolledMetrics("100 millis"),
    Telemetry.layerLogs(false),
    Layer.succeed(Telemetry.LookInterval, Duration.millis(100))
  ]),
  Effect.provideService(Metric.MetricRegistry, new Map())
)

describe("the dashboard and the alert rules", () => {
  it.effect("every metric and label of every expression exists in the exported text, and moves", () =>
    Effect.gen(function*() {
      const { after, before } = yield* scenario
      assert.isAbove(expressions.length, 20)
      for (const { expr, title } of expressions) {
        const { by, selectors } = analyse(expr)
        assert.isAbove(selectors.length, 0, title)
        for (const selector of selectors) {
          const then = before.filter(matches(selector))
          const seen = [...then, ...after.flatMap((samples) => samples.filter(matches(selector)))]
          assert.isAbove(seen.length, 0, `${title}: no sample of ${JSON.stringify(selector)}`)
          for (const label of by) {
            assert.isTrue(seen.some(({ labels }) => label in labels), `${title}: no label ${label}`)
          }
          const values = (samples: ReadonlyArray<Sample>) =>
            samples.filter(matches(selector)).map(({ labels, value }) => `${JSON.stringify(labels)} ${value}`).sort()
              .join()
          assert.isTrue(
            after.some((samples) => values(samples) !== values(before)),
            `${title}: ${JSON.stringify(selector)} does not move`
          )
        }
      }
    }))

  it("every legend names a label that its expression keeps", () => {
    for (const { targets, title } of panels) {
      for (const { expr, legendFormat } of targets ?? []) {
        const { by } = analyse(expr)
        for (const [, label] of legendFormat.matchAll(/\{\{(\w+)\}\}/g)) assert.include(by, label, title)
      }
    }
  })

  it("Prometheus names are those that the Collector makes", () => {
    // opentelemetry-collector-contrib, pkg/translator/prometheus: unit, then `_total` for a monotonic sum.
    const names = {
      "messaging.client.sent.messages": "messaging_client_sent_messages_total",
      "messaging.client.consumed.messages": "messaging_client_consumed_messages_total",
      "messaging.client.operation.duration": "messaging_client_operation_duration_seconds",
      "messaging.process.duration": "messaging_process_duration_seconds",
      "millrace.wait.duration": "millrace_wait_duration_seconds",
      "millrace.outcomes": "millrace_outcomes_total",
      "millrace.redelivered": "millrace_redelivered_total",
      "millrace.oldest.age": "millrace_oldest_age_seconds",
      "millrace.lag": "millrace_lag",
      "millrace.pending": "millrace_pending",
      "millrace.owned": "millrace_owned",
      "millrace.health": "millrace_health",
      "somebody.elses": "somebody.elses"
    }
    for (const [name, prometheus] of Object.entries(names)) {
      assert.strictEqual(Telemetry.prometheusName(name), prometheus)
    }
  })
})
