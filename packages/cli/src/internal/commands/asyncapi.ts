import { redactUrl } from "@millrace/core/TransportError"
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Fs from "node:fs"
import { parse, stringify } from "yaml"
import { breakingChanges } from "../asyncapi/compatibility.ts"
import { documentOf } from "../asyncapi/document.ts"
import { loadModule } from "../asyncapi/load.ts"
import { isObject, type Json } from "../asyncapi/values.ts"
import { Failure, lines, Output } from "../Output.ts"
import { millrace } from "../target.ts"
import { clean, count } from "../text.ts"

interface Options {
  readonly module: string
  readonly out: Option.Option<string>
  readonly yaml: boolean
  readonly check: Option.Option<string>
  readonly title: string
  readonly apiVersion: string
}

const read = (file: string): Effect.Effect<Json, Failure> =>
  Effect.try({
    try: () => {
      const document: unknown = parse(Fs.readFileSync(file, "utf8"))
      if (!isObject(document) || !("asyncapi" in document)) throw new Error("it is no AsyncAPI document")
      if (!/^3\./.test(String(document["asyncapi"]))) {
        throw new Error(`it is of AsyncAPI ${String(document["asyncapi"])}, and 3 is needed`)
      }
      if (!isObject(document["channels"])) throw new Error("it has no channels")
      return document
    },
    catch: (cause) => new Failure(`cannot read ${file}: ${cause instanceof Error ? cause.message : String(cause)}`)
  })

const asyncapi = Effect.fnUntraced(function*({ apiVersion, check, module, out, title, yaml }: Options) {
  const { nats, redis } = yield* millrace
  const server = Option.map(Option.orElse(redis, () => nats), (url) => redactUrl(Redacted.value(url)))
  const loaded = yield* loadModule(module)
  const document = documentOf(loaded, { title, version: apiVersion, server: Option.getOrUndefined(server) })
  const text = yaml
    ? stringify(document, { aliasDuplicateObjects: false })
    : `${JSON.stringify(document, undefined, 2)}\n`
  const before = Option.isSome(check) ? yield* read(check.value) : undefined
  if (Option.isSome(out)) {
    yield* Effect.try({
      try: () => Fs.writeFileSync(out.value, text),
      catch: (cause) =>
        new Failure(`cannot write ${out.value}: ${cause instanceof Error ? cause.message : String(cause)}`)
    })
  } else if (before === undefined) yield* Effect.flatMap(Output, (output) => output.out(text.trimEnd()))
  if (before === undefined) return
  const problems = breakingChanges(before, document)
  if (problems.length === 0) return yield* lines(["nothing breaks"])
  yield* lines(problems.map(clean))
  return yield* Effect.fail(
    new Failure(`${count(problems.length)} breaking ${problems.length === 1 ? "change" : "changes"}`, 1)
  )
})

export const command = Command.make(
  "asyncapi",
  {
    module: Argument.File("module", { mustExist: true }).pipe(
      Argument.withDescription("A module that exports pipelines and topics, and starts nothing")
    ),
    out: Flag.String("out").pipe(Flag.withAlias("o"), Flag.withDescription("Write to this file"), Flag.optional),
    yaml: Flag.Boolean("yaml").pipe(Flag.withDefault(false), Flag.withDescription("Write YAML instead of JSON")),
    check: Flag.File("check", { mustExist: true }).pipe(
      Flag.withDescription("An earlier document: exit with 1 when programs or messages of then break"),
      Flag.optional
    ),
    title: Flag.String("title").pipe(Flag.withDescription("Title of the document"), Flag.withDefault("Pipelines")),
    apiVersion: Flag.String("api-version").pipe(
      Flag.withDescription("Version of the document; default 1.0.0"),
      Flag.withDefault("1.0.0")
    )
  },
  asyncapi
).pipe(
  Command.withDescription("Describe pipelines and topics as an AsyncAPI 3 document; needs no broker"),
  Command.withExamples([
    { command: "millrace asyncapi src/pipelines.ts --out asyncapi.json", description: "Write it" },
    { command: "millrace asyncapi src/pipelines.ts --check asyncapi.json", description: "In CI: did something break?" }
  ])
)
