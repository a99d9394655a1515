#!/usr/bin/env python3
"""Agents, server and Redis are killed and stopped at random while runs go through. In the end: none lost, none
published twice, nothing written by an owner whose lease was gone. SL_SEED replays the choices (not the timing);
SL_CHAOS_S and SL_CHAOS_RUNS make it longer."""
import hashlib, os, random, signal, subprocess, sys, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from queue_fixture import *

SEED = int(os.environ.get("SL_SEED", time.time_ns() % 1000000))
SECONDS = float(os.environ.get("SL_CHAOS_S", 15))
RUNS = int(os.environ.get("SL_CHAOS_RUNS", 24))
STEPS = 20
rnd = random.Random(SEED)
print(f"# seed {SEED}")
w = World(lease_ms=1500)
w.put("model", "weights\n")
w.put("data", '{"taskname":"t","a":"x","b":"y"}\n')


def final_state():
    state = hashlib.sha256(open(w.dir + "/data.jsonl", "rb").read()).hexdigest()
    for step in range(1, STEPS + 1):
        state = hashlib.sha256((state + str(step)).encode()).hexdigest()
    return hashlib.sha256(state.encode()).hexdigest()


def nothing_is_lost_or_published_twice():
    hits = {}
    runs = [w.enqueue(f"fake.{STEPS}.20.ok.{i}", outputs={"artifact": f"result-{i}"}, priority=rnd.choice(["high", "low"]),
                      retry={"max_attempts": 100}) for i in range(RUNS)]
    agents, n = [], 0
    end = time.monotonic() + SECONDS

    def new_agent():
        nonlocal n
        n += 1
        agents.append(w.agent(f"agent{n}", work="shared"))

    for _ in range(3):
        new_agent()
    while time.monotonic() < end:
        time.sleep(rnd.uniform(0.1, 0.8))
        what = rnd.choice(["kill", "kill", "term", "stop", "worker", "server", "redis", "redis-kill"])
        hits[what] = hits.get(what, 0) + 1
        a = rnd.choice(agents)
        if what in ("kill", "term"):
            agents.remove(a)
            a.send_signal(signal.SIGKILL if what == "kill" else signal.SIGTERM)
            new_agent()
        elif what == "stop":
            a.send_signal(signal.SIGSTOP)
            time.sleep(rnd.uniform(0.2, 2.5))
            a.send_signal(signal.SIGCONT)
        elif what == "worker":
            found = subprocess.run(["pgrep", "-o", "-f", f"fake_worker.py train --run-dir {w.dir}/"],
                                   capture_output=True, text=True).stdout.split()
            try:
                os.kill(int(found[0]), signal.SIGKILL)
            except (IndexError, ProcessLookupError):
                pass
        elif what == "server":
            w.server.kill()
            w.server.wait()
            w.start_server(w.port)
        else:
            (w.redis.kill if what == "redis-kill" else w.redis.terminate)()
            w.redis.wait()
            time.sleep(rnd.uniform(0, 2))
            w.start_redis()
    print("# struck:", ", ".join(f"{k} {v}" for k, v in sorted(hits.items())))
    for a in agents:
        assert a.poll() is None, open(a.log).read()[-2000:]
    expected, attempts = final_state(), 0
    for i, run in enumerate(runs):
        r = w.ended(run, 60)
        assert r["state"] == "succeeded", (SEED, r)
        attempts += r["attempt"]
        versions = w.api("GET", f"/api/v1/artifacts/result-{i}")[1]["versions"]
        assert len(versions) == 1 and versions[0]["version"] == r["outputs"][0]["version"], (SEED, r, versions)
        made = w.api("GET", f"/api/v1/artifacts/result-{i}/latest")[1]
        entries = {e["path"]: e["sha256"] for e in made["files"][0]["entries"]}
        assert entries["prompt_table.safetensors"] == expected, (SEED, run)
        order = [e["attempt"] for e in w.events(run)]
        assert order == sorted(order), (SEED, run, order)    # an attempt never writes after its successor
        steps = [(e["attempt"], e["data"]["step"]) for e in w.events(run, "metric") if "loss" in e["data"]]
        assert {s for _, s in steps} == set(range(1, STEPS + 1)), (SEED, run, steps)
    assert w.cli("zcard", "{softlaunch}:leases") == "0" and w.cli("hlen", "{softlaunch}:outbox") == "0"
    print(f"# {RUNS} runs, {attempts} attempts: 0 lost, 0 published twice")
    for a in agents:
        w.end(a)


tap(w, [nothing_is_lost_or_published_twice])
