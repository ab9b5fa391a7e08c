const escape = (text: string): string => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;")

const style = `<style>
text { font: 13px system-ui, sans-serif; fill: #57606a }
.title { font-weight: 600 }
.line { fill: none; stroke: #4c8dd6; stroke-width: 1.5 }
.axis { stroke: #9aa4ae; stroke-width: 1 } .grid { stroke: #9aa4ae; stroke-opacity: .25 }
@media (prefers-color-scheme: dark) { text { fill: #9aa4ae } }
</style>`

const svg = (width: number, height: number, body: ReadonlyArray<string>): string =>
  `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img">
${[style, ...body].join("\n")}
</svg>
`

const text = (x: number, y: number, content: string, attributes = ""): string =>
  `<text x="${x}" y="${y}" ${attributes}>${escape(content)}</text>`

const line = (x1: number, y1: number, x2: number, y2: number, kind: string): string =>
  `<line x1="${x1.toFixed(1)}" y1="${y1.toFixed(1)}" x2="${x2.toFixed(1)}" y2="${y2.toFixed(1)}" class="${kind}"/>`

export interface Curve {
  readonly title: string
  readonly points: ReadonlyArray<readonly [number, number]>
}

/** Curves below each other, each from 0. */
export const curves = (given: ReadonlyArray<Curve>, x: string, y: string): string => {
  const left = 60
  const width = 560
  const height = 120
  const body: Array<string> = []
  given.forEach(({ points, title }, index) => {
    const top = 30 + index * (height + 50)
    const mostX = points.reduce((most, [x]) => Math.max(most, x), 1)
    const mostY = Math.ceil(points.reduce((most, [, y]) => Math.max(most, y), 1) / 50) * 50
    const place = ([x, y]: readonly [number, number]) =>
      `${(left + x / mostX * width).toFixed(1)},${(top + height - y / mostY * height).toFixed(1)}`
    body.push(
      text(left, top - 8, title, `class="title"`),
      line(left, top, left, top + height, "axis"),
      line(left, top + height, left + width, top + height, "axis"),
      line(left, top, left + width, top, "grid"),
      text(left - 6, top + 5, String(mostY), `text-anchor="end"`),
      text(left - 6, top + height, `0 ${y}`, `text-anchor="end"`),
      text(left + width, top + height + 16, `${mostX.toFixed(mostX < 10 ? 1 : 0)} ${x}`, `text-anchor="end"`),
      `<polyline points="${points.map(place).join(" ")}" class="line"/>`
    )
  })
  return svg(left + width + 30, 30 + given.length * (height + 50), body)
}
