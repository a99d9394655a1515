#!lua flags=no-writes
-- One run.
-- ARGV: run, field...
-- Reply: {why it waits or '', the value of each field}
-- Checks: the run exists (NOTFOUND).
local id, names = ARGV[1], {unpack(ARGV, 2)}
local h = fields(id, 'state', unpack(IN_LINE))
if h.state == '' then return err('NOTFOUND no run ' .. id) end
local reply = {h.state == 'queued' and gates().waiting_for(id, h) or ''}
for _, v in ipairs(redis.call('HMGET', run_key(id), unpack(names))) do reply[#reply + 1] = v or '' end
return reply
