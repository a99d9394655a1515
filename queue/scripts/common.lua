-- Head of every script, and line.lua behind it: of both each script gets the parts that it uses (scripts.c), so every
-- part begins with "local" at the beginning of a line.
--
-- KEYS[1] is the namespace's hash tag, "{name}"; every key of the namespace begins with it and so lives in
-- one slot. No key is just this tag: so a Cluster that is moving the slot answers every script with ASK, and runs none
-- on half of the keys (redis.h). P stands for it below; Q is a queue, C a class (queue.h), ID a run.
--
-- In line. A queued run lies in exactly one of these three, by score (line.lua):
--   P:ready:Q:C        sorted set: what can be claimed now and nothing else
--   P:held:Q:C         sorted set: what waits for its queue: paused, at its limit, out of its rate, or of a class
--                      that no agent serves
--   P:line:PROJECT:Q:C sorted set: what waits for its project: at its limit, out of its quota
--   P:let:PROJECT:Q:C  sorted set: those of a project with a limit that lie in ready or held
-- Not in line:
--   P:delayed          sorted set: runs waiting for their backoff or their start time, by that time (ms)
--   P:leases           sorted set: leased runs, by when the lease ends (ms)
--   P:ended            sorted set: runs in a terminal state, by when they ended (ms)
-- Names:
--   P:seq              counter: a run's number
--   P:runs             sorted set: every run by seq
--   P:changed, P:changing  sets: runs of which something changed that lists show; those of them that the server's
--                      read model is taking over (changes.lua)
--   P:run:ID           hash: the run's state (fields below)
--   P:refund:ID        that a deleted version's bytes were given back to its project, for a week
--   P:client:TOKEN     hash run, digest: what an enqueue with this idempotency token gave
--   P:dedupe:PROJECT:KEY  string: the run with this dedupe key that has not ended
-- Queues, projects, agents:
--   P:queues, P:projects  sorted sets: names by when reap.lua looked at them last (ms)
--   P:queue:Q          hash: state max_running rate tokens tokens_ms classes (in line, words) closed
--                      (classes that no agent serves) offers (known ones, words) expected (by an autoscaler)
--   P:project:NAME     hash: max_running gpu_ms_max gpu_ms bytes_max bytes lanes ("Q:C" words with runs in
--                      line: or let:)
--   P:offers:Q         sorted set: offers by when an agent had them last (ms)
--   P:board            hash, one for all of these, so that a claim reads and writes them at once: "q:Q" and "p:PROJECT",
--                      runs that run; "gate q:Q" and "gate p:PROJECT", those with limits, or with runs still in a line;
--                      "v:Q:C:RANK", virtual time, and "v:Q:C:RANK/PROJECT", the last place given out; "at:Q:C", when it
--                      was served last; "lease LEASE", the run that is held under it (so that a claim can be repeated);
--                      "agent AGENT", paused, draining, or resumed until it has heard that
--   P:agents           hash agent -> JSON; P:agents_seen: sorted set by time (ms)
-- Streams and bells:
--   P:events:ID        stream: type t, JSON d, attempt a
--   P:bell:Q:OFFER, P:ring:AGENT  lists of at most one entry: what waiting agents block on
--   P:long             set: runs whose events the archive should take already
--   P:outbox           hash run -> JSON: results whose version records the server has still to write
-- Fields of a run: schema queue class gpus name project rank seq score spec digest client dedupe requeued_from created_by job
--   state cause msg created_ms started_ms finished_ms due_ms since_ms (running, and charged up to here) run_ms
--   limit_ms attempt failures ooms timeouts lost preemptions max_attempts max_ooms max_timeouts max_lost
--   max_preemptions backoff_ms exit_code exit_signal lease last_lease agent last_agent batch cancel
--   phase step steps metrics ckpt_manifest ckpt_step outputs log_tail done_lease done_op done_reply synced_ms
-- States: queued (in line), delayed (in delayed), running (in leases); succeeded, failed, dead, cancelled (in ended).
--
-- The fence: a write for a run names its lease id and is refused unless it equals the field `lease`. The id is
-- made by the agent; the clock is Redis's. A script checks everything before its first write.
-- Error replies begin with LEASE, NOTFOUND, CONFLICT or CANCELLED: see sl_redis_error.
local P = KEYS[1]
local BOARD = P .. ':board'
local EVENTS_MAX = '20000'    -- of one run; about that many are kept
local EVENTS_LONG = 5000      -- from here on the archive takes the oldest
local EVENTS_FRESH_MS = 10000 -- and leaves these here
local RING_MS = 60000         -- how long a ring waits for an agent that is not there
local CLIENT_MS = 7 * 86400000

-- For what becomes part of a text. As arguments Redis writes numbers with %.17g itself, which is exact up to 2^53.
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
local function number(text) return tonumber(text) or 0 end

local function event(id, kind, json, attempt)
  return redis.call('XADD', P .. ':events:' .. id, 'MAXLEN', '~', EVENTS_MAX, '*',
                    't', kind, 'd', json, 'a', attempt)
end

-- A list shows something else of the run from now on.
local function changed(id) redis.call('SADD', P .. ':changed', id) end

-- Without the limit, which the next event keeps: a run changes its state a few hundred times at most.
local function state_event(id, attempt, state, cause, msg, agent)
  local json = '{"state":"' .. state .. '"'
  if agent and agent ~= '' then json = json .. ',"agent":' .. cjson.encode(agent) end
  if cause and cause ~= '' then json = json .. ',"cause":' .. cjson.encode(cause) end
  if msg and msg ~= '' then json = json .. ',"msg":' .. cjson.encode(msg) end
  changed(id)
  redis.call('XADD', P .. ':events:' .. id, '*', 't', 'state', 'd', json .. '}', 'a', attempt)
end

local function ring_agent(agent)
  if agent == '' then return end
  local bell = P .. ':ring:' .. agent
  if redis.call('LLEN', bell) == 0 then redis.call('LPUSH', bell, '1') end
  redis.call('PEXPIRE', bell, int(RING_MS))
end

-- Changes of a run's fields are gathered in a list and written at once.
local function set(list, field, value, ...)
  local n = #list
  list[n + 1], list[n + 2] = field, value
  if ... then return set(list, ...) end
end
local function save(id, list) redis.call('HSET', run_key(id), unpack(list)) end

-- A terminal state. h needs project, dedupe, attempt, agent. A claim has cleared cause and msg.
local function end_run(id, h, list, state, cause, msg)
  local now = int(NOW)
  set(list, 'state', state, 'phase', '', 'finished_ms', now)
  if cause ~= '' then set(list, 'cause', cause, 'msg', msg) end
  redis.call('ZADD', P .. ':ended', now, id)
  if h.dedupe ~= '' then
    local key = P .. ':dedupe:' .. h.project .. ':' .. h.dedupe
    if redis.call('GET', key) == id then redis.call('DEL', key) end
  end
  state_event(id, h.attempt, state, cause, msg, h.agent)
end

-- The first answer to op under this lease, for a caller whose reply was lost; nil when there is none.
local function done_before(h, lease, op)
  if h.done_lease == lease and h.done_op == op then return h.done_reply end
end
local function remember(list, lease, op, reply)
  set(list, 'done_lease', lease, 'done_op', op, 'done_reply', reply)
  return reply
end

local LOST = 'LEASE the lease on this run is not ours any more'
