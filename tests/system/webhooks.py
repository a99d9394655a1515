#!/usr/bin/env python3
"""Webhooks from a live server to a receiver here; signatures judged by standardwebhooks' own library."""
import http.server, json, subprocess, sys, threading, time
from queue_fixture import HERE, World, make_spec, tap, wait

PYTHON = subprocess.run([HERE + "/../peer-python.sh", "around"], capture_output=True, text=True)
if PYTHON.returncode:
    print("not run: no standardwebhooks:", PYTHON.stderr[-300:])
    sys.exit(77)
ARGS = ["--keep-finished", "1", "--webhook-allow", "127.0.0.1"]
w = World(serve=ARGS)
w.put("model", "m\n")
w.put("data", '{"a": "b"}\n')
got, answers = {}, {}    # by path: [(headers, body)], statuses to answer with before 204


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        status = answers[self.path].pop(0) if answers.get(self.path) else 204
        got.setdefault(self.path, []).append((dict(self.headers), body))
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
threading.Thread(target=receiver.serve_forever, daemon=True).start()
URL = "http://127.0.0.1:%d" % receiver.server_port


def add(name, *options, path=None):
    r = w.command("webhook", "add", name, "--url", URL + (path or "/" + name), *options)
    assert r.returncode == 0, r.stderr
    return r.stdout.strip()


def came(path, n=1):
    return wait(lambda: got[path] if len(got.get(path, [])) >= n else None, 120, f"{n} at {path}")


def verify(secret, messages):
    """The library's own word on each: null, or what is wrong."""
    code = ("import sys, json; from standardwebhooks import Webhook\nout = []\n"
            "q = json.load(sys.stdin)\nfor h, b in q[1]:\n"
            "  try:\n    Webhook(q[0]).verify(b, h); out.append(None)\n  except Exception as e: out.append(str(e))\n"
            "print(json.dumps(out))")
    low = [[{k.lower(): v for k, v in h.items()}, b] for h, b in messages]
    r = subprocess.run([PYTHON.stdout.strip(), "-c", code], input=json.dumps([secret, low]), capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-500:]
    return json.loads(r.stdout)


def deliveries(name):
    status, reply = w.api("GET", f"/api/v1/webhooks/{name}/deliveries")
    assert status == 200, reply
    return reply["deliveries"]


def a_finished_run_is_told_once_and_signed():
    secret = add("done", "-e", "finished")
    a = w.agent()
    run = w.enqueue("fake.6.5.ok")
    assert w.ended(run, 120)["state"] == "succeeded"
    headers, body = came("/done")[0]
    said = json.loads(body)
    assert said["type"] == "finished" and said["data"]["run"]["run"] == run and said["data"]["run"]["outputs"], said
    assert verify(secret, [(headers, body)]) == [None]
    wrong = verify(secret, [(headers, body + " "), (dict(headers, **{"webhook-timestamp": "1", "Webhook-Timestamp": "1"}), body)])
    assert all(wrong), wrong
    wait(lambda: w.cli("exists", "{softlaunch}:run:" + run) == "0", 60, "the run has left Redis")
    second = w.enqueue("fake.6.5.ok")
    w.ended(second, 120)
    came("/done", 2)
    assert [json.loads(b)["data"]["run"]["run"] for _, b in got["/done"]] == [run, second]
    w.end(a)


def failures_and_metrics_by_project_and_as_slack_text():
    add("bad", "--form", "slack")
    add("other", "-e", "failed", "-e", "finished", "--project", "other")
    add("high", "-e", "metric", "--metric", "loss", "--above", "-1e9")
    add("low", "-e", "metric", "--metric", "loss", "--below", "-1e9")
    a = w.agent()
    run = w.enqueue("fake.6.5.spec")
    assert w.ended(run, 120)["state"] == "failed"
    body = json.loads(came("/bad")[0][1])
    assert list(body) == ["text"] and "names a field" in body["text"] and run[:12] in body["text"], body
    run = w.enqueue("fake.10.5.ok")
    w.ended(run, 120)
    said = json.loads(came("/high")[0][1])
    assert said["data"]["run"]["run"] == run and said["data"]["metric"]["value"] > -1e9, said
    came("/done", 3)    # another pass has been made behind it
    assert len(got["/high"]) == 1 and "/low" not in got and "/other" not in got, got.keys()
    w.end(a)


def runs_that_no_agent_can_serve():
    add("alarm", "-e", "unserviceable")
    run = w.enqueue("fake.2.5.ok", resources={"labels": ["zone=moon"]})
    said = json.loads(came("/alarm")[0][1])
    assert said["data"] == {"queue": "default", "class": "cpu+zone=moon", "held": 1}, said
    w.api("POST", f"/api/v1/runs/{run}/cancel")


def a_quarantined_agent():
    add("sick", "-e", "quarantined")
    about = {"host": "h", "state": "quarantined", "quarantine": "3 device failures in a row", "runs": [], "queues": []}
    w.cli("hset", "{softlaunch}:agents", "sick-1", json.dumps(about))
    w.cli("zadd", "{softlaunch}:agents_seen", "9999999999999", "sick-1")
    said = json.loads(came("/sick")[0][1])
    assert said["data"] == {"agent": "sick-1", "host": "h", "reason": "3 device failures in a row"}, said
    w.cli("hdel", "{softlaunch}:agents", "sick-1")
    w.cli("zrem", "{softlaunch}:agents_seen", "sick-1")


def a_burst_is_told_at_once():
    w.end(w.server)
    w.serve = ["--keep-finished", "86400", *ARGS[2:]]
    w.start_server()
    a = w.agent()
    one = w.enqueue("fake.2.5.ok")
    assert w.ended(one, 120)["state"] == "succeeded"
    w.end(a)
    for name in ("done", "bad", "other", "high", "low"):
        assert w.command("webhook", "rm", name).returncode == 0
    add("burst", "-e", "finished")
    # More in one millisecond than are looked at at once, and some later.
    script = ("for i = 1, 1200 do local id = string.format('%032x', i); local key = '{softlaunch}:run:' .. id;"
              "if ARGV[1] == '' then redis.call('DEL', key); redis.call('ZREM', '{softlaunch}:ended', id) else "
              "redis.call('COPY', KEYS[1], key); redis.call('HSET', key, 'finished_ms', ARGV[1]);"
              "redis.call('ZADD', '{softlaunch}:ended', ARGV[1] + (i > 1100 and i or 0), id) end end")
    w.cli("eval", script, 1, "{softlaunch}:run:" + one, int(time.time() * 1000) + 1000)
    wait(lambda: len({json.loads(b)["data"]["run"]["run"] for _, b in list(got.get("/burst", []))}) == 1200, 240, "all are told")
    assert w.command("webhook", "rm", "burst").returncode == 0
    w.cli("eval", script, 1, "{softlaunch}:run:" + one, "")
    w.end(w.server)
    w.serve = ARGS
    w.start_server()


def what_fails_is_tried_again_also_by_the_next_server():
    answers["/later"] = [500, 302]
    add("later", "-e", "finished")
    assert w.command("webhook", "test", "later").returncode == 1
    wait(lambda: deliveries("later")[0]["tries"] >= 1, 60, "tried")
    w.server.kill()
    w.server.wait()
    w.start_server()
    assert len({h.get("webhook-id") or h.get("Webhook-Id") for h, _ in came("/later", 3)}) == 1
    d = wait(lambda: (lambda d: d if d["state"] == "done" else None)(deliveries("later")[0]), 60, "delivered")
    assert d["tries"] >= 3 and d["status"] == 204 and "/elsewhere" not in got, d


def a_receiver_that_is_gone_is_left_alone():
    answers["/gone"] = [410]
    add("gone", "-e", "finished")
    w.api("POST", "/api/v1/webhooks/gone/test")
    d = wait(lambda: (lambda d: d if d["state"] == "given_up" else None)(deliveries("gone")[0]), 60, "given up")
    assert d["status"] == 410 and len(got["/gone"]) == 1, d


def private_addresses_are_refused():
    for url in ("http://10.0.0.1/", "http://169.254.169.254/latest", "http://[::1]:1/", "http://[::ffff:10.0.0.1]/",
                "http://0x7f000002/", "http://192.168.1.1", "file:///etc/passwd", "http://u:p@example.com/", "gopher://x/"):
        status, reply = w.api("PUT", "/api/v1/webhooks/inside", {"url": url, "events": ["failed"]})
        assert status == 422 and reply["errors"][0]["path"] == "url", (url, status, reply)
    # a name that leads inside: found when the connection is made, by a server that allows nothing
    w.end(w.server)
    w.serve = ARGS[:2]
    w.start_server()
    status, _ = w.api("PUT", "/api/v1/webhooks/name", {"url": "http://localhost:%d/inside" % receiver.server_port, "events": ["failed"]})
    assert status == 201
    r = w.command("webhook", "test", "name")
    assert r.returncode == 1 and "private address" in r.stderr and "--webhook-allow" in r.stderr, r.stderr
    assert "/inside" not in got


def what_is_wrong_is_named_and_secrets_are_not_shown():
    for hook, faults in (({"url": "ftp://example.com/", "events": ["finnished"], "secret": "short", "colour": 1}, {"url", "events[0]", "secret", "colour"}),
                         ({"url": "http://example.com/", "events": ["metric"], "secret": "whsec_c2hvcnQ="}, {"metric", "secret"}),
                         ({"url": "http://example.com/", "events": ["metric"], "metric": {"name": "loss", "above": "1"}}, {"metric.above"})):
        status, reply = w.api("PUT", "/api/v1/webhooks/x", hook)
        assert status == 422 and {e["path"] for e in reply["errors"]} == faults, reply
    status, reply = w.api("GET", "/api/v1/webhooks")
    assert status == 200 and "whsec_" not in json.dumps(reply) and "/done" not in json.dumps(reply), reply
    r = w.command("webhook", "ls")
    assert r.returncode == 0 and "alarm" in r.stdout, r
    assert w.command("webhook", "rm", "alarm").returncode == 0
    assert w.command("webhook", "rm", "alarm").returncode == 1


tap(w, [a_finished_run_is_told_once_and_signed, failures_and_metrics_by_project_and_as_slack_text,
        runs_that_no_agent_can_serve, a_quarantined_agent, a_burst_is_told_at_once, what_fails_is_tried_again_also_by_the_next_server,
        a_receiver_that_is_gone_is_left_alone, private_addresses_are_refused, what_is_wrong_is_named_and_secrets_are_not_shown])
