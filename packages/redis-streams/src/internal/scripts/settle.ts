import { list } from "../reply.ts"
import { leased, needs, now, released, releasedAt, releasedSuspectAt } from "./lua.ts"
import * as Script from "./script.ts"

/**
 * Does something to each delivery that this consumer still has, and replies with those that it has not: pairs of the
 * position and 1 (another delivery), 2 (nobody has it, and the entry is gone) or 3 (nobody has it, and it is there).
 *
 * A delivery is the consumer, the id and the delivery count: once the entry was delivered again, also to this consumer,
 * an earlier delivery's settlement changes nothing. Nobody has an entry that was deleted, or whose consumer or group was:
 * while its lease has not ended this consumer takes it back, unless an earlier owner may have acknowledged it.
 *
 * KEYS: stream, due times. ARGV: group, consumer, then for each an operation, an id, the delivery count, its lease ('' where
 * that may have ended, 'held', or 'own' where no other consumer ever had it, and until when), and an argument: extend; take (the same,
 * and an entry that nobody has is taken back); keep (a retry that waits, which is taken back too); begin (the attempt to count); retry (ms from now, and when it failed
 * first if that was before); release and releaseSuspect (the count to go back to); releaseRetry (the same, ms from now, and
 * when it failed first); leave (a retry that waits, for a peer); end.
 */
export const settle = Script.make(`${now}${leased}
local stream, dues, group, me = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local lost, last = {}, 0
${needs("XPENDING", "stream", "group", "'-'", "'+'", "'1'")}${needs("XCLAIM", "stream", "group", "me", "0", "'0-1'")}
local retries, ends = false, false
for i = 3, #ARGV, 5 do
  retries = retries or ARGV[i] == 'retry' or ARGV[i] == 'releaseRetry'
  ends = ends or ARGV[i] == 'end'
end
if retries then ${needs("HSET", "dues", "'a'", "'b'")}end
if ends then ${needs("XACK", "stream", "group", "'0-1'")}end

local function keepDue(id, delay, failed)
  local due = now + delay
  if due > last then last = due end
  redis.call('HSET', dues, id, string.format('%.0f %s', due, failed))
end

local function apply(op, id, count, lease, arg)
  lease = leased(lease)
  local held = redis.call('XPENDING', stream, group, id, id, 1)[1]
  if op == 'keep' and not held then
    -- A peer that takes a retry deletes its due time: with it the retry is still this process' own.
    if redis.call('HGET', dues, id) then
      local attempts = count ~= '' and count or 1
      return #redis.call('XCLAIM', stream, group, me, 0, id, 'RETRYCOUNT', attempts, 'FORCE', 'JUSTID') == 0 and 2 or 0
    end
    return lease ~= '' and #redis.call('XRANGE', stream, id, id) == 0 and 2 or 1
  end
  if not held then
    if lease == '' then return 1 end
    if lease == 'held' then return #redis.call('XRANGE', stream, id, id) == 0 and 2 or 1 end
    if op == 'end' then return 0 end
    -- It may just have been acknowledged on another connection: the process knows, and says 'take' if not.
    if op == 'extend' then return #redis.call('XRANGE', stream, id, id) == 0 and 2 or 3 end
    if #redis.call('XCLAIM', stream, group, me, 0, id, 'RETRYCOUNT', count, 'FORCE', 'JUSTID') == 0 then return 2 end
  elseif held[2] == '${released}' and string.find(op, '^release') and held[4] == tonumber(string.match(arg, '^%d+')) then
    -- The answer to the first release was lost.
    return 0
  -- A retry that waits has no other delivery: one more attempt was counted by an answer that was lost.
  elseif held[2] ~= me or op ~= 'keep' and count ~= '' and held[4] ~= tonumber(count) then
    if op == 'begin' and held[2] == me and held[4] == tonumber(arg) then return 0 end
    return 1
  end
  if op == 'end' then
    redis.call('XACK', stream, group, id)
  elseif op == 'release' or op == 'releaseSuspect' then
    local at = op == 'release' and ${releasedAt} or ${releasedSuspectAt}
    if #redis.call('XCLAIM', stream, group, '${released}', 0, id, 'TIME', at, 'RETRYCOUNT', arg, 'JUSTID') == 0 then return 2 end
  elseif op == 'releaseRetry' then
    local attempts, delay, failed = string.match(arg, '^(%d+) (%d+) ?(%d*)$')
    if #redis.call('XCLAIM', stream, group, '${released}', 0, id, 'TIME', ${releasedAt}, 'RETRYCOUNT', attempts, 'JUSTID') == 0 then return 2 end
    keepDue(id, delay, failed)
  elseif op == 'leave' then
    if #redis.call('XCLAIM', stream, group, '${released}', 0, id, 'TIME', ${releasedAt}, 'JUSTID') == 0 then return 2 end
  elseif op == 'begin' then
    if #redis.call('XCLAIM', stream, group, me, 0, id, 'RETRYCOUNT', arg, 'JUSTID') == 0 then return 2 end
  elseif #redis.call('XCLAIM', stream, group, me, 0, id, 'JUSTID') == 0 then
    return 2
  elseif op == 'retry' then
    local delay, failed = string.match(arg, '^(%d+) ?(%d*)$')
    keepDue(id, delay, failed ~= '' and failed or string.format('%.0f', now))
  end
  return 0
end

for i = 3, #ARGV, 5 do
  local is = apply(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
  if is > 0 then
    lost[#lost + 1] = (i - 3) / 5
    lost[#lost + 1] = is
  end
end
-- Due times of entries that somebody else has settled must not stay.
local keep = last - now + 86400000
if last > 0 then
  local left = redis.pcall('PTTL', dues)
  if type(left) == 'number' and left < keep then redis.pcall('PEXPIRE', dues, string.format('%.0f', keep)) end
end
return lost
`)

/** Entries that one call of the script is about. */
export const chunk = 500

/** What calls of the script have replied about each of `all`; a call that failed says nothing. */
export const matters = <A>(replies: ReadonlyArray<unknown>, all: ReadonlyArray<A>) => {
  const lost: Array<A> = []
  const gone: Array<A> = []
  const unowned: Array<A> = []
  replies.forEach((reply, call) => {
    const pairs = list(reply).map(Number)
    for (let i = 0; i < pairs.length; i += 2) {
      const kind = pairs[i + 1] === 1 ? lost : pairs[i + 1] === 2 ? gone : unowned
      kind.push(all[call * chunk + pairs[i]!]!)
    }
  })
  return { lost, gone, unowned }
}
