import { render } from "preact"
import { useEffect, useRef, useState } from "preact/hooks"
import { Chart } from "./charts.js"
import { html } from "./html.js"

const token = document.querySelector("meta[name=millrace-token]").content
const rowsAtOnce = 100
const remembered = 300

const n = (value, digits = 0) =>
  value === undefined || value === null ? "–" : value.toLocaleString("en-US", { maximumFractionDigits: digits })

const ago = (millis) => {
  if (millis === undefined || millis === null) return "–"
  const s = Math.max(0, Math.floor(millis / 1000))
  if (s < 60) return `${s} s`
  if (s < 3600) return `${Math.floor(s / 60)} min`
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`
}

/** An id or a record may hold a number that is no date. */
const time = (millis) =>
  Math.abs(millis) <= 8.64e15 ? new Date(millis).toISOString().replace("T", " ").replace(/\.\d+Z$/, "Z") : "no date"

const link = (...parts) => `#/${parts.map(encodeURIComponent).join("/")}`

const ask = async (path, query = {}) => {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== "")
  const answer = await fetch(`/api/${path}?${new URLSearchParams(given)}`)
  const body = await answer.json()
  if (!answer.ok) throw new Error(body.error)
  return body
}

/** Asks again and again for as long as the tab is seen; keeps the last answer over a failure. */
const usePolled = (path, query, every) => {
  const [state, setState] = useState({})
  useEffect(() => {
    let timer
    let over = false
    const look = async () => {
      if (!document.hidden) {
        try {
          const data = await ask(path, query)
          if (!over) setState({ data })
        } catch (error) {
          if (!over) setState((before) => ({ ...before, error: error.message }))
        }
      }
      if (!over) timer = setTimeout(look, every)
    }
    setState({})
    look()
    return () => {
      over = true
      clearTimeout(timer)
    }
  }, [path, JSON.stringify(query), every])
  return state
}

/** A part of the address; one that was typed by hand may be no valid code. */
const decoded = (part) => {
  try {
    return decodeURIComponent(part)
  } catch {
    return part
  }
}

const useRoute = () => {
  const read = () => location.hash.slice(2).split("/").map(decoded)
  const [route, setRoute] = useState(read)
  useEffect(() => {
    const changed = () => setRoute(read())
    addEventListener("hashchange", changed)
    return () => removeEventListener("hashchange", changed)
  }, [])
  return route
}

const Problem = ({ error }) => error && html`<p class="problem" role="alert">${error}</p>`

const Card = ({ name, value, bad }) =>
  html`<div class="card"><b class=${bad ? "bad" : ""}>${value}</b><span>${name}</span></div>`

const Groups = ({ groups }) => {
  const [text, setText] = useState("")
  const [all, setAll] = useState(false)
  const wanted = text.toLowerCase()
  const found = groups
    .filter(({ group, topic }) => topic.toLowerCase().includes(wanted) || group.toLowerCase().includes(wanted))
    .toSorted((a, b) =>
      (b.lag ?? 0) + (b.pending ?? 0) - (a.lag ?? 0) - (a.pending ?? 0) || (a.topic < b.topic ? -1 : 1)
    )
  const shown = all ? found : found.slice(0, rowsAtOnce)
  return html`
    <div class="bar">
      <h2>Groups</h2>
      <input type="search" aria-label="Filter topics and groups" placeholder="Filter" value=${text} onInput=${(e) =>
    setText(e.target.value)} />
    </div>
    <table>
      <thead><tr><th>Topic</th><th>Group</th><th class="n">Lag</th><th class="n">Pending</th><th class="n">Retries waiting</th>
        <th class="n">Oldest waits</th><th class="n">Handled/s</th><th class="n">Consumers</th></tr></thead>
      <tbody>${
    shown.map((g) =>
      html`
        <tr key=${`${g.topic} ${g.group}`}>
          <td><a href=${link("topic", g.topic)}>${g.topic}</a></td><td>${g.group}</td>
          <td class="n" data-lag=${`${g.topic}/${g.group}`}>${n(g.lag)}</td><td class="n">${
        n(g.pending)
      }</td><td class="n">${n(g.retries)}</td>
          <td class="n">${ago(g.oldest)}</td><td class="n">${n(g.handled, 1)}</td>
          <td class=${g.consumers === 0 && (g.lag > 0 || g.pending > 0) ? "n bad" : "n"}>${n(g.consumers)}</td>
        </tr>`
    )
  }</tbody>
    </table>
    ${found.length === 0 && html`<p class="soft">No groups.</p>`}
    ${
    found.length > shown.length &&
    html`<p><button onClick=${() => setAll(true)}>Show all ${n(found.length)}</button></p>`
  }`
}

const Topics = ({ title, topics, to }) => {
  const [all, setAll] = useState(false)
  const shown = all ? topics : topics.slice(0, rowsAtOnce)
  return topics.length > 0 && html`
    <div class="bar"><h2>${title}</h2></div>
    <table>
      <thead><tr><th>Topic</th><th class="n">Stored</th><th class="n">Published/s</th></tr></thead>
      <tbody>${
    shown.map((t) =>
      html`
        <tr key=${t.topic}><td><a href=${link(to, t.topic)}>${t.topic}</a></td>
          <td class="n">${n(t.messages)}</td><td class="n">${n(t.published, 1)}</td></tr>`
    )
  }</tbody>
    </table>
    ${
    topics.length > shown.length && html`<p><button onClick=${() =>
      setAll(true)}>Show all ${n(topics.length)}</button></p>`
  }`
}

/** How many of the newest letters were given up for which reason. */
const Reasons = ({ topic }) => {
  const { data } = usePolled("reasons", { topic }, 15000)
  return data && Object.entries(data.reasons).map(([name, count]) => `${name} ${n(count)}`).join(", ")
}

const DeadTopics = ({ topics }) =>
  topics.length > 0 && html`
    <div class="bar"><h2>Dead letters</h2></div>
    <table>
      <thead><tr><th>Topic</th><th class="n">Stored</th><th class="n">New/s</th><th>Reasons of the newest</th></tr></thead>
      <tbody>${
    topics.slice(0, rowsAtOnce).map((t, i) =>
      html`
        <tr key=${t.topic}><td><a href=${link("dead", t.topic)}>${t.topic}</a></td>
          <td class="n">${n(t.messages)}</td><td class="n">${n(t.published, 1)}</td><td>${
        i < 10 && html`<${Reasons} topic=${t.topic} />`
      }</td></tr>`
    )
  }</tbody>
    </table>`

const Overview = ({ history, overview }) => {
  const { groups, topics } = overview
  const sum = (rows, name) => rows.reduce((all, row) => all + (row[name] ?? 0), 0)
  const dead = topics.filter((t) => t.dead && t.messages > 0)
  const letters = sum(dead, "messages")
  return html`
    <div class="cards">
      <${Card} name="lag" value=${n(sum(groups, "lag"))} />
      <${Card} name="pending" value=${n(sum(groups, "pending"))} />
      <${Card} name="handled a second" value=${n(sum(groups, "handled"), 1)} />
      <${Card} name="dead letters" value=${n(letters)} bad=${letters > 0} />
      <${Card} name="topics" value=${n(topics.length)} />
    </div>
    <${Chart} title="Messages handled a second and lag over the last minutes" names=${[
    "handled/s",
    "lag"
  ]} rows=${history} />
    <${DeadTopics} topics=${dead.toSorted((a, b) => b.messages - a.messages)} />
    <${Groups} groups=${groups} />
    <${Topics} title="Topics" topics=${topics.filter((t) => !t.dead)} to="topic" />`
}

/** The body, or the fields of an entry that another program has added. */
const content = (message) => message.fields ?? message.body

const body = (message) =>
  message.base64 ??
    (typeof message.body === "string" ? message.body : JSON.stringify(content(message), undefined, 2))

const brief = (message) => {
  const text = message.base64 !== undefined
    ? "bytes"
    : typeof message.body === "string"
    ? message.body
    : JSON.stringify(content(message))
  return text.length > 120 ? `${text.slice(0, 119)}…` : text
}

const Topic = ({ topic }) => {
  const { data, error } = usePolled("topic", { topic }, 2000)
  return html`
    <div class="bar"><h2>${topic}</h2><a href=${link("dead", topic)}>as dead letters</a></div>
    <${Problem} error=${error} />
    ${
    data && html`
      <p class="soft">${n(data.messages)} messages${data.bounds.length > 0 ? `, ${data.bounds.join(", ")}` : ""}</p>
      ${
      data.groups.map((g) => {
        const held = data.held.find((h) => h.group === g.group)?.messages ?? []
        return html`
          <h3>${g.group}</h3>
          <p>lag ${n(g.lag)}, pending ${n(g.pending)}${
          g.consumers?.length === 0 ? html`, <span class="bad">no consumer</span>` : ""
        }</p>
          ${
          (g.consumers ?? []).length > 0 && html`<table>
            <thead><tr><th>Consumer</th><th class="n">Holds</th><th class="n">Idle</th></tr></thead>
            <tbody>${
            g.consumers.map((c) =>
              html`<tr><td>${c.name}</td><td class="n">${n(c.pending)}</td><td class="n">${ago(c.idle)}</td></tr>`
            )
          }</tbody></table>`
        }
          ${
          held.length > 0 && html`<table>
            <thead><tr><th>Held message</th><th>By</th><th class="n">Attempt</th></tr></thead>
            <tbody>${
            held.map((m) =>
              html`<tr><td><a href=${link("message", topic, m.id)}>${m.id}</a></td><td>${
                m.consumer ?? "nobody: released"
              }</td><td class="n">${m.attempts}</td></tr>`
            )
          }</tbody></table>`
        }`
      })
    }
      <h3>Newest messages</h3>
      <table><tbody>${
      data.newest.map((m) =>
        html`
        <tr key=${m.id}><td class="mono"><a href=${link("message", topic, m.id)}>${m.id}</a></td>
          <td class="soft n">${time(m.publishedAt)}</td><td class="mono">${brief(m)}</td></tr>`
      )
    }</tbody></table>`
  }`
}

const Record = ({ record }) =>
  html`
  <p class="bad"><b>${record.error.tag}: ${record.error.message}</b></p>
  ${record.error.causes.map((cause) => html`<p class="soft">because of ${cause}</p>`)}
  <dl>
    <dt>reason</dt><dd>${record.reason} after ${record.attempts} attempts</dd>
    <dt>failed</dt><dd>${time(record.failedAt)}${
    record.firstFailedAt === undefined ? "" : `, first ${time(record.firstFailedAt)}`
  }</dd>
    <dt>message</dt><dd>${record.id} of ${record.topic}, group ${record.group}, pipeline ${record.pipeline}</dd>
  </dl>
  ${
    record.history.length > 0 && html`<h4>Before</h4><table><tbody>${
      record.history.map((f) =>
        html`
    <tr><td>${time(f.failedAt)}</td><td>${f.attempts} attempts</td><td>${f.error}</td></tr>`
      )
    }</tbody></table>`
  }
  ${record.error.stack && html`<pre>${record.error.stack}</pre>`}`

const Message = ({ id, topic }) => {
  const { data, error } = usePolled("find", { topic: topic === "" ? undefined : topic, id }, 10000)
  return html`
    <${Problem} error=${error} />
    ${
    data?.found.length === 0 &&
    html`<p role="status">There is no message ${id}${topic === "" ? "" : ` in ${topic}`}.</p>`
  }
    ${
    (data?.found ?? []).map((m) =>
      html`
      <article key=${`${m.topic} ${m.id}`}>
        <div class="bar"><h2><a href=${link("topic", m.topic)}>${m.topic}</a> ${m.id}</h2></div>
        <p class="soft">published ${time(m.publishedAt)}${m.key === undefined ? "" : `, key ${m.key}`}</p>
        ${m.record && html`<${Record} record=${m.record} />`}
        ${(m.earlier ?? []).map((record) => html`<h3>It was a dead letter before</h3><${Record} record=${record} />`)}
        <dl>${Object.entries(m.headers).map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl>
        <pre>${body(m)}</pre>
      </article>`
    )
  }`
}

const Confirm = ({ count, onClose, onYes, topic }) => {
  const at = useRef(null)
  useEffect(() => at.current.showModal(), [])
  return html`
    <dialog ref=${at} onClose=${onClose} aria-labelledby="confirm">
      <p id="confirm">Redrive ${n(count)} dead ${
    count === 1 ? "letter" : "letters"
  } of <b>${topic}</b>? Each message is published again, for the group that it failed in.</p>
      <form method="dialog" class="bar">
        <button class="act" onClick=${onYes}>Redrive</button>
        <button>Cancel</button>
      </form>
    </dialog>`
}

const reasons = ["exhausted", "rejected", "terminated", "undecodable", "crashed"]

const Dead = ({ mayRedrive, topic }) => {
  const [text, setText] = useState("")
  const [reason, setReason] = useState("")
  const [pages, setPages] = useState([undefined])
  const [chosen, setChosen] = useState(new Set())
  const [asking, setAsking] = useState(false)
  const [said, setSaid] = useState()
  const [round, setRound] = useState(0)
  const before = pages.at(-1)
  const { data, error } = usePolled("dead", { topic, before, text, reason, round }, 5000)
  const summary = usePolled("reasons", { topic, round }, 15000).data
  const filter = (set) => (e) => {
    set(e.target.value)
    setPages([undefined])
  }
  const choose = (ids, on) =>
    setChosen((old) => {
      const next = new Set(old)
      for (const id of ids) next[on ? "add" : "delete"](id)
      return next
    })
  const redrive = async () => {
    try {
      const answer = await fetch("/api/redrive", {
        method: "POST",
        headers: { "content-type": "application/json", "x-millrace-token": token },
        body: JSON.stringify({ topic, ids: [...chosen] })
      })
      const result = await answer.json()
      if (!answer.ok) throw new Error(result.error)
      const refused = result.refused === undefined
        ? ""
        : `; ${result.refused.count} stay: ${result.refused.first[0].detail}`
      const capped = result.capped === 0 ? "" : `; ${result.capped} stay, redriven too often`
      setSaid(`${result.redriven} redriven${capped}${refused}`)
      setChosen(new Set())
      setRound((round) => round + 1)
    } catch (problem) {
      setSaid(problem.message)
    }
  }
  const letters = data?.letters ?? []
  return html`
    <div class="bar">
      <h2>${topic}</h2>
      <select aria-label="Reason" value=${reason} onChange=${filter(setReason)}>
        <option value="">every reason</option>${reasons.map((r) => html`<option value=${r}>${r}</option>`)}
      </select>
      <input type="search" aria-label="Text in the error" placeholder="Text in the error" value=${text} onInput=${
    filter(setText)
  } />
      ${
    mayRedrive && html`<button class="act" disabled=${chosen.size === 0} onClick=${() =>
      setAsking(true)}>Redrive ${n(chosen.size)}</button>`
  }
    </div>
    ${
    summary &&
    html`<p class="soft">Of the newest ${n(summary.counted)}: ${
      [...Object.entries(summary.reasons), ...Object.entries(summary.tags)].map(([name, count]) =>
        `${name} ${n(count)}`
      ).join(", ")
    }</p>`
  }
    <${Problem} error=${error} />
    ${said && html`<p role="status">${said}</p>`}
    ${data && letters.length === 0 && !data.next && html`<p class="soft">No dead letters.</p>`}
    ${
    data?.next && letters.length < 50 &&
    html`<p class="soft">${n(letters.length)} of ${n(data.looked)} letters; the search goes on with Older.</p>`
  }
    ${
    letters.length > 0 && html`<table>
      <thead><tr>
        ${
      mayRedrive &&
      html`<th><input type="checkbox" aria-label="Choose all of this page" checked=${
        letters.every((l) => chosen.has(l.id))
      }
          onChange=${(e) => choose(letters.map((l) => l.id), e.target.checked)} /></th>`
    }
        <th>Letter</th><th class="n">Failed</th><th>Group</th><th>Reason</th><th class="n">Tries</th><th>Error</th></tr></thead>
      <tbody>${
      letters.map((l) =>
        html`
        <tr key=${l.id}>
          ${
          mayRedrive &&
          html`<td><input type="checkbox" aria-label=${`Choose ${l.id}`} checked=${chosen.has(l.id)} onChange=${(e) =>
            choose([l.id], e.target.checked)} /></td>`
        }
          <td class="mono"><a href=${link("message", topic, l.id)}>${l.id}</a></td><td class="n">${
          ago(Date.now() - l.record.failedAt)
        } ago</td>
          <td>${l.record.group}</td><td>${l.record.reason}</td><td class="n">${l.record.attempts}</td><td>${l.record.error.tag}: ${l.record.error.message}</td>
        </tr>`
      )
    }</tbody></table>`
  }
    <p class="bar">
      ${pages.length > 1 && html`<button onClick=${() => setPages(pages.slice(0, -1))}>Newer</button>`}
      ${data?.next && html`<button onClick=${() => setPages([...pages, data.next])}>Older</button>`}
    </p>
    ${
    asking &&
    html`<${Confirm} count=${chosen.size} topic=${topic} onYes=${redrive} onClose=${() => setAsking(false)} />`
  }`
}

const Find = () => {
  const at = useRef(null)
  useEffect(() => {
    const key = (event) => {
      const { tagName } = event.target
      if (event.key !== "/" || tagName === "INPUT" || tagName === "SELECT") return
      event.preventDefault()
      at.current.focus()
      at.current.select()
    }
    addEventListener("keydown", key)
    return () => removeEventListener("keydown", key)
  }, [])
  const go = (event) => {
    event.preventDefault()
    // The id has no spaces; the topic's name may have some.
    const [, topic = "", id] = /^(?:(.*\S)\s+)?(\S*)$/.exec(at.current.value.trim())
    if (id !== "") location.hash = link("message", topic, id)
  }
  return html`<form onSubmit=${go} role="search">
    <input ref=${at} type="search" aria-label="Find a message: topic and id, or only the id" placeholder="topic id    ( / )" />
  </form>`
}

const App = () => {
  const route = useRoute()
  const { data: overview, error } = usePolled("overview", {}, 2000)
  const [history, setHistory] = useState([[], [], []])
  useEffect(() => {
    if (overview === undefined) return
    const sum = (name) => overview.groups.reduce((all, row) => all + (row[name] ?? 0), 0)
    setHistory(([at, handled, lag]) => {
      if (at.at(-1) === overview.at / 1000) return [at, handled, lag]
      return [[...at, overview.at / 1000], [...handled, sum("handled")], [...lag, sum("lag")]].map((all) =>
        all.slice(-remembered)
      )
    })
  }, [overview])
  const [page, first = "", second = ""] = route
  return html`
    <header>
      <h1><a href="#/">Millrace</a></h1>
      <span class="about">${
    overview && `${overview.broker}   ${overview.server}${overview.mayRedrive ? "" : "   read only"}`
  }</span>
      <${Find} />
    </header>
    <main>
      <${Problem} error=${error} />
      ${
    page === "topic" ?
      html`<${Topic} key=${first} topic=${first} />`
      : page === "dead" ?
      html`<${Dead} key=${first} topic=${first} mayRedrive=${overview?.mayRedrive} />`
      : page === "message" ?
      html`<${Message} key=${`${first} ${second}`} topic=${first} id=${second} />`
      : overview ?
      html`<${Overview} overview=${overview} history=${history} />`
      : html`<p>Loading…</p>`
  }
    </main>`
}

const root = document.getElementById("app")
root.replaceChildren()
render(html`<${App} />`, root)
