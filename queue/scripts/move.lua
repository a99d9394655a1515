-- Gives a run that has not ended another priority or queue. In line it goes to the end of its project's runs there;
-- a running one's next attempt goes there, and it counts as the new queue's from now.
-- ARGV: run, queue ('' as it is), rank ('' as it is), most classes
-- Reply: its state. May be repeated.
-- Checks: the run exists (NOTFOUND), has not ended, the queue takes runs and has room for its class (CONFLICT).
local id = ARGV[1]
local h = fields(id, 'state', 'attempt', unpack(IN_LINE))
if h.state == '' then return err('NOTFOUND no run ' .. id) end
if h.state ~= 'queued' and h.state ~= 'delayed' and h.state ~= 'running' then
  return err('CONFLICT run ' .. id .. ' has ended: ' .. h.state)
end
local queue, rank = ARGV[2] ~= '' and ARGV[2] or h.queue, ARGV[3] ~= '' and ARGV[3] or h.rank
if queue == h.queue and rank == h.rank then return h.state end
local q, n = queue_of(queue), 0
if queue ~= h.queue and q.state == 'draining' then return err('CONFLICT queue ' .. queue .. ' is drained: it takes no runs') end
for _ in q.classes:gmatch('%S+') do n = n + 1 end
if n >= tonumber(ARGV[4]) and not has(q.classes, h.class) then
  return err('CONFLICT queue ' .. queue .. ' has runs of ' .. n .. ' classes in line: too many to add ' .. h.class)
end

if h.state == 'queued' then gates().take(id, h) end
if h.state == 'running' and queue ~= h.queue then
  count(h, -1)
  h.queue = queue
  count(h, 1)
end
h.queue, h.rank, h.score = queue, rank, ''
save(id, {'queue', queue, 'rank', rank, 'score', ''})
changed(id)
event(id, 'moved', cjson.encode({queue = queue, rank = tonumber(rank)}), h.attempt)
if h.state == 'queued' then gates().put(id, h) end
return h.state
