#!/usr/bin/env python3
"""A run's metrics as TensorBoard reads them: the archive's event files and those of `runs metrics --tensorboard`, read by
TensorBoard's own reader, which also checks each record's sums."""
import glob, signal
from job_fixture import *

PYTHON = subprocess.run([HERE + "/../peer-python.sh", "around"], capture_output=True, text=True)
if PYTHON.returncode:
    print("not run: no tensorboard:", PYTHON.stderr[-300:])
    sys.exit(77)
READ = ("import sys, json\n"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "a = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0}); a.Reload()\n"
        "print(json.dumps({t: [[e.step, e.value, e.wall_time] for e in a.Scalars(t)] for t in a.Tags()['scalars']}))")
w = Jobs(serve=["--keep-finished", "1"])


def read(folder):
    """{tag: {step: value}}, and every time."""
    r = subprocess.run([PYTHON.stdout.strip(), "-c", READ, folder], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-800:]
    tags = json.loads(r.stdout)
    for points in tags.values():
        steps = [p[0] for p in points]
        assert steps == sorted(set(steps)), steps    # none twice, though a run went on from a checkpoint
    return {t: {p[0]: p[1] for p in points} for t, points in tags.items()}, [p[2] for t in tags.values() for p in t]


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def archived(run):
    folder = f"{w.dir}/store/runs/{run[:2]}/{run}"
    wait(lambda: os.path.exists(folder + "/record.json"), 60, "the run is in the archive")
    return folder + "/tensorboard"


def by_command(run, name):
    r = w.command("runs", "metrics", run[:12], "--tensorboard", f"{w.dir}/{name}")
    assert r.returncode == 0 and r.stdout == f"{w.dir}/{name}/{run}\n", (r.stdout, r.stderr)
    return r.stdout.strip()


def files(folder):
    return {os.path.relpath(f, folder): open(f, "rb").read() for f in glob.glob(folder + "/**", recursive=True) if os.path.isfile(f)}


def a_run_that_went_on_from_a_checkpoint():
    a = w.agent("first")
    run = w.submit(make_job("board"), "trainer.max_steps=600", "trainer.val_check_interval=50")
    w.until(run, lambda r: (r["checkpoint_step"] or 0) > 0 and r["step"] > r["checkpoint_step"] + 2, 60)
    w.end(a, signal.SIGKILL)
    live, _ = read(by_command(run, "live"))    # before it has ended
    assert len(live["reduced_train_loss"]) > 2, live.keys()
    a = w.agent("second")
    r = w.ended(run, 120)
    assert r["state"] == "succeeded" and r["attempt"] == 2, r
    train, validation = w.last_metrics(run)
    events = w.events(run, "metric")
    assert len([e for e in events if "loss" in e["data"]]) > len(train) == 600, "no step came twice: nothing is shown"
    folder = archived(run)
    seen, times = read(folder)
    assert seen["reduced_train_loss"] == {s: f32(n[1]) for s, n in train.items()}
    assert seen["lr"] == {s: f32(n[2]) for s, n in train.items()} and seen["epoch"] == {s: f32(n[0]) for s, n in train.items()}
    assert seen["grad_norm"] == {s: f32(n[3]) for s, n in train.items()}
    assert seen["val_loss"] == {s: f32(v) for s, v in validation.items()} and len(validation) > 3
    assert min(times) >= events[0]["time_ms"] / 1000 - 0.01 and max(times) <= events[-1]["time_ms"] / 1000 + 0.01
    for step, point in live["reduced_train_loss"].items():
        assert seen["reduced_train_loss"][step] == point
    assert files(folder) == files(by_command(run, "after"))
    w.end(a)


def trials_are_runs_beside_each_other():
    a = w.agent("trials")
    s = make_job("trials")
    s["trials"] = [{"name": "lr-3", "overrides": {"model.optim.lr": 0.003}}, {"name": "lr-5", "overrides": {"model.optim.lr": 0.005}}]
    run = w.submit(s, "trainer.max_steps=30")
    assert w.ended(run, 120)["state"] == "succeeded"
    folder = archived(run)
    assert sorted(os.path.dirname(f) for f in files(folder) if "/" in f) == ["lr-3", "lr-5"], files(folder).keys()
    for trial in ("lr-3", "lr-5"):
        seen, _ = read(f"{folder}/{trial}")
        said = {e["data"]["step"]: f32(e["data"]["loss"]) for e in w.events(run, "metric")
                if e["data"].get("trial") == trial and "loss" in e["data"]}
        assert seen["reduced_train_loss"] == said and len(said) == 30, trial
    w.end(a)


def a_run_without_metrics_has_none():
    run = w.submit(make_job("nothing"))    # nobody serves it
    w.command("cancel", run)
    assert w.ended(run, 60)["state"] == "cancelled"
    assert not os.path.exists(archived(run))


tap(w, [a_run_that_went_on_from_a_checkpoint, trials_are_runs_beside_each_other, a_run_without_metrics_has_none])
