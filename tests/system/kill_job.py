#!/usr/bin/env python3
"""Agents killed, stopped and told to leave in the middle of real runs: another one finishes them to the same bits.

A run's bits are its last numbers for every step and its prompt table. They are compared with those of an undisturbed run.
"""
import signal, time
from job_fixture import *

w = Jobs(lease_ms=3000)
STEPS = 1200
KINDS = {
    "mlp": dict(),
    "lstm": dict(model__p_tuning={"encoder_type": "lstm", "encoder_hidden": 24, "dropout": 0.3}, trainer__max_steps=500),
    "prompt": dict(model__virtual_prompt_style="prompt-tuning",
                   model__prompt_tuning={"new_prompt_init_methods": ["text", "random"],
                                         "new_prompt_init_text": ["the colour is", None]}),
    "long": dict(model__global_batch_size=32, model__micro_batch_size=32, trainer__max_steps=2400),    # outlasts a lease
}
undisturbed = {}


def job(kind):
    spec = make_job("job-" + kind, trainer__max_steps=STEPS, trainer__val_check_interval=50)
    for key, value in KINDS[kind].items():
        at = spec["config"]
        *path, last = key.split("__")
        for part in path:
            at = at[part]
        at[last] = value
    return spec


def bits(run):
    return w.last_metrics(run), tensors(w.result(run) + "/prompt_table.safetensors")[0]


def compare(run, kind):
    (train, validation), table = bits(run)
    (train0, validation0), table0 = undisturbed[kind]
    steps = job(kind)["config"]["trainer"]["max_steps"]
    assert sorted(train) == list(range(1, steps + 1)) and sorted(validation) == list(range(0, steps + 1, 50))
    other = [s for s in train if train[s] != train0[s]] + [s for s in validation if validation[s] != validation0[s]]
    assert not other, f"other numbers at the steps {other[:10]}"
    assert table == table0, "another prompt table"


def workers(agent):
    """Pids of the workers that an agent has started."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = open(f"/proc/{pid}/stat").read()
            if int(stat.rsplit(")", 1)[1].split()[1]) == agent.pid and "softlaunch-worker" in os.readlink(f"/proc/{pid}/exe"):
                found.append(int(pid))
        except OSError:
            pass
    return found


def gone(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


def seconds_until(what, limit):
    start = time.monotonic()
    while not what():
        in_time(time.monotonic() - start, limit)
        time.sleep(0.01)
    return time.monotonic() - start


def in_the_middle(run, kind):
    """Waits until a checkpoint is stored and more steps are done."""
    steps = job(kind)["config"]["trainer"]["max_steps"]
    r = w.until(run, lambda r: r["checkpoint_step"] and r["step"] > r["checkpoint_step"] or r["state"] in FINAL, 60)
    assert r["state"] == "running" and r["step"] < steps * 0.9, f"it was too fast to be disturbed: {r}"


def resumed(run):
    starts = [e["data"] for e in w.events(run, "start")]
    assert len(starts) == 2 and not starts[0]["resumed"] and starts[1]["resumed"] and starts[1]["step"] > 0, starts
    return starts[1]["step"]


def killed_and_taken_over(kind):
    first = w.agent(kind + "-first")
    run = w.submit(job(kind))
    assert w.ended(run, 120)["state"] == "succeeded", w.run(run)
    undisturbed[kind] = bits(run)
    run = w.submit(job(kind))
    in_the_middle(run, kind)
    pid, = workers(first)
    first.kill()
    took = seconds_until(lambda: gone(pid), 2)
    killed = time.monotonic()
    second = w.agent(kind + "-second")
    w.until(run, lambda r: r["attempt"] >= 2)
    again = time.monotonic() - killed
    in_time(again, w.lease_ms / 1000 + 2)
    r = w.ended(run, 120)
    assert r["state"] == "succeeded" and r["lost"] == 1 and r["failures"] == 0, r
    print(f"# {kind}: the worker was gone after {took:.2f} s, the run began again after {again:.1f} s at step {resumed(run)}")
    compare(run, kind)
    return second


def told_to_leave(kind, agent):
    run = w.submit(job(kind))
    in_the_middle(run, kind)
    start = time.monotonic()
    assert w.end(agent) == 0
    took = time.monotonic() - start
    in_time(took, 15)
    r = w.run(run)
    assert r["state"] == "queued" and r["preemptions"] == 1 and r["failures"] == 0 and r["lost"] == 0, r
    assert r["checkpoint_step"] == r["step"], r    # nothing that was trained is lost
    assert os.listdir(f"{w.dir}/{kind}-second/runs") == []
    last = w.agent(kind + "-third")
    r = w.ended(run, 120)
    assert r["state"] == "succeeded" and r["attempt"] == 2, r
    print(f"# {kind}: the agent left after {took:.2f} s; the run began again at step {resumed(run)}")
    steps = [e["data"]["step"] for e in w.events(run, "metric") if "loss" in e["data"]]
    assert len(steps) == len(set(steps)), "a step was trained twice"
    compare(run, kind)
    w.end(last)


def mlp_agent_killed_and_told_to_leave():
    told_to_leave("mlp", killed_and_taken_over("mlp"))


def lstm_with_dropout_agent_killed_and_told_to_leave():
    told_to_leave("lstm", killed_and_taken_over("lstm"))


def prompt_tuning_agent_killed_and_told_to_leave():
    told_to_leave("prompt", killed_and_taken_over("prompt"))


def told_to_leave_while_answering():
    """After training, while the test rows are answered: another agent answers them, and trains nothing again."""
    w.write("long-test.jsonl", rows(3000, 5))
    w.artifact("questions", w.dir + "/long-test.jsonl")
    spec = make_job("answers", inference__tokens_to_generate=24)
    spec["datasets"]["test"] = ["questions:latest"]
    a = w.agent("answering")
    run = w.submit(spec)
    w.until(run, lambda r: any(e["data"]["phase"].startswith("answering") for e in w.events(run, "progress")), 60)
    start = time.monotonic()
    assert w.end(a) == 0
    took = time.monotonic() - start
    in_time(took, 15)
    r = w.run(run)
    assert r["state"] == "queued" and r["checkpoint_step"] == 40 and r["preemptions"] == 1, r
    b = w.agent("answers-on")
    r = w.ended(run, 120)
    assert r["state"] == "succeeded" and r["failures"] == 0, r
    assert resumed(run) == 40
    steps = [e["data"]["step"] for e in w.events(run, "metric") if "loss" in e["data"]]
    assert steps == list(range(1, 41)), steps
    assert len(open(w.result(run) + "/predictions.jsonl").readlines()) == 3000
    print(f"# the agent left after {took:.2f} s")
    w.end(b)


def cancelled_by_command():
    a = w.agent("cancelled")
    run = w.submit(job("mlp"), "trainer.max_steps=100000")
    w.until(run, lambda r: (r["step"] or 0) > 20)
    pid, = workers(a)
    assert TOKEN.encode() not in open(f"/proc/{pid}/environ", "rb").read()    # it needs no credentials
    r = w.command("cancel", run)
    assert r.returncode == 0, r.stderr
    seconds_until(lambda: gone(pid), 2)
    r = w.ended(run, 5)
    assert r["state"] == "cancelled" and not r["outputs"], r
    assert a.poll() is None
    w.end(a)


def another_seed_gives_other_bits():
    """The comparison can fail."""
    a = w.agent("seed")
    spec = job("prompt")
    spec["config"]["model"]["seed"] = 5
    run = w.submit(spec)
    assert w.ended(run, 120)["state"] == "succeeded"
    try:
        compare(run, "prompt")
    except AssertionError as e:
        assert "other numbers" in str(e), e
    else:
        raise AssertionError("nothing differs")
    w.end(a)


def redis_away_pauses_the_worker():
    """Longer than the lease, and nothing is loaded or trained again."""
    a = w.agent("patient")
    run = w.submit(job("long"))
    assert w.ended(run, 120)["state"] == "succeeded", w.run(run)
    undisturbed["long"] = bits(run)
    run = w.submit(job("long"))
    in_the_middle(run, "long")
    pid, = workers(a)
    w.end(w.redis)
    time.sleep(w.lease_ms / 1000 * 1.3)
    ticks = cpu_ticks(pid)
    time.sleep(1)
    assert cpu_ticks(pid) - ticks <= 3, "it works under a lease that may be another's"
    w.start_redis()
    r = w.ended(run, 120)
    assert r["state"] == "succeeded" and r["attempt"] == 1 and r["failures"] == r["lost"] == 0, r
    assert len(w.events(run, "start")) == 1, "the worker was started again"
    steps = [e["data"]["step"] for e in w.events(run, "metric") if "loss" in e["data"]]
    assert len(steps) == len(set(steps)), "a step was trained twice"
    compare(run, "long")
    w.end(a)


def cpu_ticks(pid):
    """Processor time of a process in hundredths of a second."""
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def stopped_agent_keeps_no_worker():
    a = w.agent("stopped")
    run = w.submit(job("mlp"), "trainer.max_steps=100000")
    w.until(run, lambda r: r["checkpoint_step"])
    pid, = workers(a)
    a.send_signal(signal.SIGSTOP)
    took = seconds_until(lambda: gone(pid), w.lease_ms / 1000 + 2)
    print(f"# the worker of a stopped agent was gone after {took:.1f} s of a lease of {w.lease_ms / 1000:.0f} s")
    assert took > 0.5, took    # it did not end for another reason
    a.send_signal(signal.SIGCONT)
    w.until(run, lambda r: r["state"] == "running" and (r["step"] or 0) > 0)
    assert w.api("POST", f"/api/v1/runs/{run}/cancel")[0] in (200, 202)
    assert w.ended(run)["state"] == "cancelled"
    w.end(a)


def stopped_worker_is_not_in_the_way_of_leaving():
    a = w.agent("hung")
    run = w.submit(job("mlp"), "trainer.max_steps=100000")
    w.until(run, lambda r: r["checkpoint_step"])
    pid, = workers(a)
    os.kill(pid, signal.SIGSTOP)    # a hung kernel
    start = time.monotonic()
    assert w.end(a) == 0
    took = time.monotonic() - start
    print(f"# the agent of a worker that hangs left after {took:.1f} s")
    in_time(took, 15)
    assert gone(pid)
    r = w.run(run)
    assert r["state"] == "queued" and r["checkpoint_step"], r
    w.api("POST", f"/api/v1/runs/{run}/cancel")


tap(w, [mlp_agent_killed_and_told_to_leave, lstm_with_dropout_agent_killed_and_told_to_leave,
        prompt_tuning_agent_killed_and_told_to_leave, another_seed_gives_other_bits, told_to_leave_while_answering,
        cancelled_by_command, redis_away_pauses_the_worker, stopped_agent_keeps_no_worker, stopped_worker_is_not_in_the_way_of_leaving])
