#!lua flags=allow-oom
-- Bytes of a deleted version no longer count as its project's storage.
-- ARGV: id of the refund (the same id counts once within a week), project, bytes
-- Reply: 1, or 0 when this refund was made before.
local project = P .. ':project:' .. ARGV[2]
if not redis.call('SET', P .. ':refund:' .. ARGV[1], '1', 'NX', 'EX', '604800') then return 0 end
local used = number(redis.call('HGET', project, 'bytes'))
local bytes = math.min(used, tonumber(ARGV[3]))
if bytes > 0 then redis.call('HINCRBY', project, 'bytes', int(-bytes)) end
return 1
