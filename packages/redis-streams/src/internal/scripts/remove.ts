import { before, fieldsOf, needs } from "./lua.ts"
import * as Script from "./script.ts"

/**
 * Acknowledges and deletes what every group has acknowledged, where the server has no XACKDEL. KEYS: stream.
 * ARGV: group, consumer ('' to acknowledge whoever owns it), '1' to delete at once, ids.
 * Replies for each: 1 removed, 2 kept, 3 another consumer's and kept, -1 absent.
 */
export const remove = Script.make(`${fieldsOf}${before}
local stream, group, me, force = KEYS[1], ARGV[1], ARGV[2], ARGV[3] == '1'
local groups = {}
if redis.call('EXISTS', stream) == 1 then
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    groups[#groups + 1] = fieldsOf(info)
  end
end
${needs("XDEL", "stream", "'0-1'")}
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
        if before(one['last-delivered-id'], id) or #redis.call('XPENDING', stream, one.name, id, id, 1) > 0 then reply = 2 end
      end
    end
    if reply == 1 and redis.call('XDEL', stream, id) == 0 then reply = -1 end
  end
  if reply == 2 and #redis.call('XRANGE', stream, id, id) == 0 then reply = -1 end
  replies[#replies + 1] = reply
end
return replies
`)
