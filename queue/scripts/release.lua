#!lua flags=allow-oom
-- Gives a run back unfinished because the agent must go: back to its old place in line, no attempt spent.
-- ARGV: run, lease id, cause, how often a run may be preempted
-- Reply: the state it is in: queued; cancelled when that was asked for; dead when preempted too often.
-- Checks: lease is current (LEASE); a repeated call gets the first answer.
local id, lease, cause, most = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local h = fields(id, 'lease', 'attempt', 'queue', 'rank', 'seq', 'preemptions', 'cancel', 'agent',
                 'done_lease', 'done_op', 'done_reply')
if lease == '' then return err(LOST) end
if h.lease ~= lease then return done_before(h, lease, 'release') or err(LOST) end

local n = (tonumber(h.preemptions) or 0) + 1
drop_lease(id, lease, false)
redis.call('HSET', run_key(id), 'preemptions', int(n), 'phase', '')
if h.cancel == '1' then
  end_run(id, h.attempt, 'cancelled', 'cancelled', '', h.agent)
  return remember(id, lease, 'release', 'cancelled')
end
if n > most then
  end_run(id, h.attempt, 'dead', 'preempted', 'preempted ' .. int(n) .. ' times', h.agent)
  return remember(id, lease, 'release', 'dead')
end
state_event(id, h.attempt, 'queued', cause, '', h.agent)
make_ready(id, h.queue, h.rank, h.seq)
return remember(id, lease, 'release', 'queued')
