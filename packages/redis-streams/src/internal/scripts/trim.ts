import { before, fieldsOf } from "./lua.ts"
import * as Script from "./script.ts"

/**
 * Trims what every group has acknowledged: up to the oldest entry that any of them has pending or has not read.
 * KEYS: stream. Replies: how many were removed.
 */
export const trim = Script.make(`${before}${fieldsOf}
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local least
for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local one = fieldsOf(info)
  local pending = redis.call('XPENDING', KEYS[1], one.name)
  local oldest = pending[1] > 0 and pending[2] or one['last-delivered-id']
  if not least or before(oldest, least) then least = oldest end
end
if not least then return 0 end
return redis.call('XTRIM', KEYS[1], 'MINID', '~', least)
`)
