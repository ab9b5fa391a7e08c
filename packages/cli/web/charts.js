import { useEffect, useRef } from "preact/hooks"
import uPlot from "uplot"
import { html } from "./html.js"

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name)

/** A computed colour: a canvas takes no light-dark(). */
const painted = (name) => {
  const probe = document.createElement("i")
  probe.style.color = `var(${name})`
  document.body.append(probe)
  const { color: found } = getComputedStyle(probe)
  probe.remove()
  return found || color(name)
}

/** Lines over time; `rows` is [seconds, ...values]. */
export const Chart = ({ rows, names, title }) => {
  const at = useRef(null)
  const plot = useRef(null)
  useEffect(() => {
    const draw = () => {
      plot.current?.destroy()
      const axis = { stroke: painted("--soft"), grid: { stroke: painted("--line"), width: 1 }, ticks: { show: false } }
      plot.current = new uPlot(
        {
          width: at.current.clientWidth - 12,
          height: 150,
          legend: { live: false },
          axes: [axis, { ...axis, size: 60 }],
          scales: { y: { range: (_, least, most) => [0, Math.max(1, most * 1.1)] } },
          series: [
            {},
            ...names.map((label, i) => ({
              label,
              width: 2,
              stroke: painted(i === 0 ? "--accent" : "--bad"),
              spanGaps: true
            }))
          ]
        },
        rows,
        at.current
      )
    }
    draw()
    const scheme = matchMedia("(prefers-color-scheme: dark)")
    scheme.addEventListener("change", draw)
    addEventListener("resize", draw)
    return () => {
      scheme.removeEventListener("change", draw)
      removeEventListener("resize", draw)
      plot.current.destroy()
    }
  }, [names.join()])
  useEffect(() => plot.current?.setData(rows), [rows])
  return html`<div class="chart" role="img" aria-label=${title} ref=${at}></div>`
}
