#!lua
-- Gives the agent the first run of the first of its queues that has one which its offer serves. Within a queue:
-- priority, then the class that was served longest ago, then the place in line.
-- ARGV: lease id, agent, lease ms, offer, queue...
-- Reply: nil when there is nothing, else {run, attempt, name, spec, checkpoint manifest or '', its step or '',
--        time left of its limit (ms) or '', GPUs}
-- Checks: a lease id that has claimed before gives the same run again, or LEASE when it lost it meanwhile.
local lease, agent, ttl, offer = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local TRIES = 20 -- runs looked at whose project has just come to its limit

local now = int(NOW)

local function run_of(id)
  local v = redis.call('HMGET', run_key(id), 'state', 'lease', 'attempt', 'name', 'spec', 'ckpt_manifest', 'ckpt_step',
                       'limit_ms', 'run_ms', 'gpus', 'started_ms', 'cause', 'project', 'rank', 'seq')
  return {state = v[1], lease = v[2], attempt = v[3], name = v[4], spec = v[5], manifest = v[6] or '', step = v[7] or '',
          limit_ms = v[8], run_ms = v[9], gpus = v[10] or '0', started_ms = v[11], cause = v[12], project = v[13],
          rank = v[14], seq = v[15]}
end
local function reply(id, h)
  local left = h.limit_ms and int(math.max(0, h.limit_ms - number(h.run_ms))) or ''
  return {id, h.attempt, h.name, h.spec, h.manifest, h.step, left, h.gpus}
end

local had = redis.call('HMGET', BOARD, 'lease ' .. lease, 'agent ' .. agent)
if had[1] then
  local h = run_of(had[1])
  if h.lease ~= lease then return err(LOST) end
  return reply(had[1], h)
end
if had[2] and had[2] ~= 'resumed' then return false end -- paused or draining

-- Takes the first run of a queue that the offer serves out of ready: id, class, score (text).
local function take_first(q)
  if not q.classes:find(' ', 1, true) then
    if q.classes == '' or not serves(offer, q.classes) then return end
    local first = redis.call('ZPOPMIN', P .. ':ready:' .. q.name .. ':' .. q.classes)
    return first[1], q.classes, first[2]
  end
  local best, best_class, best_score, best_at
  for class in q.classes:gmatch('%S+') do
    local first = serves(offer, class) and
                  redis.call('ZRANGE', P .. ':ready:' .. q.name .. ':' .. class, '0', '0', 'WITHSCORES')
    if first and first[1] then
      local rank, at = math.floor(tonumber(first[2]) / RANK), nil
      local best_rank = best and math.floor(tonumber(best_score) / RANK)
      local better = not best or rank < best_rank
      if best and rank == best_rank then
        at = number(redis.call('HGET', BOARD, 'at:' .. q.name .. ':' .. class))
        best_at = best_at or number(redis.call('HGET', BOARD, 'at:' .. q.name .. ':' .. best_class))
        better = at < best_at
      end
      if better then best, best_class, best_score, best_at = first[1], class, first[2], at end
    end
  end
  if best then redis.call('ZREM', P .. ':ready:' .. q.name .. ':' .. best_class, best) end
  return best, best_class, best_score
end

-- counts: BOARD's gate of the project, runs of queue and project, virtual time, the project's last place.
local function start(id, h, q, class, score, counts, gated)
  local attempt, time, list = int(number(h.attempt) + 1), time_of(q, class, h.rank), {'lease ' .. lease, id}
  local place = math.floor(tonumber(score) % RANK / PLACE)
  if not gated then set(list, 'q:' .. q.name, number(counts[2]) + 1, 'p:' .. h.project, number(counts[3]) + 1) end
  if place > number(counts[4]) then set(list, time, place) end
  if q.classes ~= class then set(list, 'at:' .. q.name .. ':' .. class, clock[1] .. ('%06d'):format(clock[2])) end
  redis.call('HSET', BOARD, unpack(list))
  if counts[5] and tonumber(counts[5]) <= place then redis.call('HDEL', BOARD, time .. '/' .. h.project) end -- none behind it
  list = {'state', 'running', 'lease', lease, 'agent', agent, 'attempt', attempt, 'phase', 'claimed', 'score', score,
          'since_ms', now}
  if not h.started_ms then set(list, 'started_ms', now) end
  if h.attempt ~= '0' or h.cause then set(list, 'last_lease', '', 'batch', '0', 'cause', '', 'msg', '') end
  save(id, list)
  redis.call('ZADD', P .. ':leases', int(NOW + ttl), id)
  state_event(id, attempt, 'running', '', '', agent)
  if gated then
    redis.call('ZREM', P .. ':let:' .. h.project .. ':' .. q.name .. ':' .. class, id)
    count({queue = q.name, project = h.project}, 1)
  end
  ring_class(q, class, P .. ':ready:' .. q.name .. ':' .. class)
  h.attempt = attempt
  return reply(id, h)
end

-- Behind its project's gate, which has closed since it went into ready.
local function put_back(id, h, q, class)
  local g = gates()
  local p, lane = g.project_of(h.project), q.name .. ':' .. class
  if not has(p.lanes, lane) then g.set_lanes(p, with(p.lanes, lane)) end
  redis.call('ZREM', g.let_key(p, lane), id)
  redis.call('ZADD', g.line_key(p, lane), g.line_score(h), id)
end

local tries = 0
for i = 5, #ARGV do
  local q = queue_of(ARGV[i])
  if not has(q.offers, offer) then note_offer(q, offer) end
  if q.rate > 0 then gates().settle_queue(q) end
  while tries < TRIES do
    local id, class, score = take_first(q)
    if not id then break end
    local h = run_of(id)
    if h.state == 'queued' then
      local time, project = time_of(q, class, h.rank), 'p:' .. h.project
      local counts = redis.call('HMGET', BOARD, 'gate ' .. project, 'q:' .. q.name, project, time, time .. '/' .. h.project)
      if not counts[1] or gates().project_room(gates().project_of(h.project)) ~= 0 then
        return start(id, h, q, class, score, counts, counts[1] or has_gate(q))
      end
      put_back(id, h, q, class)
    end
    if has_gate(q) then gates().settle_class(q, class) end
    tries = tries + 1
    if tries == TRIES then ring_class(q, class, P .. ':ready:' .. q.name .. ':' .. class) end
  end
end
return false
