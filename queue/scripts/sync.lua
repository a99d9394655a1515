-- Touches a run, so that WAIT behind it on the same connection counts the replicas that have the run.
-- ARGV: run
-- Reply: its state
-- Checks: the run is there (NOTFOUND): a failover may have lost it.
local id = ARGV[1]
local h = fields(id, 'state')
if h.state == '' then return err('NOTFOUND no run ' .. id) end
redis.call('HSET', run_key(id), 'synced_ms', int(NOW))
return h.state
