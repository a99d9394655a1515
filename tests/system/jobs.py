#!/usr/bin/env python3
"""Runs done again and jobs made of runs: real ones on the tiny model. The same bits by sha256 over the prompt table's
file, and where they cannot be the same, what differs."""
import csv, hashlib, io, signal
from job_fixture import *

w = Jobs()
made = {}


def agent(env=None):
    """One agent at a time, with this environment."""
    if "agent" in made:
        w.end(made["agent"])
    made["agent"] = w.agent(env=env)


def done(run):
    r = w.ended(run, 120)
    assert r["state"] == "succeeded", r
    return w.until(run, lambda r: "bytes" in r["outputs"][0], 60)    # its version is recorded


def table(run):
    return hashlib.sha256(open(w.result(run) + "/prompt_table.safetensors", "rb").read()).hexdigest()


def command(*args):
    r = w.command(*args)
    assert r.returncode == 0, (args, r.stderr)
    return r.stdout


def a_rerun_gives_the_same_table():
    agent()
    job = make_job("first", trainer__max_steps=6, trainer__val_check_interval=3)
    job["outputs"]["register"] = "letters"
    made["first"] = done(w.submit(job))["run"]
    w.write("train.jsonl", rows(64, 9))
    w.artifact("words", *(f"{w.dir}/{s}.jsonl" for s in ("train", "validation", "test")))    # words:latest is other data now
    stage = w.api("GET", "/api/v1/registry/letters")[1]["stages"]["candidate"]
    said = command("runs", "rerun", made["first"], "--wait")
    made["again"] = again = said.split()[0]
    assert "the same prompt tables, bit for bit" in said, said
    assert again != made["first"] and table(again) == table(made["first"])
    r = w.run(again)
    assert r["spec"]["origin"] == {"rerun_of": made["first"]}, r["spec"]
    assert r["spec"]["model"]["ref"] == "tiny:v0" and r["spec"]["datasets"]["train"][0]["ref"] == "words:v0/train.jsonl", r["spec"]
    digest = r["spec"]["datasets"]["train"][0]["sha256"]
    assert digest == hashlib.sha256(rows(64).encode()).hexdigest()
    assert w.api("GET", "/api/v1/registry/letters")[1]["stages"]["candidate"] == stage    # a rerun promotes nothing


def other_data_gives_another_table():
    other = done(w.submit(make_job("first", trainer__max_steps=6, trainer__val_check_interval=3)))["run"]
    c = json.loads(command("runs", "compare", "--json", made["first"], other))
    assert not c["same"] and [d["what"] for d in c["differences"]] == ["inputs"], c
    assert (c["tables"][0]["was"], c["tables"][0]["is"]) == (table(made["first"]), table(other)), c


def elsewhere_it_says_what_differs():
    agent({"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "OPENBLAS_CORETYPE": "Haswell"})
    run = json.loads(w.command("runs", "rerun", made["first"], "--json", "--key", "elsewhere").stdout)["run"]
    assert json.loads(command("runs", "rerun", made["first"], "--json", "--key", "elsewhere"))["run"] == run
    done(run)
    said = command("runs", "compare", made["first"], run)
    assert "threads was 1, is 2" in said, said
    c = json.loads(command("runs", "compare", "--json", made["first"], run))
    assert c["same"] == (table(run) == table(made["first"])), c
    agent()


def what_cannot_be_done_again_says_why():
    bad = make_job("bad")
    bad["datasets"]["train"] = ["words:latest/nowhere.jsonl"]
    run = w.submit(bad)
    assert w.ended(run)["state"] == "failed"
    for args in (("runs", "rerun", run), ("job", "create", "bad", "--from", run)):
        r = w.command(*args)
        assert r.returncode == 1 and "only one that has succeeded" in r.stderr, r.stderr
    assert w.api("POST", "/api/v1/runs/" + "0" * 32 + "/rerun")[0] == 404
    assert w.api("GET", f"/api/v1/runs/{made['first']}/compare")[0] == 422
    assert w.api("GET", f"/api/v1/runs/{made['first']}/compare?with={'0' * 32}")[0] == 404


def a_job_from_a_run():
    said = command("job", "create", "letters", "--from", made["first"], "--param", "lr=model.optim.lr:number:1e-4..0.1",
                   "--param", "max_steps=trainer.max_steps:integer:1..100", "--param", "style=model.virtual_prompt_style:choice:p-tuning|prompt-tuning",
                   "--param", "name=name:text:20")
    assert "letters, version 0" in said and "0.0001 to 0.1" in said, said
    status, job = w.api("GET", "/api/v1/jobs/letters")
    assert status == 200 and job["from"] == made["first"] and job["code"], job
    assert job["parameters"]["lr"]["default"] == 0.02 and job["spec"]["model"]["ref"] == "tiny:v0", job
    assert {i["role"] for i in job["inputs"]} == {"model", "train", "validation", "test"}, job["inputs"]
    run = command("enqueue", "--job", "letters", "lr=1e-3", "max_steps=4", "name=other.4").split()[0]
    r = done(run)
    assert r["name"] == "other.4" and r["spec"]["config"]["model"]["optim"]["lr"] == 0.001 and r["steps"] == 4, r
    assert r["spec"]["origin"] == {"job": "letters", "job_version": 0}, r["spec"]
    # as it is, it is the run: the same bits
    assert table(done(command("enqueue", "--job", "letters").split()[0])["run"]) == table(made["first"])


def parameters_are_typed_and_bounded():
    before = len(w.api("GET", "/api/v1/runs")[1]["runs"])
    for given, said in (("lr=1", "1 is not in 0.0001 to 0.1"), ("lr=fast", "expected a number"), ("lr=NaN", "expected a number"),
                        ("max_steps=2.5", "expected an integer"), ("max_steps=101", "101 is not in 1 to 100"), ("style=other", "expected one of"),
                        ("name=" + "x" * 21, "at most 20 bytes"), ("model.seed=1", "no such parameter"), ("seed=1", "it has: lr"), ("lr", "PARAMETER=VALUE")):
        r = w.command("enqueue", "--job", "letters", given)
        assert r.returncode == 1 and said in r.stderr, (given, r)
    r = w.command("enqueue", "--job", "letters", "lr=7", "max_steps=0")    # all errors at once
    assert "not in 0.0001" in r.stderr and "not in 1 to 100" in r.stderr, r.stderr
    status, problem = w.api("POST", "/api/v1/jobs/letters/runs", {"parameters": {"lr": "1e-3"}})
    assert status == 422 and problem["errors"] == [{"path": "parameters.lr", "detail": "expected a number"}], problem
    assert len(w.api("GET", "/api/v1/runs")[1]["runs"]) == before
    for param, said in (("lr=model.optim.lr:number", "expected NAME=KEY"), ("lr=model.optim.lr:float:0..1", "type: expected"),
                        ("lr=model.optim.lr:number:1..2", "0.02 is not in 1 to 2"), ("rate=model.optim.rate:number:0..1", "model.optim.rate"),
                        ("seed=seed:integer:0..9", "parameters.seed: seed"), ("style=model.style:choice:a|b", "model.style"), ("t=model.t:text", "model.t")):
        r = w.command("job", "create", "letters", "--from", made["first"], "--param", param)
        assert r.returncode == 1 and said in r.stderr, (param, r)
    lr = ("--param", "lr=model.optim.lr:number:0..1")
    r = w.command("job", "create", "letters", "--from", made["first"], *lr, *lr)
    assert r.returncode == 1 and "given twice" in r.stderr, r
    assert w.command("enqueue", "--job", "nothing").returncode == 1


def jobs_have_versions_and_outlive_the_server():
    assert "version 0" in command("job", "create", "usual", "--from", made["first"])
    assert "version 0" in command("job", "create", "usual", "--from", made["first"])    # nothing new
    assert "version 1" in command("job", "create", "usual", "--from", made["again"])
    usual = w.api("GET", "/api/v1/jobs/usual")[1]["parameters"]
    assert set(usual) == {"lr", "max_steps", "seed"}, usual
    w.end(w.server, signal.SIGKILL)
    w.start_server()
    assert [j["job"] for j in w.api("GET", "/api/v1/jobs")[1]["jobs"]] == ["letters", "usual"]
    assert w.api("GET", "/api/v1/jobs/usual?version=0")[1]["from"] == made["first"]
    assert w.api("GET", "/api/v1/jobs/usual?version=7")[0] == 404
    assert "usual, version 1" in command("job", "ls") and "seed" in command("job", "show", "usual")


def metrics_as_csv_and_jsonl():
    events = [dict(e["data"], time_ms=e["time_ms"], attempt=e["attempt"]) for e in w.events(made["first"], "metric")]
    assert [json.loads(line) for line in command("runs", "metrics", made["first"], "--jsonl").splitlines()] == events
    got = list(csv.DictReader(io.StringIO(command("runs", "metrics", made["first"]))))
    assert len(got) == len(events)
    for row, event in zip(got, events):
        assert {k: json.loads(v) for k, v in row.items() if v} == event, (row, event)


tap(w, [a_rerun_gives_the_same_table, other_data_gives_another_table, elsewhere_it_says_what_differs, what_cannot_be_done_again_says_why,
        a_job_from_a_run, parameters_are_typed_and_bounded, jobs_have_versions_and_outlive_the_server, metrics_as_csv_and_jsonl])
