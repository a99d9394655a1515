#!/usr/bin/env python3
"""What surrounds the queue misbehaves: Redis refuses writes for a while, followers crowd the server, requests are hostile,
the agent is started oddly. As a user or operator would notice it."""
import json, os, signal, subprocess, sys, threading, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from queue_fixture import *

w = World()
w.put("model", "weights\n")
w.put("data", '{"taskname":"t","a":"x","b":"y"}\n')
P = "{softlaunch}"


def an_outcome_that_redis_refuses_is_told_again():
    """A Redis that takes no writes (failing disk, no replica) keeps its connections: nothing but time brings the answer."""
    link = Link(w.dir + "/refusing.sock", w.sock)
    link.refuse(b"\r\nspec\r\n", b"-MISCONF Errors writing to the AOF file\r\n")
    a = w.agent("refused", more=["--redis", link.url])
    assert w.ended(w.enqueue("fake.1.1.spec"), 10)["state"] == "failed"
    assert link.refused == 1
    w.end(a)


def followers_do_not_hold_up_requests():
    run = w.enqueue("fake.1.1.ok", queue="nobody-serves")
    stop = threading.Event()

    def follow():
        while not stop.is_set():
            w.api("GET", f"/api/v1/runs/{run}/events?after=99999999999999&wait_ms=1000")

    threads = [threading.Thread(target=follow, daemon=True) for _ in range(30)]
    for t in threads:
        t.start()
    time.sleep(0.5)
    took = []
    for _ in range(10):
        start = time.monotonic()
        assert w.api("GET", f"/api/v1/runs/{run}")[0] == 200
        took.append(time.monotonic() - start)
    stop.set()
    for t in threads:
        t.join()
    in_time(max(took), 0.3)
    w.api("POST", f"/api/v1/runs/{run}/cancel")


def an_agent_started_without_child_signals():
    """Some parents ignore SIGCHLD, and that is inherited."""
    a = w.agent("orphaned", preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    run = w.enqueue("fake.3.10.ok")
    assert w.ended(run, 10)["state"] == "succeeded"
    w.end(a)


def a_worker_sees_no_credentials():
    env = dict(os.environ, SOFTLAUNCH_TOKEN=TOKEN, SOFTLAUNCH_REDIS=w.redis_url)
    a = w.spawn("by-env", [BIN, "agent", "--server", w.url, "--work-dir", w.dir + "/by-env", "--lease-ms", "1500",
                           "--worker", HERE + "/fake_worker.py"], env=env)
    run = w.enqueue("fake.40.50.ok")
    w.until(run, lambda r: (r["step"] or 0) >= 1)
    pids = subprocess.run(["pgrep", "-f", f"fake_worker.py train --run-dir {w.dir}/by-env"], capture_output=True,
                          text=True).stdout.split()
    assert pids
    for pid in pids:
        environ = open(f"/proc/{pid}/environ").read()
        assert TOKEN not in environ and w.redis_url not in environ, environ
    w.api("POST", f"/api/v1/runs/{run}/cancel")
    w.ended(run)
    w.end(a)


def deeply_nested_requests_are_refused():
    pid = w.server.pid
    for body in (b'{"x":' + b"[" * 2000 + b"]" * 2000 + b"}", b"[" * 2000 + b"]" * 2000, b"[" * 400000,
                 b'{"a":' * 2000 + b"1" + b"}" * 2000):
        status, reply = w.api("POST", "/api/v1/runs", body)
        assert status == 422, (status, reply)
        for path in ("/api/v1/runs/" + "0" * 32 + "/publish", "/api/v1/artifacts/x/versions"):
            assert w.api("POST", path, body)[0] in (404, 409, 422)
    assert w.server.poll() is None and w.server.pid == pid


def waiting_ends_when_the_result_can_be_fetched():
    """A run has succeeded in Redis a moment before its version is in the store."""
    run = w.enqueue("fake.1.1.ok", key="slow-result", queue="nobody-serves")
    path = w.dir + "/spec.json"
    json.dump(make_spec("fake.1.1.ok", queue="nobody-serves"), open(path, "w"))
    env = dict(os.environ, SOFTLAUNCH_TOKEN=TOKEN, SOFTLAUNCH_SERVER=w.url)
    p = subprocess.Popen([BIN, "enqueue", path, "--key", "slow-result", "--wait"], env=env, stdout=subprocess.PIPE, text=True)
    wait(lambda: "cmd=xread" in w.cli("client", "list"), 10,
         "it follows the run")
    w.cli("hset", f"{P}:run:{run}", "state", "succeeded")
    w.cli("xadd", f"{P}:events:{run}", "*", "t", "state", "d", '{"state":"succeeded"}', "a", "1")
    time.sleep(2.5)
    assert p.poll() is None, "it ended before the outputs were there"
    w.cli("xadd", f"{P}:events:{run}", "*", "t", "outputs", "d", "[]", "a", "1")
    assert p.wait(3 * PATIENCE) == 0 and p.stdout.read().split() == [run]
    w.cli("zrem", f"{P}:ready:nobody-serves", run)


def old_runs_of_a_state_are_found():
    w.cli("eval", "for i = 1, 1300 do local id = string.format('%032x', i) "
                  "redis.call('zadd', KEYS[1] .. ':runs', 1000000 + i, id) "
                  "redis.call('sadd', KEYS[1] .. ':changed', id) "
                  "redis.call('hset', KEYS[1] .. ':run:' .. id, 'state', i % 650 == 1 and 'dead' or 'failed', "
                  "'name', 'old', 'project', 'default', 'queue', 'q', 'seq', 1000000 + i, 'rank', '2') end", 1, P)

    def listed(*more):
        r = w.command("runs", *more, "--json")
        assert r.returncode == 0, r.stderr
        return [x["run"] for x in json.loads(r.stdout)["runs"]]

    wait(lambda: [run[-4:] for run in listed("--state", "dead")] == ["028b", "0001"], 30, "the lists have them")
    wait(lambda: len(listed("--limit", "500")) == 500, 30, "they have them all")
    w.cli("eval", "for i = 1, 1300 do local id = string.format('%032x', i) redis.call('zrem', KEYS[1] .. ':runs', id) "
                  "redis.call('sadd', KEYS[1] .. ':changed', id) redis.call('del', KEYS[1] .. ':run:' .. id) end", 1, P)


tap(w, [an_outcome_that_redis_refuses_is_told_again, followers_do_not_hold_up_requests,
        an_agent_started_without_child_signals, a_worker_sees_no_credentials, deeply_nested_requests_are_refused,
        waiting_ends_when_the_result_can_be_fetched, old_runs_of_a_state_are_found])
