-- Changes settings of a queue or a project.
-- ARGV: 'queue' or 'project', its name, most of them, then pairs: field, value
-- Reply: 'OK'
-- Checks: not one too many (CONFLICT).
local kind, name = ARGV[1], ARGV[2]
local all = P .. ':' .. kind .. 's'
if not redis.call('ZSCORE', all, name) and redis.call('ZCARD', all) >= tonumber(ARGV[3]) then
  return err('CONFLICT there are ' .. ARGV[3] .. ' ' .. kind .. 's already')
end
redis.call('ZADD', all, 'NX', '0', name)
redis.call('HSET', P .. ':' .. kind .. ':' .. name, unpack(ARGV, 4))
if kind == 'queue' then
  local q = queue_of(name)
  if has_gate(q) then
    redis.call('HSET', BOARD, 'gate q:' .. name, '1')
  else
    redis.call('HDEL', BOARD, 'gate q:' .. name)
  end
  gates().settle_queue(q)
else
  local p = gates().project_of(name)
  gates().note_gate(p)
  gates().settle_project(p)
end
return 'OK'
