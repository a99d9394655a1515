#!lua flags=no-writes
-- The agents, last seen first.
-- ARGV: most
-- Reply: {now (ms), then triples: agent, last seen (ms), its JSON}
local seen = redis.call('ZRANGE', P .. ':agents_seen', 0, int(tonumber(ARGV[1]) - 1), 'REV', 'WITHSCORES')
local reply = {int(NOW)}
for i = 1, #seen, 2 do
  local json = redis.call('HGET', P .. ':agents', seen[i])
  if json then
    reply[#reply + 1] = seen[i]
    reply[#reply + 1] = int(tonumber(seen[i + 1]))
    reply[#reply + 1] = json
  end
end
return reply
