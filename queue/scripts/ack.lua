#!lua flags=allow-oom
-- The version records of a run's result are durable: closes its outbox entry.
-- ARGV: run, outputs as they became (JSON; a version may differ from the reserved one after a crash)
-- Reply: 1 when the entry was open, 0 when it was closed before.
if redis.call('HDEL', P .. ':outbox', ARGV[1]) == 0 then return 0 end
redis.call('HSET', run_key(ARGV[1]), 'outputs', ARGV[2])
event(ARGV[1], 'outputs', ARGV[2], fields(ARGV[1], 'attempt').attempt)
return 1
