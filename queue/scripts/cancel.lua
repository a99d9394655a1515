#!lua flags=allow-oom
-- Asks for a run's end. In line: it is cancelled now. Running: its agent is rung and told with every renewal.
-- ARGV: run
-- Reply: 'cancelled', or 'cancelling' while its agent still has to stop it. May be repeated.
-- Checks: the run exists (NOTFOUND) and has not ended otherwise (CONFLICT).
local id = ARGV[1]
local h = fields(id, 'state', 'attempt', 'agent', 'cancel', 'dedupe', unpack(IN_LINE))
if h.state == '' then return err('NOTFOUND no run ' .. id) end
if h.state == 'cancelled' then return 'cancelled' end
if h.state == 'running' then
  if h.cancel ~= '1' then
    save(id, {'cancel', '1'})
    changed(id)
    event(id, 'state', '{"state":"cancelling"}', h.attempt)
  end
  ring_agent(h.agent)
  return 'cancelling'
end
if h.state ~= 'queued' and h.state ~= 'delayed' then
  return err('CONFLICT run ' .. id .. ' has ended: ' .. h.state)
end

if h.state == 'queued' then gates().take(id, h) else redis.call('ZREM', P .. ':delayed', id) end
local list = {'cancel', '1', 'last_lease', '', 'due_ms', ''}
end_run(id, h, list, 'cancelled', 'cancelled', '')
save(id, list)
return 'cancelled'
