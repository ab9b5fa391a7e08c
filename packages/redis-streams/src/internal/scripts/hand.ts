import { leased, needs, now } from "./lua.ts"
import * as Script from "./script.ts"

/**
 * Gives out retries whose time has come, and counts the attempt. When the answer to the last call was lost, one without a
 * due time was counted by it. KEYS: stream, due times. ARGV: group, consumer, '1' after a lost answer, the lease of the retries, ids.
 * Replies: given [id, fields, attempt, first failure], ids of entries that were deleted, ids that somebody else has.
 */
export const hand = Script.make(`${now}${leased}
local stream, dues, group, me, again = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3] == '1'
local given, gone, taken = {}, {}, {}
${needs("XPENDING", "stream", "group", "'-'", "'+'", "'1'")}
${needs("XCLAIM", "stream", "group", "me", "0", "'0-1'")}${needs("HGET", "dues", "'a'")}${needs("HDEL", "dues", "'a'")}
for i = 5, #ARGV do
  local id = ARGV[i]
  local held = redis.call('XPENDING', stream, group, id, id, 1)[1]
  local due = redis.call('HGET', dues, id)
  -- Without an owner and a due time, a peer has taken the retry and settled it while this process stood still.
  if not held and not due and leased(ARGV[4]) ~= '' and #redis.call('XRANGE', stream, id, id) == 0 then
    gone[#gone + 1] = id
  elseif held and held[2] ~= me or not held and not due then
    taken[#taken + 1] = id
  else
    local attempt = held and held[4] + 1 or 2
    if held and not due and again then attempt = held[4] end
    -- FORCE: an entry of nobody, whose consumer was deleted, is still this process' retry.
    local claimed = redis.call('XCLAIM', stream, group, me, 0, id, 'RETRYCOUNT', attempt, 'FORCE')
    if due then redis.call('HDEL', dues, id) end
    if #claimed == 0 then
      gone[#gone + 1] = id
    else
      given[#given + 1] = { id, claimed[1][2], attempt, due and string.match(due, ' (%d+)$') or '' }
    end
  end
end
return { given, gone, taken }
`)
