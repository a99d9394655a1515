#!lua flags=no-writes
-- Events of a run behind an id.
-- ARGV: run, id ('0' from the start), most
-- Reply: {entries as XRANGE gives them, 1 when events behind the id are gone}
local key, after = P .. ':events:' .. ARGV[1], ARGV[2]
if redis.call('EXISTS', key) == 0 then return {{}, 0} end
local entries = redis.call('XRANGE', key, '(' .. after, '+', 'COUNT', ARGV[3])
local info, gone = redis.call('XINFO', 'STREAM', key), false
for i = 1, #info, 2 do info[info[i]] = info[i + 1] end
-- Whether the one at `after` itself is there tells: trimming takes from the front. From the start: any is gone.
if info['entries-added'] > info.length then
  gone = after == '0' or #redis.call('XRANGE', key, after, after) == 0
end
return {entries, gone and 1 or 0}
