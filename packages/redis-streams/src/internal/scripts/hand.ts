import { leased, needs, now } from "./lua.ts"
import * as Script from "./script.ts"

/**
 * Gives out retries whose time has come, and counts the attempt. Where the answer about one was lost, and it has no due time,
 * the attempt is counted already. KEYS: stream, due times. ARGV: group, consumer, the lease of the retries, then for each its
 * id and '1' after a lost answer.
 * Replies: given [id, fields, attempt, first failure], ids of entries that were deleted, ids that somebody else has.
 */
export const hand = Script.make(`${now}${leased}
local stream, dues, group, me, lease = KEYS[1], KEYS[2], ARGV[1], ARGV[2], leased(ARGV[3])
local given, gone, taken = {}, {}, {}
${needs("XPENDING", "stream", "group", "'-'", "'+'", "'1'")}
${needs("XCLAIM", "stream", "group", "me", "0", "'0-1'")}${needs("HGET", "dues", "'a'")}${needs("HDEL", "dues", "'a'")}
for i = 4, #ARGV, 2 do
  local id, again = ARGV[i], ARGV[i + 1] == '1'
  local held = redis.call('XPENDING', stream, group, id, id, 1)[1]
  local due = redis.call('HGET', dues, id)
  -- Without an owner and a due time, a peer has taken the retry and settled it while this process stood still.
  if not held and not due and lease ~= '' and #redis.call('XRANGE', stream, id, id) == 0 then
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
