-- An agent says that it is there and what it has, or ('' as JSON) that it leaves.
-- ARGV: agent, JSON about it, offer, queue...
-- Reply: what it is to do: 'active', 'paused', 'draining'; 'resumed' once after an operator has made it active
local agent, json, offer = ARGV[1], ARGV[2], ARGV[3]
if json == '' then
  redis.call('HDEL', P .. ':agents', agent)
  redis.call('HDEL', BOARD, 'agent ' .. agent)
  redis.call('ZREM', P .. ':agents_seen', agent)
  redis.call('DEL', P .. ':ring:' .. agent)
  return 'active'
end
redis.call('HSET', P .. ':agents', agent, json)
redis.call('ZADD', P .. ':agents_seen', int(NOW), agent)
for i = 4, #ARGV do note_offer(queue_of(ARGV[i]), offer) end
local wanted = redis.call('HGET', BOARD, 'agent ' .. agent)
if wanted == 'resumed' then redis.call('HDEL', BOARD, 'agent ' .. agent) end
return wanted or 'active'
