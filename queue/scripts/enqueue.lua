-- Stores a run and puts it in line.
-- ARGV: run id, client token ('' none), queue, rank (0 critical .. 3 low), spec, its digest, name, project,
--       max_attempts
-- Reply: {run id, 'new' or 'old'}: the same client token with the same spec gives the run it gave before.
-- Checks: token not used for another spec (CONFLICT), run id not taken (CONFLICT).
local id, client, queue, rank, spec, digest, name, project, max_attempts = unpack(ARGV)
local token = P .. ':client:' .. client
if client ~= '' then
  local old = redis.call('HMGET', token, 'run', 'digest')
  if old[1] then
    if old[2] ~= digest then
      return err('CONFLICT this idempotency key was used for another spec, which became run ' .. old[1])
    end
    return {old[1], 'old'}
  end
end
if redis.call('EXISTS', run_key(id)) == 1 then return err('CONFLICT run ' .. id .. ' exists already') end

local seq = int(redis.call('INCR', P .. ':seq'))
redis.call('HSET', run_key(id), 'schema', '1', 'queue', queue, 'name', name, 'project', project, 'rank', rank,
           'seq', seq, 'spec', spec, 'digest', digest, 'client', client, 'created_ms', int(NOW),
           'attempt', '0', 'failures', '0', 'preemptions', '0', 'lost', '0', 'max_attempts', max_attempts,
           'lease', '', 'cancel', '0')
redis.call('ZADD', P .. ':runs', seq, id)
if client ~= '' then
  redis.call('HSET', token, 'run', id, 'digest', digest)
  redis.call('PEXPIRE', token, int(CLIENT_MS))
end
state_event(id, '0', 'queued')
make_ready(id, queue, rank, seq)
return {id, 'new'}
