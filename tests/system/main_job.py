#!/usr/bin/env python3
"""A two-task run on a tiny model from enqueue to its artifact, by the commands and programs that a person uses."""
import hashlib, shutil, signal
from job_fixture import *

w = Jobs()
NAME = "first-job"
JOB = make_job(NAME)
first = {}    # what the first test leaves for the others


def agent():
    if "agent" not in first or first["agent"].poll() is not None:
        first["agent"] = w.agent()
    return first["agent"]


def of_run(*args):
    r = w.command(*args)
    assert r.returncode == 0, (args, r.stderr)
    return r.stdout


def a_run_is_followed_to_its_end():
    agent()
    path = w.write("spec.json", json.dumps(JOB))
    r = w.command("enqueue", path, "--follow")
    assert r.returncode == 0, r.stdout + r.stderr
    run = first["run"] = r.stdout.split()[0]
    assert re.fullmatch("[0-9a-f]{32}", run), run
    for text in ("-- queued", "-- running on", "-- fetching", "-- training", "-- publishing", "-- succeeded",
                 "training rows: 64 of 64", "step 0/40  val_loss", "step 40/40  val_loss",
                 "checkpoint of step 10 stored"):
        assert text in r.stdout, (text, r.stdout)
    assert w.run(run)["state"] == "succeeded" and w.run(run)["attempt"] == 1
    assert first["agent"].poll() is None


def metrics_of_every_step():
    train, validation = w.last_metrics(first["run"])
    assert sorted(train) == list(range(1, 41)) and sorted(validation) == [0, 10, 20, 30, 40], (train, validation)
    assert validation[40] < 0.8 * validation[0], validation    # it learns
    first["metrics"] = train, validation
    seen = [e["data"]["step"] for e in w.events(first["run"], "metric") if "loss" in e["data"]]
    assert seen == sorted(seen)
    start = w.events(first["run"], "start")[0]["data"]
    assert start["steps"] == 40 and start["threads"] == 1 and start["kernel"] and start["resumed"] is False, start


def runs_and_logs():
    run = first["run"]
    show = of_run("runs", "show", run, "--table")
    for text in (run, NAME, "succeeded", "40 of 40", "val_loss", NAME + ":v0"):
        assert text in show, (text, show)
    r = json.loads(of_run("runs", "show", run[:8]))
    assert r["run"] == run and r["spec"]["model"] == "tiny:latest", r
    assert run[:12] in of_run("runs", "--table")
    assert [x["run"] for x in json.loads(of_run("runs"))["runs"]] == [run]
    logs = of_run("logs", "-f", run)    # of a run that is over: ends by itself
    assert "training rows: 64 of 64" in logs and "keeping the tables of step" in logs, logs


def the_artifact_and_its_alias():
    out = w.run(first["run"])["outputs"]
    assert len(out) == 1 and out[0]["artifact"] == NAME and out[0]["version"] == "v0", out
    assert out[0]["aliases"] == ["candidate"], out
    listed = of_run("artifact", "ls", NAME)
    assert "v0" in listed and "candidate" in listed, listed
    version = w.api("GET", f"/api/v1/artifacts/{NAME}/candidate")[1]
    assert version["version"] == "v0" and version["made_by"]["run"] == first["run"], version
    first["dir"] = w.result(first["run"])
    names = sorted(e["path"] for e in version["files"][0]["entries"])
    wanted = ["metrics.json", "predictions.jsonl"] + [f"prompt_table.{s}" for s in ("safetensors", "npy", "nemo")]
    wanted += [f"peft/{t}/{f}" for t in ("colour", "first") for f in ("adapter_config.json", "adapter_model.safetensors")]
    validation = first["metrics"][1]    # with the tables of the two best validations
    wanted += [f"top_k/step-{s}.safetensors" for s in sorted(validation, key=validation.get)[:2]]
    assert names == sorted(wanted), names
    best, result = (tensors(f"{first['dir']}/{n}")[0] for n in (wanted[-2], "prompt_table.safetensors"))
    assert best == result != tensors(f"{first['dir']}/{wanted[-1]}")[0]
    tar = f"{first['dir']}.tar.zst"    # other tools read it as well, and have nothing to say about it
    os.mkdir(w.dir + "/by-tar")
    r = subprocess.run(["tar", "--zstd", "-xf", tar, "-C", w.dir + "/by-tar"], capture_output=True, text=True)
    assert r.returncode == 0 and not r.stderr, r.stderr
    assert not subprocess.run(["diff", "-r", w.dir + "/by-tar", first["dir"]], capture_output=True, text=True).stdout
    for e in version["files"][0]["entries"]:
        assert hashlib.sha256(open(f"{first['dir']}/{e['path']}", "rb").read()).hexdigest() == e["sha256"], e


def exports_agree():
    table, meta = tensors(first["dir"] + "/prompt_table.safetensors")
    assert sorted(table) == ["colour", "first"], table.keys()
    assert all(shape == [6, 64] for shape, _ in table.values())
    assert re.fullmatch("[0-9a-f]{64}", meta["model"]) and re.fullmatch("[0-9a-f]{64}", meta["tokenizer"]), meta
    assert json.loads(meta["task.first"])["prompt_template"].endswith("= {answer}"), meta
    for task in table:
        adapter, meta = tensors(f"{first['dir']}/peft/{task}/adapter_model.safetensors")
        assert list(adapter) == ["prompt_embeddings"] and meta == {"format": "pt"}, (adapter.keys(), meta)
        assert adapter["prompt_embeddings"] == table[task], task
        c = json.load(open(f"{first['dir']}/peft/{task}/adapter_config.json"))
        assert c["peft_type"] == "P_TUNING" and c["num_virtual_tokens"] == 6 and c["token_dim"] == 64, c
        assert c["num_layers"] == 3 and c["num_attention_heads"] == 4 and c["encoder_hidden_size"] == 48, c
    assert table["colour"][1] != table["first"][1]


def a_table_of_predictions():
    given = [json.loads(line) for line in open(w.dir + "/test.jsonl")]
    table = [json.loads(line) for line in open(first["dir"] + "/predictions.jsonl")]
    assert len(table) == len(given)
    for row, p in zip(given, table):
        assert {k: p[k] for k in row} == row, (row, p)
        assert isinstance(p["prediction"], str) and isinstance(p["untuned"], str), p
    events = [e["data"] for e in w.events(first["run"], "prediction")]
    assert [(e["task"], e["context"], e["prediction"], e["untuned"]) for e in events] == \
           [(p["taskname"], p["context"], p["prediction"], p["untuned"]) for p in table], events
    scores = json.load(open(first["dir"] + "/metrics.json"))
    for t in scores["tasks"]:
        mine = [p for p in table if p["taskname"] == t["name"]]
        hits = sum(p["prediction"].strip().lower() == p["answer"].lower() for p in mine)
        assert t["name"] != "colour" or all(p["choice"] in COLOURS.values() for p in mine), mine
        assert t["rows"] == len(mine) and abs(t["exact_match"] * len(mine) - hits) < 1e-9, (t, hits)
    assert scores["val_loss_step_0"] == first["metrics"][1][0], scores


def the_published_table_generates_the_same():
    env = dict(os.environ, OMP_NUM_THREADS="1")
    table = [json.loads(line) for line in open(first["dir"] + "/predictions.jsonl")]
    for untuned in (False, True):
        out = w.dir + "/again.jsonl"
        r = subprocess.run([BIN, "generate", "--model", MODEL, "--prompts", first["dir"], "--input", w.dir + "/test.jsonl",
                            "--output", out, "inference.tokens_to_generate=6", *(["--untuned"] if untuned else [])],
                           capture_output=True, text=True, env=env)
        assert r.returncode == 0 and "10 predictions in" in r.stdout, r.stderr + r.stdout
        again = [json.loads(line)["prediction"] for line in open(out)]
        assert again == [p["untuned" if untuned else "prediction"] for p in table], (again, table)
        assert "another model" not in r.stderr + r.stdout, r.stderr
    weights, other = bytearray(open(MODEL, "rb").read()), w.dir + "/other.gguf"
    weights[-100] ^= 1    # within the last tensor
    open(other, "wb").write(weights)
    r = subprocess.run([BIN, "generate", "--model", other, "--prompts", first["dir"], "--input", w.dir + "/test.jsonl",
                        "--output", out, "inference.tokens_to_generate=1"], capture_output=True, text=True, env=env)
    assert r.returncode == 0 and "trained on another model" in r.stderr + r.stdout, r.stderr + r.stdout
    r = subprocess.run([BIN, "generate", "--model", MODEL, "--prompts", first["dir"], "--task", "shape", "--input",
                        w.dir + "/test.jsonl", "--output", out], capture_output=True, text=True, env=env)
    assert r.returncode == 1 and "shape" in r.stderr, r.stderr


def an_equal_run_is_fetched_from_the_cache():
    agent()
    digest = hashlib.sha256(open(MODEL, "rb").read()).hexdigest()
    blob = f"{w.dir}/store/blobs/sha256/{digest[:2]}/{digest}"
    os.rename(blob, w.dir + "/away")    # nobody could transfer it now
    try:
        run = w.submit(JOB)
        r = w.ended(run)
    finally:
        os.rename(w.dir + "/away", blob)
    assert r["state"] == "succeeded", r
    assert w.last_metrics(run) == first["metrics"]
    assert r["outputs"][0]["version"] == "v0", r["outputs"]    # the same bytes make no new version
    shutil.rmtree(w.dir + "/agent/cache")   # and without the cache it is needed
    os.rename(blob, w.dir + "/away")
    try:
        r = w.ended(w.submit(JOB, "retry.max_attempts=1"))
    finally:
        os.rename(w.dir + "/away", blob)
    assert r["state"] in ("failed", "dead") and "tiny" in r["msg"], r


def by_hand_it_is_the_same():
    spec = dict(JOB, model=MODEL, datasets={s: [f"{w.dir}/{s}.jsonl"] for s in ("train", "validation", "test")})
    r = subprocess.run([BIN, "train", "--run-dir", w.dir + "/by-hand", "--spec", w.write("by-hand.json", json.dumps(spec))],
                       capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS="1"))
    assert r.returncode == 0, r.stderr
    assert "step 40/40" in r.stderr and "succeeded" in r.stderr, r.stderr
    assert "prediction" in r.stdout and "ab cd" in r.stdout, r.stdout
    for name in ("prompt_table.safetensors", "predictions.jsonl", "metrics.json"):
        assert open(f"{w.dir}/by-hand/out/{name}", "rb").read() == open(f"{first['dir']}/{name}", "rb").read(), name


def existing_tasks_keep_their_bytes():
    """A new task of another length beside tasks that are there already: their rows come out as they went in."""
    spec = dict(JOB, model=MODEL, datasets={s: [f"{w.dir}/{s}.jsonl"] for s in ("train", "validation", "test")})
    spec["config"] = json.loads(json.dumps(spec["config"]))
    model = spec["config"]["model"]
    model["task_templates"][1] = dict(model["task_templates"][1], total_virtual_tokens=9)
    model.update(new_tasks=["first"], existing_tasks=["colour"], restore_path=first["dir"] + "/prompt_table.safetensors")
    env = dict(os.environ, OMP_NUM_THREADS="1")
    args = [BIN, "train", "--run-dir", w.dir + "/more", "--spec", w.write("more.json", json.dumps(spec))]
    r = subprocess.run(args, capture_output=True, text=True, env=env)
    assert r.returncode == 0, r.stderr
    old, _ = tensors(first["dir"] + "/prompt_table.safetensors")
    new, _ = tensors(w.dir + "/more/out/prompt_table.safetensors")
    assert new["colour"] == old["colour"] and new["first"][0] == [9, 64], new.keys()
    tasks = [{t["name"]: t for t in json.load(open(d + "/metrics.json"))["tasks"]} for d in (first["dir"], w.dir + "/more/out")]
    assert tasks[0]["colour"] == tasks[1]["colour"], tasks    # and answers as before
    model["task_templates"][0] = dict(model["task_templates"][0], total_virtual_tokens=7)
    w.write("more.json", json.dumps(spec))
    r = subprocess.run(args[:3] + [w.dir + "/other"] + args[4:], capture_output=True, text=True, env=env)
    assert r.returncode == 1 and "'colour' is [6, 64]" in r.stderr and "[7, 64]" in r.stderr, r.stderr


def interrupted_by_hand_it_goes_on():
    spec = dict(JOB, model=MODEL, datasets={s: [f"{w.dir}/{s}.jsonl"] for s in ("train", "validation", "test")})
    spec["config"] = dict(spec["config"], trainer={"max_epochs": -1, "max_steps": 1500, "val_check_interval": 500})
    w.write("long.json", json.dumps(spec))
    env = dict(os.environ, OMP_NUM_THREADS="1")
    args = [BIN, "train", "--spec", w.dir + "/long.json", "--run-dir"]
    assert subprocess.run(args + [w.dir + "/whole"], capture_output=True, env=env).returncode == 0
    p = w.spawn("interrupted", args + [w.dir + "/parts"], env=env)
    wait(lambda: os.path.exists(w.dir + "/parts/checkpoint/checkpoint.safetensors"), 60, "a checkpoint")
    p.send_signal(signal.SIGINT)
    assert p.wait(20) == 75, p.returncode
    log = open(p.log).read()
    assert "preempted" in log and "asked to stop at step" in log, log
    r = subprocess.run(args + [w.dir + "/parts"], capture_output=True, text=True, env=env)
    assert r.returncode == 0 and "resumed at step" in r.stderr, r.stderr
    for name in ("prompt_table.safetensors", "predictions.jsonl", "metrics.json"):
        assert open(f"{w.dir}/parts/out/{name}", "rb").read() == open(f"{w.dir}/whole/out/{name}", "rb").read(), name


def training_rows_alone_are_enough():
    agent()
    spec = dict(make_job("bare"), datasets={"train": ["words:latest/train.jsonl"]})
    run = w.submit(spec, "trainer.max_steps=10", "outputs.aliases=[]")
    r = w.ended(run)
    assert r["state"] == "succeeded" and r["outputs"][0]["aliases"] == [], r
    train, validation = w.last_metrics(run)
    assert sorted(train) == list(range(1, 11)) and not validation
    assert sorted(os.listdir(w.result(run))) == \
           ["metrics.json", "peft", "prompt_table.nemo", "prompt_table.npy", "prompt_table.safetensors"]


def no_log_holds_the_token():
    for p in w.procs:
        assert TOKEN not in open(p.log).read(), p.log
    assert TOKEN not in w.command("logs", first["run"]).stdout
    assert TOKEN not in w.cli("HGETALL", "{softlaunch}:run:" + first["run"])


def another_setting_makes_another_version():
    agent()
    r = w.ended(w.submit(JOB, "model.optim.lr=0.01", "outputs.aliases=[\"candidate\",\"slow\"]"))
    assert r["state"] == "succeeded" and r["outputs"][0]["version"] == "v1", r
    assert w.api("GET", f"/api/v1/artifacts/{NAME}/slow")[1]["version"] == "v1"
    assert w.api("GET", f"/api/v1/artifacts/{NAME}/candidate")[1]["version"] == "v1"
    assert w.api("GET", f"/api/v1/artifacts/{NAME}/latest")[1]["version"] == "v1"
    assert w.end(first["agent"]) == 0
    assert os.listdir(w.dir + "/agent/runs") == []


tap(w, [a_run_is_followed_to_its_end, metrics_of_every_step, runs_and_logs, the_artifact_and_its_alias, exports_agree,
        a_table_of_predictions, the_published_table_generates_the_same, an_equal_run_is_fetched_from_the_cache,
        by_hand_it_is_the_same, existing_tasks_keep_their_bytes, interrupted_by_hand_it_goes_on,
        training_rows_alone_are_enough, another_setting_makes_another_version, no_log_holds_the_token])
