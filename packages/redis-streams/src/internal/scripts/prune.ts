import { fieldsOf } from "./lua.ts"
import * as Script from "./script.ts"

/** Deletes a consumer that owns nothing and was idle for long. KEYS: stream. ARGV: group, consumer, least idle time. */
export const prune = Script.make(`${fieldsOf}
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local one = fieldsOf(info)
  if one.name == ARGV[2] and one.pending == 0 and one.idle >= tonumber(ARGV[3]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
    return 1
  end
end
return 0
`)
