#!lua flags=allow-oom
-- What time brings: ended leases go back in line (no attempt spent, a budget of its own), delayed runs whose time
-- has come go in line, queues with a rate get what it allows, classes that no agent serves are put aside and come
-- back when one does, agents not seen for an hour are forgotten.
-- ARGV: most runs to move per call, '1' to leave leases alone this time
-- Reply: {leases ended, runs promoted, 1 when there is more to do now, results in the outbox}
local most, spare = tonumber(ARGV[1]), ARGV[2] == '1'
local LOOK_MS, LOOKS = 900, 10 -- queues and projects are looked at so often, so many a call at most
local A_RUN, A_NAME, A_CLASS = 30, 10, 10 -- what they cost of what a call may spend: see gates() in line.lua
local ended = spare and {} or
              redis.call('ZRANGEBYSCORE', P .. ':leases', '-inf', int(NOW), 'LIMIT', '0', int(most))
local due = redis.call('ZRANGEBYSCORE', P .. ':delayed', '-inf', int(NOW), 'LIMIT', '0', int(most))

for _, id in ipairs(ended) do
  local h = fields(id, 'lost', 'max_lost', unpack(LEASED))
  local lost, list = number(h.lost) + 1, {}
  local msg = 'agent ' .. h.agent .. ' did not renew its lease'
  drop_lease(id, h, list, true)
  set(list, 'lost', int(lost), 'phase', '', 'last_agent', h.agent)
  if h.cancel == '1' then
    end_run(id, h, list, 'cancelled', 'cancelled', '')
  elseif lost >= number(h.max_lost) then
    end_run(id, h, list, 'dead', 'lease_lost', msg .. ', ' .. int(lost) .. ' times by now')
  else
    set(list, 'state', 'queued', 'cause', 'lease_lost', 'msg', msg, 'agent', '')
    state_event(id, h.attempt, 'queued', 'lease_lost', msg, h.agent)
    gates().put(id, h, true)
  end
  save(id, list)
end
for _, id in ipairs(due) do
  local h = fields(id, 'attempt', 'cause', unpack(IN_LINE))
  redis.call('ZREM', P .. ':delayed', id)
  save(id, {'state', 'queued', 'due_ms', ''})
  state_event(id, h.attempt, 'queued', h.cause == 'scheduled' and 'scheduled' or 'retry')
  gates().put(id, h)
end

local more = #ended == most or #due == most
gates().spend((#ended + #due) * A_RUN)
gates().was_cut()

-- Calls look(name) for those whose turn it is, as long as there is something left to spend: the rest comes with the next call,
-- and so does one that could not do all that it wanted.
local function look_at(kind, look)
  local names = redis.call('ZRANGEBYSCORE', P .. ':' .. kind, '-inf', int(NOW - LOOK_MS), 'LIMIT', '0', int(LOOKS))
  if #names == LOOKS then more = true end
  for _, name in ipairs(names) do
    if gates().left() <= 0 then
      more = true
      return
    end
    gates().spend(A_NAME)
    look(name)
    local cut = gates().was_cut()
    redis.call('ZADD', P .. ':' .. kind, cut and '0' or int(NOW), name)
    if cut then more = true end
  end
end

look_at('queues', function(name)
  local q = queue_of(name)
  local seen = redis.call('ZRANGE', P .. ':offers:' .. name, '0', int(OFFERS_MAX), 'WITHSCORES')
  local offers, closed, classes = '', '', ''
  for k = 1, #seen, 2 do
    if NOW - tonumber(seen[k + 1]) > OFFER_MS then
      redis.call('ZREM', P .. ':offers:' .. name, seen[k])
    else
      offers = with(offers, seen[k])
    end
  end
  for class in q.classes:gmatch('%S+') do
    gates().spend(A_CLASS)
    local lane, served = name .. ':' .. class, offers == '' and q.expected == ''
    for offer in (offers .. ' ' .. q.expected):gmatch('%S+') do served = served or serves(offer, class) end
    if redis.call('EXISTS', P .. ':ready:' .. lane, P .. ':held:' .. lane) > 0 then
      classes = with(classes, class)
      if not served then closed = with(closed, class) end
    end
  end
  if offers ~= q.offers or closed ~= q.closed or classes ~= q.classes then
    q.offers, q.closed, q.classes = offers, closed, classes
    redis.call('HSET', q.key, 'offers', offers, 'closed', closed, 'classes', classes)
  end
  gates().settle_queue(q)
end)
look_at('projects', function(name)
  local p = gates().project_of(name)
  if p.lanes ~= '' then gates().settle_project(p) end
end)

local gone = redis.call('ZRANGEBYSCORE', P .. ':agents_seen', '-inf', int(NOW - 3600000), 'LIMIT', '0', int(most))
for _, agent in ipairs(gone) do
  redis.call('ZREM', P .. ':agents_seen', agent)
  redis.call('HDEL', P .. ':agents', agent)
  redis.call('HDEL', BOARD, 'agent ' .. agent)
end
return {#ended, #due, more and 1 or 0, redis.call('HLEN', P .. ':outbox')}
