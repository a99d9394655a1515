#!/usr/bin/env python3
"""Thousands of short runs through one agent: it grows by less than 1 MiB behind the first 500 and leaks no descriptor.
Then an agent under valgrind: no error, no leak. usage: soak.py [--runs N] [--valgrind-runs N]"""
import argparse
from arena import *

options = argparse.ArgumentParser()
options.add_argument("--runs", type=int, default=10000)
options.add_argument("--valgrind-runs", type=int, default=20)
options = options.parse_args()
WARM, WAITING, GROWTH_KIB = 500, 60, 1024
a = Arena(os.path.realpath(os.environ.get("SL_BUILD", "build")), BIN, small_disks=False)


def rss_kib(pid):
    return next(int(l.split()[1]) for l in open(f"/proc/{pid}/status") if l.startswith("VmRSS"))


def descriptors(pid):
    return sorted(os.readlink(f"/proc/{pid}/fd/{fd}").split(":")[0] for fd in os.listdir(f"/proc/{pid}/fd"))


def in_line():
    return a.left()["ready"]


def go_through(runs):
    """Enqueued as they are taken; returns when all have ended."""
    made = 0
    while made < runs:
        for _ in range(max(0, min(WAITING - in_line(), runs - made))):
            a.add_run(steps=2)
            made += 1
        time.sleep(0.1)
    wait(lambda: not any(a.left().values()), 120, "all runs have ended")


def an_agent_does_not_grow():
    agent = a.start_agent("soak", slots=4)
    go_through(WARM)
    time.sleep(2)
    before, open_before, start = rss_kib(agent.pid), descriptors(agent.pid), time.monotonic()
    go_through(options.runs - WARM)
    seconds = time.monotonic() - start
    time.sleep(2)
    after, open_after = rss_kib(agent.pid), descriptors(agent.pid)
    bad = [r for r in a.acked if a.run(r)["state"] != "succeeded"]
    print(f"# {options.runs} runs, {(options.runs - WARM) / seconds:.0f} a second: agent {before} KiB behind the first {WARM}, "
          f"{after} KiB at the end; {len(open_before)} and {len(open_after)} descriptors; {len(bad)} not succeeded")
    assert not bad and after - before < GROWTH_KIB, (bad[:3], before, after)
    assert open_after == open_before, (open_before, open_after)
    a.end(agent)


def an_agent_under_valgrind():
    if not shutil.which("valgrind"):
        raise Skip("valgrind is not installed")
    log = a.dir + "/valgrind"
    env = dict(os.environ, SOFTLAUNCH_TOKEN=TOKEN, LD_PRELOAD=os.path.join(a.build, "faults", "pidfd.so"))
    runs = [a.add_run(queue="valgrind", steps=2) for _ in range(options.valgrind_runs)]
    agent = a.spawn("valgrind-agent", [
        "valgrind", "-q", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect,possible", "--error-exitcode=99",
        "--child-silent-after-fork=yes", "--log-file=" + log, BIN, "agent", "--redis", a.redis_url, "--server", a.url, "--work-dir",
        a.dir + "/valgrind-work", "--worker", a.worker, "--queue", "valgrind", "--slots", "2",
        "--max-runs", str(len(runs))], env=env)
    status = agent.wait(240)
    text = open(log).read()
    bad = [r for r in runs if a.run(r)["state"] != "succeeded"]
    print(f"# {len(runs)} runs under valgrind: exit status {status}")
    assert not bad and status == 0, text[-3000:] + open(agent.log).read()[-1000:]


tap(a, [an_agent_under_valgrind, an_agent_does_not_grow])
