#!/usr/bin/env python3
"""outputs.copy_to: what runs publish comes to a bucket whole, whatever is away or killed when; nothing of others' places.

S3 is moto with authentication enforced behind targets.py's gate. Environment: SL_BIN. Prints TAP."""
import json
import os
import signal

import sources
import targets
from queue_fixture import World, make_spec, wait

TO = "s3://models/out/"
made = {}
gate = targets.s3_here()
w = World(serve=("--copy-to", TO, "--copy-to", "gs://other/"))
w.put("model", "m\n")
w.put("data", "x\n")


def spec(name, to=TO, **more):
    s = make_spec("fake.1.1.ok." + name, **more)
    s["outputs"] = {"artifact": name, "copy_to": to}
    return s


def published(name, to=TO):
    status, reply = w.api("POST", "/api/v1/runs", spec(name, to))
    assert status in (200, 201), reply
    r = w.ended(reply["run"], 60)
    assert r["state"] == "succeeded", r
    return w.until(reply["run"], lambda r: "bytes" in r["outputs"][0], 60)


def objects():
    return {k: v.value for k, v in targets.s3_objects("out/")[0].items()}


def is_there(name):
    """The record is there, and with it every file of the version, with its bytes."""
    record = w.api("GET", f"/api/v1/artifacts/{name}/v0")[1]
    wait(lambda: f"{name}/v0.json" in objects(), 90, "the copy")
    found = objects()
    told = json.loads(found[f"{name}/v0.json"])
    assert told["manifest"] == record["manifest"] and told["made_by"] == record["made_by"], told
    for f in record["files"]:
        assert sources.sha(found[f"{name}/v0/{f['path']}"]) == f["sha256"], f
    wait(lambda: not [c for c in w.api("GET", "/api/v1/copies")[1]["copies"] if c["name"] == name], 30, "its end")


def a_result_is_copied():
    made["agent"] = w.agent()
    r = published("first")
    assert r["outputs"][0]["copy_to"] == TO, r["outputs"]
    is_there("first")
    published("below", TO + "deeper/still/")
    wait(lambda: "deeper/still/below/v0.json" in objects(), 90, "the copy")


def other_places_are_refused():
    for to, status, says in (("s3://models/elsewhere/", 403, "--copy-to"), ("s3://models/outside/", 403, "--copy-to"),
                             ("s3://models/out/../x/", 422, "parts in its name"), ("s3://models/out/x", 422, "copy_to"),
                             ("gs://models/", 403, "--copy-to"), ("/tmp/x/", 422, "copy_to"), ("http://models/x/", 422, "copy_to")):
        got, reply = w.api("POST", "/api/v1/runs", spec("no", to))
        assert got == status and says in json.dumps(reply), (to, got, reply)


def what_is_away_comes_later():
    """The service refuses, and says so; the server is killed meanwhile."""
    gate.spoil = lambda *a: (403, {}, b"<Error><Code>AccessDenied</Code><Message>not now</Message></Error>")
    r = published("later")
    pending = wait(lambda: [c for c in w.api("GET", "/api/v1/copies")[1]["copies"] if c.get("error")], 60, "its first try")
    assert pending[0]["run"] == r["run"] and pending[0]["name"] == "later" and "403" in pending[0]["error"], pending
    assert not [k for k in objects() if k.startswith("later")], objects()
    w.end(w.server, signal.SIGKILL)
    gate.spoil = lambda *a: None
    w.start_server(w.port)
    is_there("later")


def killed_in_the_middle():
    """Between the file and the record: then the record comes after the restart, and the file is not sent again."""
    def spoil(method, path, headers, read):
        if method == "PUT" and path.endswith("middle/v0.json"):
            made["killed"] = made.get("killed") or not w.server.send_signal(signal.SIGKILL)
            raise targets.Gate.Cut
    gate.spoil = spoil
    status, reply = w.api("POST", "/api/v1/runs", spec("middle"))
    wait(lambda: made.get("killed"), 90, "the file's copy")
    w.server.wait(20)
    assert [k for k in objects() if k.startswith("middle/v0/")] and "middle/v0.json" not in objects(), objects()
    gate.spoil = lambda *a: None
    gate.seen.clear()
    w.start_server(w.port)
    w.ended(reply["run"], 60)
    is_there("middle")
    sent = [p for m, p, h, n in gate.seen if m == "PUT"]
    assert sent == ["/models/out/middle/v0.json"], sent


def no_secret_is_told():
    secret = sources.s3_env["AWS_SECRET_ACCESS_KEY"]
    for dirpath, _, names in os.walk(w.dir):
        for n in names:
            path = os.path.join(dirpath, n)
            if os.path.isfile(path):
                assert secret.encode() not in open(path, "rb").read(), path


tests = [a_result_is_copied, other_places_are_refused, what_is_away_comes_later, killed_in_the_middle, no_secret_is_told]
targets.tap_and_leave(w, tests)
