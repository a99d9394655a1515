#!lua flags=allow-oom
-- Takes an archived run out. Its idempotency token stays.
-- ARGV: run
-- Reply: 1, or 0 when it is not there.
-- Checks: it has ended and its outputs are recorded (CONFLICT).
local id = ARGV[1]
local h = fields(id, 'state')
if h.state == '' then return 0 end
if not redis.call('ZSCORE', P .. ':ended', id) or redis.call('HEXISTS', P .. ':outbox', id) == 1 then
  return err('CONFLICT run ' .. id .. ' has not ended: ' .. h.state)
end
redis.call('ZREM', P .. ':ended', id)
redis.call('ZREM', P .. ':runs', id)
redis.call('SREM', P .. ':changed', id)
redis.call('SREM', P .. ':long', id)
redis.call('UNLINK', run_key(id), P .. ':events:' .. id)
return 1
