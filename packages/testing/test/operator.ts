/** What an operator does at a server, by its plain protocol: no client of ours takes part. */
import * as Effect from "effect/Effect"
import * as net from "node:net"

interface Server {
  readonly host: string
  readonly port: number
}

/** Sends text and resolves with what has come back when `isWhole` says so. */
const exchange = ({ host, port }: Server, text: string, isWhole: (answer: string) => boolean): Effect.Effect<string> =>
  Effect.callback<string>((resume) => {
    const socket = net.connect(port, host)
    let answer = ""
    socket.on("data", (piece) => {
      answer += piece.toString()
      if (!isWhole(answer)) return
      socket.destroy()
      resume(Effect.succeed(answer))
    })
    socket.on("error", (error) => resume(Effect.die(error)))
    socket.on("close", () => resume(Effect.die(new Error(`the server hung up after: ${answer}`))))
    socket.write(text)
    return Effect.sync(() => socket.destroy())
  })

/** Runs one Redis command. */
export const redis = (server: Server, ...words: ReadonlyArray<string>): Effect.Effect<string> => {
  const command = words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join("")
  // The second command tells where the answer to the first one ends.
  const end = "*2\r\n$4\r\nECHO\r\n$9\r\nthe-end-.\r\n"
  return exchange(server, `*${words.length}\r\n${command}${end}`, (answer) => answer.endsWith("the-end-.\r\n"))
}

/** The names of a group's consumers. */
export const redisConsumers = (server: Server, topic: string, group: string): Effect.Effect<ReadonlyArray<string>> =>
  Effect.map(
    redis(server, "XINFO", "CONSUMERS", topic, group),
    (answer) => [...answer.matchAll(/\$4\r\nname\r\n\$\d+\r\n(.*?)\r\n/g)].map(([, name]) => name!)
  )

/** Asks the JetStream API. */
export const jetStream = (server: Server, subject: string, body = ""): Effect.Effect<string> =>
  exchange(
    server,
    `CONNECT {"verbose":false}\r\nSUB inbox 1\r\nPUB $JS.API.${subject} inbox ${
      Buffer.byteLength(body)
    }\r\n${body}\r\n`,
    (answer) => /MSG inbox 1 \d+\r\n.*\r\n/.test(answer)
  )
