#!/usr/bin/env python3
"""What idle agents cost Redis: 1,000 pairs of connections that say what a real idle agent was heard to say, as often.
Redis's own count of CPU time, server's passes included; under 5 % of a core. usage: idle_agents.py [AGENTS]"""
import selectors
from wire import *

AGENTS = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
LISTEN_S, MEASURE_S, MOST = 22, 20, 0.05
w = World(lease_ms=30000)
w.cli("config", "set", "appendfsync", "everysec")


def cpu_s():
    text = w.cli("info", "cpu")
    return sum(float(l.split(":")[1]) for l in text.splitlines() if re.match(r"used_cpu_(user|sys):", l))


def calls():
    return {l.split(":")[0][8:]: int(l.split("calls=")[1].split(",")[0])
            for l in w.cli("info", "commandstats").splitlines() if "calls=" in l}


def thousand_idle_agents():
    real = w.agent("real")
    wait(lambda: w.cli("hkeys", "{softlaunch}:agents"), 10, "the agent is there")
    name = w.cli("hkeys", "{softlaunch}:agents")
    time.sleep(1)
    ear = Ear(w.sock)
    time.sleep(LISTEN_S)
    said = [(t, c) for t, c in ear.heard() if any(name in x for x in c)]
    w.end(real)
    rate = len(said) / LISTEN_S
    waits = [c for _, c in said if c[0] == "BLPOP"]
    scripts = [c for _, c in said if c[0] == "EVALSHA"]
    beats = [c for c in scripts if c[4] == name]
    claims = [c for c in scripts if c[4] != name]
    assert len(waits) >= 3 and len(beats) >= 2 and len(claims) >= 3 and len(waits) + len(scripts) == len(said), said
    beat_s = LISTEN_S / len(beats)
    print(f"# one real idle agent: {rate:.2f} round trips a second ({len(waits)} waits, {len(claims)} claims, {len(beats)} heartbeats in {LISTEN_S} s)")
    assert rate <= 1
    idle = cpu_s(), time.monotonic()
    time.sleep(5)
    alone = (cpu_s() - idle[0]) / (time.monotonic() - idle[1])

    picked, due = selectors.DefaultSelector(), []
    for i in range(AGENTS):
        mine = f"simulated-{i}"
        block, talk = Connection(w.sock), Connection(w.sock)
        wait_cmd = [x.replace(name, mine) for x in waits[0]]
        claim = [x.replace(name, mine) for x in claims[0]]
        beat = [x.replace(name, mine) for x in beats[0]]
        picked.register(block.s, selectors.EVENT_READ, (block, talk, wait_cmd, claim))
        due.append([time.monotonic() + beat_s * i / AGENTS, talk, beat])
        block.send([wait_cmd[:-1] + [f"{float(wait_cmd[-1]) * (0.2 + 0.8 * i / AGENTS):.3f}"]])    # not all at the same moment
        talk.ask(*beat)
    end_warm = time.monotonic() + 6
    end, start, before = None, None, None
    while end is None or time.monotonic() < end:
        now = time.monotonic()
        if end is None and now > end_warm:
            start, cpu0, before, end = now, cpu_s(), calls(), now + MEASURE_S
        for key, _ in picked.select(0.02):
            block, talk, wait_cmd, claim = key.data
            block.reply()
            claim[4] = os.urandom(16).hex()
            assert not talk.ask(*claim), "there is nothing to claim"
            block.send([wait_cmd])
        for entry in due:
            if entry[0] <= now:
                entry[1].ask(*entry[2])
                entry[0] += beat_s
    seconds = time.monotonic() - start
    share, after = (cpu_s() - cpu0) / seconds, calls()
    trips = sum(after.get(k, 0) - before.get(k, 0) for k in ("evalsha", "blpop")) / seconds
    seen = int(w.cli("zcard", "{softlaunch}:agents_seen"))
    print(f"# {seen} idle agents: {share * 100:.2f} % of a core of Redis, {trips:.0f} round trips a second ({alone * 100:.2f} % without agents)")
    assert seen >= AGENTS and trips >= 0.8 * rate * AGENTS, (seen, trips, rate)
    assert share < MOST, share


import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
tap(w, [thousand_idle_agents])
