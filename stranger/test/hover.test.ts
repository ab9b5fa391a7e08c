import { assert, describe, it } from "@effect/vitest"
import ts from "@typescript/typescript6"
import * as fs from "node:fs"
import * as path from "node:path"

const root = path.join(import.meta.dirname, "..", "..")
const packages = ["core", "redis-streams", "nats-jetstream", "testing"]

const { config } = ts.readConfigFile(path.join(root, "tsconfig.json"), (file) => fs.readFileSync(file, "utf8"))
const { options } = ts.parseJsonConfigFileContent(config, ts.sys, root)
const programFile = path.join(import.meta.dirname, "hovered.ts")
const hovered = `
import { Concurrency, Message, Millrace, Pipeline, Publisher, Settlement, Topic } from "@millrace/core"
import { JetStream } from "@millrace/nats-jetstream"
import { RedisStreams } from "@millrace/redis-streams"
import { MemoryTransport, TestHarness } from "@millrace/testing"
import { Effect, Schema } from "effect"
const Orders = Topic.make("orders", { schema: Schema.String, key: (text) => text })
const payments = Pipeline.from(Orders, { group: "payments", startFrom: "new", prefetch: 1 }).pipe(
  Pipeline.filter((text) => text !== ""),
  Pipeline.map((text) => text),
  Pipeline.mapEffect((text) => Effect.succeed(text)),
  Pipeline.mapPromise(async (text) => text),
  Pipeline.tap(() => Effect.void),
  Pipeline.tapPromise(async () => {}),
  Pipeline.timeout("1 second"),
  Pipeline.catchTag("TimeoutError", () => Effect.succeed("late")),
  Pipeline.batch({ size: 2, within: 1 }, () => Effect.void),
  Pipeline.to(Orders),
  Pipeline.middleware((handler) => handler),
  Pipeline.retry({ times: 4 }),
  Pipeline.deadLetter("orders.dead"),
  Pipeline.concurrency(64),
  Pipeline.ackPolicy("manual")
)
Pipeline.run(payments)
Pipeline.start(payments)
Pipeline.toLayer(payments)
RedisStreams.layer({ url: "redis://localhost" })
RedisStreams.from(Orders, { group: "g" })
JetStream.layer({ url: "nats://localhost" })
JetStream.from(Orders, { group: "g" })
Publisher.publish(Orders, "a")
Settlement.retry("1 second", { countsAttempt: false })
Settlement.terminate("no")
Concurrency.makeAdaptive({ max: 4 })
Millrace.run(payments, { broker: MemoryTransport.layer() })
TestHarness.run(Orders, payments, ["a"])
Message.isMessage(1)
`
const files = packages.map((name) => path.join(root, "packages", name, "src/index.ts"))
const host: ts.LanguageServiceHost = {
  useCaseSensitiveFileNames: () => ts.sys.useCaseSensitiveFileNames,
  directoryExists: ts.sys.directoryExists,
  getDirectories: ts.sys.getDirectories,
  readDirectory: ts.sys.readDirectory,
  getCompilationSettings: () => options,
  getScriptFileNames: () => [...files, programFile],
  getScriptVersion: () => "1",
  getScriptSnapshot: (file) => {
    if (file === programFile) return ts.ScriptSnapshot.fromString(hovered)
    return fs.existsSync(file) ? ts.ScriptSnapshot.fromString(fs.readFileSync(file, "utf8")) : undefined
  },
  getCurrentDirectory: () => root,
  getDefaultLibFileName: ts.getDefaultLibFilePath,
  fileExists: (file) => file === programFile || ts.sys.fileExists(file),
  readFile: (file) => file === programFile ? hovered : ts.sys.readFile(file)
}
const service = ts.createLanguageService(host)
const program = service.getProgram()!
const checker = program.getTypeChecker()

const text = (parts: ReadonlyArray<ts.SymbolDisplayPart>) => ts.displayPartsToString([...parts]).trim()

describe("what an editor shows", () => {
  // The language service checks all packages first.
  it("hovering a call or an option shows its documentation", { timeout: 180_000 }, () => {
    assert.deepStrictEqual(service.getSemanticDiagnostics(programFile).map(({ messageText }) => messageText), [])
    const silent = Array.from(hovered.matchAll(/\b[A-Z]\w+\.([a-z]\w+)\(|\b([a-z]\w+): /g), (match) => {
      const name = (match[1] ?? match[2])!
      const at = match.index + match[0].indexOf(name)
      return text(service.getQuickInfoAtPosition(programFile, at)?.documentation ?? []) === "" ? [name] : []
    }).flat()
    assert.deepStrictEqual(silent.filter((name) => name !== "succeed"), [])
  })

  for (const [index, name] of packages.entries()) {
    it(`every export, overload and option of @millrace/${name} is documented`, () => {
      const silent: Array<string> = []
      const isOurs = (declaration: ts.Declaration | undefined) =>
        declaration?.getSourceFile().fileName.includes(`/packages/${name}/src/`) ?? false
      for (
        const namespace of checker.getExportsOfModule(
          checker.getSymbolAtLocation(program.getSourceFile(files[index]!)!)!
        )
      ) {
        const module = checker.getAliasedSymbol(namespace)
        for (const exported of checker.getExportsOfModule(module)) {
          const symbol = exported.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(exported) : exported
          const at = `${namespace.name}.${symbol.name}`
          const [declaration] = symbol.declarations ?? []
          if (!isOurs(declaration)) continue
          if (text(symbol.getDocumentationComment(checker)) === "") silent.push(at)
          if (symbol.valueDeclaration !== undefined && !(symbol.flags & ts.SymbolFlags.Class)) {
            const signatures = checker.getTypeOfSymbolAtLocation(symbol, symbol.valueDeclaration).getCallSignatures()
            signatures.forEach((signature, n) => {
              if (signatures.length > 1 && text(signature.getDocumentationComment(checker)) === "") {
                silent.push(`${at}, overload ${n + 1}`)
              }
            })
          }
          if (!(symbol.flags & ts.SymbolFlags.Interface) || !/Options$|^Bound$|^Keyed$/.test(symbol.name)) continue
          for (const property of checker.getDeclaredTypeOfSymbol(symbol).getProperties()) {
            if (
              property.name.startsWith("~") || property.name.startsWith("__") || !isOurs(property.declarations?.[0])
            ) continue
            if (text(property.getDocumentationComment(checker)) === "") silent.push(`${at}.${property.name}`)
          }
        }
      }
      assert.deepStrictEqual(silent, [])
    })
  }
})
