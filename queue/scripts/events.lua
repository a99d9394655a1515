#!lua flags=no-writes
-- Events of a run behind an id.
-- ARGV: run, id ('0' from the start), most
-- Reply: {entries as XRANGE gives them, 1 when events behind the id are gone, 1 when the call stopped short: go on from
--         the last entry}
-- Bounded, so that it holds Redis for under 2 ms. Whether the one at `after` itself is there tells: trimming takes from the front.
-- From the start: any is gone.
local key, after, most = P .. ':events:' .. ARGV[1], ARGV[2], tonumber(ARGV[3])
local CALL, BYTES = 200, 65536
if redis.call('EXISTS', key) == 0 then return {{}, 0, 0} end
local entries, bytes, from, step, short = {}, 0, after, 1, 0
while #entries < most do
  if #entries >= CALL or bytes >= BYTES then
    short = 1
    break
  end
  local asked = math.min(step, most - #entries) -- of long ones few: their length is not known before
  local some = redis.call('XRANGE', key, '(' .. from, '+', 'COUNT', int(asked))
  for _, e in ipairs(some) do
    entries[#entries + 1] = e
    bytes = bytes + #e[2][4]
  end
  if #some < asked then break end
  from, step = some[#some][1], math.min(2 * step, 64)
end
local info, gone = redis.call('XINFO', 'STREAM', key), false
for i = 1, #info, 2 do info[info[i]] = info[i + 1] end
if info['entries-added'] > info.length then
  gone = after == '0' or #redis.call('XRANGE', key, after, after) == 0
end
return {entries, gone and 1 or 0, short}
