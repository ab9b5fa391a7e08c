import { type Address, nameOf } from "./address.ts"
import { list, text } from "./reply.ts"

/** CRC16 (XMODEM), as the cluster specification has it. */
const crc16 = (bytes: Uint8Array): number => {
  let crc = 0
  for (const byte of bytes) {
    crc ^= byte << 8
    for (let bit = 0; bit < 8; bit++) crc = (crc & 0x8000) === 0 ? crc << 1 : crc << 1 ^ 0x1021
  }
  return crc & 0xffff
}

/** The slot of a key: only what stands between the first braces counts, if anything does. */
export const slotOf = (key: string): number => {
  const open = key.indexOf("{")
  const close = open < 0 ? -1 : key.indexOf("}", open + 1)
  return crc16(Buffer.from(close > open + 1 ? key.slice(open + 1, close) : key)) % 16384
}

/** Which node serves which slot, as far as it is known. */
export class SlotMap {
  private readonly nodes = new Array<Address | undefined>(16384)

  get(slot: number): Address | undefined {
    return this.nodes[slot]
  }

  set(slot: number, address: Address): void {
    this.nodes[slot] = address
  }

  known(): ReadonlyArray<Address> {
    const byName = new Map<string, Address>()
    for (const address of this.nodes) if (address !== undefined) byName.set(nameOf(address), address)
    return [...byName.values()]
  }

  /** Reads the reply of `CLUSTER SLOTS`. A node without a host is the one that answered. */
  read(reply: unknown, from: Address): void {
    this.nodes.fill(undefined)
    for (const range of list(reply)) {
      const [first, last, master] = list(range)
      const [host, port] = list(master)
      // A node that does not know its own name says so with nothing, null or a question mark.
      const isNamed = host !== null && text(host) !== "" && text(host) !== "?"
      const address = { host: isNamed ? text(host) : from.host, port: Number(port) }
      for (let slot = Number(first); slot <= Number(last); slot++) this.nodes[slot] = address
    }
  }
}

/** Where `MOVED slot host:port` or `ASK slot host:port` points. */
export const redirection = (
  message: string,
  from: Address
): { readonly slot: number; readonly address: Address } | undefined => {
  const match = /^(?:MOVED|ASK) (\d+) (.*):(\d+)/.exec(message)
  if (match === null) return undefined
  return {
    slot: Number(match[1]),
    address: { host: match[2] === "" || match[2] === "?" ? from.host : match[2]!, port: Number(match[3]) }
  }
}
