#!lua flags=allow-oom
-- Publishes a run's result: it succeeds, under these outputs, in this instant and never again.
-- Called by the server after it has verified and pinned the manifests and reserved version numbers; the server
-- then writes the version records from the outbox entry, and acknowledges with ack.lua.
-- ARGV: run, lease id, outputs (JSON list of {output, artifact, version, number, manifest, aliases}),
--       metrics (JSON, '' as they were)
-- Reply: {the outputs that hold, 'new' or 'old'}: a repeated call gets the first answer.
-- Checks: lease is current (LEASE), not cancelled (CANCELLED).
local id, lease, outputs, metrics = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local h = fields(id, 'outputs', unpack(LEASED))
if lease == '' then return err(LOST) end
if h.lease ~= lease then
  if h.done_lease == lease and h.done_op == 'finish' then return {h.outputs, 'old'} end
  return err(LOST)
end
if h.cancel == '1' then return err('CANCELLED the run was cancelled') end

local list = {'outputs', outputs, 'log_tail', ''}
drop_lease(id, h, list, false)
if metrics ~= '' then set(list, 'metrics', metrics) end
redis.call('HSET', P .. ':outbox', id, outputs)
end_run(id, h, list, 'succeeded', '', '')
remember(list, lease, 'finish', '')
save(id, list)
return {outputs, 'new'}
