-- Gives the agent the first run of the first of its queues that has one which its offer serves. Within a queue:
-- priority, then the class that was served longest ago, then the place in line.
-- ARGV: lease id, agent, lease ms, offer, queue...
-- Reply: nil when there is nothing, else {run, attempt, name, spec, checkpoint manifest or '', its step or '',
--        time left of its limit (ms) or '', GPUs}
-- Checks: a lease id that has claimed before gives the same run again, or LEASE when it lost it meanwhile.
local lease, agent, ttl, offer = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local TRIES = 20 -- runs looked at whose project has just come to its limit

local names = {'attempt', 'name', 'spec', 'ckpt_manifest', 'ckpt_step', 'limit_ms', 'run_ms', 'gpus', 'lease', 'state',
               'started_ms', unpack(IN_LINE)}
local function reply(id, h)
  local left = tonumber(h.limit_ms) and int(math.max(0, tonumber(h.limit_ms) - number(h.run_ms))) or ''
  return {id, h.attempt, h.name, h.spec, h.ckpt_manifest, h.ckpt_step, left, h.gpus}
end

local had = redis.call('GET', P .. ':lease:' .. lease)
if had then
  local h = fields(had, unpack(names))
  if h.lease ~= lease then return err(LOST) end
  return reply(had, h)
end
if redis.call('HEXISTS', P .. ':wanted', agent) == 1 then return false end

-- The first run of a queue that the offer serves.
local function first_of(q)
  local best, best_class, best_score, best_at
  for class in q.classes:gmatch('%S+') do
    local first = serves(offer, class) and
                  redis.call('ZRANGE', P .. ':ready:' .. q.name .. ':' .. class, '0', '0', 'WITHSCORES')
    if first and first[1] then
      local rank, at = math.floor(tonumber(first[2]) / RANK), nil
      local best_rank = best and math.floor(best_score / RANK)
      local better = not best or rank < best_rank
      if best and rank == best_rank then
        at = number(redis.call('HGET', P .. ':fair:' .. q.name .. ':' .. class, 'at'))
        best_at = best_at or number(redis.call('HGET', P .. ':fair:' .. q.name .. ':' .. best_class, 'at'))
        better = at < best_at
      end
      if better then best, best_class, best_score, best_at = first[1], class, tonumber(first[2]), at end
    end
  end
  return best, best_class, best_score
end

local function start(id, h, q, class, score)
  local attempt = int(number(h.attempt) + 1)
  local fair, rank = P .. ':fair:' .. q.name .. ':' .. class, math.floor(score / RANK)
  local place, mine = math.floor(score % RANK / PLACE), int(rank) .. '/' .. h.project
  local v = redis.call('HMGET', fair, int(rank), mine)
  redis.call('HSET', fair, 'at', clock[1] .. ('%06d'):format(clock[2]), int(rank), int(math.max(number(v[1]), place)))
  if number(v[2]) <= place then redis.call('HDEL', fair, mine) end -- none of the project is behind it
  redis.call('ZREM', P .. ':ready:' .. q.name .. ':' .. class, id)
  save(id, {'state', 'running', 'lease', lease, 'last_lease', '', 'agent', agent, 'lease_until_ms', int(NOW + ttl),
            'attempt', attempt, 'batch', '0', 'phase', 'claimed', 'cause', '', 'msg', '', 'due_ms', '',
            'score', int(score), 'since_ms', int(NOW), 'started_ms', h.started_ms ~= '' and h.started_ms or int(NOW)})
  redis.call('ZADD', P .. ':leases', int(NOW + ttl), id)
  redis.call('SET', P .. ':lease:' .. lease, id, 'PX', int(math.max(LEASE_KEY_MS, 2 * ttl)))
  state_event(id, attempt, 'running', nil, nil, agent)
  if project_of(h.project).lanes ~= '' then
    redis.call('ZREM', let_key(project_of(h.project), q.name .. ':' .. class), id)
  end
  count(h, 1)
  if redis.call('EXISTS', P .. ':ready:' .. q.name .. ':' .. class) == 1 then ring_class(q, class) end
  h.attempt = attempt
  return reply(id, h)
end

local tries = 0
for i = 5, #ARGV do
  local q = queue_of(ARGV[i])
  if not has(q.offers, offer) then note_offer(q, offer) end
  if q.rate > 0 then settle_queue(q) end
  local id, class, score = first_of(q)
  while id and tries < TRIES do
    local h = fields(id, unpack(names))
    local p = project_of(h.project)
    if h.state == 'queued' and project_room(p) ~= 0 then return start(id, h, q, class, score) end
    tries = tries + 1
    redis.call('ZREM', P .. ':ready:' .. q.name .. ':' .. class, id)
    if h.state == 'queued' then -- its project got its limit, or used up its quota, when this stood in line already
      local lane = q.name .. ':' .. class
      if not has(p.lanes, lane) then set_lanes(p, with(p.lanes, lane)) end
      redis.call('ZREM', let_key(p, lane), id)
      redis.call('ZADD', line_key(p, lane), line_score(h), id)
    end
    if has_gate(q) then settle_class(q, class) end
    id, class, score = first_of(q)
  end
  if id then ring_class(q, class) end
end
return false
