import { needs, now } from "./lua.ts"
import * as Script from "./script.ts"

/** Adds an entry and trims those that are older than an age. KEYS: stream. ARGV: '~' or '=', age, fields. */
export const add = Script.make(`${now}
local args = { 'XADD', KEYS[1], 'MINID', ARGV[1], string.format('%.0f', now - ARGV[2]), '*' }
for i = 3, #ARGV do args[#args + 1] = ARGV[i] end
return redis.call(unpack(args))
`)

/**
 * Finds the hash of ids of this period, and the one of the period before, by the server's clock. The publisher passes those
 * around the period that it believes in; where it is wrong by more, the reply is the right time.
 */
const hashes = `${now}
local believed, length = tonumber(ARGV[3]), tonumber(ARGV[4])
local ahead = math.floor(now / length) - believed
if ahead < -1 or ahead > 1 then return { 'clock', string.format('%.0f', now) } end
local ids, before = KEYS[4 + ahead], KEYS[3 + ahead]
`

const find = `${hashes}
${needs("HGET", "ids", "'a'")}
local id = redis.call('HGET', ids, ARGV[1]) or redis.call('HGET', before, ARGV[1])
`

/**
 * Adds entries, each unless its id was used in this period or the one before. KEYS: stream, ids of the periods -2 to +1.
 * ARGV: '', milliseconds to keep the ids, the period that the publisher believes in, its length, '~' or '=' where entries
 * older than an age are trimmed, that age, how many arguments of XADD are the same for all, those, then for each entry its
 * id, the count of its fields and values, and those; or its id, '' and its body, where the rest is as before. Replies for
 * each: entry id, 1 if it was there, or an error and 2.
 */
export const addOnce = Script.make(`${hashes}
${needs("HMGET", "ids", "'a'")}${needs("HLEN", "ids")}${needs("XADD", "KEYS[1]", "'*'", "'a'", "'b'")}
local isFirst = redis.call('HLEN', ids) == 0
if isFirst then
  ${needs("HSET", "ids", "'a'", "'b'")}
  ${needs("PEXPIRE", "ids", "1")}
end
local add = { 'XADD', KEYS[1] }
if ARGV[5] ~= '' then
  for _, arg in ipairs({ 'MINID', ARGV[5], string.format('%.0f', now - ARGV[6]) }) do add[#add + 1] = arg end
end
local at = 8 + ARGV[7]
for i = 8, at - 1 do add[#add + 1] = ARGV[i] end
local shared = #add
local names, froms = {}, {}
while at <= #ARGV do
  names[#names + 1] = ARGV[at]
  froms[#froms + 1] = at + 2
  at = at + 2 + (tonumber(ARGV[at + 1]) or 1)
end
local present, past = redis.call('HMGET', ids, unpack(names)), redis.call('HMGET', before, unpack(names))
local added, notes, replies = {}, {}, {}
for n, name in ipairs(names) do
  local from, count = froms[n], tonumber(ARGV[froms[n] - 1])
  if count then
    for i = 1, count do add[shared + i] = ARGV[from + i - 1] end
    for i = #add, shared + count + 1, -1 do add[i] = nil end
  else
    add[shared + 2] = ARGV[from]
  end
  local id = added[name] or present[n] or past[n]
  if id then
    replies[n] = { id, 1 }
  else
    id = redis.pcall(unpack(add))
    if type(id) == 'table' and id.err then
      if #names == 1 then return id end
      replies[n] = { id.err, 2 }
    else
      added[name] = id
      notes[#notes + 1] = name
      notes[#notes + 1] = id
      replies[n] = { id, 0 }
    end
  end
end
if #notes > 0 then
  redis.call('HSET', ids, unpack(notes))
  if isFirst then redis.call('PEXPIRE', ids, ARGV[2]) end
end
if #names == 1 then return replies[1] end
return replies
`)

/**
 * Whether an id was used. KEYS as for \`addOnce\`. ARGV: id, and as for \`addOnce\` until the length of a period. Replies:
 * entry id or '', 1 if it was there.
 */
export const findOnce = Script.make(`${find}
return { id or '', id and 1 or 0 }
`)

/** Notes the id of an entry that was added. KEYS and ARGV as for \`findOnce\`, ARGV[5]: its entry id. */
export const noteOnce = Script.make(`${find}
redis.call('HSET', ids, ARGV[1], ARGV[5])
redis.call('PEXPIRE', ids, ARGV[2])
return { ARGV[5], 0 }
`)

/**
 * Keeps an entry until it is due. KEYS: delayed set, ids of the periods -2 to +1. ARGV: its id or '', milliseconds to keep
 * the id, the period that the publisher believes in, its length, the delay, a name for it, the stream, then arguments of XADD.
 * Replies: name, 1 if it was there.
 */
export const delay = Script.make(`${find}
if id and ARGV[1] ~= '' then return { id, 1 } end
if ARGV[1] ~= '' then
  ${needs("HSET", "ids", "'a'", "'b'")}
  ${needs("PEXPIRE", "ids", "1")}
end
${needs("ZADD", "KEYS[1]", "'0'", "'a'")}${needs("XADD", "ARGV[7]", "'*'", "'a'", "'b'")}
local member = { ARGV[6] }
for i = 8, #ARGV do member[#member + 1] = ARGV[i] end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[5]), cmsgpack.pack(member))
if ARGV[1] ~= '' then
  redis.call('HSET', ids, ARGV[1], ARGV[6])
  redis.call('PEXPIRE', ids, ARGV[2])
end
return { ARGV[6], 0 }
`)
