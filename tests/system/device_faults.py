#!/usr/bin/env python3
"""A device that runs out of memory, faults or is lost in the middle of a run ends one worker with its cause; the agent
reports it and goes on. And which device a run computes on.

The device is tests/faults/device.c before the CPU's operations, or before the real library with SL_FAULT_LIBRARY=FILE.
"""
import shutil, signal, time
from job_fixture import *

w = Jobs()
FAULT = w.dir + "/fault"
PLACE = w.dir + "/bin"    # a worker with that device beside it
REAL = os.environ.get("SL_FAULT_LIBRARY")
FALSE_DEVICE = os.environ.get("SL_FAULT_DEVICE") or os.path.join(os.path.dirname(os.path.dirname(BIN)), "faults", "device")
os.mkdir(PLACE)
shutil.copy(os.path.join(os.path.dirname(BIN), "softlaunch-worker"), PLACE)
shutil.copy(FALSE_DEVICE + "/libsoftlaunch-cuda.so", PLACE)
agents = []


def agent(name="agent", more=(), **env):
    for name_of_ours in ("SOFTLAUNCH_DEVICE", "CUDA_VISIBLE_DEVICES"):
        os.environ.pop(name_of_ours, None)
    a = w.agent(name, more=["--worker", PLACE + "/softlaunch-worker", *more], env={
        "SL_FAULT_FILE": FAULT, "ASAN_OPTIONS": "allocator_may_return_null=1", **env})    # as malloc does without ASan
    agents.append(a)
    wait(lambda: "connected to Redis" in open(a.log).read(), 30, "the agent has tested its devices")
    return a


def spec(name, gpus=1, **config):
    s = make_job(name, trainer__precision="bf16", **config)
    s["resources"] = {"gpus": gpus}
    s["retry"] = {"max_attempts": 1, "out_of_memory": 1, "backoff_s": 1}
    return s


def failing(kind, at, cause, words, state="dead"):
    with open(FAULT, "w") as f:
        f.write(f"{kind} {at}")
    run = w.submit(spec(kind.replace("_", "-")))
    r = w.until(run, lambda r: r["state"] in FINAL + ("delayed",), 60)
    os.unlink(FAULT)
    assert r["state"] == state and r["cause"] == cause, (r["state"], r["cause"], r["msg"])
    assert any(x in r["msg"] for x in words), r["msg"]
    assert agents[0].poll() is None, "the agent is gone"
    print(f"# {kind}: {r['cause']}: {r['msg']}")
    return run, r


def good():
    """The same agent, a run later."""
    run = w.submit(spec("sound"))
    r = w.ended(run, 60)
    assert r["state"] == "succeeded" and agents[0].poll() is None, r
    return w.events(run, "start")[0]["data"]["kernel"]


def out_of_memory_ends_the_worker_alone():
    agent(CUDA_VISIBLE_DEVICES="0")
    run, r = failing("out_of_memory", 1, "out_of_memory", ["memory"])
    assert r["failures"] == 0 and r["out_of_memory"] == 1, r    # it has a budget of its own
    kernel = good()
    assert not REAL or "cuda" in kernel, kernel


def an_illegal_address_ends_the_worker_alone():
    run, r = failing("illegal_address", 5, "device_fault", ["illegal memory access"])
    assert r["failures"] == 1 and r["lost"] == 0, r
    good()


def a_lost_device_costs_no_attempt():
    run, r = failing("device_lost", 5, "device_lost", ["gone", "busy or unavailable"], "delayed")
    assert r["failures"] == 0 and r["lost"] == 1, r
    r = w.ended(run, 60)    # and is whole again
    assert r["state"] == "succeeded", r
    good()
    assert w.end(agents[0]) == 0


def a_run_without_gpus_computes_on_the_cpu():
    a = agent("both", CUDA_VISIBLE_DEVICES="0")
    with open(FAULT, "w") as f:
        f.write("device_lost 1")    # nobody meets it
    run = w.submit(spec("on-the-cpu", gpus=0))
    r = w.ended(run, 60)
    os.unlink(FAULT)
    assert r["state"] == "succeeded", r
    assert "openblas" in w.events(run, "start")[0]["data"]["kernel"]
    w.end(a)


def more_gpus_than_there_are():
    a = agent("few", CUDA_VISIBLE_DEVICES="0")
    run = w.submit(spec("many", gpus=2))
    r = w.until(run, lambda r: r["waiting_for"], 30)
    assert r["state"] == "queued" and r["attempt"] == 0, r
    print("# waits for:", r["waiting_for"])
    assert w.api("POST", f"/api/v1/runs/{run}/cancel")[0] in (200, 202)
    assert a.poll() is None
    w.end(a)


def a_machine_that_breaks_runs_takes_no_more():
    """Three lost devices in a row: then another agent gets the run, and the operator the reason."""
    a = agent("breaks", CUDA_VISIBLE_DEVICES="0")
    with open(FAULT, "w") as f:
        f.write("device_lost 5 100")    # again and again
    run = w.submit(spec("unlucky"))

    def about():
        return next(x for x in w.api("GET", "/api/v1/agents")[1]["agents"] if x["pid"] == a.pid)
    wait(lambda: about()["state"] == "quarantined", 60, "the breaker trips")
    assert "in a row" in about()["quarantine"], about()
    r = w.until(run, lambda r: r["lost"] == 3, 10)
    assert r["failures"] == 0, r
    os.unlink(FAULT)
    time.sleep(3)
    assert w.run(run)["attempt"] == 3, "it was claimed in quarantine"
    status, reply = w.api("POST", f"/api/v1/agents/{about()['agent']}", {"state": "active"})
    assert status in (200, 204), reply
    assert w.ended(run, 60)["state"] == "succeeded"
    wait(lambda: about()["state"] == "idle", 10, "it takes runs again")
    w.end(a)


def a_worker_sees_its_own_gpus_only():
    """Two at a time, one each; asked by what stands in the workers' environments."""
    if REAL:
        raise Skip("this machine has one GPU")
    a = agent("two", more=["--slots", "2"], CUDA_VISIBLE_DEVICES="3,GPU-5a")
    runs = [w.submit(spec(f"long-{i}"), "trainer.max_steps=100000") for i in range(2)]
    for run in runs:
        w.until(run, lambda r: (r["step"] or 0) > 0, 60)
    seen = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/exe") == PLACE + "/softlaunch-worker":
                env = dict(x.split("=", 1) for x in open(f"/proc/{pid}/environ").read().split("\0") if "=" in x)
                seen.append((env.get("CUDA_VISIBLE_DEVICES"), env.get("SOFTLAUNCH_DEVICE")))
        except OSError:
            pass
    assert sorted(seen) == [("3", "cuda"), ("GPU-5a", "cuda")], seen
    for run in runs:
        w.command("cancel", run)
    w.end(a)


tap(w, [out_of_memory_ends_the_worker_alone, an_illegal_address_ends_the_worker_alone, a_lost_device_costs_no_attempt,
        a_run_without_gpus_computes_on_the_cpu, more_gpus_than_there_are, a_machine_that_breaks_runs_takes_no_more,
        a_worker_sees_its_own_gpus_only])
