#!/usr/bin/env python3
"""10,000 finished runs, with the log of a short training: under 200 MiB in Redis before they are archived, next to
nothing after; and still listed. usage: queue_memory.py [RUNS]"""
import json, os, socket, sys, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from queue_fixture import *

RUNS = int(sys.argv[1]) if len(sys.argv) > 1 else 10000
w = World(serve=["--keep-finished", "3600"])
P = "{softlaunch}"


def used_mib():
    return int(next(l for l in w.cli("info", "memory").splitlines() if l.startswith("used_memory:")).split(":")[1]) / 2**20


def finished_runs_leave_redis():
    """Runs are written as the scripts leave them: one is made by an agent and then copied."""
    a = w.agent()
    w.put("model", "m\n")
    w.put("data", '{"a": "b"}\n')
    run = w.enqueue("fake.60.1.ok")
    assert w.ended(run)["state"] == "succeeded"
    wait(lambda: w.events(run, "outputs"), 5, "its outputs are recorded")
    w.end(a)
    empty = used_mib()
    w.cli("eval", "local P, n = KEYS[1], tonumber(ARGV[2]) local run = redis.call('HGETALL', P .. ':run:' .. ARGV[1]) "
                  "local events = redis.call('XRANGE', P .. ':events:' .. ARGV[1], '-', '+') "
                  "local now = redis.call('HGET', P .. ':run:' .. ARGV[1], 'finished_ms') "
                  "for i = 1, n do local id = string.format('%032x', i) "
                  "redis.call('HSET', P .. ':run:' .. id, unpack(run)) redis.call('HSET', P .. ':run:' .. id, 'seq', 1000 + i) "
                  "for _, e in ipairs(events) do redis.call('XADD', P .. ':events:' .. id, e[1], unpack(e[2])) end "
                  "redis.call('ZADD', P .. ':runs', 1000 + i, id) redis.call('ZADD', P .. ':ended', now, id) "
                  "redis.call('HSET', P .. ':client:' .. id, 'run', id, 'digest', string.rep('0', 64)) end "
                  "redis.call('SET', P .. ':seq', 1000 + n) return #events", 1, P, run, RUNS)
    full = used_mib() - empty
    print(f"# {RUNS} finished runs of {len(w.events(run))} events: {full:.1f} MiB in Redis")
    assert full < 200 * RUNS / 10000, full
    w.end(w.server)
    w.serve = ["--keep-finished", "0"]
    start = time.monotonic()
    w.start_server()
    wait(lambda: w.cli("zcard", P + ":ended") == "0", 600, "all are archived")
    took = time.monotonic() - start
    rest = used_mib() - empty
    print(f"# archived in {took:.0f} s; {rest:.1f} MiB left of them (idempotency tokens)")
    assert rest < 10 * RUNS / 10000 + 1, rest
    start, n, below = time.monotonic(), 0, ""
    while below is not None:
        page = w.api("GET", f"/api/v1/runs?limit=200{'&below=' + below if below else ''}")[1]
        n, below = n + len(page["runs"]), page["next"]
    print(f"# all {n} listed in {time.monotonic() - start:.1f} s")
    assert n == RUNS + 1


tap(w, [finished_runs_leave_redis])
