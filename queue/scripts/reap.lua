#!lua flags=allow-oom
-- What time brings: ended leases go back in line (no attempt spent, a budget of its own), delayed runs whose
-- time has come too, agents not seen for an hour are forgotten.
-- ARGV: most runs to move per call, how often a run may be lost, '1' to leave leases alone this time
-- Reply: {leases ended, runs promoted}
local most, most_lost, spare = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local ended = spare and {} or
              redis.call('ZRANGEBYSCORE', P .. ':leases', '-inf', int(NOW), 'LIMIT', 0, int(most))
local due = redis.call('ZRANGEBYSCORE', P .. ':delayed', '-inf', int(NOW), 'LIMIT', 0, int(most))

for _, id in ipairs(ended) do
  local h = fields(id, 'lease', 'attempt', 'queue', 'rank', 'seq', 'lost', 'cancel', 'agent')
  local lost = (tonumber(h.lost) or 0) + 1
  local msg = 'agent ' .. h.agent .. ' did not renew its lease'
  drop_lease(id, h.lease, true)
  redis.call('HSET', run_key(id), 'lost', int(lost), 'phase', '', 'last_agent', h.agent)
  if h.cancel == '1' then
    end_run(id, h.attempt, 'cancelled', 'cancelled', '', h.agent)
  elseif lost >= most_lost then
    end_run(id, h.attempt, 'dead', 'lease_lost', msg .. ', ' .. int(lost) .. ' times by now', h.agent)
  else
    redis.call('HSET', run_key(id), 'cause', 'lease_lost', 'msg', msg)
    state_event(id, h.attempt, 'queued', 'lease_lost', msg, h.agent)
    make_ready(id, h.queue, h.rank, h.seq)
  end
end
for _, id in ipairs(due) do
  local h = fields(id, 'attempt', 'queue', 'rank', 'seq')
  redis.call('ZREM', P .. ':delayed', id)
  redis.call('HSET', run_key(id), 'due_ms', '')
  state_event(id, h.attempt, 'queued', 'retry')
  make_ready(id, h.queue, h.rank, h.seq)
end
local gone = redis.call('ZRANGEBYSCORE', P .. ':agents_seen', '-inf', int(NOW - 3600000), 'LIMIT', 0, int(most))
for _, agent in ipairs(gone) do
  redis.call('ZREM', P .. ':agents_seen', agent)
  redis.call('HDEL', P .. ':agents', agent)
end
return {#ended, #due}
