#!/usr/bin/env python3
"""What a run takes of its machine comes as metrics system/...: CPU and memory as /proc has them, GPUs as NVML tells.

NVML is tests/faults/nvml.c, the GPUs are tests/faults/device.c over the CPU's operations.
"""
import shutil
from job_fixture import *

w = Jobs(serve=["--keep-finished", "1"])
PROGRAMS = os.path.dirname(os.path.dirname(BIN)) + "/faults"
PLACE, NVML, SAID = w.dir + "/bin", w.dir + "/nvml", w.dir + "/said"
os.mkdir(PLACE)
os.mkdir(NVML)
shutil.copy(os.path.join(os.path.dirname(BIN), "softlaunch-worker"), PLACE)
shutil.copy(PROGRAMS + "/device/libsoftlaunch-cuda.so", PLACE)
shutil.copy(PROGRAMS + "/nvml.so", NVML + "/libnvidia-ml.so.1")
for name in ("SOFTLAUNCH_DEVICE", "CUDA_VISIBLE_DEVICES"):
    os.environ.pop(name, None)


def agent(name, gpus=""):
    env = {"CUDA_VISIBLE_DEVICES": gpus, "LD_LIBRARY_PATH": NVML, "SL_NVML_FILE": SAID} if gpus else {}
    return w.agent(name, more=["--worker", PLACE + "/softlaunch-worker"], env=env)


def submit(gpus, *more):
    s = make_job("usage", trainer__precision="bf16" if gpus else "fp32")
    if gpus:
        s["resources"] = {"gpus": gpus}
    return w.submit(s, *(more or ("trainer.max_steps=1000000",)))


def said(run):
    """The events about the machine, oldest first."""
    return [e["data"] for e in w.events(run, "metric") if "system/cpu_percent" in e["data"]]


def say(text):
    with open(SAID + ".new", "w") as f:
        f.write(text)
    os.rename(SAID + ".new", SAID)


def worker():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/exe") == PLACE + "/softlaunch-worker":
                return pid
        except OSError:
            pass


def cpu_and_memory_of_the_worker():
    a = agent("plain")
    run = submit(0)
    wait(lambda: said(run), 120, "the first numbers")
    pid = worker()
    status = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))
    resident = int(status["VmRSS"].split()[0]) * 1024
    first = said(run)[0]
    assert set(first) == {"step", "system/cpu_percent", "system/memory_bytes"}, first
    assert 0 < first["system/memory_bytes"] < 4 * resident, (first, resident)    # it may have grown since
    second = wait(lambda: said(run)[1:], 120, "the second")[0]
    peak = int(dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))["VmHWM"].split()[0]) * 1024
    assert set(second) == {"step", "system/cpu_percent", "system/memory_bytes", "system/steps_per_s"}, second
    assert 0 < second["system/cpu_percent"] <= 100 * os.cpu_count() + 10, second
    assert resident / 4 < second["system/memory_bytes"] <= 1.1 * peak, (second, resident, peak)
    # Every step has an event with its time: as many between the two as the rate says.
    times = {e["data"]["step"]: e["time_ms"] for e in w.events(run, "metric") if "loss" in e["data"]}
    x, y = first["step"], second["step"]
    measured = (y - x) / ((times[y] - times[x]) / 1000)
    assert 0.2 < second["system/steps_per_s"] / measured < 5, (second, measured)    # an event's time is Redis's, later
    assert not any(k.startswith("system/") for k in w.run(run)["metrics"]), w.run(run)["metrics"]
    w.command("cancel", run)
    assert w.ended(run, 60)["state"] == "cancelled"
    before = said(run)
    wait(lambda: os.path.exists(f"{w.dir}/store/runs/{run[:2]}/{run}/record.json"), 60,
         "the run is in the archive")
    assert said(run) == before and len(before) >= 2
    w.end(a)


def gpus_as_nvml_has_them():
    say("37 1234567890")
    a = agent("one", "GPU-5a")    # the beginning of a UUID, as CUDA takes it
    run = submit(1)
    last = wait(lambda: [e for e in said(run) if "system/gpu_percent" in e], 120, "the driver has been asked")[-1]
    assert last["system/gpu_percent"] == 37 and last["system/gpu_memory_bytes"] == 1234567890, last
    w.command("cancel", run)
    w.ended(run, 60)
    w.end(a)


def several_gpus_have_numbers_each():
    a = agent("two", "1,0")
    run = submit(2)
    last = wait(lambda: [e for e in said(run) if len([k for k in e if "gpu" in k]) == 4], 120, "both have been asked")[-1]
    assert [last[f"system/gpu{i}_percent"] for i in (0, 1)] == [38, 37], last
    assert last["system/gpu0_memory_bytes"] - last["system/gpu1_memory_bytes"] == 1, last
    w.command("cancel", run)
    w.ended(run, 60)
    w.end(a)


def a_driver_that_hangs_costs_the_numbers_only():
    say("hang")
    a = agent("hangs", "0")
    run = submit(1)
    last = wait(lambda: said(run), 120, "numbers of the rest")[-1]
    assert "system/gpu_percent" not in last and last["system/memory_bytes"] > 0, last
    w.command("cancel", run)
    assert w.ended(run, 60)["state"] == "cancelled"
    run = submit(1, "trainer.max_steps=20")
    assert w.ended(run, 120)["state"] == "succeeded"
    assert w.end(a) == 0


tap(w, [cpu_and_memory_of_the_worker, gpus_as_nvml_has_them, several_gpus_have_numbers_each,
        a_driver_that_hangs_costs_the_numbers_only])
