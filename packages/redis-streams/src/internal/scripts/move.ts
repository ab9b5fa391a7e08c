import { needs, now } from "./lua.ts"
import * as Script from "./script.ts"

/**
 * Moves delayed entries that are due into the stream. KEYS: stream, delayed set. Replies: how many were moved, how many
 * are still due, the error of one that cannot be added, and the milliseconds until the next one is due, -1 for none.
 */
export const move = Script.make(`${now}
${needs("ZRANGE", "KEYS[2]", "'0'", "'0'")}${needs("ZCOUNT", "KEYS[2]", "'0'", "'0'")}${needs("ZREM", "KEYS[2]", "'a'")}
local moved, failed = 0, ''
for _, member in ipairs(redis.call('ZRANGE', KEYS[2], '-inf', now, 'BYSCORE', 'LIMIT', 0, 100)) do
  local reply = redis.pcall('XADD', KEYS[1], unpack(cmsgpack.unpack(member), 2))
  if type(reply) == 'table' and reply.err then
    failed = reply.err
  else
    redis.call('ZREM', KEYS[2], member)
    moved = moved + 1
  end
end
local next = redis.call('ZRANGE', KEYS[2], '(' .. now, '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')[2]
return { moved, redis.call('ZCOUNT', KEYS[2], '-inf', now), failed, next and math.ceil(next - now) or -1 }
`)
