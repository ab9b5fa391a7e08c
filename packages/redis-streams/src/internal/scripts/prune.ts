import { fieldsOf, needs } from "./lua.ts"
import { prefix } from "./origin.ts"
import * as Script from "./script.ts"

/**
 * Deletes consumers that own nothing and have been idle for long, a number of them at a time, and one process at a time:
 * the key says who is at it. KEYS: stream, lock. ARGV: group, least idle time, most to delete, how long to hold the lock in
 * milliseconds. Replies: how many were deleted, 1 if there are more, 1 if the consumer that holds the origin is there.
 */
export const prune = Script.make(`${fieldsOf}
${needs("XGROUP", "'DELCONSUMER'", "KEYS[1]", "ARGV[1]", "'a'")}
local locked = redis.pcall('SET', KEYS[2], '1', 'NX', 'PX', ARGV[4])
if locked == false then return { 0, 0, 1 } end
local idle, most, deleted, more, hasOrigin = tonumber(ARGV[2]), tonumber(ARGV[3]), 0, 0, 0
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local one = fieldsOf(info)
  if string.find(one.name, '^${prefix}') then
    hasOrigin = 1
  elseif one.pending == 0 and one.idle >= idle and not string.find(one.name, '^millrace:') then
    if deleted == most then
      more = 1
    else
      redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], one.name)
      deleted = deleted + 1
    end
  end
end
return { deleted, more, hasOrigin }
`)

/** Deletes one consumer if it owns nothing. KEYS: stream. ARGV: group, consumer. */
export const leave = Script.make(`
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end
return 0
`)
