#!lua flags=no-writes
-- Runs that ended a while ago, oldest first.
-- ARGV: how long ago at least (ms), most, ended at or after (ms), how many of those to skip
-- Reply: for each its id, when it ended (ms), and 1 when its outputs are still to be recorded, else 0
local reply = {}
local found = redis.call('ZRANGEBYSCORE', P .. ':ended', ARGV[3], int(NOW - tonumber(ARGV[1])), 'WITHSCORES', 'LIMIT', ARGV[4], ARGV[2])
for i = 1, #found, 2 do
  reply[#reply + 1] = found[i]
  reply[#reply + 1] = int(found[i + 1])
  reply[#reply + 1] = tostring(redis.call('HEXISTS', P .. ':outbox', found[i]))
end
return reply
