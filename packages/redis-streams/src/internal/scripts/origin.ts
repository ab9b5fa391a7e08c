import { fieldsOf } from "./lua.ts"
import * as Script from "./script.ts"

/** What the name of the consumer that holds the origin begins with. */
export const prefix = "millrace:origin:"

/**
 * Finds the token of this life of the stream, or gives it one. It is the name of an empty consumer of a group, so that it
 * begins and ends with the stream, is replicated with it, and needs no second key. Groups of one stream share it.
 *
 * XREADGROUP creates a consumer also where the server is full. KEYS: stream. ARGV: group, a new token.
 */
export const origin = Script.make(`${fieldsOf}
local function find(group)
  for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], group)) do
    local token = string.match(fieldsOf(info).name, '^${prefix}(.+)$')
    if token then return token end
  end
end
local token = find(ARGV[1])
if token then return token end
for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  token = token or find(fieldsOf(info).name)
end
token = token or ARGV[2]
redis.call('XREADGROUP', 'GROUP', ARGV[1], '${prefix}' .. token, 'COUNT', 1, 'STREAMS', KEYS[1], '0')
return token
`)

/** The token of a stream, if one of its groups has it. KEYS: stream. */
export const findOrigin = Script.make(`${fieldsOf}
if redis.call('EXISTS', KEYS[1]) == 0 then return '' end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], fieldsOf(group).name)) do
    local token = string.match(fieldsOf(info).name, '^${prefix}(.+)$')
    if token then return token end
  end
end
return ''
`)
