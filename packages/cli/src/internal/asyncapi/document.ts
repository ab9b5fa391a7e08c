import { header as recordHeader } from "@millrace/core/DeadLetter"
import type { Description, Step, Topic as TopicData } from "@millrace/core/Description"
import type { Topic } from "@millrace/core/Topic"
import type { Loaded } from "./load.ts"
import { isObject, type Json } from "./values.ts"

interface Parts {
  readonly channels: Record<
    string,
    { address: string; description?: string; messages: Record<string, Json>; "x-millrace"?: Json }
  >
  readonly operations: Record<string, Json>
  readonly messages: Record<string, Json>
}

/** Names in a document are made of these characters. */
const nameOf = (text: string): string => text.replaceAll(/[^A-Za-z0-9._-]/g, "_")

const ref = (...path: ReadonlyArray<string>): Json => ({ $ref: `#/${path.join("/")}` })

const isEffectSchema = (loaded: Loaded, u: unknown): u is Parameters<Loaded["Schema"]["toJsonSchemaDocument"]>[0] =>
  loaded.Schema.isSchema(u)

/** Replaces references to definitions. */
const renamed = (value: unknown, names: ReadonlyMap<string, string>): unknown => {
  if (Array.isArray(value)) return value.map((inner) => renamed(inner, names))
  if (!isObject(value)) return value
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => {
      const target = key === "$ref" ? /^#\/definitions\/(.*)$/.exec(String(inner))?.[1] : undefined
      const name = target === undefined ? undefined : names.get(decodeURIComponent(target).replaceAll("~1", "/"))
      return [key, name === undefined ? renamed(inner, names) : `#/components/schemas/${name}`]
    })
  )
}

/** The schemas of a document; two of one name that differ get two names. */
class Schemas {
  readonly all: Record<string, unknown> = {}
  private readonly originals = new Map<string, string>()
  private readonly loaded: Loaded

  constructor(loaded: Loaded) {
    this.loaded = loaded
  }

  /** What is on the wire, as draft 07, which AsyncAPI's own schemas are an extension of. */
  of(schema: unknown): Json {
    const { JsonSchema, Schema } = this.loaded
    if (isEffectSchema(this.loaded, schema)) {
      const { definitions, schema: root } = JsonSchema.toDocumentDraft07(Schema.toJsonSchemaDocument(schema))
      return this.place(root, definitions)
    }
    // Libraries with Standard Schema may say what they accept as JSON Schema.
    const standard = isObject(schema) || typeof schema === "function" ? Reflect.get(schema, "~standard") : undefined
    const input = standard?.jsonSchema?.input
    return typeof input === "function" ? input({ target: "draft-07" }) : {}
  }

  private place(root: object, definitions: object): Json {
    const names = new Map(Object.entries(definitions).map(([name, definition]) => [name, this.name(name, definition)]))
    for (const [name, definition] of Object.entries(definitions)) {
      this.all[names.get(name)!] = renamed(definition, names)
    }
    const placed = renamed(root, names)
    return isObject(placed) ? placed : {}
  }

  private name(name: string, definition: unknown): string {
    const text = JSON.stringify(definition)
    const wanted = nameOf(name)
    let free = wanted
    for (let i = 2; (this.originals.get(free) ?? text) !== text; i++) free = `${wanted}_${i}`
    this.originals.set(free, text)
    return free
  }
}

const record: Json = {
  type: "string",
  description: "Why the message was given up: JSON, see DeadLetter.Record",
  contentMediaType: "application/json"
}

const withHeader = (headers: Json | undefined, name: string, schema: Json): Json =>
  headers !== undefined && "properties" in headers
    ? { ...headers, properties: { ...(headers["properties"] as Json), [name]: schema } }
    : { type: "object", properties: { [name]: schema }, ...(headers === undefined ? {} : { allOf: [headers] }) }

/** Topics that a pipeline's steps publish to, by way of branches and middleware too. */
const outputs = (steps: ReadonlyArray<Step>): ReadonlyArray<TopicData> =>
  steps.flatMap((step) =>
    step.step === "to"
      ? [step]
      : step.step === "branch"
      ? Object.values(step.cases).flatMap(outputs)
      : step.step === "middleware"
      ? outputs(step.steps)
      : []
  )

class Builder {
  readonly parts: Parts = { channels: {}, operations: {}, messages: {} }
  private readonly loaded: Loaded
  private readonly nats: boolean
  readonly schemas: Schemas
  private readonly topics = new Map<string, Topic<unknown, unknown, unknown>>()

  constructor(loaded: Loaded, nats: boolean) {
    this.loaded = loaded
    this.nats = nats
    this.schemas = new Schemas(loaded)
    for (const topic of loaded.topics) this.topics.set(topic.name, topic)
    for (const pipeline of loaded.pipelines) {
      const { outputs, source } = loaded.Pipeline.topics(pipeline)
      for (const topic of [source, ...outputs]) this.topics.set(topic.name, topic)
    }
  }

  build(): void {
    for (const topic of this.topics.values()) this.topic(topic)
    for (const pipeline of this.loaded.pipelines) this.pipeline(this.loaded.Pipeline.describe(pipeline))
  }

  private channel(topic: string, message: string, description?: string): void {
    const channel = this.parts.channels[nameOf(topic)] ??= {
      address: topic,
      ...(description === undefined ? {} : { description }),
      messages: {}
    }
    channel.messages[message] = ref("components", "messages", message)
  }

  private topic(topic: Topic<unknown, unknown, unknown>): void {
    const name = nameOf(topic.name)
    const headers = "headers" in topic && topic.headers !== undefined
      ? this.schemas.of(topic.headers)
      : undefined
    const payload = this.schemas.of(topic.schema)
    const target = typeof payload["$ref"] === "string"
      ? this.schemas.all[payload["$ref"].split("/").at(-1)!]
      : payload
    const description = isObject(target) && typeof target["description"] === "string"
      ? target["description"]
      : undefined
    this.parts.messages[name] = {
      name: topic.name,
      contentType: topic.codec.contentType,
      payload,
      ...(headers === undefined ? {} : { headers }),
      ...(topic.key === undefined ? {} : { "x-millrace": { key: true } })
    }
    this.channel(topic.name, name, description)
  }

  private send(pipeline: string, topic: string, message: string, purpose: string): void {
    this.parts.operations[nameOf(`send ${topic} by ${pipeline}`)] = {
      action: "send",
      summary: purpose,
      channel: ref("channels", nameOf(topic)),
      messages: [ref("channels", nameOf(topic), "messages", message)],
      "x-millrace": { pipeline }
    }
  }

  private pipeline({ name, policies, source, steps }: Description): void {
    const message = nameOf(source.topic)
    const { concurrency, deadLetter, retry } = policies
    this.parts.operations[nameOf(`receive ${source.topic} by ${source.group}`)] = {
      action: "receive",
      summary: `Group ${source.group} handles ${source.topic}`,
      channel: ref("channels", message),
      messages: [ref("channels", message, "messages", message)],
      ...(this.nats ? { bindings: { nats: { queue: source.group, bindingVersion: "0.1.0" } } } : {}),
      "x-millrace": { pipeline: name, group: source.group, retry, deadLetter, concurrency, key: source.key }
    }
    for (const { topic } of outputs(steps)) this.send(name, topic, nameOf(topic), `Pipeline ${name} publishes`)
    if (deadLetter === false) return
    const letter = nameOf(`${deadLetter}.${source.topic}`)
    const original = this.parts.messages[message]!
    this.parts.messages[letter] = {
      ...original,
      name: `dead letter of ${source.topic}`,
      headers: withHeader(original["headers"] as Json | undefined, recordHeader, record)
    }
    this.channel(deadLetter, letter, `Messages that will not be tried again`)
    this.send(name, deadLetter, letter, `Pipeline ${name} gives up`)
  }
}

/** What the document says about itself and the broker. */
export interface About {
  readonly title: string
  readonly version: string
  /** `redis://host:port` without credentials. */
  readonly server: string | undefined
}

/** An AsyncAPI 3 document of pipelines and topics. */
export const documentOf = (loaded: Loaded, { server, title, version }: About): Json => {
  const builder = new Builder(loaded, server?.startsWith("nats") === true || server?.startsWith("tls") === true)
  builder.build()
  const { channels, messages, operations } = builder.parts
  const url = server === undefined ? undefined : new URL(server)
  return {
    asyncapi: "3.0.0",
    info: { title, version },
    defaultContentType: "application/json",
    ...(url === undefined ? {} : {
      servers: {
        broker: {
          host: url.host,
          protocol: url.protocol === "tls:" ? "nats" : url.protocol === "rediss:" ? "redis" : url.protocol.slice(0, -1)
        }
      }
    }),
    channels,
    operations,
    components: { messages, schemas: builder.schemas.all }
  }
}
