import { createHash } from "node:crypto"
import type { Argument, Command } from "./link.ts"

/** A Lua script: the way to look at an entry's owner and act on it in one step of the server. */
export interface Script {
  readonly sha: string
  readonly lua: string
}

const script = (lua: string): Script => ({ lua, sha: createHash("sha1").update(lua).digest("hex") })

export const evalsha = (script: Script, keys: ReadonlyArray<string>, args: ReadonlyArray<Argument>): Command => [
  "EVALSHA",
  script.sha,
  String(keys.length),
  ...keys,
  ...args
]

/** The same call for a server that has forgotten the script. */
export const asEval = (script: Script, command: Command): Command => ["EVAL", script.lua, ...command.slice(2)]

const now = `
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
`

/**
 * Which of many subscriptions have something to claim, or delayed entries that are due: asked once for all of them.
 * KEYS: stream and delayed set of each. ARGV: group and least idle time of each. Replies for each the sum of: 1 something
 * to claim, 2 something due, 4 something pending that may be handed back.
 */
export const peek = script(`${now}
local found = {}
for i = 1, #KEYS, 2 do
  local page, state = redis.pcall('XPENDING', KEYS[i], ARGV[i], '-', '+', 1), 0
  if not page.err and #page > 0 then
    state = #redis.call('XPENDING', KEYS[i], ARGV[i], 'IDLE', ARGV[i + 1], '-', '+', 1) > 0 and 5 or 4
  end
  if #redis.call('ZRANGE', KEYS[i + 1], '-inf', now, 'BYSCORE', 'LIMIT', 0, 1) > 0 then state = state + 2 end
  found[#found + 1] = state
end
return found
`)

/**
 * Takes over what nobody has kept for \`minIdle\`, oldest first, and counts the attempt it is given out for.
 *
 * An entry whose delivery time lies at the epoch was handed back on purpose. One with a due time waits for it, with its
 * new owner. Any other was never settled: its consumer may have died of it, so at most \`suspects\` of those are taken.
 * What this consumer itself was given since its process began is only lost to it, and has been counted already; what it
 * was given before, a process of the same name had, which has died.
 *
 * KEYS: stream, due times. ARGV: group, consumer, minIdle, room, room for waiting ones, suspects, own (whether what
 * this process was given may be taken), its age in milliseconds, first id. Replies: given
 * [id, fields, attempt, suspect, first failure], waiting [id, ms left], gone, suspects left, next id or '' at the end.
 */
export const claim = script(`${now}
local stream, dues, group, me, minIdle = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]
local room, waitRoom, suspects, own = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7] == '1'
local age, start = tonumber(ARGV[8]), ARGV[9]
local given, waiting, gone, left, seen = {}, {}, {}, 0, 0
while seen < 1000 do
  local page = redis.call('XPENDING', stream, group, 'IDLE', minIdle, start, '+', 100)
  for _, entry in ipairs(page) do
    local id, owner, idle, count = entry[1], entry[2], entry[3], entry[4]
    if room == 0 then return { given, waiting, gone, left, id } end
    seen = seen + 1
    start = '(' .. id
    local mine = owner == me and idle <= age
    if own or not mine then
      local due, failed = string.match(redis.call('HGET', dues, id) or '', '^(%d+) ?(%d*)$')
      due = tonumber(due)
      if due and due > now then
        if waitRoom > 0 then
          waitRoom = waitRoom - 1
          if #redis.call('XCLAIM', stream, group, me, 0, id, 'JUSTID') > 0 then
            waiting[#waiting + 1] = { id, due - now }
          else
            redis.call('HDEL', dues, id)
            gone[#gone + 1] = id
          end
        end
      else
        local unsettled = not due and count > 0 and idle < now - 1000000000
        local suspect = unsettled and (not mine or count > 1)
        if suspect and suspects == 0 then
          left = left + 1
        else
          local attempt = unsettled and mine and count or count + 1
          local claimed = redis.call('XCLAIM', stream, group, me, 0, id, 'RETRYCOUNT', attempt)
          if due then redis.call('HDEL', dues, id) end
          if #claimed == 0 then
            gone[#gone + 1] = id
          else
            room = room - 1
            if suspect then suspects = suspects - 1 end
            given[#given + 1] = { id, claimed[1][2], attempt, suspect and 1 or 0, failed }
          end
        end
      end
    end
  end
  if #page < 100 then return { given, waiting, gone, left, '' } end
end
return { given, waiting, gone, left, start }
`)

/**
 * Gives out retries whose time has come, and counts the attempt. When the answer to the last call was lost, one without a
 * due time was counted by it. KEYS: stream, due times. ARGV: group, consumer, '1' after a lost answer, ids.
 * Replies: given [id, fields, attempt, first failure], gone (deleted, or another consumer's).
 */
export const hand = script(`
local stream, dues, group, me, again = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3] == '1'
local given, gone = {}, {}
for i = 4, #ARGV do
  local id = ARGV[i]
  local mine = redis.call('XPENDING', stream, group, id, id, 1, me)
  local attempt = #mine > 0 and mine[1][4] + 1
  local due = #mine > 0 and redis.call('HGET', dues, id)
  if due then redis.call('HDEL', dues, id) elseif attempt and again then attempt = attempt - 1 end
  local claimed = attempt and redis.call('XCLAIM', stream, group, me, 0, id, 'RETRYCOUNT', attempt) or mine
  if #claimed == 0 then
    gone[#gone + 1] = id
  else
    given[#given + 1] = { id, claimed[1][2], attempt, due and string.match(due, ' (%d+)$') }
  end
end
return { given, gone }
`)

/**
 * Does something to each entry that this consumer owns, and replies with the positions of those it does not.
 * KEYS: stream, due times. ARGV: group, consumer, then for each an operation, an id and an argument:
 * extend; retry (ms from now, and when it failed first if that was before); release (the count to go back to); leave (a waiting retry, for a peer); end.
 */
export const settle = script(`${now}
local stream, dues, group, me = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local lost, last = {}, 0
for i = 3, #ARGV, 3 do
  local op, id, arg = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if #redis.call('XPENDING', stream, group, id, id, 1, me) == 0 then
    lost[#lost + 1] = (i - 3) / 3
  elseif op == 'end' then
    redis.call('XACK', stream, group, id)
  elseif op == 'release' then
    redis.call('XCLAIM', stream, group, me, 0, id, 'TIME', 1, 'RETRYCOUNT', arg, 'JUSTID')
  elseif op == 'leave' then
    redis.call('XCLAIM', stream, group, me, 0, id, 'TIME', 1, 'JUSTID')
  elseif #redis.call('XCLAIM', stream, group, me, 0, id, 'JUSTID') == 0 then
    lost[#lost + 1] = (i - 3) / 3
  elseif op == 'retry' then
    local delay, failed = string.match(arg, '^(%d+) ?(%d*)$')
    local due = now + delay
    if due > last then last = due end
    redis.call('HSET', dues, id, string.format('%.0f %s', due, failed ~= '' and failed or string.format('%.0f', now)))
  end
end
-- Due times of entries that somebody else has settled must not stay for ever.
local keep = last - now + 86400000
if last > 0 and redis.call('PTTL', dues) < keep then redis.call('PEXPIRE', dues, string.format('%.0f', keep)) end
return lost
`)

/**
 * Acknowledges and deletes what every group has acknowledged, where the server has no XACKDEL. KEYS: stream.
 * ARGV: group, consumer ('' to acknowledge whoever owns it), '1' to delete at once, ids.
 * Replies for each: 1 removed, 2 kept, 3 another consumer's and kept, -1 absent.
 */
export const remove = script(`
local stream, group, me, force = KEYS[1], ARGV[1], ARGV[2], ARGV[3] == '1'
local groups = {}
if redis.call('EXISTS', stream) == 1 then
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local one = {}
    for i = 1, #info, 2 do one[info[i]] = info[i + 1] end
    groups[#groups + 1] = one
  end
end
local function after(a, b)
  local a1, a2 = string.match(a, '(%d+)-(%d+)')
  local b1, b2 = string.match(b, '(%d+)-(%d+)')
  if #a1 ~= #b1 then return #a1 > #b1 end
  if a1 ~= b1 then return a1 > b1 end
  if #a2 ~= #b2 then return #a2 > #b2 end
  return a2 > b2
end
local replies = {}
for i = 4, #ARGV do
  local id, reply = ARGV[i], 1
  local held = me ~= '' and redis.call('XPENDING', stream, group, id, id, 1)
  if held and #held > 0 and held[1][2] ~= me then
    reply = 3
  else
    redis.call('XACK', stream, group, id)
    if not force then
      for _, one in ipairs(groups) do
        if after(id, one['last-delivered-id']) or #redis.call('XPENDING', stream, one.name, id, id, 1) > 0 then reply = 2 end
      end
    end
    if reply == 1 and redis.call('XDEL', stream, id) == 0 then reply = -1 end
  end
  if reply == 2 and #redis.call('XRANGE', stream, id, id) == 0 then reply = -1 end
  replies[#replies + 1] = reply
end
return replies
`)

/** Deletes a consumer that owns nothing and was idle for long. KEYS: stream. ARGV: group, consumer, least idle time. */
export const prune = script(`
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local one = {}
  for i = 1, #info, 2 do one[info[i]] = info[i + 1] end
  if one.name == ARGV[2] and one.pending == 0 and one.idle >= tonumber(ARGV[3]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
    return 1
  end
end
return 0
`)

/**
 * Adds an entry unless its id was used in this period or the one before. KEYS: stream, ids of this period, ids of the
 * one before. ARGV: id, milliseconds to keep it, then the arguments of XADD. Replies: entry id, 1 if it was there.
 */
export const addOnce = script(`
local id = redis.call('HGET', KEYS[2], ARGV[1]) or redis.call('HGET', KEYS[3], ARGV[1])
if id then return { id, 1 } end
id = redis.call('XADD', KEYS[1], unpack(ARGV, 3))
if redis.call('HSET', KEYS[2], ARGV[1], id) == 1 and redis.call('HLEN', KEYS[2]) == 1 then
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
return { id, 0 }
`)

/**
 * Keeps an entry until it is due. KEYS: delayed set, ids of this period, ids of the one before. ARGV: delay, a name for
 * it, its id or '', milliseconds to keep the id, then the arguments of XADD. Replies: name, 1 if it was there.
 */
export const delay = script(`${now}
if ARGV[3] ~= '' then
  local known = redis.call('HGET', KEYS[2], ARGV[3]) or redis.call('HGET', KEYS[3], ARGV[3])
  if known then return { known, 1 } end
  redis.call('HSET', KEYS[2], ARGV[3], ARGV[2])
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[1]), cmsgpack.pack({ ARGV[2], unpack(ARGV, 5) }))
return { ARGV[2], 0 }
`)

/** Moves delayed entries that are due into the stream. KEYS: stream, delayed set. Replies: how many are still due. */
export const move = script(`${now}
for _, member in ipairs(redis.call('ZRANGE', KEYS[2], '-inf', now, 'BYSCORE', 'LIMIT', 0, 100)) do
  redis.call('XADD', KEYS[1], unpack(cmsgpack.unpack(member), 2))
  redis.call('ZREM', KEYS[2], member)
end
return redis.call('ZCOUNT', KEYS[2], '-inf', now)
`)

/**
 * Trims what every group has acknowledged: up to the oldest entry that any of them has pending or has not read.
 * KEYS: stream. Replies: how many were removed.
 */
export const trim = script(`
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local function before(a, b)
  local a1, a2 = string.match(a, '(%d+)-(%d+)')
  local b1, b2 = string.match(b, '(%d+)-(%d+)')
  if #a1 ~= #b1 then return #a1 < #b1 end
  if a1 ~= b1 then return a1 < b1 end
  if #a2 ~= #b2 then return #a2 < #b2 end
  return a2 < b2
end
local least
for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local one = {}
  for i = 1, #info, 2 do one[info[i]] = info[i + 1] end
  local pending = redis.call('XPENDING', KEYS[1], one.name)
  local oldest = pending[1] > 0 and pending[2] or one['last-delivered-id']
  if not least or before(oldest, least) then least = oldest end
end
if not least then return 0 end
return redis.call('XTRIM', KEYS[1], 'MINID', '~', least)
`)

export const all: ReadonlyMap<string, Script> = new Map(
  [peek, claim, hand, settle, remove, prune, addOnce, delay, move, trim].map((script) => [script.sha, script])
)
