/**
 * JetStream without a framework: `pull` and `to` are the fastest loops we know of, `callback` the client's own fast way,
 * `naive` its iterator, `publish` its publishing.
 */
import { type Consumer, jetstream, jetstreamManager, type JsMsg } from "@nats-io/jetstream"
import { createInbox, headers, type Msg, type NatsConnection } from "@nats-io/nats-core"
import { connect } from "@nats-io/transport-node"
import { type Arm, type MakeArm, sleep } from "../arm.ts"
import { Gate } from "../gate.ts"
import { decodeBytes, encode, type Order } from "../order.ts"
import { makePool } from "../pool.ts"
import { outputOf } from "../spec.ts"

const createConsumer = async (nc: NatsConnection, topic: string, group: string): Promise<Consumer> => {
  const jsm = await jetstreamManager(nc)
  await jsm.consumers.add(topic, { durable_name: group, ack_policy: "explicit", max_ack_pending: -1 })
  return jetstream(nc).consumers.get(topic, group)
}

/** Unbounded: as many messages are owned as the server allows. */
export const callback: MakeArm = async (url): Promise<Arm> => {
  const nc = await connect({ servers: url })
  return {
    async consume(topic, group, handle) {
      const consumer = await createConsumer(nc, topic, group)
      const messages = await consumer.consume({
        max_messages: 1000,
        callback: (message) => {
          handle(decodeBytes(message.data))
          message.ack()
        }
      })
      return async () => messages.stop()
    },
    close: () => nc.close()
  }
}

const credit = 576

/** The server ends a connection for which more than 64 MB wait: large messages are asked for in smaller numbers. */
const creditFor = (size: number): number => Math.min(credit, Math.max(8, Math.floor(32e6 / size)))
const prefetch = 512
const maxUnanswered = 1000
const ack = new TextEncoder().encode("+ACK")

/** Pull requests whose messages come to one inbox. */
const requests = async (
  nc: NatsConnection,
  topic: string,
  group: string,
  onMessage: (message: Msg) => void
): Promise<{ readonly ask: (count: number) => void; readonly stop: () => Promise<void> }> => {
  await createConsumer(nc, topic, group)
  const inbox = createInbox()
  const isStatus = (message: Msg) => message.data.length === 0 && message.headers !== undefined
  const subscription = nc.subscribe(inbox, {
    callback: (error, message) => {
      if (error === null && !isStatus(message)) onMessage(message)
    }
  })
  return {
    ask(count) {
      const request = { batch: count, expires: 30e9, idle_heartbeat: 5e9 }
      nc.publish(`$JS.API.CONSUMER.MSG.NEXT.${topic}.${group}`, JSON.stringify(request), { reply: inbox })
    },
    stop: async () => subscription.unsubscribe()
  }
}

/** Requests on credit; acknowledgements of one chunk of the socket leave in one write. */
export const pull: MakeArm = async (url, spec): Promise<Arm> => {
  const nc = await connect({ servers: url })
  return {
    async consume(topic, group, handle) {
      if (spec.delay > 0) return pooled(nc, topic, group, spec.concurrency, spec.delay, handle)
      const most = creditFor(spec.size)
      let open = most
      const { ask, stop } = await requests(nc, topic, group, (message) => {
        handle(decodeBytes(message.data))
        nc.publish(message.reply!, ack)
        if (--open > most * 0.75) return
        ask(most - open)
        open = most
      })
      ask(most)
      return stop
    },
    close: () => nc.close()
  }
}

/** Handlers that wait run in a pool as large as the pipeline's limit. */
const pooled = async (
  nc: NatsConnection,
  topic: string,
  group: string,
  concurrency: number,
  delay: number,
  handle: (order: Order) => void
): Promise<() => Promise<void>> => {
  const max = concurrency + prefetch
  let open = max
  let chunk: Array<Msg> = []
  const { ask, stop } = await requests(nc, topic, group, (message) => {
    open--
    if (chunk.push(message) > 1) return
    queueMicrotask(() => {
      const messages = chunk
      chunk = []
      pool.push(messages)
    })
  })
  const pool = makePool<Msg>({
    concurrency,
    prefetch,
    work: (message) => {
      const order = decodeBytes(message.data)
      return sleep(delay).then(() => handle(order))
    },
    settle: (messages) => {
      for (const message of messages) nc.publish(message.reply!, ack)
    },
    refill: () => {
      const room = max - pool.owned() - open
      if (room < prefetch / 4) return
      open += room
      ask(room)
    }
  })
  ask(max)
  return stop
}

const failure = /"error"/
const utf8 = new TextDecoder()

/**
 * Publishes under an id, and acknowledges after the confirmation. As many messages as the concurrency are on their way,
 * all confirmations come to one inbox, and as many again are read ahead.
 */
export const to: MakeArm = async (url, spec): Promise<Arm> => {
  const nc = await connect({ servers: url })
  return {
    async consume(topic, group, handle) {
      const output = outputOf(topic, group)
      const jsm = await jetstreamManager(nc)
      await jsm.streams.add({ name: output, subjects: [output], storage: "memory", allow_direct: true })
      const inbox = createInbox()
      const published = new Map<string, string>()
      let waiting: Array<Msg> = []
      let head = 0
      let open = credit
      let ids = 0
      const advance = () => {
        while (published.size < spec.concurrency && head < waiting.length) {
          const message = waiting[head++]!
          const order = decodeBytes(message.data)
          handle(order)
          const token = String(ids++)
          published.set(token, message.reply!)
          const carried = headers()
          carried.set("Nats-Msg-Id", order.id)
          nc.publish(output, encode(order), { headers: carried, reply: `${inbox}.${token}` })
        }
        if (head === waiting.length) {
          waiting = []
          head = 0
        }
        const room = credit - open - (waiting.length - head)
        if (room < credit / 4) return
        open += room
        ask(room)
      }
      let isDue = false
      /** Once for each chunk of the socket. */
      const advanceSoon = () => {
        if (isDue) return
        isDue = true
        queueMicrotask(() => {
          isDue = false
          advance()
        })
      }
      const confirmations = nc.subscribe(`${inbox}.*`, {
        callback: (_, message) => {
          const token = message.subject.slice(inbox.length + 1)
          if (failure.test(utf8.decode(message.data))) throw new Error(`not published: ${utf8.decode(message.data)}`)
          nc.publish(published.get(token)!, ack)
          published.delete(token)
          advanceSoon()
        }
      })
      const { ask, stop } = await requests(nc, topic, group, (message) => {
        open--
        waiting.push(message)
        advanceSoon()
      })
      ask(credit)
      return () => {
        confirmations.unsubscribe()
        return stop()
      }
    },
    close: () => nc.close()
  }
}

/** The client's `js.publish`, at most 1000 of them unanswered. */
export const publish: MakeArm = async (url): Promise<Arm> => {
  const nc = await connect({ servers: url })
  const js = jetstream(nc)
  return {
    async publish(topic, orders) {
      const gate = new Gate(maxUnanswered)
      const leave = () => gate.leave()
      for (const order of orders) {
        const full = gate.enter()
        void js.publish(topic, encode(order)).then(leave)
        if (full !== undefined) await full
      }
      await gate.empty()
    },
    close: () => nc.close()
  }
}

/** The client's iterator as it comes. */
export const naive: MakeArm = async (url): Promise<Arm> => {
  const nc = await connect({ servers: url })
  return {
    async consume(topic, group, handle) {
      const consumer = await createConsumer(nc, topic, group)
      const messages = await consumer.consume()
      const loop = async () => {
        for await (const message of messages as AsyncIterable<JsMsg>) {
          handle(decodeBytes(message.data))
          message.ack()
        }
      }
      void loop()
      return async () => messages.stop()
    },
    close: () => nc.close()
  }
}
