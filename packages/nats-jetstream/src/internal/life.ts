/**
 * One life of a stream. A stream that is deleted and created again counts from 1 again: a sequence names a message only
 * together with the moment at which its stream was created.
 */
export interface Life {
  readonly stream: string
  /** When the stream was created, in milliseconds, base 36: the first part of message ids. */
  readonly token: string
  /** As in `Transport.Delivery.origin`. */
  readonly origin: string
}

/** The server's own name is in no origin: it changes with each start, and in a cluster with each node. */
export const lifeOf = (info: { readonly config: { readonly name: string }; readonly created: string }): Life => ({
  stream: info.config.name,
  token: Math.max(0, Date.parse(info.created) || 0).toString(36),
  origin: `nats/${info.config.name}/${info.created}`
})

export const idOf = (life: Life, sequence: number | string): string => `${life.token}-${sequence}`

/** A bare sequence is of whatever life the stream has now; `undefined`: no id of ours. */
const parseId = (id: string): { readonly token: string | undefined; readonly sequence: number } | undefined => {
  const match = /^(?:([0-9a-z]+)-)?([1-9][0-9]{0,15})$/.exec(id)
  return match === null ? undefined : { token: match[1], sequence: Number(match[2]) }
}

/** The sequence of an id in this life; `undefined` where the id is of another one. */
export const sequenceIn = (life: Life, id: string): number | undefined => {
  const parsed = parseId(id)
  return parsed === undefined || (parsed.token !== undefined && parsed.token !== life.token)
    ? undefined
    : parsed.sequence
}

/** Whether an id is of an earlier life of the stream. */
export const isEarlier = (life: Life, id: string): boolean => {
  const token = parseId(id)?.token
  return token !== undefined && Number.parseInt(token, 36) < Number.parseInt(life.token, 36)
}

/** The present lives of the streams that a connection has seen. */
export class Lives {
  private readonly known = new Map<string, { readonly life: Life; highest: number }>()

  /** Remembers what the server has just told of a stream. */
  note(info: Parameters<typeof lifeOf>[0]): Life {
    const life = lifeOf(info)
    const known = this.known.get(life.stream)
    if (known?.life.origin === life.origin) return known.life
    this.known.set(life.stream, { life, highest: 0 })
    return life
  }

  /** `undefined`: the server has to be asked. A sequence that was given before is of a new life. */
  ofPublished(stream: string, sequence: number, isDuplicate: boolean): Life | undefined {
    const known = this.known.get(stream)
    if (known === undefined) return undefined
    if (isDuplicate) return known.life
    if (sequence <= known.highest) return undefined
    known.highest = sequence
    return known.life
  }
}
