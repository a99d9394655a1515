#!/usr/bin/env python3
"""The OpenAPI description against the server: every route is in it and the other way round, and what schemathesis sends
is answered as described. Environment: SL_BIN; SL_API_S: seconds for schemathesis (none: a fixed number of requests).
Prints TAP; 77: no schemathesis here."""
import glob
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from job_fixture import HERE, TOKEN, Jobs, Skip, make_job, tap

ROOT = os.path.join(HERE, "..", "..")
PAGES = re.compile(r"/static/|/(login|compare|new|queues|agents|artifacts|registry)?$|/(runs|artifacts|registry)/\{\w+\}$")
METHODS = ("get", "put", "post", "patch", "delete")


def described():
    status, all_of_it = w.api("GET", "/api/v1/openapi.json")
    assert status == 200, all_of_it
    return all_of_it


def routes():
    """Every "METHOD /pattern" of the source, but for pages."""
    found = set()
    for f in glob.glob(os.path.join(ROOT, "server", "*.c")):
        for m in re.finditer(r'\.method\s*=\s*"(\w+)",\s*\.pattern\s*=\s*"([^"]+)"', open(f).read()):
            if not PAGES.match(m[2]):
                found.add(f"{m[1]} {m[2]}")
    assert len(found) > 50, found
    return found


def every_route_is_described_and_nothing_else():
    known = {f"{m.upper()} {path}" for path, item in described()["paths"].items() for m in item if m in METHODS}
    assert known == routes(), known ^ routes()


def it_is_open_and_has_an_etag():
    url = w.url + "/api/v1/openapi.json"
    with urllib.request.urlopen(url, timeout=60) as r:
        etag = r.headers["ETag"]
        assert json.loads(r.read())["openapi"].startswith("3.1") and r.headers["Content-Type"] == "application/json"
    try:
        urllib.request.urlopen(urllib.request.Request(url, headers={"If-None-Match": etag}), timeout=60)
        raise AssertionError("it was sent again")
    except urllib.error.HTTPError as e:
        assert e.code == 304, e


def parameters_of_paths_are_described():
    """And every reference leads somewhere, every operation has a name of its own."""
    doc, ids = described(), []
    for path, item in doc["paths"].items():
        for method in set(METHODS) & set(item):
            ids.append(item[method]["operationId"])
            names = set()
            for p in item.get("parameters", []) + item[method].get("parameters", []):
                p = doc["components"]["parameters"][p["$ref"].split("/")[-1]] if "$ref" in p else p
                if p["in"] == "path":
                    names.add(p["name"])
            assert names == set(re.findall(r"\{(\w+)\}", path)), (method, path, names)
    assert len(set(ids)) == len(ids), ids

    def walk(x):
        if isinstance(x, dict):
            if isinstance(x.get("$ref"), str):
                _, _, kind, name = x["$ref"].split("/")
                assert name in doc["components"][kind], x
            # The server's are POSIX expressions, where "[\\s]" means a backslash or an s.
            assert "\\" not in (x["pattern"] if isinstance(x.get("pattern"), str) else ""), x
            for v in x.values():
                walk(v)
        elif isinstance(x, list):
            for v in x:
                walk(v)
    walk(doc)


def what_is_not_as_described_is_refused():
    run = w.enqueue("tagged", project="test")
    assert w.api("PATCH", "/api/v1/runs/" + run, {"tags": ["sweeps", "größe/2"]})[0] == 200
    for tag in ("a b", "a,b", "a\tb", ""):
        assert w.api("PATCH", "/api/v1/runs/" + run, {"tags": [tag]})[0] == 422, tag
    for method, path, body, fault in (("GET", "/api/v1/runs?limit=0", None, "limit"), ("GET", "/api/v1/runs?limit=7x", None, "limit"),
                                      ("GET", "/api/v1/runs?state=nope", None, "state"), ("GET", "/api/v1/events", None, "runs"),
                                      ("POST", "/api/v1/queues/q", {"state": 5}, "state"),
                                      ("POST", "/api/v1/queues/q", {"stat": "paused"}, "stat"),
                                      ("POST", "/api/v1/users", [], "")):
        status, problem = w.api(method, path, body)
        assert status == 422 and problem["errors"][0]["path"] == fault and problem["errors"][0]["detail"], (path, problem)


def things():
    """Something of each kind, so that not every answer is a 404: {parameter of a path: names}."""
    agent = w.agent()
    made = w.submit(make_job("made", trainer__max_steps=4, trainer__val_check_interval=2))
    assert w.ended(made, 60)["state"] == "succeeded"
    w.end(agent, 9)    # an agent that leaves takes its line away
    waiting = w.submit(make_job("waiting"))
    for method, path, body in (("PUT", "/api/v1/jobs/colours", {"from": made}),
                               ("PUT", "/api/v1/registry/painter/stages/production", {"artifact": "made", "version": "v0"}),
                               ("PUT", "/api/v1/webhooks/chat", {"url": "https://example.com/", "events": ["finished"]}),
                               ("POST", "/api/v1/users", {"user": "ann", "role": "viewer"}),
                               ("POST", "/api/v1/store/verifications", {})):
        status, reply = w.api(method, path, body)
        assert status in (200, 201, 202), reply
    version = w.api("GET", "/api/v1/artifacts/words/v0")[1]
    return {"run": [made, waiting], "name": ["made", "words", "painter"], "ref": ["v0", "latest", "candidate", "production"],
            "sha256": [version["manifest"], version["files"][0]["sha256"]], "alias": ["candidate"], "job": ["colours"],
            "model": ["painter"], "stage": ["production"], "queue": ["default"], "project": ["test"], "webhook": ["chat"],
            "agent": [w.api("GET", "/api/v1/agents")[1]["agents"][0]["agent"]], "user": ["ann"], "task": ["1"]}


def schemathesis():
    python = subprocess.run([os.path.join(ROOT, "tests", "peer-python.sh"), "api"], capture_output=True, text=True)
    if python.returncode:
        raise Skip("no schemathesis: " + python.stderr.strip()[-200:])
    seconds = int(os.environ.get("SL_API_S") or 0)
    with open(w.dir + "/api.toml", "w") as f:
        f.write(open(os.path.join(HERE, "openapi.toml")).read())
        for name, values in things().items():
            f.write(f'[dictionaries.{name}]\nvalues = {json.dumps(values)}\n[parameters."path.{name}"]\ndictionary = "{name}"\nprobability = 0.7\n')
        f.write(f'[headers]\nAuthorization = "Bearer {TOKEN}"\n')    # not an argument: those are for all to see
        if not seconds:
            f.write("[phases.coverage]\nunexpected-methods = []\n"    # a spec's many keys are schema_peer's matter
                    '[[operations]]\ninclude-operation-id = "enqueueRun"\nphases.coverage.enabled = false\n')
    argv = [os.path.join(os.path.dirname(python.stdout.strip()), "schemathesis"), "--config-file", w.dir + "/api.toml", "run",
            w.url + "/api/v1/openapi.json", "--request-timeout", "60", "--no-color"]
    argv += ["--max-time", str(seconds)] if seconds else ["--max-examples", "1", "--phases", "coverage,fuzzing"]
    r = subprocess.run(argv, capture_output=True, text=True, cwd=w.dir, env=dict(os.environ, SCHEMATHESIS_HOOKS=os.path.join(HERE, "openapi_hooks.py")))
    print("# " + "\n# ".join((r.stdout + r.stderr).splitlines()[-300 if r.returncode else -15:]), flush=True)
    assert r.returncode == 0, "see above"
    assert w.server.poll() is None


w = Jobs()
tap(w, [every_route_is_described_and_nothing_else, it_is_open_and_has_an_etag, parameters_of_paths_are_described, what_is_not_as_described_is_refused,
        schemathesis])
