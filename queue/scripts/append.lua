-- Adds events to a run and brings its progress up to date.
-- ARGV: run, lease id, batch number (1, 2, ... under one lease), phase ('' as it was), step ('' unknown),
--       steps ('' unknown), metrics (JSON, '' as they were), then pairs: type, JSON
-- Reply: 'OK' (also for a batch that is there already: a lost reply may be repeated)
-- Checks: lease is current (LEASE).
local id, lease, batch = ARGV[1], ARGV[2], tonumber(ARGV[3])
local h = fields(id, 'lease', 'batch', 'attempt')
if lease == '' or h.lease ~= lease then return err(LOST) end
if batch <= (tonumber(h.batch) or 0) then return 'OK' end

local set = {'batch', int(batch)}
local function keep(field, value)
  if value ~= '' then set[#set + 1] = field; set[#set + 1] = value end
end
keep('phase', ARGV[4])
keep('step', ARGV[5])
keep('steps', ARGV[6])
keep('metrics', ARGV[7])
redis.call('HSET', run_key(id), unpack(set))
if #set > 2 then changed(id) end
for i = 8, #ARGV - 1, 2 do event(id, ARGV[i], ARGV[i + 1], h.attempt) end
if #ARGV > 8 and redis.call('XLEN', P .. ':events:' .. id) > EVENTS_LONG then redis.call('SADD', P .. ':long', id) end
return 'OK'
