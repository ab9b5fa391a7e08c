declare module "parse-prometheus-text-format" {
  interface Sample {
    readonly labels?: { readonly [name: string]: string }
    readonly value?: string
  }
  export default function parse(text: string): ReadonlyArray<{
    readonly name: string
    readonly type: string
    readonly help: string
    readonly metrics: ReadonlyArray<Sample>
  }>
}
