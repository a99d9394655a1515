#!/usr/bin/env python3
"""What runs have to do with the store: their checkpoints are not collected, what they were started with is not
deleted, and what is deleted no longer counts as their project's storage."""
import json, os, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from queue_fixture import *

w = World(serve=("--keep-finished", "0", "--collect-every", "0"))
w.put("model", "a model")
w.put("data", '{"a": 1}\n')


def collect():
    r = w.command("artifact", "gc", "--grace", "0", "--json")
    assert r.returncode == 0, r.stderr
    return json.loads(r.stdout)


def verify():
    r = w.command("artifact", "verify", "--hash", "--json")
    assert r.returncode == 0, r.stdout + r.stderr
    return json.loads(r.stdout)


def used():
    found = [p for p in w.api("GET", "/api/v1/projects")[1]["projects"] if p["project"] == "test"]
    return round(found[0]["storage_gib_used"] * 2**30) if found else 0


def went_on(run, attempt):
    """The worker says at which step this attempt started, and that was not the first."""
    said = [e["data"]["msg"] for e in w.events(run, "log") if e["attempt"] == attempt]
    return any(m.startswith("starting at step ") and m != "starting at step 0" for m in said)


def restart():
    """Holds of uploads live in memory only; they would keep everything that this test uploads."""
    w.end(w.server)
    w.start_server(w.port)


def checkpoints_are_kept_as_long_as_a_run_goes_on_from_them():
    a = w.agent("first", more=["--max-runs", "1"])
    run = w.enqueue("fake.400.20.ok")
    w.until(run, lambda r: r.get("checkpoint"), 60)
    w.end(a, timeout=60)    # preempted: its last checkpoint is in the store, and it waits for another agent
    r = w.until(run, lambda r: r["state"] == "queued", 60)
    assert r["checkpoint"], r
    restart()
    collect()    # those before it go
    b = w.agent("second", more=["--max-runs", "1"])
    wait(lambda: went_on(run, 2), 60, "the second attempt goes on")
    assert w.command("cancel", run).returncode == 0
    assert w.ended(run, 60)["state"] == "cancelled"
    w.end(b)
    # Archived and cancelled it can still be requeued, and goes on from there.
    wait(lambda: w.cli("exists", f"{{softlaunch}}:run:{run}") == "0", 60, "the run is archived")
    restart()
    collect()
    r = w.command("runs", "requeue", run)
    assert r.returncode == 0, r.stderr
    again = r.stdout.split()[0]
    c = w.agent("third", more=["--max-runs", "1"])
    r = w.ended(again, 90)
    assert r["state"] == "succeeded", r
    assert went_on(again, 1)
    w.end(c)
    verify()


def what_a_run_was_started_with_is_not_deleted():
    a = w.agent("user", more=["--max-runs", "1"])
    run = w.enqueue("fake.100000.20.ok.user", model="model:v0")
    w.until(run, lambda r: r["state"] == "running" and (r.get("step") or 0) > 0, 60)
    r = w.command("artifact", "rm", "model:v0")
    assert r.returncode == 1 and run in r.stderr, r.stderr
    assert w.command("cancel", run).returncode == 0
    w.ended(run, 60)
    w.end(a)
    r = w.command("artifact", "rm", "model:v0")
    assert r.returncode == 0, r.stderr
    w.put("model", "another model")
    assert json.loads(w.command("artifact", "ls", "model", "--json").stdout)["latest"] == "v1"


def inputs_of(output):
    """{role: version} of the run that made it."""
    graph = json.loads(w.command("artifact", "lineage", f"{output['artifact']}:v{output['number']}", "--json").stdout)
    labels = {n["id"]: n["label"] for n in graph["nodes"]}
    return {e["role"]: labels[e["from"]] for e in graph["edges"] if e["to"].startswith("run")}


def what_goes_on_keeps_what_it_was_started_with():
    """`latest` is another version by then; what it was must not be deleted meanwhile."""
    was = {name: w.api("GET", f"/api/v1/artifacts/{name}/latest")[1] for name in ("model", "data")}
    a = w.agent("before", more=["--max-runs", "1"])
    run = w.enqueue("fake.400.20.ok.kept", outputs={"artifact": "kept", "aliases": []})
    w.until(run, lambda r: r.get("checkpoint"), 60)
    w.end(a, timeout=60)
    w.until(run, lambda r: r["state"] == "queued", 60)
    for name in was:
        w.put(name, f"other {name}")
        assert w.api("GET", f"/api/v1/artifacts/{name}/latest")[1]["version"] != was[name]["version"]
        r = w.command("artifact", "rm", f"{name}:{was[name]['version']}")
        assert r.returncode == 1 and run in r.stderr, r.stderr
    b = w.agent("after", more=["--max-runs", "1"])
    r = w.ended(run, 90)
    assert r["state"] == "succeeded" and went_on(run, 2), r
    w.end(b)
    output = w.until(run, lambda r: "bytes" in r["outputs"][0], 60)["outputs"][0]
    assert inputs_of(output) == {role: f"{name}:{was[name]['version']}" for role, name in (("model", "model"), ("train", "data"))}, inputs_of(output)
    for name in was:    # nothing needs them any more
        assert w.command("artifact", "rm", f"{name}:{was[name]['version']}").returncode == 0
    assert w.command("artifact", "rm", "kept:v0").returncode == 0


def deleting_gives_storage_back():
    wait(lambda: not os.listdir(w.dir + "/store/refunds"), 60, "what was deleted before this test is given back")
    before = used()
    a = w.agent("maker", more=["--max-runs", "2"])
    out = []
    for name in ("fake.3.10.ok.x", "fake.3.10.ok.y"):
        r = w.ended(w.enqueue(name, outputs={"artifact": name.replace(".", "-"), "aliases": []}), 60)
        assert r["state"] == "succeeded", r
        out.append(wait(lambda: (w.run(r["run"]).get("outputs") or [{}])[0].get("bytes") and w.run(r["run"])["outputs"], 60,
                        "its version is recorded")[0])
    w.end(a)
    total = sum(o["bytes"] for o in out)
    assert total > 0 and wait(lambda: used() == before + total, 30, "it is charged"), (used(), before, total)
    assert w.command("artifact", "rm", f"{out[0]['artifact']}:v0").returncode == 0
    wait(lambda: used() == before + out[1]["bytes"], 60, "its bytes are given back")
    restart()
    assert used() == before + out[1]["bytes"]
    assert w.command("artifact", "rm", f"{out[1]['artifact']}:v0").returncode == 0
    wait(lambda: used() == before, 60, "its bytes are given back")
    assert collect()["removed_blobs"] >= 4    # two tarballs and their manifests
    verify()


def a_store_that_served_runs_is_not_collected_without_redis():
    w.end(w.server)
    port_file = w.dir + "/port"
    os.unlink(port_file)
    w.server = w.spawn("alone", [BIN, "serve", "--listen", "127.0.0.1:0", "--data", w.dir + "/store", "--token-file",
                                 w.dir + "/token", "--port-file", port_file])
    wait(lambda: os.path.exists(port_file), 30, "the server answers")
    w.port = int(open(port_file).read())
    w.url = f"http://127.0.0.1:{w.port}"
    r = w.command("artifact", "gc", "--grace", "0")
    assert r.returncode == 1 and "--redis" in r.stderr, r.stderr


tap(w, [checkpoints_are_kept_as_long_as_a_run_goes_on_from_them, what_a_run_was_started_with_is_not_deleted,
        what_goes_on_keeps_what_it_was_started_with, deleting_gives_storage_back, a_store_that_served_runs_is_not_collected_without_redis])
