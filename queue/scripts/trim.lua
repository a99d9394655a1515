#!lua flags=allow-oom
-- The archive has a run's events up to one: those before it leave.
-- ARGV: run, that event's id
local key = P .. ':events:' .. ARGV[1]
redis.call('XTRIM', key, 'MINID', ARGV[2])
redis.call('SREM', P .. ':long', ARGV[1])
return 'OK'
