import { now } from "./lua.ts"
import * as Script from "./script.ts"

/** Moves delayed entries that are due into the stream. KEYS: stream, delayed set. Replies: how many are still due. */
export const move = Script.make(`${now}
for _, member in ipairs(redis.call('ZRANGE', KEYS[2], '-inf', now, 'BYSCORE', 'LIMIT', 0, 100)) do
  redis.call('XADD', KEYS[1], unpack(cmsgpack.unpack(member), 2))
  redis.call('ZREM', KEYS[2], member)
end
return redis.call('ZCOUNT', KEYS[2], '-inf', now)
`)
