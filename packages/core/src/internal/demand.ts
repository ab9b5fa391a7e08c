import type { Demand } from "../Transport.ts"

/** What the demand depends on. Counts are of messages unless named otherwise. */
export interface Holdings {
  /** The most handlers at once, and how many messages one permit can stand for. */
  readonly permits: number
  readonly perPermit: number
  /** How many may be buffered beyond those that run. */
  readonly prefetch: number
  readonly prefetchBytes: number
  /** Of one message, measured; 0 where no message has been seen. */
  readonly averageBytes: number
  readonly buffered: number
  /** Behind another message of their key. */
  readonly blocked: number
  /** In an open batch of their key. */
  readonly batched: number
  readonly maxBlocked: number
  /** All that the broker counts as ours. */
  readonly owned: number
  /** Retries that this process requested and has not seen again, and those of them that are due. */
  readonly delayed: number
  readonly due: number
  readonly maxDelayed: number
  readonly unconfirmed: number
  /** How many isolated suspects may come. */
  readonly suspects: number
  /** A suspect runs alone, or is about to. */
  readonly isIsolating: boolean
}

/** What to ask the broker for; `undefined`: nothing now. */
export const demandOf = (holdings: Holdings): Demand | undefined => {
  const { averageBytes, blocked, owned, perPermit, suspects } = holdings
  if (holdings.isIsolating || holdings.unconfirmed > maxUnconfirmed) return undefined
  // Blocked messages have a bound of their own: they must not keep messages of other keys from coming. Those in the open
  // batches of keys neither, as far as the same bound has room: they wait for other messages of their key.
  const room = Math.min(holdings.maxBlocked, averageBytes === 0 ? Infinity : maxBlockedBytes / averageBytes) - blocked
  const busy = owned - blocked - Math.max(0, Math.min(holdings.batched, Math.floor(room)))
  const free = holdings.permits * perPermit - busy
  if (
    holdings.delayed >= holdings.maxDelayed || blocked >= holdings.maxBlocked ||
    blocked * averageBytes > maxBlockedBytes
  ) {
    // Only a retry that is due can end this: the messages behind it would wait without end. It may have become a suspect.
    const total = Math.min(holdings.due, Math.max(1, free))
    return total > 0 ? { total, fresh: 0, suspects, bytes: Infinity } : undefined
  }
  if (holdings.buffered > refillAt(holdings)) return undefined
  const total = Math.min(maxTotal, free + prefetchOf(holdings))
  if (total <= 0) return undefined
  return { total, fresh: total, suspects, bytes: holdings.prefetchBytes + Math.max(0, free) * averageBytes }
}

/** With more than this in the buffer nothing is asked for: half of the prefetch. */
export const refillAt = (holdings: Pick<Holdings, "prefetch" | "prefetchBytes" | "averageBytes">): number =>
  prefetchOf(holdings) / 2

const prefetchOf = (holdings: Pick<Holdings, "prefetch" | "prefetchBytes" | "averageBytes">): number =>
  holdings.averageBytes === 0
    ? holdings.prefetch
    : Math.min(holdings.prefetch, Math.floor(holdings.prefetchBytes / holdings.averageBytes))

/** Settlements on their way; beyond it pulling stops. */
const maxUnconfirmed = 4096

/** The most that one pull asks for, where nothing else is a bound. */
const maxTotal = 65_536

const maxBlockedBytes = 64 * 1024 * 1024
