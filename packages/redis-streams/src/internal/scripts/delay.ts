import { now } from "./lua.ts"
import * as Script from "./script.ts"

/**
 * Keeps an entry until it is due. KEYS: delayed set, ids of this period, ids of the one before. ARGV: delay, a name for
 * it, its id or '', milliseconds to keep the id, then the arguments of XADD. Replies: name, 1 if it was there.
 */
export const delay = Script.make(`${now}
if ARGV[3] ~= '' then
  local known = redis.call('HGET', KEYS[2], ARGV[3]) or redis.call('HGET', KEYS[3], ARGV[3])
  if known then return { known, 1 } end
  redis.call('HSET', KEYS[2], ARGV[3], ARGV[2])
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[1]), cmsgpack.pack({ ARGV[2], unpack(ARGV, 5) }))
return { ARGV[2], 0 }
`)
