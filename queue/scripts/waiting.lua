#!lua flags=no-writes
-- Why runs wait.
-- ARGV: run...
-- Reply: for each the reason, '' of one that is not in line or waits for nothing but its turn
local reply = {}
for i, id in ipairs(ARGV) do
  local h = fields(id, 'state', unpack(IN_LINE))
  reply[i] = h.state == 'queued' and gates().waiting_for(id, h) or ''
end
return reply
