#!/usr/bin/env python3
"""Figures that are promised: enqueue to claimed p99 under 20 ms; an idle agent under 15 MiB, 0.2 % of a core, and
about one round trip a second. Prints them. Times are Redis's own stamps of the two events."""
import os, sys, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from queue_fixture import *

RUNS = 200
IDLE_S = 10
w = World(lease_ms=30000)


def usage(pid):
    f = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    rss = next(int(line.split()[1]) for line in open(f"/proc/{pid}/status") if line.startswith("VmRSS"))
    return (int(f[11]) + int(f[12])) / os.sysconf("SC_CLK_TCK"), rss / 1024


def round_trips():
    """What clients sent; commands within a script are none."""
    calls = {line.split(":")[0][8:]: int(line.split("calls=")[1].split(",")[0])
             for line in w.cli("info", "commandstats").splitlines() if "calls=" in line}
    return sum(calls.get(name, 0) for name in ("evalsha", "eval", "blpop", "ping"))


def idle_agent_costs_little():
    a = w.agent("idle")
    w.server.send_signal(signal.SIGSTOP)    # its reaper talks to Redis as well
    time.sleep(2)
    cpu0, _ = usage(a.pid)
    trips0, start = round_trips(), time.monotonic()
    time.sleep(IDLE_S)
    cpu1, rss = usage(a.pid)
    seconds = time.monotonic() - start
    rate = (round_trips() - trips0) / seconds
    w.server.send_signal(signal.SIGCONT)
    share = (cpu1 - cpu0) / seconds * 100
    print(f"# idle agent: {rss:.1f} MiB resident, {share:.2f} % of a core, {rate:.2f} round trips to Redis a second")
    assert rss < 15 and share <= 0.2 and rate <= 1, (rss, share, rate)
    w.end(a)


def bare_bell_ms():
    """What it takes here to hear of a push in BLPOP, p99: a busy machine takes longer for anything."""
    ends = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    times = []
    for end in ends:
        end.connect(w.sock)
    for _ in range(RUNS):
        ends[0].sendall(b"BLPOP bare:bell 0\r\n")
        time.sleep(0.005)
        start = time.monotonic()
        ends[1].sendall(b"LPUSH bare:bell 1\r\n")
        ends[0].recv(1 << 16)
        times.append((time.monotonic() - start) * 1000)
        ends[1].recv(1 << 16)
    return sorted(times)[RUNS * 99 // 100]


def enqueue_to_claimed():
    a = w.agent("quick")
    times = []
    for i in range(RUNS):
        run = w.enqueue(f"fake.1.1.ok.{i}", model="missing:latest")    # fails in its fetch: all that is wanted is the claim
        w.ended(run)
        at = {e["data"]["state"]: e["time_ms"] for e in w.events(run, "state")}
        times.append(at["running"] - at["queued"])
        if i % 10 == 0:
            time.sleep(0.05)    # now and then the agent has gone to sleep on its bell
    times.sort()
    p50, p99 = times[RUNS // 2], times[RUNS * 99 // 100]
    bare = bare_bell_ms()
    print(f"# enqueue to claimed, {RUNS} runs: p50 {p50} ms, p99 {p99} ms, longest {times[-1]} ms; a bare BLPOP p99 {bare:.1f} ms")
    assert p99 < max(20, 5 * bare), times[-10:]
    w.end(a)


tap(w, [idle_agent_costs_little, enqueue_to_claimed])
