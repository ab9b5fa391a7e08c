import * as Script from "./script.ts"

/**
 * Adds an entry unless its id was used in this period or the one before. KEYS: stream, ids of this period, ids of the
 * one before. ARGV: id, milliseconds to keep it, then the arguments of XADD. Replies: entry id, 1 if it was there.
 */
export const addOnce = Script.make(`
local id = redis.call('HGET', KEYS[2], ARGV[1]) or redis.call('HGET', KEYS[3], ARGV[1])
if id then return { id, 1 } end
id = redis.call('XADD', KEYS[1], unpack(ARGV, 3))
if redis.call('HSET', KEYS[2], ARGV[1], id) == 1 and redis.call('HLEN', KEYS[2]) == 1 then
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
return { id, 0 }
`)
