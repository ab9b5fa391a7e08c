import type * as Transport from "@millrace/core/Transport"
import { createInbox, errors, type Msg } from "@nats-io/nats-core"
import type { Connection } from "./connection.ts"
import { answerIn } from "./headers.ts"

/** A stored message, as an answer of the API has it. */
export interface Stored {
  readonly subject: string
  readonly seq: number
  readonly time: string
  readonly body: Uint8Array
  readonly headers: Transport.Delivery["headers"]
}

/** How long the server may be silent between two messages of a batch. Milliseconds. */
const patience = 5000

const endOfBatch = 204
const nothingFound = 404

/**
 * Reads many stored messages with one request (`DIRECT.GET`, servers from 2.11). The client has such a call; the client
 * decodes headers in its reader, and a stored header whose name is no token ends the connection.
 */
export const getBatch = (
  { apiPrefix, inboxPrefix, listen, nc }: Pick<Connection, "apiPrefix" | "inboxPrefix" | "listen" | "nc">,
  stream: string,
  query: { readonly seq: number; readonly batch: number; readonly next_by_subj: string }
): Promise<ReadonlyArray<Stored>> =>
  new Promise((resolve, reject) => {
    const messages: Array<Stored> = []
    const request = `${apiPrefix}.DIRECT.GET.${stream}`
    const stop = listen({
      refused(error) {
        if (error.subject === request) end(() => reject(error))
      }
    })
    const end = (then: () => void) => {
      stop()
      clearTimeout(timer)
      if (!nc.isClosed()) answers.unsubscribe()
      then()
    }
    const receive = (error: Error | null, msg: Msg): void => {
      if (error !== null) return end(() => reject(error))
      const { added, description, headers, status } = answerIn(msg)
      // A stored message may begin with a status of its own.
      if (added("Nats-Stream") !== "") {
        timer.refresh()
        messages.push({
          subject: added("Nats-Subject"),
          seq: Number(added("Nats-Sequence")),
          time: added("Nats-Time-Stamp"),
          body: msg.data,
          headers
        })
      } else if (status === endOfBatch || status === nothingFound) end(() => resolve(messages))
      else end(() => reject(new Error(`${description} (${status})`)))
    }
    const answers = nc.subscribe(createInbox(inboxPrefix), { callback: receive })
    const timer = setTimeout(() => end(() => reject(new errors.TimeoutError())), patience)
    nc.publish(request, JSON.stringify(query), { reply: answers.getSubject() })
  })
