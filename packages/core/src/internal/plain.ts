import * as Schema from "effect/Schema"
import * as AST from "effect/SchemaAST"

/** Whether a schema decodes a parsed JSON value to itself, and encodes it as itself. `false` says nothing. */
export type IsPlain = (value: unknown) => boolean

/**
 * A schema of nothing but strings, numbers, booleans, literals and structs of them changes no JSON value that has the
 * fields of the schema in their order, and no others: such a value needs no walk through the schema's parsers.
 *
 * `undefined` where the schema has anything else. Whatever the function refuses is for the schema itself to judge, so
 * that its errors, and its treatment of other fields, are the schema's own.
 */
export const plainOf = (schema: Schema.Constraint): IsPlain | undefined => ofAst(schema.ast)

const [finite] = Schema.Finite.ast.checks!
const [int] = Schema.Int.ast.checks!

/** Annotations that say nothing about values. */
const documentary = new Set(["identifier", "title", "description", "documentation", "examples"])

const ofAst = (ast: AST.AST): IsPlain | undefined => {
  if (ast.encoding !== undefined || ast.context?.isOptional === true) return undefined
  if (Object.keys(ast.annotations ?? {}).some((name) => !documentary.has(name))) return undefined
  if (AST.isNumber(ast)) return ofNumber(ast.checks)
  if (ast.checks !== undefined) return undefined
  if (AST.isString(ast)) return (value) => typeof value === "string"
  if (AST.isBoolean(ast)) return (value) => typeof value === "boolean"
  if (AST.isLiteral(ast)) return ofLiteral(ast.literal)
  if (AST.isObjects(ast)) return ofStruct(ast)
  return undefined
}

/** Infinite numbers, which JSON text can give, are for the schema to judge. */
const ofNumber = (checks: AST.Checks | undefined): IsPlain | undefined => {
  if (checks === undefined || (checks.length === 1 && checks[0] === finite)) return Number.isFinite
  return checks.length === 1 && checks[0] === int ? Number.isSafeInteger : undefined
}

const ofLiteral = (literal: AST.LiteralValue): IsPlain | undefined =>
  typeof literal === "bigint" ? undefined : (value) => value === literal

const ofStruct = ({ encodingChecks, indexSignatures, propertySignatures }: AST.Objects): IsPlain | undefined => {
  if (indexSignatures.length > 0 || encodingChecks !== undefined || propertySignatures.length === 0) return undefined
  const names: Array<string> = []
  const fields: Array<IsPlain> = []
  for (const { name, type } of propertySignatures) {
    const field = ofAst(type)
    if (field === undefined || typeof name !== "string") return undefined
    names.push(name)
    fields.push(field)
  }
  return (value) => {
    if (typeof value !== "object" || value === null) return false
    const prototype: unknown = Object.getPrototypeOf(value)
    if (prototype !== Object.prototype && prototype !== null) return false
    let i = 0
    for (const name in value) {
      if (name !== names[i] || !fields[i]!((value as Record<string, unknown>)[name])) return false
      i++
    }
    return i === names.length
  }
}
