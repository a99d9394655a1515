#!/usr/bin/env python3
"""softlaunch.py as the server serves it, against a live server and agent, beside what the command says."""
import hashlib, importlib.util, json, os, shutil, signal, socket, subprocess, sys, threading, time, urllib.request
from queue_fixture import HERE, TOKEN, World, make_spec, tap, wait

w = World(serve=["--keep-finished", "1"])
w.put("model", "m\n")
w.put("data", '{"a": "b"}\n')
served = urllib.request.urlopen(w.url + "/softlaunch.py", timeout=30).read()
open(w.dir + "/softlaunch.py", "wb").write(served)
at = importlib.util.spec_from_file_location("softlaunch", w.dir + "/softlaunch.py")
softlaunch = importlib.util.module_from_spec(at)
at.loader.exec_module(softlaunch)
sl = softlaunch.Client(w.url, TOKEN)


def raises(kind, f, *args, **kw):
    try:
        f(*args, **kw)
    except kind as e:
        return e
    raise AssertionError(f"no {kind.__name__}")


def it_is_the_file_of_this_repository_and_needs_nothing_else():
    assert served == open(HERE + "/../../server/static/softlaunch.py", "rb").read()
    r = subprocess.run([sys.executable, "-S", "-I", "-c", f"import sys; sys.path.insert(0, {w.dir!r}); import softlaunch"],
                       capture_output=True, text=True)
    assert r.returncode == 0, r.stderr


def a_run_from_enqueue_to_its_result():
    a = w.agent()
    path = w.dir + "/client-spec.json"
    json.dump(make_spec("fake.10.5.ok"), open(path, "w"))
    run = sl.enqueue(path, {"priority": "high", "model.optim.lr": 1e-3})
    assert sl.run(run)["spec"]["config"]["model"]["optim"]["lr"] == 1e-3 and sl.run(run)["priority"] == "high"
    record = sl.wait(run, timeout=300)
    assert record["state"] == "succeeded", record
    metrics = sl.metrics(run)
    steps = [e["data"]["step"] for e in w.events(run, "metric") if "loss" in e["data"]]
    assert [s for s, _ in metrics["loss"]] == sorted(set(steps)) and len(steps) >= 2, (metrics, steps)
    assert all(row["time_ms"] > 1.6e12 for row in sl.history(run))
    assert any("starting at step 0" in line for line in sl.log(run)), sl.log(run)
    out = record["outputs"][0]
    paths = sl.download(out, w.dir + "/client-result")
    by_command = w.dir + "/command-result"
    r = w.command("artifact", "get", "--unpack", f"{out['artifact']}:v{str(out['version']).lstrip('v')}", by_command)
    assert r.returncode == 0, r.stderr
    r = subprocess.run(["diff", "-r", by_command, w.dir + "/client-result"], capture_output=True, text=True)
    assert r.returncode == 0 and paths, r.stdout
    assert run in [r["run"] for r in sl.runs(project="test", limit=500)]
    wait(lambda: w.cli("exists", "{softlaunch}:run:" + run) == "0", 60, "the run is archived")
    assert sl.wait(run, timeout=60)["state"] == "succeeded" and sl.metrics(run) == metrics
    w.end(a)


def runs_that_do_not_succeed_say_why():
    a = w.agent()
    e = raises(softlaunch.RunFailed, sl.wait, sl.enqueue(make_spec("fake.4.5.spec")), timeout=300)
    assert e.record["state"] == "failed" and "names a field" in str(e), e
    w.end(a)
    run = sl.enqueue(make_spec("fake.4.5.ok"))
    raises(TimeoutError, sl.wait, run, timeout=1)
    assert sl.cancel(run) == "cancelled"
    assert sl.wait(run, check=False)["state"] == "cancelled"
    again = sl.requeue(run)
    assert again != run and sl.run(again)["requeued_from"] == run
    sl.move(again, priority="critical")
    assert sl.run(again)["priority"] == "critical"
    sl.cancel(again)


def errors_carry_the_servers_words():
    e = raises(softlaunch.Error, sl.enqueue, make_spec("bad", queue=7))
    assert e.status == 422 and any("queue" in p["path"] for p in e.errors) and "queue" in str(e), e
    assert raises(softlaunch.Error, sl.run, "0" * 32).status == 404
    assert raises(softlaunch.Error, softlaunch.Client(w.url, "a-wrong-token-of-some-length").queues).status == 401
    gone = softlaunch.Client("http://127.0.0.1:1", TOKEN, patience=0.5)
    raises(ConnectionError, gone.queues)


def enqueue_holds_while_the_server_is_away_and_enqueues_once():
    port, done = w.port, []
    spec = dict(make_spec("fake.4.5.ok"), name="once")
    w.end(w.server)
    t = threading.Thread(target=lambda: done.append(sl.enqueue(spec)))
    t.start()
    w.start_server(port)
    t.join(120)
    assert done, "it gave up"
    assert len([r for r in sl.runs(project="test") if r["name"] == "once"]) == 1
    key = "the-same-key"
    assert sl.enqueue(spec, key=key) == sl.enqueue(spec, key=key)
    for r in list(sl.runs(project="test", state="queued")):
        sl.cancel(r["run"])


def artifacts_go_up_and_come_down():
    folder = w.dir + "/up"
    os.makedirs(folder + "/deep")
    files = {"a.txt": b"a", "deep/b.bin": os.urandom(3 << 20)}
    for name, data in files.items():
        open(f"{folder}/{name}", "wb").write(data)
    record = sl.upload("from-python", folder, aliases=["candidate"])
    assert record["version"] == "v0" and {f["path"] for f in record["files"]} == set(files), record
    assert sl.upload("from-python", folder)["version"] == "v0"
    assert sl.artifact("from-python:candidate")["version"] == "v0"
    sl.alias("from-python", "best", "v0")
    assert next(a for a in sl.artifacts() if a["name"] == "from-python")["aliases"]["best"]
    sl.download("from-python:best", w.dir + "/down")
    for name, data in files.items():
        assert open(f"{w.dir}/down/{name}", "rb").read() == data
    # half a file of an earlier try is gone on with
    entry = next(f for f in record["files"] if f["path"] == "deep/b.bin")
    path = w.dir + "/down/deep/b.bin"
    os.unlink(path)
    open(f"{path}.{entry['sha256'][:16]}.part", "wb").write(files["deep/b.bin"][:1000])
    sl.download("from-python", w.dir + "/down")
    assert open(path, "rb").read() == files["deep/b.bin"] and sorted(os.listdir(w.dir + "/down/deep")) == ["b.bin"]
    # damage on the way is seen
    os.unlink(path)
    open(f"{path}.{entry['sha256'][:16]}.part", "wb").write(b"x" * 1000)
    raises(softlaunch.Error, sl.download, "from-python", w.dir + "/down")
    assert not os.path.exists(path)


def the_token_follows_no_redirect_and_paths_lead_nowhere_else():
    seen, other = [], socket.create_server(("127.0.0.1", 0))

    def answer():
        c, _ = other.accept()
        seen.append(c.recv(65536))
        c.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:%d/x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % other.getsockname()[1])
        c.close()
    threading.Thread(target=answer, daemon=True).start()
    e = raises(softlaunch.Error, softlaunch.Client("http://127.0.0.1:%d" % other.getsockname()[1], TOKEN, patience=0).queues)
    assert e.status == 302 and len(seen) == 1
    for path in ("../x", "/etc/x", "a/../../x", "a//b", ""):
        raises(ValueError, softlaunch._safe, path)


tap(w, [it_is_the_file_of_this_repository_and_needs_nothing_else, a_run_from_enqueue_to_its_result,
        runs_that_do_not_succeed_say_why, errors_carry_the_servers_words,
        enqueue_holds_while_the_server_is_away_and_enqueues_once, artifacts_go_up_and_come_down,
        the_token_follows_no_redirect_and_paths_lead_nowhere_else])
