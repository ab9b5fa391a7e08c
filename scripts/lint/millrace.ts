/**
 * Two rules that no published plugin has without ESLint itself.
 *
 * - `public-docs`: every public export has a JSDoc summary, a `@category` and a `@since`; every module a summary and
 *   a `@since`
 * - `public-types`: no `any` in what is published; runs over the declarations that the build emits
 */
interface Comment {
  readonly type: "Block" | "Line"
  readonly value: string
}

interface Node {
  readonly type: string
  readonly name?: string
  readonly id?: Node
  readonly declaration?: Node | null
  readonly declarations?: ReadonlyArray<Node>
  readonly parent?: Node | null
}

interface Context {
  readonly sourceCode: {
    readonly text: string
    readonly getAllComments: () => ReadonlyArray<Comment>
    readonly getCommentsBefore: (node: Node) => ReadonlyArray<Comment>
  }
  readonly report: (problem: { readonly node: Node; readonly message: string }) => void
}

const nameOf = (node: Node | null | undefined): string | undefined =>
  node?.id?.name ?? node?.declarations?.[0]?.id?.name

const lacking = (comment: Comment | undefined, wanted: ReadonlyArray<string>): ReadonlyArray<string> => {
  if (comment?.type !== "Block" || !comment.value.startsWith("*")) return ["JSDoc"]
  const lines = comment.value.split("\n").map((line) => line.replace(/^\s*\*+/, "").trim()).filter((line) =>
    line !== ""
  )
  return wanted.filter((what) =>
    what.startsWith("@")
      ? !lines.some((line) => line.startsWith(`${what} `))
      : lines[0] === undefined || lines[0].startsWith("@")
  )
}

const publicDocs = (context: Context) => {
  const check = (node: Node, subject: string, comment: Comment | undefined, wanted: ReadonlyArray<string>) => {
    const lacks = lacking(comment, wanted)
    if (lacks.length > 0) context.report({ node, message: `${subject} lacks ${lacks.join(" and ")}` })
  }
  return {
    Program: (node: Node) => {
      const isBarrel = /^export \* as /m.test(context.sourceCode.text)
      check(node, "the module", context.sourceCode.getAllComments()[0], isBarrel ? ["@since"] : ["a summary", "@since"])
    },
    ExportNamedDeclaration: (node: Node) => {
      if (node.declaration === null) return
      const comment = context.sourceCode.getCommentsBefore(node).at(-1)
      if (comment?.value.includes("@internal")) return
      check(node, nameOf(node.declaration) ?? "the export", comment, ["a summary", "@category", "@since"])
    }
  }
}

const publicTypes = (context: Context) => ({
  TSAnyKeyword: (node: Node) => {
    let top = node
    while (top.parent && top.parent.type !== "Program" && top.parent.type !== "ExportNamedDeclaration") top = top.parent
    // What the compiler makes of `class X extends Data.TaggedError(…)`: Effect's own type, not ours.
    if (nameOf(top)?.endsWith("_base")) return
    context.report({ node, message: `the declaration of ${nameOf(top)} contains any` })
  }
})

export default {
  meta: { name: "millrace" },
  rules: { "public-docs": { create: publicDocs }, "public-types": { create: publicTypes } }
}
