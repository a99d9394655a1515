#!/usr/bin/env python3
"""Redis that fails over: three real Sentinels, a primary and a replica. The primary is killed under load; runs go on."""
import sys, os
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from redis_fixture import *

RUNS = 12
P = "{softlaunch}"
servers = Servers()
first, second = start_pair(servers.start)
sentinels = start_sentinels(servers, "prime", first, "requirepass watch\nsentinel sentinel-pass watch\n", ready=None, more=["-a", "watch"])
hosts = ",".join(f"127.0.0.1:{s.port}" for s in sentinels)
URL = f"redis+sentinel://{hosts}/prime?sentinel_password=watch"


def the_primary_is_found():
    assert doctor(URL)["redis"]["level"] == "ok"
    dead = f"127.0.0.1:{free_port()}"
    assert doctor(f"redis+sentinel://{dead},{hosts}/prime?sentinel_password=watch")["redis"]["level"] == "ok"


def what_is_wrong_is_said():
    for url, word in ((f"redis+sentinel://{hosts}/other?sentinel_password=watch", "no primary of the name other"),
                      (f"redis+sentinel://{hosts}/prime?sentinel_password=wrong", "user name and password"),
                      (f"redis://127.0.0.1:{sentinels[0].port}", "NOAUTH"),
                      (f"redis://:watch@127.0.0.1:{sentinels[0].port}", "its URL is redis+sentinel://"),
                      (f"redis://127.0.0.1:{second.port}", "not the primary (its role is slave)")):
        found = doctor(url)["redis"]
        assert found["level"] == "error" and word in found["found"] and "watch@" not in found["found"], (url, found)


def too_few_replicas_are_told():
    w = Over(URL)
    path = w.dir + "/spec.json"
    json.dump(make_spec("fake.1.1.ok"), open(path, "w"))
    r = w.command("enqueue", path, "--wait-replicas", "2", "--key", "again")
    assert r.returncode == 1 and not r.stdout, r
    run = json.loads(w.command("runs", "--json").stdout)["runs"][0]["run"]
    for word in (run, "is enqueued", "1 of 2 replicas", "--key again"):
        assert word in r.stderr, (word, r.stderr)
    r = w.command("enqueue", path, "--wait-replicas", "1", "--key", "again")
    assert r.returncode == 0 and r.stdout.strip() == run, r    # the same run
    w.close()
    cli(first.port, "flushall")


def runs_survive_a_failover():
    """Enqueued with a replica's acknowledgement, so that none may be missing afterwards."""
    w = Over(URL, lease_ms=3000)
    agents = [w.agent(f"agent{i}") for i in range(2)]
    runs = [w.enqueue(f"fake.20.20.ok.{i}", flags=["--wait-replicas", "1"]) for i in range(RUNS)]
    wait(lambda: any(w.run(r)["state"] == "succeeded" for r in runs), 20, "the first run ends")
    first.kill()
    first.wait()
    killed = time.monotonic()
    wait(lambda: "role:master" in cli(second.port, "info", "replication"), 30, "the replica is promoted")
    promoted = time.monotonic() - killed
    late = w.enqueue("fake.2.5.ok.late")
    taken = time.monotonic() - killed
    for run in runs + [late]:
        r = w.ended(run, 60)
        assert r["state"] == "succeeded" and r["failures"] in (0, None), r
        assert w.published_once(run)
    print(f"# promoted {promoted:.1f} s after the kill, the next run enqueued {taken:.1f} s after it")
    for a in agents:
        assert a.poll() is None
        w.end(a)
    w.close()


def the_old_primary_comes_back_as_a_replica():
    again = subprocess.Popen(first.argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    servers.procs.append(again)
    wait(lambda: "role:slave" in cli(first.port, "info", "replication"), 30, "the old primary is demoted")
    assert doctor(URL)["redis"]["level"] == "ok"
    wait(lambda: "master_link_status:up" in cli(first.port, "info", "replication"), 30, "it is in step")


def a_primary_that_hangs_is_left_when_the_sentinels_say_so():
    """It closes no connection: without the Sentinels' word an idle agent would wait for its answer for seconds more."""
    old, new = second, first    # as the last test left them
    w = Over(URL)
    a = w.agent()
    peers = lambda node: cli(node.port, "client", "list").count("cmd=blpop")
    wait(lambda: peers(old) == 1, 10, "the agent waits at the primary")
    wait(lambda: cli(new.port, "info", "replication").count("role:slave"), 10, "there is a replica")
    old.send_signal(signal.SIGSTOP)
    wait(lambda: "role:master" in cli(new.port, "info", "replication"), 30, "the replica is promoted")
    promoted = time.monotonic()
    wait(lambda: peers(new) == 1, 10, "the agent has gone to the new primary")
    took = time.monotonic() - promoted
    print(f"# the agent waits at the new primary {took:.2f} s after its promotion")
    in_time(took, 3)
    assert w.ended(w.enqueue("fake.2.5.ok.hung"), 30)["state"] == "succeeded"
    old.send_signal(signal.SIGCONT)
    w.end(a)
    w.close()


tap(None, [the_primary_is_found, what_is_wrong_is_said, too_few_replicas_are_told, runs_survive_a_failover, the_old_primary_comes_back_as_a_replica,
           a_primary_that_hangs_is_left_when_the_sentinels_say_so])
