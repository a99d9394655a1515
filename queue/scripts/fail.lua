#!lua flags=allow-oom
-- Ends an attempt that did not succeed.
-- ARGV: run, lease id, kind, cause, message, exit code ('' none), signal ('' none), longest backoff ms,
--       log tail (JSON list)
-- kind: 'spec', 'user_data'  what was asked for is wrong: never tried again, state failed
--       'infrastructure', 'crash', 'out_of_memory', 'timeout'  each with a budget: delayed, and dead when it is spent
--       'cancelled'  the worker stopped because of a cancel
-- Reply: the state it is in: failed, dead, delayed or cancelled. Whatever the kind, a cancelled run is cancelled.
-- Checks: lease is current (LEASE); a repeated call gets the first answer.
local id, lease, kind, cause, msg = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local budgets = {infrastructure = {'lost', 'max_lost'}, crash = {'failures', 'max_attempts'},
                 out_of_memory = {'ooms', 'max_ooms'}, timeout = {'timeouts', 'max_timeouts'}}
local budget = budgets[kind] or budgets.crash
local h = fields(id, 'backoff_ms', budget[1], budget[2], unpack(LEASED))
if lease == '' then return err(LOST) end
if h.lease ~= lease then return done_before(h, lease, 'fail') or err(LOST) end

local list, state = {}, 'delayed'
local failure = {kind = kind, cause = cause, msg = msg, exit_code = tonumber(ARGV[6]), exit_signal = tonumber(ARGV[7]),
                 agent = h.agent}
drop_lease(id, h, list, false)
set(list, 'log_tail', ARGV[9], 'phase', '', 'exit_code', ARGV[6], 'exit_signal', ARGV[7], 'last_agent', h.agent)
if kind ~= 'cancelled' then event(id, 'failure', cjson.encode(failure), h.attempt) end
if h.cancel == '1' or kind == 'cancelled' then
  state = 'cancelled'
  end_run(id, h, list, state, 'cancelled', '')
elseif kind == 'spec' or kind == 'user_data' then
  state = 'failed'
  end_run(id, h, list, state, cause, msg)
else
  local n = number(h[budget[1]]) + 1
  set(list, budget[1], int(n))
  if n >= number(h[budget[2]]) then
    state = 'dead'
    end_run(id, h, list, state, cause, msg)
  else -- doubles, and lies anywhere in the upper half, so that runs that failed together do not come together
    local wait = math.min(tonumber(ARGV[8]), number(h.backoff_ms) * 2 ^ math.min(n - 1, 30))
    local due = NOW + wait * (1 - (tonumber(clock[2]) % 1000) / 2000)
    set(list, 'state', state, 'due_ms', int(due), 'cause', cause, 'msg', msg, 'agent', '')
    if kind == 'timeout' then set(list, 'run_ms', '0') end -- its time begins anew
    redis.call('ZADD', P .. ':delayed', int(due), id)
    state_event(id, h.attempt, state, cause, msg, h.agent)
  end
end
remember(list, lease, 'fail', state)
save(id, list)
return state
