#!lua flags=no-writes
-- A page of runs, newest first.
-- ARGV: seq to stay below ('' from the newest), most runs, state, queue, project ('' any), field...
-- Reply: {seq to go on below or '', then per run: id, why it waits or '', and the value of each field}
-- Bounded to about half a millisecond: a look costs 1, a run in the page 3 more, and a call spends 60; a page may be short,
-- even empty, and yet have a next one.
local below, most, state, queue, project = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local LOOK, FOUND = 60, 3
local names = {unpack(ARGV, 6)}
local ids = redis.call('ZRANGE', P .. ':runs', below == '' and '+inf' or '(' .. below, '-inf',
                       'BYSCORE', 'REV', 'LIMIT', '0', int(LOOK), 'WITHSCORES')
local reply, found, spent, next_below = {''}, 0, 0, ''
for i = 1, #ids, 2 do
  if spent >= LOOK then break end
  spent = spent + 1
  local h = fields(ids[i], 'state', unpack(IN_LINE))
  if (state == '' or h.state == state) and (queue == '' or h.queue == queue) and
     (project == '' or h.project == project) then
    if found == most then break end
    found, spent = found + 1, spent + FOUND
    set(reply, ids[i], h.state == 'queued' and gates().waiting_for(ids[i], h) or '')
    for _, v in ipairs(redis.call('HMGET', run_key(ids[i]), unpack(names))) do
      reply[#reply + 1] = v or ''
    end
  end
  next_below = int(tonumber(ids[i + 1]))
  if i + 1 == #ids and #ids < 2 * LOOK then next_below = '' end
end
reply[1] = next_below
return reply
