import { fieldsOf, needs, now, released } from "./lua.ts"
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
 * where that is soon; where one of the two looks is refused that sum and the words of both errors, '' for none.
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
local function pendingOf(stream, delayed, group, minIdle, me)
  ${needs("XPENDING", "stream", "group", "'-'", "'+'", "'1'")}
  ${needs("XINFO", "'CONSUMERS'", "stream", "group")}
  local page = redis.pcall('XPENDING', stream, group, '-', '+', 1)
  if page.err then
    -- A group that is gone is the reader's affair.
    return string.find(page.err, 'NOGROUP') and 0 or page
  end
  return #page == 0 and 0 or claimable(stream, group, minIdle, me) and 5 or 4
end
local function dueOf(stream, delayed)
  ${needs("ZRANGE", "delayed", "'0'", "'0'")}
  local next = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
  local left = next and math.ceil(next - now) or ${soon}
  return left <= 0 and 2 or left < ${soon} and 8 * left or 0
end
local found = {}
for i = 1, #KEYS / 2 do
  local a, state, words, isRefused = 3 * i - 2, 0, {}, false
  for part, look in ipairs({ pendingOf, dueOf }) do
    local _, reply = pcall(look, KEYS[2 * i - 1], KEYS[2 * i], ARGV[a], tonumber(ARGV[a + 1]), ARGV[a + 2])
    if type(reply) == 'number' then
      state, words[part] = state + reply, ''
    else
      isRefused, words[part] = true, type(reply) == 'table' and reply.err or tostring(reply)
    end
  end
  found[i] = isRefused and { state, words[1], words[2] } or state
end
return found
`)
