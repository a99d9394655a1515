#!lua flags=no-writes
-- Queues or projects with their settings and counts.
-- ARGV: 'queue' or 'project', name...
-- Reply: per name a list. Queue: {name, state, most at once, rate, expected offers, running, then in fours: class,
--        ready, held, '1' when an agent serves it}. Project: {name, most at once, GPU ms allowed, used, bytes
--        allowed, used, running, waiting in its line}
local reply, left = {}, 60 -- classes and lanes looked at: a shorter reply than asked is gone on from
local function running(x) return number(redis.call('HGET', BOARD, ARGV[1]:sub(1, 1) .. ':' .. x.name)) end
for i = 2, #ARGV do
  if left <= 0 then break end
  local one = {}
  left = left - 2
  if ARGV[1] == 'queue' then
    local q = queue_of(ARGV[i])
    set(one, q.name, q.state, int(q.max), int(q.rate), q.expected, int(running(q)))
    for class in q.classes:gmatch('%S+') do
      local lane = q.name .. ':' .. class
      left = left - 1
      set(one, class, int(redis.call('ZCARD', P .. ':ready:' .. lane)), int(redis.call('ZCARD', P .. ':held:' .. lane)),
          has(q.closed, class) and '0' or '1')
    end
  else
    local p, n = gates().project_of(ARGV[i]), 0
    for lane in p.lanes:gmatch('%S+') do n = n + redis.call('ZCARD', gates().line_key(p, lane)) end
    set(one, p.name, int(p.max), int(p.gpu_ms_max), int(p.gpu_ms), int(p.bytes_max), int(p.bytes), int(running(p)), int(n))
  end
  reply[#reply + 1] = one
end
return reply
