#!lua flags=allow-oom
-- The archive has a run's events up to one: those before it leave, but for what came just now, which live readers may
-- not have been given yet, and which one whose stream broke off goes on behind.
-- ARGV: run, that event's id
local key, last = P .. ':events:' .. ARGV[1], ARGV[2]
if tonumber(last:match('^%d+')) > NOW - EVENTS_FRESH_MS then last = int(NOW - EVENTS_FRESH_MS) end
redis.call('XTRIM', key, 'MINID', last)
redis.call('SREM', P .. ':long', ARGV[1])
return 'OK'
