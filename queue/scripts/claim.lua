-- Gives the agent the first run in line of its queues: priority, then age; over all the queues together.
-- ARGV: lease id, agent, lease ms, queue...
-- Reply: nil when there is nothing, else {run, attempt, name, spec, checkpoint manifest or '', its step or '',
--        queue}
-- Checks: a lease id that has claimed before gives the same run again, or LEASE when it lost it meanwhile.
local lease, agent, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])

local function reply(id)
  local h = fields(id, 'attempt', 'name', 'spec', 'ckpt_manifest', 'ckpt_step', 'queue')
  return {id, h.attempt, h.name, h.spec, h.ckpt_manifest, h.ckpt_step, h.queue}
end

local had = redis.call('GET', P .. ':lease:' .. lease)
if had then
  if fields(had, 'lease').lease ~= lease then return err(LOST) end
  return reply(had)
end

local best, best_score, best_queue
for i = 4, #ARGV do
  local first = redis.call('ZRANGE', P .. ':ready:' .. ARGV[i], 0, 0, 'WITHSCORES')
  local score = tonumber(first[2])
  if first[1] and (not best or score < best_score) then
    best, best_score, best_queue = first[1], score, ARGV[i]
  end
end
if not best then
  for i = 4, #ARGV do redis.call('DEL', P .. ':bell:' .. ARGV[i]) end -- no wake-up for nothing
  return false
end

local h = fields(best, 'attempt', 'started_ms')
local attempt = int((tonumber(h.attempt) or 0) + 1)
redis.call('ZREM', P .. ':ready:' .. best_queue, best)
redis.call('HSET', run_key(best), 'state', 'running', 'lease', lease, 'last_lease', '', 'agent', agent,
           'lease_until_ms', int(NOW + ttl), 'attempt', attempt, 'batch', '0', 'phase', 'claimed',
           'cause', '', 'msg', '', 'due_ms', '', 'started_ms', h.started_ms ~= '' and h.started_ms or int(NOW))
redis.call('ZADD', P .. ':leases', int(NOW + ttl), best)
redis.call('SET', P .. ':lease:' .. lease, best, 'PX', int(math.max(LEASE_KEY_MS, 2 * ttl)))
state_event(best, attempt, 'running', nil, nil, agent)
for i = 4, #ARGV do
  if redis.call('ZCARD', P .. ':ready:' .. ARGV[i]) > 0 then ring_queue(ARGV[i]) end
end
return reply(best)
