#!lua flags=allow-oom
-- Keeps a lease for another while, and tells whether somebody asked to cancel the run.
-- A lease that ran out and was reaped is revived while nobody else has claimed the run.
-- ARGV: run, lease id, lease ms
-- Reply: {lease ends (ms, Redis's clock), '1' when cancelled else '0', '1' when revived else '0'}
-- Checks: lease is current, or was the last one of a run that is still in line (LEASE).
local id, lease, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
local h = fields(id, 'lease', 'last_lease', 'state', 'cancel', 'lost', 'attempt', 'last_agent', 'since_ms', 'run_ms',
                 'gpus', unpack(IN_LINE))
local revived = '0'
if lease == '' then return err(LOST) end
if h.lease ~= lease then
  if h.lease ~= '' or h.last_lease ~= lease or h.state ~= 'queued' then return err(LOST) end
  revived = '1'
end

local list = {}
if revived == '1' then
  gates().take(id, h)
  set(list, 'state', 'running', 'lease', lease, 'last_lease', '', 'due_ms', '', 'agent', h.last_agent,
      'lost', int(math.max(0, number(h.lost) - 1)), 'cause', '', 'msg', '', 'since_ms', int(NOW))
  redis.call('HSET', BOARD, 'lease ' .. lease, id)
  state_event(id, h.attempt, 'running', 'lease_revived', '', h.last_agent)
  count(h, 1)
else
  charge(h, list)
  set(list, 'since_ms', NOW)
  changed(id) -- by how long it has run
end
save(id, list)
redis.call('ZADD', P .. ':leases', int(NOW + ttl), id)
return {int(NOW + ttl), h.cancel, revived}
