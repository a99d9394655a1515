#!lua flags=no-writes
-- The agents, last seen first.
-- ARGV: most
-- Reply: {now (ms), then in fours: agent, last seen (ms), its JSON, what it is to do}
local seen = redis.call('ZRANGE', P .. ':agents_seen', '0', int(tonumber(ARGV[1]) - 1), 'REV', 'WITHSCORES')
local reply = {int(NOW)}
for i = 1, #seen, 2 do
  local json = redis.call('HGET', P .. ':agents', seen[i])
  if json then
    set(reply, seen[i], int(tonumber(seen[i + 1])), json, redis.call('GET', P .. ':wanted:' .. seen[i]) or 'active')
  end
end
return reply
