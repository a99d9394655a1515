#!lua flags=no-writes
-- The agents, last seen first.
-- ARGV: most
-- Reply: {now (ms), then in fours: agent, last seen (ms), its JSON, what it is to do}
local seen = redis.call('ZRANGE', P .. ':agents_seen', '0', int(tonumber(ARGV[1]) - 1), 'REV', 'WITHSCORES')
local reply = {int(NOW)}
for from = 1, #seen, 200 do
  local names, asked = {}, {}
  for i = from, math.min(from + 198, #seen - 1), 2 do names[#names + 1] = seen[i] end
  for k, name in ipairs(names) do asked[k] = 'agent ' .. name end
  local about, wanted = redis.call('HMGET', P .. ':agents', unpack(names)), redis.call('HMGET', BOARD, unpack(asked))
  for k, name in ipairs(names) do
    if about[k] then set(reply, name, int(tonumber(seen[from + 2 * k - 1])), about[k], wanted[k] or 'active') end
  end
end
return reply
