#!lua flags=allow-oom
-- Ends an attempt that did not succeed.
-- ARGV: run, lease id, kind, cause, message, backoff ms of the first retry, longest backoff ms,
--       how often a run may be lost to its surroundings, log tail (JSON list)
-- kind: 'final'  what was asked for is wrong: never tried again, state failed
--       'crash'  counts as an attempt: delayed, and dead after max_attempts
--       'infra'  the surroundings failed (server away, device broken): no attempt spent, a budget of its own
--       'cancelled'  the worker stopped because of a cancel
-- Reply: the state it is in: failed, dead, delayed or cancelled. Whatever the kind, a cancelled run is cancelled.
-- Checks: lease is current (LEASE); a repeated call gets the first answer.
local id, lease, kind, cause, msg = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local base, longest, most_lost, tail = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9]
local h = fields(id, 'lease', 'attempt', 'failures', 'lost', 'max_attempts', 'cancel', 'agent',
                 'done_lease', 'done_op', 'done_reply')
if lease == '' then return err(LOST) end
if h.lease ~= lease then return done_before(h, lease, 'fail') or err(LOST) end

local failures, lost = tonumber(h.failures) or 0, tonumber(h.lost) or 0
drop_lease(id, lease, false)
redis.call('HSET', run_key(id), 'log_tail', tail, 'phase', '')
if h.cancel == '1' or kind == 'cancelled' then
  end_run(id, h.attempt, 'cancelled', 'cancelled', '', h.agent)
  return remember(id, lease, 'fail', 'cancelled')
end
if kind == 'final' then
  end_run(id, h.attempt, 'failed', cause, msg, h.agent)
  return remember(id, lease, 'fail', 'failed')
end
local n, most
if kind == 'infra' then
  lost = lost + 1
  n, most = lost, most_lost
else
  failures = failures + 1
  n, most = failures, tonumber(h.max_attempts)
end
redis.call('HSET', run_key(id), 'failures', int(failures), 'lost', int(lost))
if n >= most then
  end_run(id, h.attempt, 'dead', cause, msg, h.agent)
  return remember(id, lease, 'fail', 'dead')
end
local due = NOW + math.min(longest, base * 2 ^ math.min(n - 1, 30))
redis.call('HSET', run_key(id), 'state', 'delayed', 'due_ms', int(due), 'cause', cause, 'msg', msg)
redis.call('ZADD', P .. ':delayed', int(due), id)
state_event(id, h.attempt, 'delayed', cause, msg, h.agent)
return remember(id, lease, 'fail', 'delayed')
