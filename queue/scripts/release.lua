#!lua flags=allow-oom
-- Gives a run back unfinished because the agent must go: back to its old place in line, no attempt spent.
-- ARGV: run, lease id, cause
-- Reply: the state it is in: queued; cancelled when that was asked for; dead when preempted too often.
-- Checks: lease is current (LEASE); a repeated call gets the first answer.
local id, lease, cause = ARGV[1], ARGV[2], ARGV[3]
local h = fields(id, 'preemptions', 'max_preemptions', unpack(LEASED))
if lease == '' then return err(LOST) end
if h.lease ~= lease then return done_before(h, lease, 'release') or err(LOST) end

local n, state, list = number(h.preemptions) + 1, 'queued', {}
drop_lease(id, h, list, false)
set(list, 'preemptions', int(n), 'phase', '')
if h.cancel == '1' then
  state = 'cancelled'
  end_run(id, h, list, state, 'cancelled', '')
elseif n > number(h.max_preemptions) then
  state = 'dead'
  end_run(id, h, list, state, 'preempted', 'preempted ' .. int(n) .. ' times')
else
  set(list, 'state', state, 'cause', cause, 'agent', '')
  state_event(id, h.attempt, state, cause, '', h.agent)
  gates().put(id, h, true)
end
remember(list, lease, 'release', state)
save(id, list)
return state
