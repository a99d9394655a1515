#!lua flags=allow-oom
-- The version records of a run's result are durable: closes its outbox entry.
-- ARGV: run, outputs as they became (JSON; a version may differ from the reserved one after a crash), their bytes,
--       which count as the project's storage
-- Reply: 1 when the entry was open, 0 when it was closed before.
local id, outputs = ARGV[1], ARGV[2]
if redis.call('HDEL', P .. ':outbox', id) == 0 then return 0 end
local h = fields(id, 'attempt', 'project')
redis.call('HINCRBY', P .. ':project:' .. h.project, 'bytes', ARGV[3])
save(id, {'outputs', outputs})
changed(id)
event(id, 'outputs', outputs, h.attempt)
return 1
