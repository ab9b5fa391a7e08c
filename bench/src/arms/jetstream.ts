/**
 * JetStream without a framework: `pull` is the fastest loop we know of, `callback` the client's own fast way, `naive` its
 * iterator.
 */
import { type Consumer, jetstream, jetstreamManager, type JsMsg } from "@nats-io/jetstream"
import { createInbox, type Msg, type NatsConnection } from "@nats-io/nats-core"
import { connect } from "@nats-io/transport-node"
import { type Arm, type MakeArm, sleep } from "../arm.ts"
import { decodeBytes } from "../order.ts"
import { makePool } from "../pool.ts"
import { group } from "../spec.ts"

const createConsumer = async (nc: NatsConnection, topic: string): Promise<Consumer> => {
  const jsm = await jetstreamManager(nc)
  await jsm.consumers.add(topic, { durable_name: group, ack_policy: "explicit", max_ack_pending: -1 })
  return jetstream(nc).consumers.get(topic, group)
}

/** Unbounded: as many messages are owned as the server allows. */
export const callback: MakeArm = async (url): Promise<Arm> => {
  const nc = await connect({ servers: url })
  return {
    async consume(topic, handle) {
      const consumer = await createConsumer(nc, topic)
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
const askAgainAt = 144
const prefetch = 512
const ack = new TextEncoder().encode("+ACK")

/** Requests on credit, answered to one inbox; acknowledgements of one chunk of the socket leave in one write. */
export const pull: MakeArm = async (url, spec): Promise<Arm> => {
  const nc = await connect({ servers: url })
  return {
    async consume(topic, handle) {
      await createConsumer(nc, topic)
      const inbox = createInbox()
      let open = 0
      const ask = (count: number) => {
        open += count
        const request = { batch: count, expires: 30e9, idle_heartbeat: 5e9 }
        nc.publish(`$JS.API.CONSUMER.MSG.NEXT.${topic}.${group}`, JSON.stringify(request), { reply: inbox })
      }
      const isStatus = (message: Msg) => message.data.length === 0 && message.headers !== undefined
      const onMessage = (message: Msg) => {
        handle(decodeBytes(message.data))
        nc.publish(message.reply!, ack)
        if (--open <= credit - askAgainAt) ask(credit - open)
      }
      const most = spec.concurrency + prefetch
      const pool = makePool<Msg>({
        concurrency: spec.concurrency,
        prefetch,
        work: (message) => {
          const order = decodeBytes(message.data)
          return sleep(spec.delay).then(() => handle(order))
        },
        settle: (messages) => {
          for (const message of messages) nc.publish(message.reply!, ack)
        },
        refill: () => {
          const room = most - pool.owned() - open
          if (room >= prefetch / 4) ask(room)
        }
      })
      let chunk: Array<Msg> = []
      const onMessagePooled = (message: Msg) => {
        open--
        if (chunk.push(message) > 1) return
        queueMicrotask(() => {
          const messages = chunk
          chunk = []
          pool.push(messages)
        })
      }
      const handler = spec.delay === 0 ? onMessage : onMessagePooled
      const subscription = nc.subscribe(inbox, {
        callback: (error, message) => {
          if (error === null && !isStatus(message)) handler(message)
        }
      })
      ask(spec.delay === 0 ? credit : most)
      return async () => subscription.unsubscribe()
    },
    close: () => nc.close()
  }
}

/** The client's iterator as it comes. */
export const naive: MakeArm = async (url): Promise<Arm> => {
  const nc = await connect({ servers: url })
  return {
    async consume(topic, handle) {
      const consumer = await createConsumer(nc, topic)
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
