#!lua flags=no-writes
-- What agents say of themselves, and what they are to do.
-- ARGV: agent...
-- Reply: {now (ms), then in twos: its JSON ('' when it is gone), what it is to do}
local asked, reply = {}, {int(NOW)}
for i, name in ipairs(ARGV) do asked[i] = 'agent ' .. name end
local about, wanted = redis.call('HMGET', P .. ':agents', unpack(ARGV)), redis.call('HMGET', BOARD, unpack(asked))
for i = 1, #ARGV do reply[2 * i], reply[2 * i + 1] = about[i] or '', wanted[i] or 'active' end
return reply
