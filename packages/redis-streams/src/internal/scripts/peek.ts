import { fieldsOf, now, released } from "./lua.ts"
import * as Script from "./script.ts"

/** Milliseconds: longer than it takes to the next look. */
export const soon = 2_000

/**
 * Which of many subscriptions have something to claim, or delayed entries that are due: one call for all of them.
 *
 * Costs in proportion to the consumers of a group, not to what is pending: releases have a consumer of their own, and
 * the entries of a consumer are looked at only when it has not been seen for the claim time.
 *
 * KEYS: stream and delayed set of each. ARGV: group, claim time and consumer of each. Replies for each the sum of: 1
 * something to claim, 2 something due, 4 something pending, and 8 for each millisecond until the next delayed entry is due
 * where that is soon; or the words of an error that concerns only this one.
 */
export const peek = Script.make(`${now}${fieldsOf}
local function claimable(stream, group, minIdle, me)
  if #redis.call('XPENDING', stream, group, '-', '+', 1, '${released}') > 0 then return true end
  for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
    local one = fieldsOf(info)
    if one.pending > 0 and one.name ~= me and one.idle >= minIdle then
      if #redis.call('XPENDING', stream, group, 'IDLE', minIdle, '-', '+', 1, one.name) > 0 then return true end
    end
  end
  return false
end
local function stateOf(stream, delayed, group, minIdle, me)
  local page, state = redis.pcall('XPENDING', stream, group, '-', '+', 1), 0
  if page.err then
    -- A group that is gone is the reader's affair.
    if not string.find(page.err, 'NOGROUP') then error(page.err, 0) end
  elseif #page > 0 then
    state = claimable(stream, group, minIdle, me) and 5 or 4
  end
  local next = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
  local left = next and math.ceil(next - now) or ${soon}
  if left <= 0 then state = state + 2 elseif left < ${soon} then state = state + 8 * left end
  return state
end
local found = {}
for i = 1, #KEYS / 2 do
  local a = 3 * i - 2
  local isFine, state = pcall(stateOf, KEYS[2 * i - 1], KEYS[2 * i], ARGV[a], tonumber(ARGV[a + 1]), ARGV[a + 2])
  found[i] = isFine and state or type(state) == 'table' and state.err or tostring(state)
end
return found
`)
