#!lua flags=allow-oom
-- Publishes a run's result: it succeeds, under these outputs, in this instant and never again.
-- Called by the server after it has verified and pinned the manifests and reserved version numbers; the server
-- then writes the version records from the outbox entry, and acknowledges with ack.lua.
-- ARGV: run, lease id, outputs (JSON list of {output, artifact, version, number, manifest, aliases}),
--       metrics (JSON, '' as they were)
-- Reply: {the outputs that hold, 'new' or 'old'}: a repeated call gets the first answer.
-- Checks: lease is current (LEASE), not cancelled (CANCELLED).
local id, lease, outputs, metrics = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local v = redis.call('HMGET', run_key(id), 'lease', 'cancel', 'attempt', 'agent', 'project', 'queue', 'dedupe',
                     'since_ms', 'run_ms', 'gpus')
local h = {lease = v[1], cancel = v[2], attempt = v[3], agent = v[4], project = v[5], queue = v[6], dedupe = v[7] or '',
           since_ms = v[8], run_ms = v[9], gpus = v[10]}
if lease == '' then return err(LOST) end
if h.lease ~= lease then
  local first = fields(id, 'done_lease', 'state', 'outputs')
  if first.done_lease == lease and first.state == 'succeeded' then return {first.outputs, 'old'} end
  return err(LOST)
end
if h.cancel == '1' then return err('CANCELLED the run was cancelled') end

local list = {'outputs', outputs}
if h.attempt ~= '1' then set(list, 'log_tail', '') end -- of an attempt before
drop_lease(id, h, list, false)
if metrics ~= '' then set(list, 'metrics', metrics) end
redis.call('HSET', P .. ':outbox', id, outputs)
end_run(id, h, list, 'succeeded', '', '')
set(list, 'done_lease', lease)
save(id, list)
return {outputs, 'new'}
