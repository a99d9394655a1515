#!lua flags=allow-oom
-- Names the run's newest checkpoint: from here the next attempt goes on.
-- ARGV: run, lease id, manifest digest, step
-- Reply: {'OK', the manifest that it replaces or ''} or {'old', ''} when a later step is named already.
-- Checks: lease is current (LEASE).
local id, lease, manifest, step = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local h = fields(id, 'lease', 'attempt', 'ckpt_manifest', 'ckpt_step')
if lease == '' or h.lease ~= lease then return err(LOST) end
if h.ckpt_manifest == manifest then
  -- A checkpoint that was replaced while it was packed went up under the step before: the same bytes, named rightly now.
  if tonumber(step) > tonumber(h.ckpt_step) then
    redis.call('HSET', run_key(id), 'ckpt_step', step)
    changed(id)
    event(id, 'checkpoint', cjson.encode({step = tonumber(step), manifest = manifest}), h.attempt)
  end
  return {'OK', ''}
end
if h.ckpt_step ~= '' and tonumber(step) < tonumber(h.ckpt_step) then return {'old', ''} end

redis.call('HSET', run_key(id), 'ckpt_manifest', manifest, 'ckpt_step', step)
changed(id)
event(id, 'checkpoint', cjson.encode({step = tonumber(step), manifest = manifest}), h.attempt)
return {'OK', h.ckpt_manifest}
