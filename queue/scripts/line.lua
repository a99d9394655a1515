-- Second head of every script: where runs wait, and what lets them through.
--
-- Two gates stand before `ready`: the project's (line -> let) and the queue's (held -> ready). A gate without a limit
-- keeps nothing and costs nothing. Behind a gate with a limit of which n are left, the best n of each class lie in
-- ready, so that a class whose agents are all busy takes nothing from another; the claim counts. Opening and closing
-- a queue of any length is one RENAME.
--
-- Score in ready and held: rank, then virtual time, then age. A project's runs of one rank get places one apart,
-- from the place that was claimed last: the first of a project is at most one slot behind the first of any other,
-- however many the other has (start-time fair queueing: Goyal, Vin, Cheng 1996). In line and let: rank, then seq.
local RANK, PLACE = 2 ^ 51, 2 ^ 20
local OFFER_MS = 86400000   -- how long an offer counts after its last agent: an autoscaler may bring it again
local OFFERS_MAX = 32


local function has(words, word) return (' ' .. words .. ' '):find(' ' .. word .. ' ', 1, true) ~= nil end
local function with(words, word) return words == '' and word or words .. ' ' .. word end
local function without(words, word)
  local kept = ''
  for w in words:gmatch('%S+') do if w ~= word then kept = with(kept, w) end end
  return kept
end


local function serves(offer, class)
  if offer == class or class == 'cpu' then return true end
  local function parts(words)
    local c = {gpus = 0, mem = 0, labels = {}}
    for word in words:gmatch('[^+]+') do
      local gpus, mem = word:match('^gpu(%d+)$'), word:match('^mem(%d+)$')
      if gpus then c.gpus = tonumber(gpus)
      elseif mem then c.mem = tonumber(mem)
      elseif word ~= 'cpu' then c.labels[word] = true end
    end
    return c
  end
  local o, c = parts(offer), parts(class)
  if o.gpus < c.gpus or o.mem < c.mem then return false end
  for label in pairs(c.labels) do if not o.labels[label] then return false end end
  return true
end

-- ---- queues

local function time_of(q, class, rank) return 'v:' .. q.name .. ':' .. class .. ':' .. rank end
local known_queues = {}
local function queue_of(name)
  local q = known_queues[name]
  if q then return q end
  local v = redis.call('HMGET', P .. ':queue:' .. name, 'state', 'max_running', 'rate', 'tokens', 'tokens_ms',
                       'classes', 'closed', 'offers', 'expected')
  q = {name = name, key = P .. ':queue:' .. name, state = v[1] or 'active', max = number(v[2]), rate = number(v[3]),
       classes = v[6] or '', closed = v[7] or '', offers = v[8] or '', expected = v[9] or ''}
  if q.max > 0 then q.running = number(redis.call('HGET', BOARD, 'q:' .. name)) end
  if q.rate > 0 then -- a second's worth at once, at least one
    local grown = number(v[4]) + (NOW - number(v[5])) * q.rate / 60000
    q.tokens = math.min(math.max(1, q.rate / 60), grown)
  end
  known_queues[name] = q
  return q
end
local function has_gate(q) return q.max > 0 or q.rate > 0 end

-- Wakes an agent of every kind that can serve the class, if there is one in ready (when that is named). One entry is
-- enough: whoever claims rings again while there is more.
local function ring_class(q, class, ready)
  for offer in q.offers:gmatch('%S+') do
    if serves(offer, class) then
      local bell = P .. ':bell:' .. q.name .. ':' .. offer
      if redis.call('LLEN', bell) == 0 and (not ready or redis.call('EXISTS', ready) == 1) then
        redis.call('LPUSH', bell, '1')
      end
    end
  end
end

local IN_LINE = {'project', 'queue', 'class', 'rank', 'seq', 'score'} -- what a run's place follows from

-- ---- the gates: made only when a script comes to one, since most runs pass none

local made_gates
local function gates()
  if made_gates then return made_gates end
  local STEP = 200 -- entries moved at once, and the most that lie in ready behind a limit
  -- What one call may spend, so that it holds Redis for under 2 ms; about a microsecond each. What opens a gate stops when
  -- it is spent (cut) and goes on with the next call; a queue's gate closes all the same, since the claim does not look at it.
  local MOVE, RUN_MOVE = 3, 40 -- an entry from set to set; a run in or out of a class, which reads and writes its places
  local left, cut = 450, false
  local function spend(n) left = left - n end

  -- How many runs of a class may lie in ready; nil: all.
  local function room(q, class)
    if q.state == 'paused' or has(q.closed, class) then return 0 end
    if not has_gate(q) then return nil end
    local n = STEP
    if q.max > 0 then n = math.min(n, q.max - q.running) end
    if q.rate > 0 then n = math.min(n, math.floor(q.tokens)) end
    return math.max(0, n)
  end

  local function shift(from, to, n, pop)
    n = math.min(n, STEP)
    local some = pop == 'ZPOPMIN' and math.max(0, math.min(n, math.floor(left / MOVE))) or n
    local moved = some > 0 and redis.call(pop, from, int(some)) or {}
    if #moved > 0 then -- all in one call, scores first
      for k = 1, #moved, 2 do moved[k], moved[k + 1] = moved[k + 1], moved[k] end
      redis.call('ZADD', to, unpack(moved))
    end
    spend(#moved / 2 * MOVE)
    if some < n and redis.call('EXISTS', from) == 1 then cut = true end
    return #moved > 0
  end

  -- Brings ready of one class to what may lie there.
  local function settle_class(q, class)
    local ready, held = P .. ':ready:' .. q.name .. ':' .. class, P .. ':held:' .. q.name .. ':' .. class
    local n, most, more = redis.call('ZCARD', ready), room(q, class), false
    if not most then
      if redis.call('EXISTS', held) == 0 then return end
      if n > STEP then
        more = shift(held, ready, STEP, 'ZPOPMIN')
      elseif n * MOVE > left then
        cut = true -- all of it has to be aside before the line comes back
      else
        if n > 0 then shift(ready, held, n, 'ZPOPMAX') end
        redis.call('RENAME', held, ready)
        more = true
      end
    elseif n > most then
      if n - most > STEP and redis.call('EXISTS', held) == 0 then
        redis.call('RENAME', ready, held)
        if most > 0 then shift(held, ready, most, 'ZPOPMIN') end
      else
        shift(ready, held, n - most, 'ZPOPMAX')
      end
    elseif n < most then
      more = shift(held, ready, most - n, 'ZPOPMIN')
    end
    if more then ring_class(q, class) end
  end
  local function settle_queue(q)
    for class in q.classes:gmatch('%S+') do settle_class(q, class) end
  end

  -- Redis keeps a hash of short values in a list, and looks through that for every field. With this it is a table.
  local ABOUT = 'what runs, which limits there are, who is next, and what agents are to do: see common.lua'

  -- A new place at the end of its project's runs.
  local function new_score(q, class, h, seq)
    local time = time_of(q, class, h.rank)
    local mine = time .. '/' .. h.project
    local v = redis.call('HMGET', BOARD, time, mine)
    local place = math.max(number(v[1]), number(v[2])) + 1
    redis.call('HSET', BOARD, mine, int(place))
    if not v[1] then redis.call('HSET', BOARD, 'about', ABOUT) end
    return int(tonumber(h.rank) * RANK + place * PLACE + seq % PLACE)
  end
  -- The place that it had, in front.
  local function old_score(q, class, h, seq)
    local score = number(h.score)
    if score == 0 or math.floor(score / RANK) ~= tonumber(h.rank) then return new_score(q, class, h, seq) end
    local now = number(redis.call('HGET', BOARD, time_of(q, class, h.rank)))
    local place = math.min(math.floor(score % RANK / PLACE), now)
    return int(tonumber(h.rank) * RANK + place * PLACE + seq % PLACE)
  end

  local function lane_add(q, class, id, h, keep)
    local seq = tonumber(h.seq)
    local score = keep and old_score(q, class, h, seq) or new_score(q, class, h, seq)
    local ready, held = P .. ':ready:' .. q.name .. ':' .. class, P .. ':held:' .. q.name .. ':' .. class
    if not has(q.classes, class) then
      q.classes = with(q.classes, class)
      redis.call('HSET', q.key, 'classes', q.classes)
      redis.call('ZADD', P .. ':queues', 'NX', '0', q.name)
    end
    local most = room(q, class)
    if most == 0 then
      redis.call('ZADD', held, score, id)
      return
    end
    redis.call('ZADD', ready, score, id)
    if most then
      local over = redis.call('ZCARD', ready) - most
      if over > 0 then shift(ready, held, over, 'ZPOPMAX') end
    end
    ring_class(q, class)
  end

  -- Out of ready or held; gives its place back when it was the project's last. False: it lay in neither.
  local function lane_take(q, class, id, h)
    for _, kind in ipairs({':ready:', ':held:'}) do
      local key = P .. kind .. q.name .. ':' .. class
      local score = redis.call('ZSCORE', key, id)
      if score then
        redis.call('ZREM', key, id)
        local mine, place = time_of(q, class, h.rank) .. '/' .. h.project, math.floor(tonumber(score) % RANK / PLACE)
        if number(redis.call('HGET', BOARD, mine)) == place then redis.call('HSET', BOARD, mine, int(place - 1)) end
        if kind == ':ready:' and room(q, class) then settle_class(q, class) end
        return true
      end
    end
    return false
  end

  -- ---- projects

  local known_projects = {}
  local function project_of(name)
    local p = known_projects[name]
    if p then return p end
    local v = redis.call('HMGET', P .. ':project:' .. name, 'max_running', 'gpu_ms_max', 'gpu_ms', 'bytes_max',
                         'bytes', 'lanes')
    p = {name = name, key = P .. ':project:' .. name, max = number(v[1]), gpu_ms_max = number(v[2]),
         gpu_ms = number(v[3]), bytes_max = number(v[4]), bytes = number(v[5]), lanes = v[6] or ''}
    if p.max > 0 then p.running = number(redis.call('HGET', BOARD, 'p:' .. name)) end
    known_projects[name] = p
    return p
  end

  -- What it has used up, in words, or nil.
  local function used_up(p)
    if p.gpu_ms_max > 0 and p.gpu_ms >= p.gpu_ms_max then
      return string.format('project %s has used its %.6g GPU hours', p.name, p.gpu_ms_max / 3600000)
    elseif p.bytes_max > 0 and p.bytes >= p.bytes_max then
      return string.format('project %s has used its %.6g GiB of storage', p.name, p.bytes_max / 2 ^ 30)
    end
  end
  local function project_room(p)
    if used_up(p) then return 0 end
    return p.max > 0 and math.min(STEP, math.max(0, p.max - p.running)) or nil
  end
  local function line_key(p, lane) return P .. ':line:' .. p.name .. ':' .. lane end
  local function let_key(p, lane) return P .. ':let:' .. p.name .. ':' .. lane end
  local function line_score(h) return int(tonumber(h.rank) * RANK + tonumber(h.seq)) end
  local function note_gate(p)
    if p.max > 0 or p.gpu_ms_max > 0 or p.bytes_max > 0 or p.lanes ~= '' then
      redis.call('HSET', BOARD, 'gate p:' .. p.name, '1')
    else
      redis.call('HDEL', BOARD, 'gate p:' .. p.name)
    end
  end
  local function set_lanes(p, lanes)
    if lanes == p.lanes then return end
    p.lanes = lanes
    redis.call('HSET', p.key, 'lanes', lanes)
    note_gate(p)
  end

  -- Puts a queued run in line. h needs IN_LINE. keep: back to its old place.
  local function put(id, h, keep)
    local p, q, lane = project_of(h.project), queue_of(h.queue), h.queue .. ':' .. h.class
    local most = project_room(p)
    if most then
      if not has(p.lanes, lane) then set_lanes(p, with(p.lanes, lane)) end
      if most == 0 then
        redis.call('ZADD', line_key(p, lane), line_score(h), id)
        return
      end
      redis.call('ZADD', let_key(p, lane), line_score(h), id)
      if redis.call('ZCARD', let_key(p, lane)) > most then
        local last = redis.call('ZPOPMAX', let_key(p, lane))
        redis.call('ZADD', line_key(p, lane), last[2], last[1])
        if last[1] == id then return end
        lane_take(q, h.class, last[1], fields(last[1], unpack(IN_LINE)))
      end
    end
    lane_add(q, h.class, id, h, keep)
  end

  -- Lets through what its limit has room for, and takes back what it has not.
  local function settle_project(p)
    local most = project_room(p)
    for lane in p.lanes:gmatch('%S+') do
      local line, let = line_key(p, lane), let_key(p, lane)
      local queue, class = lane:match('^([^:]+):(.+)$')
      local n, some = redis.call('ZCARD', let), math.max(0, math.floor(left / RUN_MOVE))
      if most and n > most then
        if n - most > some then cut = true end
        local out = some > 0 and redis.call('ZPOPMAX', let, int(math.min(some, n - most))) or {}
        spend(#out / 2 * RUN_MOVE)
        for k = 1, #out, 2 do
          redis.call('ZADD', line, out[k + 1], out[k])
          lane_take(queue_of(queue), class, out[k], fields(out[k], unpack(IN_LINE)))
        end
      elseif not most or n < most then
        local out = some > 0 and redis.call('ZPOPMIN', line, int(math.min(most and most - n or STEP, some))) or {}
        spend(#out / 2 * RUN_MOVE)
        if (not most or n + #out / 2 < most) and redis.call('EXISTS', line) == 1 then cut = true end
        for k = 1, #out, 2 do
          if most then redis.call('ZADD', let, out[k + 1], out[k]) end
          lane_add(queue_of(queue), class, out[k], fields(out[k], unpack(IN_LINE)), false)
        end
        if not most then redis.call('DEL', let) end
      end
      if redis.call('EXISTS', line, let) == 0 then set_lanes(p, without(p.lanes, lane)) end
    end
  end

  -- Takes a queued run out of line, wherever it lies.
  local function take(id, h)
    local p, lane = project_of(h.project), h.queue .. ':' .. h.class
    if not lane_take(queue_of(h.queue), h.class, id, h) then redis.call('ZREM', line_key(p, lane), id) end
    if p.lanes ~= '' then
      redis.call('ZREM', let_key(p, lane), id)
      settle_project(p)
    end
  end

  -- The counts have changed; what follows.
  local function counted(h, n, in_queue, in_project)
    local q, p = queue_of(h.queue), project_of(h.project)
    q.running, p.running = in_queue, in_project
    if n > 0 and q.rate > 0 then
      q.tokens = q.tokens - 1
      redis.call('HSET', q.key, 'tokens', tostring(q.tokens), 'tokens_ms', int(NOW))
    end
    if has_gate(q) then settle_queue(q) end
    if p.lanes ~= '' then settle_project(p) end
  end

  -- Why a queued run cannot be claimed now, in words, or ''. h needs IN_LINE.
  local function waiting_for(id, h)
    local q, p, lane = queue_of(h.queue), project_of(h.project), h.queue .. ':' .. h.class
    if redis.call('ZSCORE', line_key(p, lane), id) then
      return used_up(p) or string.format('project %s has %d of %d runs at once', p.name, p.running, p.max)
    elseif redis.call('ZSCORE', P .. ':ready:' .. lane, id) then
      local last = redis.call('ZRANGE', P .. ':offers:' .. q.name, '0', '0', 'REV', 'WITHSCORES')[2]
      if NOW - number(last) < 60000 then return '' end
      return 'no agent serves queue ' .. q.name .. ' now'
    elseif q.state == 'paused' then
      return 'queue ' .. q.name .. ' is paused'
    elseif has(q.closed, h.class) then
      return 'no agent of queue ' .. q.name .. ' offers ' .. h.class .. '; there is ' .. q.offers
    elseif q.max > 0 and q.running >= q.max then
      return string.format('queue %s has %d of %d runs at once', q.name, q.running, q.max)
    elseif has_gate(q) then
      return string.format('queue %s starts at most %s a minute and %s at once', q.name,
                           q.rate > 0 and int(q.rate) or 'any number', q.max > 0 and int(q.max) or 'any number')
    end
    return ''
  end

  made_gates = {settle_class = settle_class, settle_queue = settle_queue, settle_project = settle_project,
                project_of = project_of, used_up = used_up, project_room = project_room, line_key = line_key,
                let_key = let_key, line_score = line_score, set_lanes = set_lanes, put = put, take = take,
                counted = counted, note_gate = note_gate, waiting_for = waiting_for, spend = spend,
                left = function() return left end,
                was_cut = function() -- since it was asked last
                  local was = cut
                  cut = false
                  return was
                end}
  return made_gates
end

-- ---- slots

-- A run of these has started (n 1) or stopped (n -1). h needs project, queue.
local function count(h, n)
  local q, p = 'q:' .. h.queue, 'p:' .. h.project
  local v = redis.call('HMGET', BOARD, q, p, 'gate ' .. q, 'gate ' .. p)
  local in_queue, in_project = math.max(0, number(v[1]) + n), math.max(0, number(v[2]) + n)
  redis.call('HSET', BOARD, q, in_queue, p, in_project)
  if v[3] or v[4] then gates().counted(h, n, in_queue, in_project) end
end

-- Brings the time run and the project's GPU time up to date; the caller sets since_ms. h needs since_ms, run_ms, gpus,
-- project.
local function charge(h, list)
  local ms, gpus = NOW - (tonumber(h.since_ms) or NOW), number(h.gpus)
  if ms > 0 then
    set(list, 'run_ms', number(h.run_ms) + ms)
    if gpus > 0 then
      redis.call('HINCRBY', P .. ':project:' .. h.project, 'gpu_ms', int(ms * gpus))
    end
  end
end

local LEASED = {'lease', 'attempt', 'cancel', 'agent', 'dedupe', 'since_ms', 'run_ms', 'gpus',
                'done_lease', 'done_op', 'done_reply', unpack(IN_LINE)}

-- Takes the lease off a run; the agent's name stays with a run that has ended. h needs LEASED. What the lease was goes
-- to last_lease only when it ran out (it may then be revived); a claim has cleared that.
local function drop_lease(id, h, list, expired)
  charge(h, list)
  set(list, 'lease', '')
  if expired then set(list, 'last_lease', h.lease) end
  redis.call('ZREM', P .. ':leases', id)
  redis.call('HDEL', BOARD, 'lease ' .. h.lease)
  count(h, -1)
end

-- An agent has offer for a queue.
local function note_offer(q, offer)
  redis.call('ZADD', P .. ':offers:' .. q.name, int(NOW), offer)
  if has(q.offers, offer) then return end
  local n = 0
  for _ in q.offers:gmatch('%S+') do n = n + 1 end
  if n >= OFFERS_MAX then return end
  q.offers = with(q.offers, offer)
  redis.call('HSET', q.key, 'offers', q.offers)
  redis.call('ZADD', P .. ':queues', 'NX', '0', q.name)
end

