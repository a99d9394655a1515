#!/usr/bin/env python3
"""The matrix of faults: each fault strikes each part in each state of a run, while thousands of runs go through real
agents, a real server and a real Redis. `make faults`: 10,000 runs, 20 hits in each cell; a short form is in make test.
A victim, an agent with fault points, stops itself in the wanted state; the fault is done to the target; then it is let
go. That it stood there is the proof that the fault struck in that state. Afterwards checker.py judges every run.
usage: matrix.py [--redis single|sentinel|cluster] [--runs N] [--hits N] [--seconds S] [--only REGEX] [--report NAME]"""
import argparse, collections, datetime, re, statistics, threading
from topologies import *

options = argparse.ArgumentParser()
options.add_argument("--runs", type=int, default=10000)
options.add_argument("--hits", type=int, default=20, help="in each cell")
options.add_argument("--seconds", type=float, default=3600, help="no new fault after that")
options.add_argument("--parallel", type=int, default=8, help="victims at a time")
options.add_argument("--redis", choices=ARENAS, default="single")
options.add_argument("--only", help="cells TARGET.FAULT.STATE that match")
options.add_argument("--seed", type=int, default=int(time.time()))
options.add_argument("--report", default="faults")
options = options.parse_args()
BUILD = os.path.realpath(os.environ.get("SL_BUILD", "build"))
REACH_S, SETTLE_S = 60, 4

if os.geteuid() == 0 and not os.environ.get("SL_FAULTS_OWN_MOUNTS"):    # mounts of our own vanish with us
    r = subprocess.run(["unshare", "-m", "true"], capture_output=True)
    if r.returncode == 0:
        os.execvpe("unshare", ["unshare", "-m", sys.executable, *sys.argv], dict(os.environ, SL_FAULTS_OWN_MOUNTS="1"))

random.seed(options.seed)
print(f"# seed {options.seed}", flush=True)
a = ARENAS[options.redis](BUILD)
cells = [(t, f, s) for t in FAULTS for f in FAULTS[t] for s in STATES if reachable(t, f, s) and f not in a.LEFT_OUT
         and (not options.only or re.search(options.only, f"{t}.{f}.{s}"))]
not_run = [c for c in cells if c[1] == "disk" and not (a.disks.get("store") and a.small_disk("probe", "1m"))]
cells = [c for c in cells if c not in not_run]
hits, missed, struck, errors = collections.Counter(), collections.Counter(), [], []
wanted = [c for c in cells for _ in range(options.hits)]
random.shuffle(wanted)
end = time.monotonic() + options.seconds
work = threading.Lock()
done_enqueueing = threading.Event()


def claimed_by(log):
    """The run that an agent is about, by its log."""
    run = None
    for line in open(log):
        if '"claimed fault.' in line:
            run = json.loads(line).get("run")
    return run


def victim(number, cell):
    target, fault, state = cell
    name = f"victim{number}"
    lines = clock = disk = None
    if target == "agent" and fault in ("cut", "slow"):
        lines = [Line(f"{a.dir}/{name}.sock", a.sock), Line(("127.0.0.1", 0), ("127.0.0.1", a.port))]
    if target == "agent" and fault == "clock":
        clock = a.clock(name)
    if target == "agent" and fault == "disk":
        disk = a.small_disk(name, "1m")
    agent = a.start_agent(name, point=STATES[state], lines=lines, clock=clock, work=disk)
    try:
        if not until_stopped(agent, state == "releasing", REACH_S):
            return False
        # Stopped where it was asked to be: in no other state is the fault done.
        at, run, offset = time.time(), claimed_by(agent.log), a.clock("redis").offset
        a.strike(target, fault, agent, lines, clock, disk)
        hits[cell] += 1
        struck.append((cell, run, at, offset))
        if agent.poll() is None:
            time.sleep(random.uniform(0.2, SETTLE_S / 2))
        return True
    finally:
        if agent.poll() is None:
            wake(agent.pid)
            agent.terminate()
            try:
                agent.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                errors.append(f"{name} ({'.'.join(cell)}) did not leave within {LEAVE_S} s of SIGTERM")
                agent.kill()
                agent.wait()
        for line in lines or []:
            line.close()
        a.procs.remove(agent)
        if disk:
            subprocess.run(["umount", "-l", disk], capture_output=True)
            del a.disks[name]
        with contextlib.suppress(OSError):
            os.unlink(agent.log)
        with contextlib.suppress(OSError):
            os.unlink(f"{a.dir}/{name}.mark")


def strike_all():
    while True:
        with work:
            if not wanted or time.monotonic() > end:
                return
            cell = wanted.pop()
            number = len(struck) + sum(missed.values()) + random.randrange(10**9)
        try:
            ok = victim(number, cell)
        except Exception as e:    # the harness's own trouble: the hit does not count
            errors.append(f"{'.'.join(cell)}: {type(e).__name__}: {e}")
            ok = False
        if not ok:
            missed[cell] += 1
            if missed[cell] < 5 * options.hits:
                with work:
                    wanted.insert(random.randrange(len(wanted) + 1), cell)


def enqueue_all():
    while len(a.acked) < options.runs or (any(t.is_alive() for t in strikers) and time.monotonic() < end):
        try:
            waiting = a.left()["ready"]
        except (OSError, ValueError):
            waiting = 10**6
        if waiting < 40:
            for _ in range(40):
                a.add_run()
        else:
            time.sleep(0.05)
    done_enqueueing.set()


started = time.monotonic()
helpers = [a.start_agent(f"agent{i}", slots=4) for i in range(2)]
strikers = [threading.Thread(target=strike_all, daemon=True) for _ in range(options.parallel)]
feeder = threading.Thread(target=enqueue_all, daemon=True)
for t in strikers:
    t.start()
feeder.start()
while feeder.is_alive():
    feeder.join(30)
    print(f"# {time.monotonic() - started:.0f} s: {len(a.acked)} runs, {len(struck)} faults", flush=True)
for t in strikers:
    t.join()
for h in helpers:
    if h.poll() is not None:
        errors.append(f"an agent that was not struck has ended: {open(h.log).read()[-500:]}")
violations, recovery = [], []
a.settle()
events_of, first_in_line = {}, set()
for run in a.acked:
    found, record, events = a.judge(run)
    violations += found
    events_of[run] = events
    if record and record["priority"] == "high":
        first_in_line.add(run)
violations += checker.check_left(a.left())
# From the fault until the run was going on, or over; of those that nothing stands before when they come back in line.
for cell, run, at, offset in struck:
    if run in first_in_line and cell[0] in ("agent", "worker") and cell[1] == "kill" and not any(0 < t - at < 15 for t in a.redis_steps):
        later = [e["time_ms"] / 1000 - offset - at for e in events_of.get(run, []) if e["type"] == "state" and
                 e["data"]["state"] in ("running", *checker.FINAL) and e["time_ms"] / 1000 >= at + offset]
        recovery += later[:1]
count = collections.Counter(kind for kind, _ in violations)
recovery.sort()
report = {
    "command": "tests/faults/matrix.py " + " ".join(sys.argv[1:]), "commit": subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE).stdout.strip(),
    "date": datetime.date.today().isoformat(), "redis": options.redis, "seed": options.seed, "seconds": round(time.monotonic() - started),
    "lease_s": LEASE_MS / 1000, "runs": len(a.acked), "faults": len(struck), "lost": count["lost"] + count["wrong"],
    "doubled": count["doubled"], "stale_accepted": count["stale"], "stuck": count["stuck"],
    "recovery_p50_s": round(statistics.median(recovery), 2) if recovery else None,
    "recovery_p99_s": round(recovery[min(len(recovery) - 1, int(len(recovery) * 0.99))], 2) if recovery else None,
    "cells": {".".join(c): hits[c] for c in cells}, "not_run": [".".join(c) for c in not_run]}
os.makedirs(BUILD + "/reports", exist_ok=True)
json.dump(report, open(f"{BUILD}/reports/{options.report}.json", "w"), indent=1)
print("# " + json.dumps({k: v for k, v in report.items() if k not in ("cells", "not_run")}))
for kind, text in violations[:40]:
    print(f"# {kind}: {text}")
for text in errors[:20]:
    print(f"# harness: {text}")
short = [f"{'.'.join(c)} {hits[c]}" for c in cells if hits[c] < options.hits]
print(("not ok" if violations else "ok") + f" - {len(a.acked)} runs, {len(struck)} faults: {report['lost']} lost, "
      f"{report['doubled']} published twice, {report['stale_accepted']} stale writes, {report['stuck']} stuck")
print(("not ok" if short else "ok") + f" - {options.hits} hits in each of {len(cells)} cells" + (": short: " + ", ".join(short[:30]) if short else ""))
if not_run:
    print(f"ok - {len(not_run)} cells # SKIP not run: a small tmpfs cannot be mounted here")
for h in helpers:
    a.end(h)
sys.exit(1 if violations or short or errors else 0)
