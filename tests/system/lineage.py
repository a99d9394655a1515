#!/usr/bin/env python3
"""Who made what from what, and registered models: real runs on the tiny model, by the commands and the API; what is
told must be what the archive's digests say, and outlive the server and Redis."""
import hashlib, re, signal, threading
from job_fixture import *

w = Jobs()
made = {}


def ended(job):
    if "agent" not in made or made["agent"].poll() is not None:
        made["agent"] = w.agent()
    r = w.ended(w.submit(job), 120)
    assert r["state"] == "succeeded", r
    return w.until(r["run"], lambda r: "bytes" in r["outputs"][0], 60)    # its version is recorded


def short(name, **config):
    return make_job(name, trainer__max_steps=2, trainer__val_check_interval=2, **config)


def graph(ref):
    r = w.command("artifact", "lineage", "--json", ref)
    assert r.returncode == 0, r.stderr
    return json.loads(r.stdout)


def edges(g):
    label = {n["id"]: n["run"] if n["kind"] == "run" else n["label"] for n in g["nodes"]}
    return {(label[e["from"]], label[e["to"]], e["role"]) for e in g["edges"]}


def a_version_knows_its_run_and_inputs():
    job = short("first")
    job["outputs"]["register"] = "colours"
    path = w.write("side.jsonl", rows(4))
    made["one"] = r = ended(job)
    out = r["outputs"][0]
    assert out["artifact"] == "first" and out["version"] == "v0" and "facts" not in out, out
    g = graph("first")
    assert edges(g) == {("tiny:v0", r["run"], "model"), ("words:v0", r["run"], "train"), ("words:v0", r["run"], "validation"),
                        ("words:v0", r["run"], "test"), (r["run"], "first:v0", "prompts")}, edges(g)
    node = next(n for n in g["nodes"] if n["kind"] == "run")
    made["spec"] = node["spec"]
    assert re.fullmatch("[0-9a-f]{64}", node["spec"]), node
    assert node["code"] and node["label"] == "first", node
    fingerprint = node["fingerprint"]
    assert fingerprint["threads"] == 1 and fingerprint["backend"] == "cpu" and fingerprint["kernel"], node
    status, record = w.api("GET", "/api/v1/artifacts/first/v0")
    assert record["made_by"]["run"] == r["run"] and record["made_by"]["spec"] == node["spec"], record


def both_directions():
    job = short("second", model__restore_path="first:v0", model__existing_tasks=["colour", "first"], model__new_tasks=["last"])
    template = dict(job["config"]["model"]["task_templates"][0], taskname="last")
    job["config"]["model"]["task_templates"].append(template)
    more = [dict(json.loads(line), taskname="last") for line in rows(16).splitlines()]
    w.artifact("more", w.write("more.jsonl", "".join(json.dumps(row) + "\n" for row in more)))
    job["datasets"] = {s: ["more:latest"] for s in ("train", "validation", "test")}
    made["two"] = r = ended(job)
    one = made["one"]["run"]
    up = edges(graph("second:v0"))
    assert ("first:v0", r["run"], "restore") in up and (r["run"], "second:v0", "prompts") in up, up
    assert ("words:v0", one, "train") in up and ("tiny:v0", one, "model") in up, up
    down = edges(graph("words:v0"))
    assert {("words:v0", one, "train"), (one, "first:v0", "prompts"), ("first:v0", r["run"], "restore"),
            (r["run"], "second:v0", "prompts")} <= down, down
    assert not any(a == "more:v0" for a, _, _ in down), down    # not made from the words
    specs = [n["spec"] for n in graph("second:v0")["nodes"] if n["kind"] == "run"]
    assert len(set(specs)) == 2 and made["spec"] in specs, specs
    text = w.command("artifact", "lineage", "second").stdout
    assert "restore" in text and "first:v0" in text and one[:12] in text, text
    r = w.command("artifact", "lineage", "nobody:v3")
    assert r.returncode == 1 and "no artifact nobody" in r.stderr, r.stderr


def a_run_on_urls_and_files_tells_digests_without_credentials():
    job = short("outside")
    path = w.write("outside.jsonl", rows(16))
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class H(BaseHTTPRequestHandler):
        def do_GET(self):
            body = open(path, "rb").read()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass
    srv = HTTPServer(("127.0.0.1", 0), H)
    threading.Thread(target=srv.serve_forever, daemon=True).start()
    job["datasets"]["train"] = [f"http://127.0.0.1:{srv.server_port}/data.jsonl?X-Signature=canary-signature"]
    ended(job)
    srv.shutdown()
    g = graph("outside:v0")
    node = next(n for n in g["nodes"] if n["kind"] == "source")
    assert node["sha256"] == hashlib.sha256(open(path, "rb").read()).hexdigest(), node
    assert node["label"] == f"http://127.0.0.1:{srv.server_port}/data.jsonl", node
    assert "canary" not in json.dumps(g), g


def a_spec_registers_its_output_as_candidate():
    status, model = w.api("GET", "/api/v1/registry/colours")
    assert status == 200 and model["stages"]["candidate"]["artifact"] == "first", model
    link = model["versions"][0]
    assert (link["artifact"], link["version"], link["run"]) == ("first", "v0", made["one"]["run"]), link
    assert "colours" in w.command("registry").stdout


def a_person_links_and_the_origin_is_told():
    """A version that a run made, and one that somebody put: who linked it, and where it comes from."""
    for version, key, value in (("second:v0", "made_by", record("second")["made_by"]["run"]), ("words:v0", "put_by", record("words")["created_by"])):
        r = w.command("registry", "link", "by-hand", version)
        assert r.returncode == 0 and value in r.stdout, r.stdout + r.stderr
        link = w.api("GET", "/api/v1/registry/by-hand")[1]["versions"][-1]
        assert link[key] == value and link["by"] and "run" not in link and ("made_by" in link) != ("put_by" in link), link
    link = w.api("GET", "/api/v1/registry/colours")[1]["versions"][0]
    assert link["run"] == link["made_by"], link


def record(name):
    return w.api("GET", f"/api/v1/artifacts/{name}/v0")[1]


def stages_move_and_resolve():
    r = w.command("registry", "stage", "colours", "production", "first:v0")
    assert r.returncode == 0, r.stderr
    r = w.command("registry", "stage", "colours", "candidate", "second:latest")
    assert r.returncode == 0 and "candidate second:v0" in r.stdout and "production first:v0" in r.stdout, r.stdout + r.stderr
    status, record = w.api("GET", "/api/v1/artifacts/colours/production")
    assert status == 200 and (record["name"], record["version"]) == ("first", "v0"), record
    dest = w.dir + "/got"
    r = w.command("artifact", "get", "colours:candidate", dest)
    assert r.returncode == 0 and os.listdir(dest) == ["second.tar.zst"], r.stderr
    for args, said in ((("stage", "colours", "production", "first:v9"), "no version v9"), (("show", "nothing"), "no registered model"),
                       (("stage", "Colours", "production", "first:v0"), "not a name"), (("unstage", "colours", "gold"), "gold")):
        r = w.command("registry", *args)
        assert r.returncode == 1 and said in r.stderr, (args, r)
    for args, said in ((("artifact", "rm", "words:v0"), "registry unlink by-hand words:v0"), (("registry", "unlink", "by-hand", "words:v7"), "does not hold words:v7"),
                       (("registry", "unlink", "colours", "second:v0"), "candidate"), (("registry", "unlink", "nothing", "words:v0"), "no registered model")):
        r = w.command(*args)
        assert r.returncode == 1 and said in r.stderr, (args, r)
    r = w.command("registry", "unlink", "by-hand", "words:v0")    # it may go now
    assert r.returncode == 0 and "words" not in r.stdout, r
    w.write("gone.txt", "gone")
    w.artifact("gone", w.dir + "/gone.txt")
    for args, code in ((("registry", "link", "by-hand", "gone:v0"), 0), (("artifact", "rm", "gone:v0"), 1), (("registry", "unlink", "by-hand", "gone:v0"), 0),
                       (("artifact", "rm", "gone:v0"), 0)):
        assert w.command(*args).returncode == code, args
    history = w.api("GET", "/api/v1/registry/colours")[1]["history"]
    assert [(h["stage"], h["artifact"]) for h in history] == [("candidate", "first"), ("production", "first"),
                                                              ("candidate", "second")], history


def everything_outlives_the_server_and_redis():
    before = edges(graph("words:v0")), w.api("GET", "/api/v1/registry/colours")[1]
    w.end(made["agent"])
    w.end(w.server, signal.SIGKILL)
    w.cli("flushall")
    w.start_server()
    assert (edges(graph("words:v0")), w.api("GET", "/api/v1/registry/colours")[1]) == before


tap(w, [a_version_knows_its_run_and_inputs, both_directions, a_run_on_urls_and_files_tells_digests_without_credentials,
     a_spec_registers_its_output_as_candidate, a_person_links_and_the_origin_is_told,
     stages_move_and_resolve, everything_outlives_the_server_and_redis])
