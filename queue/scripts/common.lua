-- Head of every script: put before it when it is loaded.
--
-- KEYS[1] is the namespace's hash tag, "{name}"; every key of the namespace begins with it and so lives in
-- one slot. P stands for it below:
--   P:seq              counter; a run's place in line among runs of its priority, kept for its whole life
--   P:run:ID           hash: the run's state (fields below)
--   P:runs             sorted set: every run by seq
--   P:ready:QUEUE      sorted set: what can be claimed now and nothing else, by rank * 1e15 + seq
--   P:delayed          sorted set: runs waiting for their backoff, by due time (ms)
--   P:leases           sorted set: leased runs, by when the lease ends (ms)
--   P:lease:LEASE      string: the run that was claimed under this lease id (so that a claim can be repeated)
--   P:client:TOKEN     hash run, digest: what an enqueue with this idempotency token gave
--   P:events:ID        stream: type t, JSON d, attempt a
--   P:bell:QUEUE, P:ring:AGENT   lists of at most one entry: what waiting agents block on
--   P:outbox           hash run -> JSON: results whose version records the server has still to write
--   P:agents           hash agent -> JSON; P:agents_seen: sorted set by time (ms)
-- Fields of a run: schema queue name project rank seq spec digest client state cause msg created_ms
--   started_ms finished_ms due_ms attempt failures preemptions lost max_attempts lease last_lease agent
--   lease_until_ms last_agent batch cancel phase step steps metrics ckpt_manifest ckpt_step outputs log_tail
--   done_lease done_op done_reply
-- States: queued (in ready), delayed (in delayed), running (in leases); succeeded, failed, dead, cancelled.
--
-- The fence: a write for a run names its lease id and is refused unless it equals the field `lease`. The id is
-- made by the agent; the clock is Redis's. A script checks everything before its first write.
-- Error replies begin with LEASE, NOTFOUND, CONFLICT or CANCELLED: see sl_redis_error.
local P = KEYS[1]
local EVENTS_MAX = 20000      -- of one run; about that many are kept
local LEASE_KEY_MS = 3600000  -- how long a claim can be repeated
local RING_MS = 60000         -- how long a ring waits for an agent that is not there
local CLIENT_MS = 7 * 86400000
local RANK = 1e15

local function int(x) return string.format('%.0f', x) end

local clock = redis.call('TIME')
local NOW = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)

local function err(text) return redis.error_reply(text) end
local function run_key(id) return P .. ':run:' .. id end

-- The named fields of a run as a table; a missing one is ''.
local function fields(id, ...)
  local names, h = {...}, {}
  local values = redis.call('HMGET', run_key(id), ...)
  for i, name in ipairs(names) do h[name] = values[i] or '' end
  return h
end

local function event(id, kind, json, attempt)
  return redis.call('XADD', P .. ':events:' .. id, 'MAXLEN', '~', int(EVENTS_MAX), '*',
                    't', kind, 'd', json, 'a', attempt)
end

local function state_event(id, attempt, state, cause, msg, agent)
  local d = {state = state}
  if cause and cause ~= '' then d.cause = cause end
  if msg and msg ~= '' then d.msg = msg end
  if agent and agent ~= '' then d.agent = agent end
  return event(id, 'state', cjson.encode(d), attempt)
end

-- Wakes one agent. One entry is enough: whoever claims rings again while there is more.
local function ring_queue(queue)
  local bell = P .. ':bell:' .. queue
  if redis.call('LLEN', bell) == 0 then redis.call('LPUSH', bell, '1') end
end

local function ring_agent(agent)
  if agent == '' then return end
  local bell = P .. ':ring:' .. agent
  if redis.call('LLEN', bell) == 0 then redis.call('LPUSH', bell, '1') end
  redis.call('PEXPIRE', bell, int(RING_MS))
end

-- Puts a run back in its old place in line.
local function make_ready(id, queue, rank, seq)
  redis.call('HSET', run_key(id), 'state', 'queued')
  redis.call('ZADD', P .. ':ready:' .. queue, int(tonumber(rank) * RANK + tonumber(seq)), id)
  ring_queue(queue)
end

-- Takes the lease off a run. What it was goes to last_lease only when it ran out (it may then be revived).
local function drop_lease(id, lease, expired)
  redis.call('HSET', run_key(id), 'lease', '', 'agent', '', 'lease_until_ms', '',
             'last_lease', expired and lease or '')
  redis.call('ZREM', P .. ':leases', id)
  redis.call('DEL', P .. ':lease:' .. lease)
end

-- A terminal state.
local function end_run(id, attempt, state, cause, msg, agent)
  redis.call('HSET', run_key(id), 'state', state, 'cause', cause, 'msg', msg, 'phase', '',
             'finished_ms', int(NOW), 'due_ms', '')
  state_event(id, attempt, state, cause, msg, agent)
end

-- The first answer to op under this lease, for a caller whose reply was lost; nil when there is none.
local function done_before(h, lease, op)
  if h.done_lease == lease and h.done_op == op then return h.done_reply end
end
local function remember(id, lease, op, reply)
  redis.call('HSET', run_key(id), 'done_lease', lease, 'done_op', op, 'done_reply', reply)
  return reply
end

local LOST = 'LEASE the lease on this run is not ours any more'
