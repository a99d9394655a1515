#!/usr/bin/env python3
"""A Cluster of three primaries: our slot is found from any node and followed when it moves. While it moves nothing of
ours runs: its keys lie on two nodes then, and a script would see half of them."""
import sys, os
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from redis_fixture import *

P = "{softlaunch}"
servers = Servers()
nodes = start_cluster(servers.start, 2000)
for n in nodes:
    n.id = cli(n.port, "cluster", "myid")
SLOT = cli(nodes[0].port, "cluster", "keyslot", P)


def owner():
    return next(n for n in nodes if "MOVED" not in cli(n.port, "exists", P))


home = owner()
away = next(n for n in nodes if n is not home)
third = next(n for n in nodes if n is not home and n is not away)
w = Over(f"redis://127.0.0.1:{third.port}")    # a node that does not hold our slot


def commands(node):
    """How often a node ran one of our scripts."""
    stats = cli(node.port, "info", "commandstats")
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in stats.splitlines()
               if line.startswith(("cmdstat_evalsha:", "cmdstat_eval:")))


def any_node_serves():
    for n in nodes:
        assert doctor(f"redis://127.0.0.1:{n.port}")["redis"]["level"] == "ok"
    dead = free_port()
    assert doctor(f"redis://127.0.0.1:{dead},127.0.0.1:{third.port}")["redis"]["level"] == "ok"
    a = w.agent()
    assert w.ended(w.enqueue("fake.5.5.ok"))["state"] == "succeeded"
    assert commands(home) > 0 and commands(away) == 0 == commands(third)
    w.end(a)


def moving_a_slot():
    """By hand, as redis-cli --cluster reshard does it: both sides told, keys one by one, then the new owner."""
    a = w.agent("mover")
    runs = [w.enqueue(f"fake.60.50.ok.{i}") for i in range(3)]
    wait(lambda: w.run(runs[0])["state"] == "running", 10, "a run runs")
    cli(away.port, "cluster", "setslot", SLOT, "importing", home.id)
    cli(home.port, "cluster", "setslot", SLOT, "migrating", away.id)
    assert "ASK" in cli(home.port, "exists", P)
    before = commands(home), commands(away)
    keys = cli(home.port, "cluster", "getkeysinslot", SLOT, 10000).split()
    assert len(keys) > 10
    for i in range(0, len(keys), 20):
        if i == len(keys) // 40 * 20:
            time.sleep(1.5)    # half way, and everybody would like to say something
        cli(home.port, "migrate", "127.0.0.1", away.port, "", 0, 5000, "keys", *keys[i:i + 20])
    status, reply = w.api("GET", f"/api/v1/runs/{runs[0]}")
    assert (commands(home), commands(away)) == before, "a script ran while the slot was moving"
    for n in (away, home, third):
        cli(n.port, "cluster", "setslot", SLOT, "node", away.id)
    assert owner() is away
    for run in runs:
        r = w.ended(run, 40)
        assert r["state"] == "succeeded" and r["attempt"] == 1, r
        assert w.published_once(run)
    assert commands(away) > before[1] and a.poll() is None
    assert w.ended(w.enqueue("fake.2.5.ok.after"))["state"] == "succeeded"
    w.end(a)


def a_slot_that_nobody_serves_is_waited_for():
    """The owner is gone for a moment: the Cluster is down, then it is there again, with what it had."""
    a = w.agent("patient")
    away.kill()
    away.wait()
    wait(lambda: "again" in open(a.log).read(), 10, "the agent notices")
    away.__dict__.update(servers.start("node%d" % nodes.index(away), *away.argv[1:], port=away.port).__dict__)
    assert w.ended(w.enqueue("fake.2.5.ok.later"), 30)["state"] == "succeeded"
    w.end(a)


tap(w, [any_node_serves, moving_a_slot, a_slot_that_nobody_serves_is_waited_for])
