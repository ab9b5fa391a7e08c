import { fieldsOf, needs, now, released, suspectFrom } from "./lua.ts"
import * as Script from "./script.ts"

/**
 * Takes over released entries, and those of consumers that have not been seen for the claim time, oldest first.
 *
 * An entry with a due time waits for it, with its new owner. One that was neither released nor retried was never
 * settled: it is a suspect. A suspect whose attempt would be \`isolateFrom\` or higher is isolated: at most \`suspects\` of
 * those are taken, and their attempt is not counted before it begins.
 *
 * KEYS: stream, due times. ARGV: group, consumer, claim time, room, room for retries that wait, room for isolated
 * suspects, isolateFrom, bytes, '1' to look at the entries of live consumers too, and where the last call ended: a
 * consumer and an id, '1' to be given retries that wait at once. Replies: given [id, fields, attempt, suspect, first failure, count, ms left], waiting [id, ms left], ids that
 * are gone, isolated suspects left, and where it ended, '' when there is no more.
 */
export const claim = Script.make(`${now}${fieldsOf}
local stream, dues, group, me, minIdle = KEYS[1], KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[3])
local room, waitRoom, suspects, isolateFrom = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local bytes, everyone, first, start = tonumber(ARGV[8]), ARGV[9] == '1', ARGV[10], ARGV[11]
local ordered = ARGV[12] == '1'
local given, waiting, gone, left, seen = {}, {}, {}, 0, 0
local isFull, endConsumer, endId = false, '', ''
${needs("XPENDING", "stream", "group", "'-'", "'+'", "'1'")}${needs("XINFO", "'CONSUMERS'", "stream", "group")}
${needs("XCLAIM", "stream", "group", "me", "0", "'0-1'")}${needs("HGET", "dues", "'a'")}${needs("HDEL", "dues", "'a'")}

local function take(consumer, isAlive)
  if first ~= '' and first ~= consumer then return end
  if first == '' then start = '-' end
  first = ''
  while true do
    local page = redis.call('XPENDING', stream, group, 'IDLE', minIdle, start, '+', 100, consumer)
    for _, entry in ipairs(page) do
      local id, at, count = entry[1], now - entry[3], entry[4]
      endConsumer, endId = consumer, start
      start, seen = '(' .. id, seen + 1
      local due, failed, isCounted = string.match(redis.call('HGET', dues, id) or '', '^(%d+) ?(%d*) ?(c?)$')
      due = tonumber(due)
      -- Given out early, and due by now: it may have begun.
      if due and due <= now and isCounted == 'c' then due = nil end
      if due and due > now and ordered and not isAlive then
        if room == 0 then
          isFull = true
          return
        end
        local attempt = isCounted == 'c' and count or count + 1
        local claimed = redis.call('XCLAIM', stream, group, me, 0, id, 'RETRYCOUNT', attempt)
        if #claimed == 0 then
          redis.call('HDEL', dues, id)
          gone[#gone + 1] = id
        else
          room = room - 1
          redis.call('HSET', dues, id, string.format('%.0f %s c', due, failed))
          given[#given + 1] = { id, claimed[1][2], attempt, 0, failed, attempt, due - now }
        end
      elseif due and due > now then
        if waitRoom > 0 and not isAlive then
          waitRoom = waitRoom - 1
          if #redis.call('XCLAIM', stream, group, me, 0, id, 'JUSTID') > 0 then
            waiting[#waiting + 1] = { id, due - now }
          else
            redis.call('HDEL', dues, id)
            gone[#gone + 1] = id
          end
        end
      elseif room == 0 or bytes <= 0 or seen > 2000 then
        isFull = true
        return
      else
        local attempt = count + 1
        local suspect = not due and count > 0 and at > ${suspectFrom}
        local isolated = suspect and attempt >= isolateFrom
        if isolated and suspects == 0 then
          left = left + 1
        else
          if isolated then suspects, attempt = suspects - 1, count end
          local claimed = redis.call('XCLAIM', stream, group, me, 0, id, 'RETRYCOUNT', attempt)
          if due or isCounted then redis.call('HDEL', dues, id) end
          if #claimed == 0 then
            gone[#gone + 1] = id
          else
            local fields = claimed[1][2]
            room = room - 1
            for i = 1, #fields do bytes = bytes - #fields[i] end
            given[#given + 1] = { id, fields, count + 1, suspect and 1 or 0, failed or '', attempt }
          end
        end
      end
    end
    if #page < 100 then return end
  end
end

take('${released}', false)
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local one = fieldsOf(info)
  local isAlive = one.idle < minIdle
  if not isFull and one.pending > 0 and one.name ~= me and one.name ~= '${released}' and (everyone or not isAlive) then
    take(one.name, isAlive)
  end
end
return { given, waiting, gone, left, isFull and endConsumer or '', isFull and endId or '' }
`)

/**
 * Takes back entries that this consumer owns and has neither settled nor extended for the claim time, or never received.
 *
 * KEYS: stream, due times. ARGV: group, consumer, claim time, isolateFrom, then for each its id, the count it must have,
 * and what it is: 'lost' on its way to us (no attempt was seen), or 'unsettled'. Replies: given, as \`claim\`, and gone.
 */
export const takeBack = Script.make(`
local stream, dues, group, me, minIdle, isolateFrom = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local given, gone = {}, {}
${needs("XPENDING", "stream", "group", "'-'", "'+'", "'1'")}
${needs("XCLAIM", "stream", "group", "me", "0", "'0-1'")}${needs("HDEL", "dues", "'a'")}
for i = 5, #ARGV, 3 do
  local id, count, isLost = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2] == 'lost'
  local mine = redis.call('XPENDING', stream, group, 'IDLE', isLost and 0 or minIdle, id, id, 1, me)
  if #mine > 0 and mine[1][4] == count then
    local attempt = isLost and count or count + 1
    local suspect = isLost and count > 1 or not isLost
    local counted = not isLost and attempt >= isolateFrom and count or attempt
    local claimed = redis.call('XCLAIM', stream, group, me, 0, id, 'RETRYCOUNT', counted)
    redis.call('HDEL', dues, id)
    if #claimed == 0 then
      gone[#gone + 1] = id
    else
      given[#given + 1] = { id, claimed[1][2], attempt, suspect and 1 or 0, '', counted }
    end
  end
end
return { given, {}, gone, 0, '', '' }
`)
