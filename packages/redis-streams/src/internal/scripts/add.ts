import { needs, now } from "./lua.ts"
import * as Script from "./script.ts"

/** Adds an entry and trims those that are older than an age. KEYS: stream. ARGV: '~' or '=', age, fields. */
export const add = Script.make(`${now}
local args = { 'XADD', KEYS[1], 'MINID', ARGV[1], string.format('%.0f', now - ARGV[2]), '*' }
for i = 3, #ARGV do args[#args + 1] = ARGV[i] end
return redis.call(unpack(args))
`)

/**
 * Finds the hash of ids of this period, and of the one before, by the server's clock. The publisher passes those around
 * the period that it believes in; where it is wrong by more, the reply is the right time.
 */
const periods = `${now}
local believed, length = tonumber(ARGV[3]), tonumber(ARGV[4])
local ahead = math.floor(now / length) - believed
if ahead < -1 or ahead > 1 then return { 'clock', string.format('%.0f', now) } end
local ids, before = KEYS[4 + ahead], KEYS[3 + ahead]
${needs("HGET", "ids", "'a'")}
local id = redis.call('HGET', ids, ARGV[1]) or redis.call('HGET', before, ARGV[1])
`

/**
 * Adds an entry unless its id was used in this period or the one before. KEYS: stream, ids of the periods -2 to +1.
 * ARGV: id, milliseconds to keep it, the period that the publisher believes in, its length, '~' or '=' where entries older
 * than an age are trimmed, that age, then arguments of XADD. Replies: entry id, 1 if it was there.
 */
export const addOnce = Script.make(`${periods}
if id then return { id, 1 } end
${needs("HLEN", "ids")}${needs("XADD", "KEYS[1]", "'*'", "'a'", "'b'")}
local isFirst = redis.call('HLEN', ids) == 0
if isFirst then
  ${needs("HSET", "ids", "'a'", "'b'")}
  ${needs("PEXPIRE", "ids", "1")}
end
local args = { 'XADD', KEYS[1] }
if ARGV[5] ~= '' then
  for _, arg in ipairs({ 'MINID', ARGV[5], string.format('%.0f', now - ARGV[6]) }) do args[#args + 1] = arg end
end
for i = 7, #ARGV do args[#args + 1] = ARGV[i] end
id = redis.call(unpack(args))
redis.call('HSET', ids, ARGV[1], id)
if isFirst then redis.call('PEXPIRE', ids, ARGV[2]) end
return { id, 0 }
`)

/** Whether an id was used. KEYS and ARGV as for \`addOnce\`. Replies: entry id or '', 1 if it was there. */
export const findOnce = Script.make(`${periods}
return { id or '', id and 1 or 0 }
`)

/** Notes the id of an entry that was added. KEYS and ARGV as for \`addOnce\`, ARGV[5]: its entry id. */
export const noteOnce = Script.make(`${periods}
redis.call('HSET', ids, ARGV[1], ARGV[5])
redis.call('PEXPIRE', ids, ARGV[2])
return { ARGV[5], 0 }
`)

/**
 * Keeps an entry until it is due. KEYS: delayed set, ids of the periods -2 to +1. ARGV: its id or '', milliseconds to keep
 * the id, the period that the publisher believes in, its length, the delay, a name for it, then arguments of XADD.
 * Replies: name, 1 if it was there.
 */
export const delay = Script.make(`${periods}
if id and ARGV[1] ~= '' then return { id, 1 } end
if ARGV[1] ~= '' then
  ${needs("HSET", "ids", "'a'", "'b'")}
  ${needs("PEXPIRE", "ids", "1")}
end
${needs("ZADD", "KEYS[1]", "'0'", "'a'")}
local member = { ARGV[6] }
for i = 7, #ARGV do member[#member + 1] = ARGV[i] end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[5]), cmsgpack.pack(member))
if ARGV[1] ~= '' then
  redis.call('HSET', ids, ARGV[1], ARGV[6])
  redis.call('PEXPIRE', ids, ARGV[2])
end
return { ARGV[6], 0 }
`)
