#!/usr/bin/env python3
"""The agent is killed right before and right after each call to Redis and each artifact step (base/fault.h), and stopped
right before each, past its lease, to wake up when another agent has finished its run. Each run must finish exactly
once, and the old owner must publish nothing."""
import concurrent.futures, glob, re
from arena import *

PARALLEL = int(os.environ.get("SL_PARALLEL", 6))
FAULTS = os.path.realpath(os.path.join(os.environ.get("SL_BUILD", "build"), "faults"))
STEP_MS = 30
w = World(lease_ms=1500)
w.put("model", "weights\n")
w.put("data", '{"taskname":"t","a":"x","b":"y"}\n')


def agent(queue, number, point=None):
    env = dict(os.environ, SOFTLAUNCH_TOKEN=TOKEN)
    if point:
        env["SL_FAULT_POINT"] = point
    program = os.path.join(FAULTS, "softlaunch") if point else BIN
    return w.spawn(f"{queue}-{number}", [program, "agent", "--redis", w.redis_url, "--server", w.url, "--work-dir",
                                         f"{w.dir}/work-{queue}-{number}", "--lease-ms", str(w.lease_ms), "--worker",
                                         os.path.join(FAULTS, "worker"), "--queue", queue, "--verbose"], env=env)


def check(run, artifact, least):
    """least: its attempts. On a busy machine a lease may run out without a fault."""
    r = w.ended(run, 60)
    assert r["state"] == "succeeded", r
    assert r["attempt"] >= least, r
    made = wait(lambda: (lambda a: a[1] if a[0] == 200 else None)(w.api("GET", f"/api/v1/artifacts/{artifact}")), 20, artifact)
    assert [v["version"] for v in made["versions"]] == ["v0"], made["versions"]
    assert len(r["outputs"]) == 1 and r["outputs"][0]["version"] == "v0", r["outputs"]
    order = [e["attempt"] for e in w.events(run)]
    assert order == sorted(order), order
    return r


def strike(point, action):
    name = f"{point}.{action}"
    queue, artifact = name, "result-" + name
    steps = 40 if point.startswith("renew.") else 12    # a renewal is due after a third of the lease
    mode = "crash" if point.startswith("fail.") else "ok"
    run = w.enqueue(f"fault.{steps}.{STEP_MS}.{mode}", queue=queue, outputs={"artifact": artifact})
    old = agent(queue, 1, f"{point}:{action}")
    if point.startswith("release."):
        w.until(run, lambda r: (r["step"] or 0) >= 2)
        old.send_signal(signal.SIGTERM)
    if action == "kill":
        assert old.wait(30 * PATIENCE) == -signal.SIGKILL, (name, old.returncode)
        new = agent(queue, 2)
        # Killed right after publishing the run has ended with its first attempt.
        r = check(run, artifact, 1)
    else:
        wait(lambda: stopped(old.pid), 30, f"{name}: the agent is stopped")
        new = agent(queue, 2)
        r = check(run, artifact, 1 if point == "claim.before" else 2)
        wake(old.pid)
        time.sleep(2 * w.lease_ms / 1000)    # time enough to do what it was about to do
        again = check(run, artifact, r["attempt"])
        for key in ("attempt", "finished_ms", "step", "metrics"):
            assert again[key] == r[key], (key, again[key], r[key])
        assert old.poll() is None or point.startswith("release."), open(old.log).read()[-2000:]
        w.end(old)
    digest = undisturbed(w, steps)
    entries = w.api("GET", f"/api/v1/artifacts/{artifact}/v0")[1]["files"][0]["entries"]
    assert [e["sha256"] for e in entries if e["path"] == "state"] == [digest], entries
    w.end(new)
    return name


sources = sum((glob.glob(os.path.join(HERE, "..", "..", d, "*.c")) for d in ("agent", "artifacts")), [])
points = sorted(set(re.findall(r'"(\w+\.(?:before|after))"', "\n".join(
    line for f in sources for line in open(f) if "sl_fault_point" in line))))
cases = [(p, "kill") for p in points] + [(p, "stop") for p in points if p.endswith(".before")]
only = os.environ.get("SL_ONLY")
failed = 0
with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
    futures = {pool.submit(strike, *c): ".".join(c) for c in cases if not only or re.search(only, ".".join(c))}
    for f in concurrent.futures.as_completed(futures):
        try:
            f.result()
            print("ok -", futures[f], flush=True)
        except Exception as e:
            failed += 1
            print("not ok -", futures[f], "\n#", type(e).__name__, str(e)[:600].replace("\n", "\n# "), flush=True)
wait(lambda: w.cli("zcard", "{softlaunch}:leases") == "0" and w.cli("hlen", "{softlaunch}:outbox") == "0", 30, "nothing is left")
sys.exit(1 if failed else 0)
