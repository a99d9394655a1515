-- Stores a run and puts it in line, or aside until its start time.
-- ARGV: run id, client token ('' none), spec's digest, queue, class, rank (0 critical .. 3 low), project, dedupe key
--       ('' none), start time (ms; '' none), delay (ms; '' none), most classes, most queues and projects,
--       then pairs: field, value
-- Reply: {run id, 'new', 'known' or 'duplicate'}: the same client token with the same spec gives the run it gave
--        before; a dedupe key gives the project's run that has it and has not ended.
-- Checks: token not used for another spec, run id not taken, queue not drained, no quota used up, not too many
--         classes, queues and projects (CONFLICT).
local id, client, digest, queue, class, rank, project, dedupe = unpack(ARGV)
local token = P .. ':client:' .. client
if client ~= '' then
  local old = redis.call('HMGET', token, 'run', 'digest')
  if old[1] then
    if old[2] ~= digest then
      return err('CONFLICT this idempotency key was used for another spec, which became run ' .. old[1])
    end
    return {old[1], 'known'}
  end
end
local there = fields(id, 'digest').digest
if there == digest then return {id, 'known'} end
if there ~= '' then return err('CONFLICT run ' .. id .. ' exists already') end
local key = P .. ':dedupe:' .. project .. ':' .. dedupe
if dedupe ~= '' then
  local other = redis.call('GET', key)
  if other then return {other, 'duplicate'} end
end
local q, p = queue_of(queue), gates().project_of(project)
if q.state == 'draining' then return err('CONFLICT queue ' .. queue .. ' is drained: it takes no runs') end
if gates().used_up(p) then return err('CONFLICT ' .. gates().used_up(p)) end
if not has(q.classes, class) then
  local n = 0
  for _ in q.classes:gmatch('%S+') do n = n + 1 end
  if n >= tonumber(ARGV[11]) then
    return err('CONFLICT queue ' .. queue .. ' has runs of ' .. n .. ' classes in line: too many to add ' .. class)
  end
end
for kind, name in pairs({queues = queue, projects = project}) do
  if not redis.call('ZSCORE', P .. ':' .. kind, name) and redis.call('ZCARD', P .. ':' .. kind) >= tonumber(ARGV[12]) then
    return err('CONFLICT there are ' .. ARGV[12] .. ' ' .. kind .. ' already')
  end
end

local seq = int(redis.call('INCR', P .. ':seq'))
local due = tonumber(ARGV[9]) or (tonumber(ARGV[10]) and NOW + tonumber(ARGV[10])) or 0
local h = {queue = queue, class = class, rank = rank, project = project, seq = seq, score = ''}
local list = {'schema', '1', 'queue', queue, 'class', class, 'project', project, 'rank', rank, 'seq', seq,
              'digest', digest, 'created_ms', int(NOW), 'attempt', '0'}
if client ~= '' then set(list, 'client', client) end
if dedupe ~= '' then set(list, 'dedupe', dedupe) end
for i = 13, #ARGV do list[#list + 1] = ARGV[i] end
redis.call('ZADD', P .. ':runs', seq, id)
redis.call('ZADD', P .. ':queues', 'NX', '0', queue)
redis.call('ZADD', P .. ':projects', 'NX', '0', project)
if client ~= '' then
  redis.call('HSET', token, 'run', id, 'digest', digest)
  redis.call('PEXPIRE', token, int(CLIENT_MS))
end
if dedupe ~= '' then redis.call('SET', key, id) end
if due > NOW then
  set(list, 'state', 'delayed', 'due_ms', int(due), 'cause', 'scheduled')
  save(id, list)
  redis.call('ZADD', P .. ':delayed', int(due), id)
  state_event(id, '0', 'delayed', 'scheduled')
else
  set(list, 'state', 'queued')
  save(id, list)
  state_event(id, '0', 'queued')
  gates().put(id, h)
end
return {id, 'new'}
