/**
 * How a value becomes bytes and comes back.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import * as SchemaAST from "effect/SchemaAST"
import * as SchemaIssue from "effect/SchemaIssue"
import type { StandardSchemaV1 } from "effect/StandardSchema"
import { Buffer } from "node:buffer"
import { exitOf } from "./internal/exit.ts"
import { type Invalid, InvalidId } from "./internal/invalid.ts"
import { plainOf } from "./internal/plain.ts"
import { isThenable } from "./internal/promise.ts"

/**
 * Fields of an entry that a map cannot hold as they are: names that repeat, or that are not text. A broker gives them as
 * such a map, and takes them back byte for byte. As a map each name has its last value; `getAll` gives all of them.
 *
 * @category models
 * @since 0.1.0
 */
export interface FieldMap extends ReadonlyMap<string, Uint8Array> {
  /** All values of a name, in their order; none where there is no such field. */
  readonly getAll: (name: string) => ReadonlyArray<Uint8Array>
  /** The same without the fields that `isOut` names. */
  readonly without: (isOut: (name: string) => boolean) => FieldMap
}

/**
 * The data on the wire: a body, and for brokers whose entries are field maps (Redis) all fields of the entry as they stand.
 *
 * @category models
 * @since 0.1.0
 */
export interface Wire {
  /** The body; where the entry is a field map, its field `body`. */
  readonly body: Uint8Array
  /** All fields of the entry, where the broker's entries are field maps. */
  readonly fields?: ReadonlyMap<string, Uint8Array> | FieldMap | undefined
}

/**
 * A codec between wire and value; `RD` and `RE` are the services that decoding and encoding need.
 *
 * **Details**
 *
 * `decode` and `encode` that need neither services nor waiting return an `Exit`; the engine then starts no fiber. Bytes
 * that an `Exit` rejects are dead-lettered at attempt 1; a decoding that is a real `Effect` runs inside the attempt and
 * follows the pipeline's retry policy.
 *
 * @category models
 * @since 0.1.0
 */
export interface Codec<in out A, out RD = never, out RE = never> {
  /** The header `content-type` of published messages. */
  readonly contentType: string
  /** The schema whose JSON form is on the wire, for documents about it; absent where the wire holds no JSON. */
  readonly schema?: Schema.Constraint | StandardSchemaV1 | undefined
  /** Makes a value of the received data; fails when the data do not fit. */
  readonly decode: (wire: Wire) => Effect.Effect<A, Schema.SchemaError, RD>
  /** Makes the data to send of a value; fails when the value does not fit. */
  readonly encode: (value: A) => Effect.Effect<Wire, Schema.SchemaError, RE>
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })

/** Allocates from the pool that small buffers share: an array with memory of its own costs four times as much. */
const bytesOf = (text: string): Uint8Array => Buffer.from(text)

const reject = (message: string) => Exit.fail(new Schema.SchemaError(new SchemaIssue.InvalidValue({ message })))

const notUtf8 = reject("Expected UTF-8 text")

/** A codec made of a value that is no schema, by a cast or from JavaScript: its topic is refused at its first use. */
const invalidCodec = (constructor: string, schema: unknown): Codec<any> | undefined => {
  if (Schema.isSchema(schema)) return undefined
  const invalid: Invalid = {
    option: constructor,
    value: Predicate.hasProperty(schema, "~standard") ? { toString: () => "of another library" } : schema,
    remedy: "give a schema of effect; Codec.standard takes one of zod, valibot or arktype"
  }
  const refuse = () => reject(`${invalid.option} is ${String(invalid.value)}: ${invalid.remedy}`)
  return Object.assign({ contentType: "application/octet-stream", decode: refuse, encode: refuse }, {
    [InvalidId]: invalid
  })
}

/**
 * JSON through a schema: dates, maps, options and bigints travel in the schema's canonical JSON form.
 *
 * @category constructors
 * @since 0.1.0
 */
export const json = <S extends Schema.Constraint>(
  schema: S
): Codec<S["Type"], S["DecodingServices"], S["EncodingServices"]> => {
  const invalid = invalidCodec("Codec.json", schema)
  if (invalid !== undefined) return invalid
  const codec = Schema.toCodecJson(schema)
  const decode = Schema.decodeUnknownEffect(codec)
  const encode = Schema.encodeEffect(Schema.fromJsonString(codec))
  const isPlain = plainOf(schema)
  return {
    contentType: "application/json",
    schema,
    decode(wire) {
      let value: unknown
      try {
        value = JSON.parse(utf8.decode(wire.body))
      } catch (error) {
        return error instanceof SyntaxError ? reject(`Expected JSON: ${error.message}`) : notUtf8
      }
      return isPlain?.(value) === true ? Exit.succeed(value as S["Type"]) : decode(value)
    },
    encode: (value) =>
      isPlain?.(value) === true
        ? Exit.succeed({ body: bytesOf(JSON.stringify(value)) })
        : Effect.mapEager(encode(value), (text) => ({ body: bytesOf(text) }))
  }
}

/**
 * JSON through a schema of another library with Standard Schema: zod, valibot, arktype.
 *
 * **Details**
 *
 * Such a schema only checks received data. So publishing writes the value as JSON and checks that the schema reads it
 * back: a value that a consumer could not decode is refused here. A schema that changes the type (`z.string().transform`)
 * is therefore refused on publish unless it accepts its own output. A schema that checks asynchronously decodes inside the
 * attempt and follows the retry policy.
 *
 * @category constructors
 * @since 0.1.0
 */
export const standard = <S extends StandardSchemaV1<unknown, unknown>>(
  schema: S
): Codec<StandardSchemaV1.InferOutput<S>> => {
  const broken = (error: unknown) =>
    reject(`Expected a value that ${schema["~standard"].vendor} accepts: ${String(error)}`)
  const check = (input: unknown): Effect.Effect<any, Schema.SchemaError> => {
    try {
      const result = schema["~standard"].validate(input)
      return isThenable(result) ? Effect.flatMap(Effect.promise(() => result), valueOf) : valueOf(result)
    } catch (error) {
      return broken(error)
    }
  }
  const read = (text: string) => {
    try {
      return check(JSON.parse(text))
    } catch (error) {
      return reject(`Expected JSON: ${String(error)}`)
    }
  }
  return {
    contentType: "application/json",
    schema,
    decode(wire) {
      let text: string
      try {
        text = utf8.decode(wire.body)
      } catch {
        return notUtf8
      }
      return read(text)
    },
    encode(value) {
      let text: string | undefined
      try {
        text = JSON.stringify(value)
      } catch (error) {
        return reject(`Expected a value that JSON can hold: ${String(error)}`)
      }
      if (text === undefined) return reject("Expected a value that JSON can hold")
      const encoded = Effect.mapEager(read(text), () => ({ body: bytesOf(text) }))
      // A check that breaks is tried again by a consumer, and said to a publisher.
      return exitOf(encoded) === undefined ? Effect.catchDefect(encoded, broken) : encoded
    }
  }
}

const valueOf = (result: StandardSchemaV1.Result<unknown>) =>
  result.issues === undefined
    ? Exit.succeed(result.value)
    : reject(
      result.issues.map(({ message, path = [] }) => {
        const at = path.map((segment) => String(typeof segment === "object" ? segment.key : segment)).join(".")
        return at === "" ? message : `${message} at ${at}`
      }).join("; ")
    )

/** Headers that Millrace stores among the fields of an entry. */
const isHeader = (name: string) => name === "content-type" || name === "traceparent" || name.startsWith("millrace-")

const textOf = (bytes: Uint8Array): string | undefined => {
  try {
    return utf8.decode(bytes)
  } catch {
    return undefined
  }
}

const isFieldMap = (fields: ReadonlyMap<string, Uint8Array>): fields is FieldMap => "getAll" in fields

const isList = (ast: SchemaAST.AST): boolean =>
  ast._tag === "Arrays" ||
  ast._tag === "Union" && ast.types.some(isList) && ast.types.every((type) => type._tag === "Undefined" || isList(type))

/** The fields of a record whose schema is an array. */
const listsOf = (ast: SchemaAST.AST): ReadonlySet<string> =>
  new Set(
    ast._tag === "Objects"
      ? ast.propertySignatures.filter(({ type }) => isList(type)).map(({ name }) => String(name))
      : []
  )

/**
 * Foreign entries: each field of the entry is one string of the schema's flat record, so that what
 * `XADD orders * user_id 1 action login` wrote can be consumed. Where a broker has no fields, the body is a JSON object
 * of strings. Fields that are not text, and Millrace's own headers, are not seen.
 *
 * **Details**
 *
 * A name that repeats is an array of its values, and a field whose schema is an array is always one: `tag a tag b` fits
 * `tags: Schema.Array(Schema.String)` under that name. Where the schema wants one value, such an entry does not decode.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fields = <S extends Schema.Constraint>(
  schema: S
): Codec<S["Type"], S["DecodingServices"], S["EncodingServices"]> => {
  const invalid = invalidCodec("Codec.fields", schema)
  if (invalid !== undefined) return invalid
  const codec = Schema.toCodecStringTree(schema)
  const decode = Schema.decodeUnknownEffect(codec)
  const encode = Schema.encodeEffect(codec)
  const flat = Schema.decodeUnknownEffect(Schema.Record(Schema.String, Schema.String))
  const lists = listsOf(SchemaAST.toEncoded(codec.ast))
  const read = (wire: Wire): unknown => {
    if (wire.fields === undefined) return JSON.parse(utf8.decode(wire.body))
    const record: Record<string, string | ReadonlyArray<string>> = Object.create(null)
    for (const [name, bytes] of wire.fields) {
      if (isHeader(name)) continue
      const values = isFieldMap(wire.fields) ? wire.fields.getAll(name) : [bytes]
      // A field that is not text is no concern of a schema that does not name it.
      const texts = values.map(textOf).filter((text) => text !== undefined)
      if (texts.length > 0) record[name] = texts.length > 1 || lists.has(name) ? texts : texts[0]!
    }
    return record
  }
  return {
    contentType: "application/json",
    schema: codec,
    decode(wire) {
      let record: unknown
      try {
        record = read(wire)
      } catch (error) {
        return error instanceof SyntaxError ? reject(`Expected JSON: ${error.message}`) : notUtf8
      }
      return decode(record)
    },
    encode: (value) =>
      Effect.flatMapEager(encode(value), (tree) =>
        Effect.flatMapEager(flat(tree), (record) => {
          const reserved = Object.keys(record).find(isHeader)
          if (reserved !== undefined) {
            return reject(`a field named ${reserved} would be taken for a header: give it another name`)
          }
          return Exit.succeed({
            body: bytesOf(JSON.stringify(record)),
            fields: new Map(Object.entries(record).map(([name, text]) => [name, bytesOf(text)]))
          })
        }))
  }
}

/**
 * A schema whose encoded side is bytes: MessagePack, protobuf, compressed or encrypted bodies.
 *
 * @category constructors
 * @since 0.1.0
 */
export const fromBytes = <A, RD, RE>(
  schema: Schema.ConstraintCodec<A, Uint8Array, RD, RE>
): Codec<A, RD, RE> => {
  const invalid = invalidCodec("Codec.fromBytes", schema)
  if (invalid !== undefined) return invalid
  const decode = Schema.decodeUnknownEffect(schema)
  const encode = Schema.encodeEffect(schema)
  return {
    contentType: "application/octet-stream",
    decode: (wire) => decode(wire.body),
    encode: (value) => Effect.mapEager(encode(value), (body) => ({ body }))
  }
}

/**
 * The body as it is.
 *
 * @category constructors
 * @since 0.1.0
 */
export const bytes: Codec<Uint8Array> = {
  contentType: "application/octet-stream",
  decode: (wire) => Exit.succeed(wire.body),
  encode: (body) => Exit.succeed({ body })
}

/**
 * The body as UTF-8 text; other bytes are undecodable.
 *
 * @category constructors
 * @since 0.1.0
 */
export const text: Codec<string> = {
  contentType: "text/plain; charset=utf-8",
  decode(wire) {
    try {
      return Exit.succeed(utf8.decode(wire.body))
    } catch {
      return notUtf8
    }
  },
  encode: (value) => Exit.succeed({ body: bytesOf(value) })
}
