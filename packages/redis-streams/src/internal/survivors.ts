import { type Outstanding, RedisDelivery } from "./entry.ts"

/** Notices that a group gives entries out once more, and leaves out those that the engine still works on. */
export class Survivors {
  /** The last entry that was read. */
  lastRead = "0-0"
  private deliveries: ReadonlyMap<string, RedisDelivery> = new Map()
  private readonly outstanding: Outstanding

  constructor(outstanding: Outstanding) {
    this.outstanding = outstanding
  }

  /** The group was deleted or moved back: what the engine has now may come once more. */
  note(): void {
    this.deliveries = new Map(this.outstanding.all().map((delivery) => [delivery.id, delivery]))
  }

  /** Those of a read that the engine does not have. */
  without(read: ReadonlyArray<RedisDelivery>, now: number): ReadonlyArray<RedisDelivery> {
    const [first] = read
    if (first === undefined) return read
    // By an operator or a failover.
    if (!isAfter(first.id, this.lastRead)) this.note()
    this.lastRead = read.at(-1)!.id
    return this.deliveries.size === 0 ? read : read.filter((delivery) => !this.has(delivery, now))
  }

  /** Whether the engine has the message already: that delivery goes on, and is now the one that the server knows. */
  private has({ id }: RedisDelivery, now: number): boolean {
    const delivery = this.deliveries.get(id)
    if (delivery === undefined) return false
    const state = RedisDelivery.state(delivery)
    if (!state.isOut) return false
    state.count = 1
    state.keptAt = now
    return true
  }
}

/** Whether the entry of one id comes after that of the other. */
const isAfter = (id: string, other: string): boolean => {
  const [millis, number] = id.split("-").map(Number)
  const [otherMillis, otherNumber] = other.split("-").map(Number)
  return millis! > otherMillis! || millis === otherMillis && number! > otherNumber!
}
