#!lua flags=no-writes
-- Runs that ended a while ago and whose outputs are recorded, oldest first.
-- ARGV: how long ago at least (ms), most
-- Reply: their ids
local reply = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. ':ended', '-inf', int(NOW - tonumber(ARGV[1])), 'LIMIT', '0', ARGV[2])) do
  if redis.call('HEXISTS', P .. ':outbox', id) == 0 then reply[#reply + 1] = id end
end
return reply
