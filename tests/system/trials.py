#!/usr/bin/env python3
"""A run of several trials, from enqueue to the folder of each in its artifact; by hand, stopped in the middle."""
import signal
from job_fixture import *

w = Jobs()
EXPLODES = {"model.optim.lr": 100, "model.optim.weight_decay": 1, "model.optim.sched.min_lr": 100}
TRIALS = [{"name": "mlp", "overrides": {"model.seed": 7}},
          {"name": "lstm-12", "overrides": {"model.p_tuning.encoder_type": "lstm", "model.optim.lr": 0.005,
                                            "model.task_templates.0.total_virtual_tokens": 12,
                                            "model.task_templates.1.total_virtual_tokens": 12}},
          {"name": "lost", "overrides": EXPLODES},
          {"name": "first-only", "tasks": ["first"]}]
JOB = make_job("some-trials")
ENV = dict(os.environ, OMP_NUM_THREADS="1")
made = {}


def numbers(path):
    """A file of tables as {task: list of floats}."""
    return {task: struct.unpack(f"<{len(b) // 4}f", b) for task, (_, b) in tensors(path)[0].items()}


def far(a, b):
    return max(abs(x - y) for x, y in zip(a, b)) / max(map(abs, a))


def by_hand(folder, spec):
    spec = dict(spec, model=MODEL, datasets={s: [f"{w.dir}/{s}.jsonl"] for s in ("train", "validation", "test")})
    return [BIN, "train", "--run-dir", f"{w.dir}/{folder}", "--spec", w.write(folder + ".json", json.dumps(spec))]


def trials_train_from_the_queue():
    w.agent()
    run = w.submit(dict(JOB, trials=TRIALS))
    r = w.ended(run)
    assert r["state"] == "succeeded", r
    made["dir"], made["run"] = w.result(run), run
    assert sorted(os.listdir(made["dir"])) == ["metrics.json", "trials"], os.listdir(made["dir"])
    for name in ("mlp", "lstm-12"):
        files = set(os.listdir(f"{made['dir']}/trials/{name}"))
        assert {"prompt_table.safetensors", "prompt_table.npy", "predictions.jsonl", "metrics.json", "peft"} <= files, files
    assert os.listdir(f"{made['dir']}/trials/lost") == ["metrics.json"]
    m = json.load(open(made["dir"] + "/metrics.json"))
    assert {k: v["state"] for k, v in m["trials"].items()} == {"mlp": "trained", "lstm-12": "trained",
                                                             "lost": "diverged", "first-only": "trained"}, m
    assert "not a finite number" in m["trials"]["lost"]["msg"], m["trials"]["lost"]
    best = min((v["val_loss"], k) for k, v in m["trials"].items() if v["state"] == "trained")
    assert (m["val_loss"], m["best"]) == best, m
    made["metrics"] = m


def events_name_their_trial():
    seen = {}
    for e in w.events(made["run"], "metric"):
        if "loss" in e["data"]:
            seen.setdefault(e["data"]["trial"], []).append(e["data"]["step"])
    assert set(seen) == {"mlp", "lstm-12", "lost", "first-only"}, seen.keys()
    assert seen["mlp"] == seen["lstm-12"] == list(range(1, 41)) and len(seen["lost"]) < 40, seen
    assert w.events(made["run"], "start")[0]["data"]["trials"] == [t["name"] for t in TRIALS]
    shown = w.run(made["run"])["metrics"]
    assert "mlp/val_loss" in shown and "lstm-12/loss" in shown and "loss" not in shown, shown
    logs = w.command("logs", made["run"]).stdout
    assert "trial lost: diverged" in logs and "trial mlp: keeping the tables of step" in logs, logs


def each_is_the_run_it_would_be_alone():
    for t in (TRIALS[0], TRIALS[1]):
        folder = "alone-" + t["name"]
        keys = [f"{k}={json.dumps(v)}" for k, v in t["overrides"].items()]
        r = subprocess.run(by_hand(folder, JOB) + keys, capture_output=True, text=True, env=ENV)
        assert r.returncode == 0, r.stderr
        a, b = numbers(f"{w.dir}/{folder}/out/prompt_table.safetensors"), \
            numbers(f"{made['dir']}/trials/{t['name']}/prompt_table.safetensors")
        assert a.keys() == b.keys() == {"colour", "first"}
        assert max(far(a[k], b[k]) for k in a) < 1e-4, [far(a[k], b[k]) for k in a]
        mine, whole = json.load(open(f"{w.dir}/{folder}/out/metrics.json")), made["metrics"]["trials"][t["name"]]
        assert abs(mine["val_loss"] / whole["val_loss"] - 1) < 1e-5 and mine["tokens"] == whole["tokens"], (mine, whole)
        for x, y in zip(mine["tasks"], whole["tasks"]):    # the untuned answers too
            assert x == y, (x, y)


def a_trial_of_one_task_has_its_table_alone():
    table, meta = tensors(made["dir"] + "/trials/first-only/prompt_table.safetensors")
    assert list(table) == ["first"] and table["first"][0] == [6, 64], table.keys()
    assert [t["name"] for t in made["metrics"]["trials"]["first-only"]["tasks"]] == ["first"]


def the_table_of_a_trial_answers():
    out = w.dir + "/answers.jsonl"
    r = subprocess.run([BIN, "generate", "--model", MODEL, "--prompts", made["dir"] + "/trials/mlp", "--input",
                        w.dir + "/test.jsonl", "--output", out, "inference.tokens_to_generate=6"],
                       capture_output=True, text=True, env=ENV)
    assert r.returncode == 0, r.stderr
    lines = lambda path: [json.loads(x)["prediction"] for x in open(path)]
    assert lines(out) == lines(made["dir"] + "/trials/mlp/predictions.jsonl")


def stopped_by_hand_they_go_on():
    spec = dict(JOB, trials=[TRIALS[0], TRIALS[1]])
    spec["config"] = dict(spec["config"], trainer={"max_epochs": -1, "max_steps": 300, "val_check_interval": 100})
    assert subprocess.run(by_hand("whole", spec), capture_output=True, env=ENV).returncode == 0
    p = w.spawn("interrupted", by_hand("parts", spec), env=ENV)
    wait(lambda: os.path.exists(w.dir + "/parts/checkpoint/checkpoint.safetensors"), 60, "a checkpoint")
    p.send_signal(signal.SIGINT)
    assert p.wait(20) == 75, (p.returncode, open(p.log).read())
    r = subprocess.run(by_hand("parts", spec), capture_output=True, text=True, env=ENV)
    assert r.returncode == 0 and "resumed at step" in r.stderr, r.stderr
    for name in ("mlp", "lstm-12"):
        for file in ("prompt_table.safetensors", "predictions.jsonl", "metrics.json"):
            whole, parts = (open(f"{w.dir}/{d}/out/trials/{name}/{file}", "rb").read() for d in ("whole", "parts"))
            assert whole == parts, (name, file)


def what_trials_cannot_differ_in_is_refused():
    bad = dict(JOB, trials=[{"name": "a", "overrides": {"model.optim.lrr": 1}}, {"name": "a"}])
    r = w.command("enqueue", w.write("bad.json", json.dumps(bad)))
    assert r.returncode and "trials[0].overrides.model.optim.lrr" in r.stderr, r.stderr
    assert 'nearest is "model.optim.lr"' in r.stderr and "an earlier trial has this name" in r.stderr, r.stderr
    r = subprocess.run(by_hand("bad", dict(JOB, trials=[{"name": "a", "overrides": {"trainer.max_steps": 1}}])),
                       capture_output=True, text=True, env=ENV)
    assert r.returncode == 1 and "trials share the model, the rows and the steps" in r.stderr, r.stderr


tap(w, [trials_train_from_the_queue, events_name_their_trial, each_is_the_run_it_would_be_alone,
        a_trial_of_one_task_has_its_table_alone, the_table_of_a_trial_answers, stopped_by_hand_they_go_on,
        what_trials_cannot_differ_in_is_refused])
