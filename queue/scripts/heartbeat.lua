-- An agent says that it is there, or ('' as JSON) that it leaves.
-- ARGV: agent, JSON about it
-- Reply: 'OK'
local agent, json = ARGV[1], ARGV[2]
if json == '' then
  redis.call('HDEL', P .. ':agents', agent)
  redis.call('ZREM', P .. ':agents_seen', agent)
  redis.call('DEL', P .. ':ring:' .. agent)
  return 'OK'
end
redis.call('HSET', P .. ':agents', agent, json)
redis.call('ZADD', P .. ':agents_seen', int(NOW), agent)
return 'OK'
