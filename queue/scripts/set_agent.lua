-- Tells an agent what it is to do, and rings it.
-- ARGV: agent, 'active', 'paused' or 'draining'
-- Reply: 'OK'
-- Checks: the agent is there (NOTFOUND).
local agent, wanted = ARGV[1], ARGV[2]
if redis.call('HEXISTS', P .. ':agents', agent) == 0 then return err('NOTFOUND no agent ' .. agent) end
if wanted == 'active' then wanted = 'resumed' end -- heard once; it ends a quarantine, too
redis.call('HSET', BOARD, 'agent ' .. agent, wanted)
ring_agent(agent)
return 'OK'
