#!lua flags=no-writes
-- One run.
-- ARGV: run, field...
-- Reply: {why it waits or '', the value of each field, then, of a run that its last agent left without handing in a
--        log, the last log events' JSON, newest first}
-- Checks: the run exists (NOTFOUND).
local id, names = ARGV[1], {unpack(ARGV, 2)}
local h = fields(id, 'state', 'cause', unpack(IN_LINE))
if h.state == '' then return err('NOTFOUND no run ' .. id) end
local reply = {h.state == 'queued' and gates().waiting_for(id, h) or ''}
for _, v in ipairs(redis.call('HMGET', run_key(id), unpack(names))) do reply[#reply + 1] = v or '' end
if h.cause == 'lease_lost' and h.state == 'dead' then
  local LINES = 200
  for _, e in ipairs(redis.call('XREVRANGE', P .. ':events:' .. id, '+', '-', 'COUNT', 2 * LINES)) do
    if e[2][2] == 'log' and LINES > 0 then
      reply[#reply + 1] = e[2][4]
      LINES = LINES - 1
    end
  end
end
return reply
