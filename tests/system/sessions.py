#!/usr/bin/env python3
"""Tasks over two sessions: the second takes the first one's tables from the store, adds a task of another length, and
changes no byte of them; styles side by side; all tasks answer in one batch; a run that trains nothing."""
import hashlib
from job_fixture import *

w = Jobs()
ENV = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
ONE, TWO = "session-one", "session-two"
made = {}    # what a test leaves for the next ones


def ended(job):
    """Submits and waits, with an agent there: one that a failed test took away comes back."""
    if "agent" not in made or made["agent"].poll() is not None:
        made["agent"] = w.agent()
    return w.ended(w.submit(job))


def lines(path):
    return [json.loads(line) for line in open(path)]


def digests(path):
    return {task: hashlib.sha256(data).hexdigest() for task, (_, data) in tensors(path)[0].items()}


def three_tasks(n, seed):
    """Rows of all three tasks, mixed: the last letter is the new one."""
    out = []
    for i, row in enumerate(map(json.loads, rows(n, seed).splitlines())):
        if i % 3 == 0:
            row = dict(row, taskname="last", question="last letter", answer=row["context"][-1])
        out.append(json.dumps(row) + "\n")
    return "".join(out)


def session(name, **config):
    """Both first tasks, one p-tuned and one prompt-tuned."""
    job = make_job(name, **config)
    model = job["config"]["model"]
    model["task_templates"][1]["virtual_prompt_style"] = "prompt-tuning"
    model["prompt_tuning"] = {"new_prompt_init_methods": ["random", "text"],
                              "new_prompt_init_text": [None, "the first letter of the word"]}
    return job


def second(restore_path):
    job = session(TWO)
    model = job["config"]["model"]
    model.pop("prompt_tuning")
    model["task_templates"].append(dict(model["task_templates"][0], taskname="last", total_virtual_tokens=9,
                                        prompt_template="<|VIRTUAL_PROMPT_0|>{question} of {context}"
                                                        "<|VIRTUAL_PROMPT_1|>: {answer}",
                                        virtual_token_splits=[7, 2]))
    model.update(existing_tasks=["colour", "first"], new_tasks=["last"], restore_path=restore_path)
    job["datasets"] = {s: [f"more:latest/{s}.jsonl"] for s in ("train", "validation", "test")}
    return job


def by_hand(job, name, more=()):
    """The same spec on files."""
    job = dict(job, model=MODEL, datasets={s: [f"{w.dir}/{s}.jsonl"] for s in ("train", "validation", "test")})
    spec = w.write(name + ".json", json.dumps(job))
    r = subprocess.run([BIN, "train", "--run-dir", f"{w.dir}/{name}", "--spec", spec, *more], capture_output=True,
                       text=True, env=ENV)
    return r, f"{w.dir}/{name}/out"


def generate(prompts, source, *more):
    out = w.dir + "/generated.jsonl"
    r = subprocess.run([BIN, "generate", "--model", MODEL, "--prompts", prompts, "--input", source, "--output", out,
                        "inference.tokens_to_generate=6", *more], capture_output=True, text=True, env=ENV)
    return r, lines(out) if r.returncode == 0 else None


def styles_train_side_by_side():
    r = ended(session(ONE))
    assert r["state"] == "succeeded", r
    made["one"] = w.result(r["run"])
    train, validation = w.last_metrics(r["run"])
    assert validation[40] < 0.8 * validation[0], validation
    table, meta = tensors(made["one"] + "/prompt_table.safetensors")
    assert {t: shape for t, (shape, _) in table.items()} == {"colour": [6, 64], "first": [6, 64]}, table.keys()
    assert json.loads(meta["task.first"])["virtual_prompt_style"] == "prompt-tuning", meta
    types = {t: json.load(open(f"{made['one']}/peft/{t}/adapter_config.json"))["peft_type"] for t in table}
    assert types == {"colour": "P_TUNING", "first": "PROMPT_TUNING"}, types


def a_second_session_changes_no_byte_of_the_first():
    for s, n, seed in (("train", 96, 0), ("validation", 9, 3), ("test", 15, 5)):
        w.write(s + ".jsonl", three_tasks(n, seed))
    w.artifact("more", *(f"{w.dir}/{s}.jsonl" for s in ("train", "validation", "test")))
    r = ended(second(ONE + ":candidate"))
    assert r["state"] == "succeeded", r
    made["two"] = w.result(r["run"])
    old, new = (digests(d + "/prompt_table.safetensors") for d in (made["one"], made["two"]))
    assert {t: new[t] for t in old} == old and sorted(new) == ["colour", "first", "last"], (old, new)
    assert tensors(made["two"] + "/prompt_table.safetensors")[0]["last"][0] == [9, 64]
    for name in os.listdir(made["two"] + "/top_k"):
        kept = digests(f"{made['two']}/top_k/{name}")
        assert {t: kept[t] for t in old} == old, name
    _, validation = w.last_metrics(r["run"])
    assert min(validation.values()) < validation[0], validation    # the new task learns
    scores = {t["name"]: t for t in json.load(open(made["two"] + "/metrics.json"))["tasks"]}
    assert sorted(scores) == ["colour", "first", "last"] and all(t["rows"] for t in scores.values()), scores


def all_tasks_answer_in_one_batch():
    given, table = lines(w.dir + "/test.jsonl"), lines(made["two"] + "/predictions.jsonl")
    assert len({row["taskname"] for row in given}) == 3
    assert [{k: p[k] for k in row} for row, p in zip(given, table)] == given    # in their order
    r, mixed = generate(made["two"], w.dir + "/test.jsonl")
    assert r.returncode == 0, r.stderr
    assert [p["prediction"] for p in mixed] == [p["prediction"] for p in table], (mixed, table)
    for task in ("colour", "first"):    # and as with the first session's tables, alone
        mine = [p for p in table if p["taskname"] == task]
        source = w.write("alone.jsonl", "".join(json.dumps({k: p[k] for k in given[0]}) + "\n" for p in mine))
        r, alone = generate(made["one"] + "/prompt_table.safetensors", source)
        assert r.returncode == 0, r.stderr
        assert [p["prediction"] for p in alone] == [p["prediction"] for p in mine], (alone, mine)


def tables_restore_from_files_too():
    w.artifact("tables", made["one"] + "/prompt_table.safetensors")
    r = ended(dict(second("tables:latest"), outputs={"artifact": "again"}))
    assert r["state"] == "succeeded", r
    want = digests(made["two"] + "/prompt_table.safetensors")
    assert digests(w.result(r["run"]) + "/prompt_table.safetensors") == want
    for name, path in (("folder", made["one"]), ("file", made["one"] + "/prompt_table.safetensors")):
        r, out = by_hand(second(path), name)
        assert r.returncode == 0, r.stderr
        assert digests(out + "/prompt_table.safetensors") == want, name


def what_is_not_there_is_named():
    for ref, text in (("nobody:latest", "nobody"), ("more:latest/test.jsonl", "more:latest/test.jsonl")):
        r = ended(dict(second(ref), retry={"max_attempts": 1}))
        assert r["state"] in ("failed", "dead") and text in r["msg"] and "/runs/" not in r["msg"], r
    job = second(made["one"])
    job["config"]["model"]["task_templates"].append(dict(job["config"]["model"]["task_templates"][0], taskname="shape"))
    job["config"]["model"]["existing_tasks"].append("shape")
    r, _ = by_hand(job, "other-name")
    assert r.returncode == 1 and "no table for the existing task 'shape'" in r.stderr, r.stderr
    r, _ = by_hand(second(ONE + ":latest"), "by-name")
    assert r.returncode == 1 and "need an agent" in r.stderr, r.stderr


def a_run_without_prompts_only_answers():
    job = make_job("plain", model__virtual_prompt_style="no-prompts")
    for t in job["config"]["model"]["task_templates"]:
        t.update(total_virtual_tokens=0, prompt_template=t["prompt_template"].replace("<|VIRTUAL_PROMPT_0|>", ""))
    job["config"]["model"]["task_templates"].append(dict(t, taskname="last"))
    job["datasets"] = {"test": ["more:latest/test.jsonl"]}
    r = ended(job)
    assert r["state"] == "succeeded", r
    out = w.result(r["run"])
    assert sorted(os.listdir(out)) == ["metrics.json", "predictions.jsonl"], os.listdir(out)
    table, tuned = lines(out + "/predictions.jsonl"), lines(made["two"] + "/predictions.jsonl")
    # the template of "last" is another one there; "choice" is the tuned model's
    assert [p["prediction"] for p in table if p["taskname"] != "last"] == \
           [p["untuned"] for p in tuned if p["taskname"] != "last"], (table, tuned)
    assert all("untuned" not in p and ("choice" in p) == (p["taskname"] == "colour") for p in table), table
    scores = {t["name"]: t for t in json.load(open(out + "/metrics.json"))["tasks"]}
    before = {t["name"]: t for t in json.load(open(made["two"] + "/metrics.json"))["tasks"]}
    assert not [k for t in scores.values() for k in t if k.startswith("untuned")], scores
    for a, b in (("exact_match", "untuned_exact_match"), ("f1", "untuned_f1"), ("choice", "untuned_choice")):
        assert scores["colour"][a] == before["colour"][b], (a, scores, before)


def stop_strings_and_choices():
    r, plain = generate(made["two"], w.dir + "/test.jsonl", "inference.min_tokens=6")
    assert r.returncode == 0, r.stderr
    r, cut = generate(made["two"], w.dir + "/test.jsonl", "inference.min_tokens=6", 'inference.stop=["e", "\\n"]',
                      'inference.choices={"colour": ["green", "white", "black"]}')
    assert r.returncode == 0 and "choice" in r.stdout, r.stderr
    assert any("e" in p["prediction"] for p in plain), plain
    assert [re.split("[e\n]", p["prediction"], maxsplit=1)[0].strip() for p in plain] == [p["prediction"] for p in cut], cut
    assert all(p.get("choice") in ("green", "white", "black") if p["taskname"] == "colour" else "choice" not in p
               for p in cut), cut
    r, _ = generate(made["two"], w.dir + "/test.jsonl", "inference.tokens_to_generate=100000")
    assert r.returncode == 1 and "leaves no room for a prompt" in r.stderr, r.stderr


def validation_metric_is_generated():
    job = session("metric", model__report_validation_metric=True, model__validation_metric="exact_match",
                  trainer={"max_epochs": 2, "max_steps": -1, "val_check_interval": 0.5})
    w.write("train.jsonl", rows(72)), w.write("validation.jsonl", rows(8, 3)), w.write("test.jsonl", rows(10, 5))
    spec = dict(job, model=MODEL, datasets={s: [f"{w.dir}/{s}.jsonl"] for s in ("train", "validation", "test")})
    read, write = os.pipe()
    run_dir = w.dir + "/metric"
    p = subprocess.run([BIN, "train", "--run-dir", run_dir, "--spec", w.write("metric.json", json.dumps(spec)),
                        "--events-fd", str(write)], capture_output=True, text=True, env=ENV, pass_fds=[write])
    os.close(write)
    events = [json.loads(line) for line in os.fdopen(read)]
    assert p.returncode == 0, p.stderr
    seen = {e["step"]: e["val_exact_match"] for e in events if "val_loss" in e}
    assert sorted(seen) == [0, 4, 8, 13, 17, 18], seen    # 9 steps an epoch; halves of each, and the end
    assert all(0 <= v <= 1 for v in seen.values()), seen
    r, again = generate(run_dir + "/out/top_k/" + sorted(os.listdir(run_dir + "/out/top_k"))[0], w.dir + "/validation.jsonl")
    step = int(re.search("step-([0-9]+)", sorted(os.listdir(run_dir + "/out/top_k"))[0])[1])
    hits = sum(p["prediction"].lower() == p["answer"] for p in again) / len(again)
    assert abs(hits - seen[step]) < 1e-9, (hits, seen, step)


tap(w, [styles_train_side_by_side, a_second_session_changes_no_byte_of_the_first, all_tasks_answer_in_one_batch,
        tables_restore_from_files_too, what_is_not_there_is_named, a_run_without_prompts_only_answers,
        stop_strings_and_choices, validation_metric_is_generated])
