#!/usr/bin/env python3
"""Runs mirrored to MLflow: parameters, metrics as they come, state and artifacts; none twice and none lost when either
server is killed. Against tests/system/mlflow_fake.py, or with SL_MLFLOW=real a server of the PyPI package."""
import atexit, hashlib, signal, socket, urllib.parse, urllib.request
from job_fixture import *
from mlflow_fake import Mlflow

REAL = os.environ.get("SL_MLFLOW") == "real"
if REAL:
    PYTHON = subprocess.run([HERE + "/../peer-python.sh", "mlflow"], capture_output=True, text=True)
    if PYTHON.returncode:
        print("not run: no MLflow:", PYTHON.stderr[-300:])
        sys.exit(77)
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    PORT = s.getsockname()[1]
URI = f"http://127.0.0.1:{PORT}"
w = Jobs(serve=["--keep-finished", "1", "--webhook-allow", "127.0.0.1"])
there = {"fake": None, "process": None}


def up():
    if not REAL:
        if there["fake"] is None:
            there["fake"] = Mlflow(PORT)
        else:    # with what it knew
            old, new = there["fake"], Mlflow(PORT)
            new.experiments, new.runs, new.files = old.experiments, old.runs, old.files
            there["fake"] = new
        return
    there["process"] = w.spawn("mlflow", [os.path.dirname(PYTHON.stdout.strip()) + "/mlflow", "server", "--host", "127.0.0.1", "--port", str(PORT),
                               "--workers", "1", "--backend-store-uri", f"sqlite:///{w.dir}/mlflow-server.db", "--artifacts-destination",
                               w.dir + "/mlflow-files"], start_new_session=True, env=dict(os.environ, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"))
    def answers():
        try:
            return urllib.request.urlopen(URI + "/health", timeout=5).status == 200
        except OSError:
            return False
    wait(answers, 120, "MLflow answers")


def down():
    if not REAL:
        there["fake"].stop()
        return
    os.killpg(there["process"].pid, signal.SIGKILL)
    there["process"].wait()
    there["process"] = None


@atexit.register
def gone():
    """Its workers outlive their parent: a suite that ends in the middle leaves none."""
    if there["process"]:
        down()


def ask(path, body=None, **query):
    url = f"{URI}/api/2.0/mlflow/{path}" + ("?" + urllib.parse.urlencode(query) if query else "")
    req = urllib.request.Request(url, data=json.dumps(body).encode() if body else None, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(req, timeout=60) as r:
        return json.loads(r.read())


def theirs(run, experiment="test"):
    """MLflow's run of ours; None: there is none. There is never a second one."""
    try:
        e = ask("experiments/get-by-name", experiment_name=experiment)["experiment"]["experiment_id"]
    except urllib.error.HTTPError as e:
        assert e.code == 404
        return None
    found = ask("runs/search", {"experiment_ids": [e], "filter": f"tags.`softlaunch.run` = '{run}'", "max_results": 5}).get("runs", [])
    assert len(found) <= 1, "mirrored twice"
    return found[0] if found else None


def points(found, name):
    """[(step, value, time)] of a metric, sorted."""
    got = ask("metrics/get-history", run_id=found["info"]["run_id"], metric_key=name).get("metrics", [])
    return sorted((int(m.get("step", 0)), m["value"], int(m["timestamp"])) for m in got)


def said(run, name):
    return sorted((e["data"]["step"], e["data"][name], e["time_ms"]) for e in w.events(run, "metric") if name in e["data"])


def tagged(found, key):
    return next((t["value"] for t in found["data"]["tags"] if t["key"] == key), None)


def ended(run, status, experiment="test"):
    return wait(lambda: (lambda r: r if r and r["info"]["status"] == status and tagged(r, "softlaunch.state") else None)(theirs(run, experiment)),
                120, f"MLflow says {status}")


def job(name, **tracking):
    s = make_job(name)
    s["tracking"] = {"mlflow": {"uri": URI, **tracking}}
    return s


def a_run_is_seen_while_it_runs_and_after():
    up()
    a = w.agent("first")
    run = w.submit(job("live", experiment="Frozen & tuned"), "trainer.max_steps=1000000")
    first = wait(lambda: (lambda r: points(r, "reduced_train_loss") if r else None)(theirs(run, "Frozen & tuned")), 120, "metrics of the running run")
    wait(lambda: len(points(theirs(run, "Frozen & tuned"), "reduced_train_loss")) > len(first), 120, "more of them")
    w.command("cancel", run)
    assert w.ended(run, 60)["state"] == "cancelled"
    found = ended(run, "KILLED", "Frozen & tuned")
    assert found["info"]["run_name"] == "live" and tagged(found, "softlaunch.state") == "cancelled", found["info"]
    params = {p["key"]: p["value"] for p in found["data"]["params"]}
    spec = w.run(run)["spec"]
    assert params["trainer.max_steps"] == "1000000" and params["base_model"] == "tiny:latest", params
    assert params["model.task_templates.0.taskname"] == spec["config"]["model"]["task_templates"][0]["taskname"], params
    assert float(params["model.optim.lr"]) == spec["config"]["model"]["optim"]["lr"]
    assert points(found, "reduced_train_loss") == said(run, "loss") and points(found, "lr") == said(run, "lr")
    assert points(found, "val_loss") == said(run, "val_loss")
    w.end(a)


def what_it_published_is_there():
    a = w.agent("publishes")
    run = w.submit(job("published"), "trainer.max_steps=20")
    r = w.ended(run, 120)
    assert r["state"] == "succeeded", r
    found = ended(run, "FINISHED")
    out = r["outputs"][0]
    assert tagged(found, "softlaunch.outputs") == f"{out['artifact']}:{out['version']}", found
    files = w.api("GET", f"/api/v1/artifacts/{out['artifact']}/{out['version']}")[1]["files"]
    for f in files:
        if REAL:
            path = f"{w.dir}/mlflow-files/{found['info']['experiment_id']}/{found['info']['run_id']}/artifacts/{out['artifact']}/{f['path']}"
            data = open(path, "rb").read()
        else:
            data = there["fake"].files[f"{found['info']['experiment_id']}/{found['info']['run_id']}/artifacts/{out['artifact']}/{f['path']}"]
        assert hashlib.sha256(data).hexdigest() == f["sha256"]
    assert files and int(found["info"]["end_time"]) == r["finished_ms"], found["info"]
    w.end(a)


def mlflow_away_and_our_server_killed():
    """Nothing is missing and nothing comes twice."""
    a = w.agent("through")
    run = w.submit(job("through"), "trainer.max_steps=300")
    wait(lambda: theirs(run), 120, "it is seen")
    down()
    w.server.send_signal(signal.SIGKILL)
    w.server.wait()
    w.start_server(w.port)
    assert w.ended(run, 180)["state"] == "succeeded"
    wait(lambda: os.path.exists(f"{w.dir}/store/runs/{run[:2]}/{run}/record.json"), 60, "the run has left Redis")
    w.server.send_signal(signal.SIGKILL)
    w.server.wait()
    up()
    w.start_server(w.port)
    found = ended(run, "FINISHED")
    assert len(said(run, "loss")) >= 300 and points(found, "reduced_train_loss") == said(run, "loss")
    assert points(found, "val_loss") == said(run, "val_loss")
    w.end(a)


def trials_and_failures():
    a = w.agent("trials")
    s = job("trials")
    s["trials"] = [{"name": "lr-3", "overrides": {"model.optim.lr": 0.003}}, {"name": "lr-5", "overrides": {"model.optim.lr": 0.005}}]
    run = w.submit(s, "trainer.max_steps=20")
    assert w.ended(run, 120)["state"] == "succeeded"
    found = ended(run, "FINISHED")
    losses = sorted((e["data"]["step"], e["data"]["loss"], e["time_ms"]) for e in w.events(run, "metric")
                    if e["data"].get("trial") == "lr-5" and "loss" in e["data"])
    assert points(found, "lr-5/reduced_train_loss") == losses and len(losses) == 20
    bad = job("fails")
    bad["datasets"]["train"] = ["words:latest/nothing.jsonl"]
    run = w.submit(bad)
    r = w.ended(run, 120)
    found = ended(run, "FAILED")
    assert tagged(found, "softlaunch.state") == r["state"] and tagged(found, "softlaunch.cause") == r["cause"], found
    w.end(a)


def where_it_may_not_go():
    """A private address is refused unless it is allowed; the operator's own is not asked, and gets the credentials."""
    w.end(w.server)
    token, own = "only-for-our-own", Mlflow(token="only-for-our-own")
    w.serve = ["--keep-finished", "1", "--mlflow", f"http://127.0.0.1:{own.port}"]
    os.environ["MLFLOW_TRACKING_TOKEN"] = token
    try:
        w.start_server(w.port)
    finally:
        del os.environ["MLFLOW_TRACKING_TOKEN"]
    other = Mlflow()
    a = w.agent("guarded")
    s = job("refused")
    s["tracking"]["mlflow"]["uri"] = f"http://127.0.0.1:{other.port}"
    refused = w.submit(s, "trainer.max_steps=5")
    plain = w.submit(make_job("plain"), "trainer.max_steps=5")
    for run in (refused, plain):
        assert w.ended(run, 120)["state"] == "succeeded"
    wait(lambda: [r for r in own.runs.values() if r["info"]["status"] == "FINISHED"], 60, "the operator's own has it")
    assert [tagged(r, "softlaunch.run") for r in own.runs.values()] == [plain]
    wait(lambda: "is a private address" in open(w.server.log).read(), 60, "the log tells")
    assert not other.calls, other.calls
    status, reply = w.api("POST", "/api/v1/runs", {**s, "tracking": {"mlflow": {"uri": "ftp://user:word@x/"}}})
    assert status == 422 and reply["errors"][0]["path"] == "tracking.mlflow.uri", reply
    w.end(a)


tap(w, [a_run_is_seen_while_it_runs_and_after, what_it_published_is_there, mlflow_away_and_our_server_killed, trials_and_failures,
        where_it_may_not_go])
