#!/usr/bin/env python3
"""Who may do what over REST: every route of the source by every role, project scopes, sessions, CSRF, proxies, TLS, the audit log.

Long because one server serves all of it. Environment: SL_BIN. Prints TAP."""
import glob
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from queue_fixture import BIN, TOKEN, Skip, World, make_spec, wait

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
SOCK = None
with_body = set()
REFUSED = (401, 429)  # 429: this address has sent many wrong tokens
# What the documentation promises, written by hand: routes outside of these are closed to all but the roles named here.
OPEN = {"GET /api/v1/health", "POST /api/v1/login"}
OPEN_PREFIXES = ("GET /static/",)
OPEN_PAGES = {"GET /", "GET /softlaunch.py", "GET /favicon.ico", "GET /api/v1/openapi.json"}
VIEWER_WRITES = {"POST /api/v1/logout", "POST /api/v1/tokens", "DELETE /api/v1/tokens/{id}"}
ADMIN = {"POST /api/v1/queues/{queue}", "POST /api/v1/projects/{project}", "POST /api/v1/agents/{agent}",
         "GET /api/v1/users", "POST /api/v1/users", "PATCH /api/v1/users/{user}", "DELETE /api/v1/users/{user}",
         "GET /api/v1/audit", "GET /api/v1/reindex", "POST /api/v1/reindex", "POST /api/v1/store/collections", "POST /api/v1/store/verifications",
         "GET /api/v1/store/tasks/{task}",
         "GET /api/v1/webhooks", "PUT /api/v1/webhooks/{webhook}",
         "DELETE /api/v1/webhooks/{webhook}", "POST /api/v1/webhooks/{webhook}/test",
         "GET /api/v1/webhooks/{webhook}/deliveries"}


class Unix(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=20)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(self.path)


def ask(w, method, path, token=None, body=None, headers=(), conn=None):
    """Status, headers, JSON or text."""
    c = conn or http.client.HTTPConnection("127.0.0.1", w.port, timeout=20)
    h = dict(headers)
    if token:
        h["Authorization"] = "Bearer " + token
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    if data is not None:
        h.setdefault("Content-Type", "application/json")
    try:
        c.request(method, path, data, h)
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused by its headers, before the body was sent
    r = c.getresponse()
    text = r.read()
    c.close()
    try:
        return r.status, r.headers, json.loads(text or b"null")
    except ValueError:
        return r.status, r.headers, text.decode(errors="replace")


def must(answer, status):
    assert answer[0] == status, f"expected {status}: {answer[0]} {answer[2]}"
    return answer[2]


def user(w, name, role, projects=None):
    must(ask(w, "POST", "/api/v1/users", TOKEN, {"user": name, "role": role, "projects": projects}), 201)
    return must(ask(w, "POST", "/api/v1/tokens", TOKEN, {"user": name}), 201)["token"]


def routes():
    """Every "METHOD /pattern" of the source; with_body gets those that take JSON."""
    found = set()
    for f in glob.glob(os.path.join(ROOT, "server", "*.c")):
        for m in re.finditer(r'\.method\s*=\s*"(\w+)",\s*\.pattern\s*=\s*"([^"]+)"', open(f).read()):
            found.add(f"{m[1]} {m[2]}")
            if re.match(r"[^{}]*\.body\s*=\s*SL_BODY_JSON", open(f).read()[m.end():]):
                with_body.add(f"{m[1]} {m[2]}")
    assert len(found) >= 30, found
    return sorted(found)


def login(w, token, **kw):
    status, headers, me = ask(w, "POST", "/api/v1/login", None, {"token": token}, **kw)
    assert status == 200, me
    return headers["Set-Cookie"], headers["Set-Cookie"].split(";")[0], me


# ---- tests ----

def every_route_by_every_role(w):
    tokens = {r: user(w, "matrix-" + r, r) for r in ("viewer", "member", "admin")}
    run = w.enqueue("matrix")
    fill = {"run": run, "name": "none-such", "ref": "v0", "queue": "default", "project": "default", "agent": "none-such",
            "sha256": "0" * 64, "alias": "x", "user": "none-such", "id": "0" * 16}
    seen = 0
    for route in routes():
        method, pattern = route.split()
        path = re.sub(r"\{(\w+)\}", lambda m: fill.get(m[1], "none-such"), pattern)
        body = {} if route in with_body else None
        open_route = route in OPEN | OPEN_PAGES or route.startswith(OPEN_PREFIXES)
        anonymous = ask(w, method, path, None, body)
        if open_route:
            assert anonymous[0] != 403 and (anonymous[0] != 401 or route == "POST /api/v1/login"), (route, anonymous)
            continue
        assert anonymous[0] == 401, (route, anonymous[0], anonymous[2])
        assert ask(w, method, path, "slt_" + "0" * 64, body)[0] in (401, 429), route
        reads = method == "GET"
        for role, token in tokens.items():
            allowed = (role == "admin" or (route not in ADMIN and (role == "member" or reads or route in VIEWER_WRITES)))
            if route == "POST /api/v1/logout" or "/events" in pattern or (allowed and method == "DELETE"):
                continue
            status, _, answer = ask(w, method, path, token, body)
            title = answer.get("title") if isinstance(answer, dict) else None
            assert status != 401 and status < 500 or status == 503, (route, role, status, answer)
            denied = status == 403 and "needs the role" in answer.get("detail", "")
            if route in ADMIN or route.split()[0] != "GET" or allowed:
                assert denied == (not allowed) or (route not in ADMIN and denied and role == "member"), \
                    (route, role, status, title)
            seen += 1
    assert seen >= 60, seen


def a_token_is_kept_as_its_hash(w):
    token = user(w, "hashed", "member")
    text = open(w.dir + "/store/auth/accounts.json").read()
    assert token not in text and hashlib.sha256(token.encode()).hexdigest() in text
    assert os.stat(w.dir + "/store/auth").st_mode & 0o077 == 0
    listed = must(ask(w, "GET", "/api/v1/tokens?user=hashed", TOKEN), 200)["tokens"]
    assert len(listed) == 1 and "sha256" not in listed[0] and "token" not in listed[0], listed


def expired_revoked_and_removed(w):
    user(w, "ends", "viewer")
    short = must(ask(w, "POST", "/api/v1/tokens", TOKEN, {"user": "ends", "expires_in_s": 2}), 201)
    cookie = None
    if ask(w, "GET", "/api/v1/me", short["token"])[0] == 200:
        try:
            cookie = login(w, short["token"])[1]
        except AssertionError:
            pass  # two seconds have passed on a slow machine
    wait(lambda: ask(w, "GET", "/api/v1/me", short["token"])[0] in REFUSED, 30, "the token has expired")
    if cookie:
        assert ask(w, "GET", "/api/v1/me", None, headers={"Cookie": cookie})[0] == 401
    t = must(ask(w, "POST", "/api/v1/tokens", TOKEN, {"user": "ends"}), 201)
    cookie = login(w, t["token"])[1]
    assert ask(w, "GET", "/api/v1/me", None, headers={"Cookie": cookie})[0] == 200
    must(ask(w, "DELETE", "/api/v1/tokens/" + t["id"], TOKEN), 204)
    assert ask(w, "GET", "/api/v1/me", t["token"])[0] in REFUSED
    assert ask(w, "GET", "/api/v1/me", None, headers={"Cookie": cookie})[0] == 401
    t = must(ask(w, "POST", "/api/v1/tokens", TOKEN, {"user": "ends"}), 201)
    must(ask(w, "DELETE", "/api/v1/users/ends", TOKEN), 204)
    assert ask(w, "GET", "/api/v1/me", t["token"])[0] in REFUSED
    must(ask(w, "POST", "/api/v1/users", TOKEN, {"user": "ends", "role": "admin"}), 201)
    assert ask(w, "GET", "/api/v1/me", t["token"])[0] in REFUSED, "a later user of the name has an earlier one's token"


def nobody_gives_away_more(w):
    user(w, "low", "member", ["alpha", "beta"])
    narrow = must(ask(w, "POST", "/api/v1/tokens", TOKEN, {"user": "low", "role": "viewer", "projects": ["alpha"],
                                                           "expires_in_s": 3600}), 201)["token"]
    child = must(ask(w, "POST", "/api/v1/tokens", narrow, {"title": "child"}), 201)
    assert child["role"] == "viewer" and child["projects"] == ["alpha"] and child["expires_ms"], child
    for body in ({"role": "member"}, {"projects": ["beta"]}, {"user": "hashed"}, {"service": "ci", "role": "viewer"}):
        must(ask(w, "POST", "/api/v1/tokens", narrow, body), 403)
    # A user who is made less takes every token along.
    must(ask(w, "PATCH", "/api/v1/users/low", TOKEN, {"role": "viewer", "projects": ["beta"]}), 200)
    me = must(ask(w, "GET", "/api/v1/me", narrow), 200)
    assert me["role"] == "viewer" and me["projects"] == [], me
    other = must(ask(w, "POST", "/api/v1/tokens", TOKEN, {"service": "ci", "role": "viewer"}), 201)
    must(ask(w, "DELETE", "/api/v1/tokens/" + other["id"], narrow), 404)
    assert must(ask(w, "GET", "/api/v1/me", other["token"]), 200)["user"] == "service:ci"
    for bad in ({"user": "x"}, {"user": "root", "role": "viewer"}, {"user": "../x", "role": "viewer"},
                {"user": "y", "role": "king"}, {"user": "y", "role": "viewer", "projects": []},
                {"user": "y", "role": "viewer", "password": "x"}):
        must(ask(w, "POST", "/api/v1/users", TOKEN, bad), 422)


def projects_do_not_leak(w):
    run = {p: w.enqueue("in-" + p, project=p) for p in ("alpha", "beta")}
    one = user(w, "one", "member", ["alpha"])
    must(ask(w, "GET", "/api/v1/runs/" + run["alpha"], one), 200)
    nowhere = must(ask(w, "GET", "/api/v1/runs/" + "0" * 32, one), 404)
    fill = {"run": run["beta"], "project": "beta"}
    for route in routes():
        method, pattern = route.split()
        if "{run}" not in pattern and "{project}" not in pattern:
            continue
        path = re.sub(r"\{(\w+)\}", lambda m: fill.get(m[1], "x"), pattern) + ("?with=" + run["alpha"] if "compare" in pattern else "")
        status, _, answer = ask(w, method, path, one, {} if route in with_body else None)
        assert status in (403, 404), (route, status, answer)
        assert "in-beta" not in json.dumps(answer), (route, answer)
        if status == 404 and "{run}" in pattern:
            assert answer["detail"].replace(run["beta"], "0" * 32) == nowhere["detail"], (route, answer)
    assert w.run(run["beta"])["state"] != "cancelled"
    for path in (r.split()[1] for r in routes() if r.startswith("GET ") and "{" not in r):
        if "events" in path:
            continue
        status, _, answer = ask(w, "GET", path + ("?sha256=" + 64 * "0" if path.endswith("/blobs") else ""), one)
        assert status in (200, 403, 503), (path, status, answer)
        assert "in-beta" not in json.dumps(answer) and run["beta"] not in json.dumps(answer), path
    must(ask(w, "GET", "/api/v1/runs?project=beta", one), 403)
    listed = must(ask(w, "GET", "/api/v1/runs", one), 200)["runs"]
    assert listed and {r["project"] for r in listed} == {"alpha"}, listed
    must(ask(w, "POST", "/api/v1/runs", one, make_spec("evil", project="beta")), 403)
    w.put("shared", "x")
    fine = {"project": "alpha", "model": "https://example.org/model.gguf", "datasets": {"train": ["shared:latest"]},
            "outputs": {"artifact": "of-alpha"}}
    must(ask(w, "POST", "/api/v1/runs", one, make_spec("fine", **fine)), 201)
    must(ask(w, "GET", "/api/v1/audit", user(w, "boss", "admin", ["alpha"])), 403)


def put_version(w, token, name, text, **more):
    def blob(data):
        sha = hashlib.sha256(data).hexdigest()
        assert ask(w, "PUT", "/api/v1/blobs/" + sha, token, data)[0] in (200, 201)
        return sha
    files = [{"path": "f", "sha256": blob(text.encode()), "bytes": len(text)}]
    manifest = blob(json.dumps({"files": files}, separators=(",", ":"), sort_keys=True).encode())
    return ask(w, "POST", f"/api/v1/artifacts/{name}/versions", token, {"manifest": manifest, **more})


def artifacts_belong_to_projects(w):
    a, b = user(w, "ann", "member", ["alpha"]), user(w, "ben", "member", ["beta"])
    both = user(w, "cleo", "member", ["alpha", "beta"])
    record = must(put_version(w, a, "anns", "secret"), 201)
    assert record["project"] == "alpha" and record["created_by"] == "ann", record
    must(put_version(w, TOKEN, "everybodys", "open"), 201)
    must(put_version(w, both, "cleos", "which"), 403)
    assert must(put_version(w, both, "cleos", "which", project="beta"), 201)["project"] == "beta"
    must(put_version(w, b, "anns", "mine"), 403)
    must(put_version(w, b, "everybodys", "mine"), 403)
    open(w.dir + "/f.txt", "w").write("by command")
    env = dict(os.environ, SOFTLAUNCH_TOKEN=both, SOFTLAUNCH_SERVER=w.url)
    for more, works in (([], False), (["--project", "alpha"], True)):
        r = subprocess.run([BIN, "artifact", "put", "byhand", w.dir + "/f.txt", *more], env=env, capture_output=True,
                           text=True, timeout=60)
        assert (r.returncode == 0) == works, r.stderr
    # Whoever adds a later version, the artifact stays where it was.
    assert must(put_version(w, TOKEN, "anns", "by root", project="beta"), 201)["project"] == "alpha"
    for path in ("/api/v1/artifacts/anns", "/api/v1/artifacts/anns/v0", "/api/v1/artifacts/anns/latest"):
        must(ask(w, "GET", path, b), 404)
        must(ask(w, "GET", path, a), 200)
    must(ask(w, "PUT", "/api/v1/artifacts/anns/aliases/best", b, {"version": "v0"}), 404)
    must(ask(w, "PUT", "/api/v1/artifacts/everybodys/aliases/best", b, {"version": "v0"}), 403)
    must(ask(w, "PUT", "/api/v1/artifacts/anns/aliases/best", a, {"version": "v0"}), 200)
    move = must(ask(w, "GET", "/api/v1/artifacts/anns", a), 200)["alias_moves"]["best"]
    assert move["created_by"] == "ann" and move["version"] == "v0", move
    names = {x["name"] for x in must(ask(w, "GET", "/api/v1/artifacts", b), 200)["artifacts"]}
    assert "everybodys" in names and "cleos" in names and "anns" not in names, names
    # A run is no way around that: what its agent would fetch and write is looked at.
    spec = {"project": "beta", "model": "everybodys:latest", "datasets": {"train": ["everybodys:v0/f"]},
            "outputs": {"artifact": "bens"}}
    must(ask(w, "POST", "/api/v1/runs", b, make_spec("fine", **spec)), 201)
    for change in ({"model": "anns:latest"}, {"datasets": {"train": ["everybodys", "anns:v0"]}},
                   {"datasets": {"train": ["everybodys"], "test": [{"ref": "anns"}]}}, {"model": "none-such"},
                   {"outputs": {"artifact": "anns"}}, {"outputs": {"artifact": "everybodys"}}):
        status = ask(w, "POST", "/api/v1/runs", b, make_spec("bad", **{**spec, **change}))[0]
        assert status in (403, 404), (change, status)


def a_rerun_keeps_to_its_spec(w):
    """What a run that made something is made again from is the stored spec, looked at as a new one is."""
    a = user(w, "fay", "member", ["alpha"])
    other = w.enqueue("of-beta", project="beta")
    for method, path in (("POST", f"/api/v1/runs/{other}/rerun"), ("POST", f"/api/v1/runs/{other}/requeue"),
                         ("GET", f"/api/v1/runs/{other}/compare?with={other}")):
        must(ask(w, method, path, a), 404)


def runs_tell_who_made_them(w):
    a = user(w, "eve", "member")
    run = must(ask(w, "POST", "/api/v1/runs", a, make_spec("made")), 201)["run"]
    assert w.run(run)["created_by"] == "eve"
    must(ask(w, "POST", f"/api/v1/runs/{run}/cancel", TOKEN), 200)
    again = must(ask(w, "POST", f"/api/v1/runs/{run}/requeue", TOKEN), 201)["run"]
    assert w.run(again)["created_by"] == "root"
    assert must(ask(w, "GET", "/api/v1/audit?user=eve", TOKEN), 200)["entries"][0]["notes"]["new_run"] == run


def cookies_and_csrf(w):
    token = user(w, "browser", "member")
    line, cookie, me = login(w, token)
    assert "HttpOnly" in line and "SameSite=Strict" in line and "Path=/" in line and "Secure" not in line, line
    assert token not in line and me["via"] == "cookie" and me["csrf"], me
    assert must(ask(w, "GET", "/api/v1/me", None, headers={"Cookie": cookie}), 200)["csrf"] == me["csrf"]
    run = w.enqueue("csrf")
    other = login(w, token)[2]["csrf"]
    assert other != me["csrf"]
    for wrong in ({}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": "0" * 64}, {"X-CSRF-Token": other}):
        must(ask(w, "POST", f"/api/v1/runs/{run}/cancel", None, headers={"Cookie": cookie, **wrong}), 403)
    assert w.run(run)["state"] == "queued"
    good = {"Cookie": cookie, "X-CSRF-Token": me["csrf"]}
    must(ask(w, "POST", f"/api/v1/runs/{run}/cancel", None, headers=good), 200)
    # A form of another site cannot send JSON's type.
    must(ask(w, "POST", "/api/v1/login", None, {"token": token}, headers={"Content-Type": "text/plain"}), 415)
    w.end(w.server)
    w.start_server()
    must(ask(w, "GET", "/api/v1/me", None, headers={"Cookie": cookie}), 200)
    must(ask(w, "POST", "/api/v1/logout", None, headers=good), 204)
    must(ask(w, "GET", "/api/v1/me", None, headers={"Cookie": cookie}), 401)


def every_answer_has_safe_headers(w):
    for method, path, token in (("GET", "/api/v1/health", None), ("GET", "/api/v1/runs", None), ("GET", "/nope", TOKEN),
                                ("GET", "/", None), ("GET", "/api/v1/runs", TOKEN)):
        headers = ask(w, method, path, token)[1]
        csp = headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in csp and "default-src 'none'" in csp and "unsafe" not in csp, csp
        assert headers["X-Content-Type-Options"] == "nosniff", path
        assert "Access-Control-Allow-Origin" not in headers, path


def headers_of_proxies(w):
    user(w, "alice", "member")
    name = {"X-Forwarded-User": "alice"}
    # The fixture's server trusts its unix socket and 10.9.8.7 only.
    must(ask(w, "GET", "/api/v1/me", None, headers=name), 401)
    must(ask(w, "GET", "/api/v1/me", None, headers={**name, "X-Forwarded-For": "10.9.8.7"}), 401)
    me = must(ask(w, "GET", "/api/v1/me", None, headers=name, conn=Unix(SOCK)), 200)
    assert me["user"] == "alice" and me["via"] == "proxy" and me["csrf"], me
    must(ask(w, "GET", "/api/v1/me", None, headers={"X-Forwarded-User": "nobody"}, conn=Unix(SOCK)), 401)
    must(ask(w, "GET", "/api/v1/me", None, headers={"X-Forwarded-User": "root"}, conn=Unix(SOCK)), 401)
    must(ask(w, "POST", "/api/v1/runs", None, make_spec("p"), headers=name, conn=Unix(SOCK)), 403)
    must(ask(w, "POST", "/api/v1/runs", None, make_spec("p"), headers={**name, "X-CSRF-Token": me["csrf"]},
             conn=Unix(SOCK)), 201)
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(20)
    s.connect(SOCK)
    s.sendall(b"GET /api/v1/me HTTP/1.1\r\nHost: x\r\nX-Forwarded-User: alice\r\nx-forwarded-user: root\r\n"
              b"Connection: close\r\n\r\n")
    assert s.recv(100).split()[1] == b"401"
    s.close()
    token = user(w, "bob", "viewer")
    assert must(ask(w, "GET", "/api/v1/me", token, headers=name, conn=Unix(SOCK)), 200)["user"] == "bob"
    line = login(w, token, headers={"X-Forwarded-Proto": "https"}, conn=Unix(SOCK))[0]
    assert "Secure" in line, line


def failed_sign_ins_are_limited(w):
    def attempt(address, token):
        return ask(w, "POST", "/api/v1/login", None, {"token": token}, headers={"X-Forwarded-For": address},
                   conn=Unix(SOCK))[0]
    good = user(w, "limited", "viewer")
    statuses = [attempt("203.0.113.5", f"wrong-{i}") for i in range(60)]
    assert statuses[0] == 401 and 429 in statuses, statuses
    assert statuses.count(401) < 30, statuses
    assert attempt("1.2.3.4, 203.0.113.5", "wrong") == 429, "a client chooses its address"
    assert attempt("203.0.113.77", good) == 200
    assert ask(w, "GET", "/api/v1/me", good)[0] == 200
    assert 200 == wait(lambda: [s for s in [attempt("203.0.113.5", good)] if s == 200], 120, "forgiven")[0]


def the_audit_log_tells_who(w):
    token = user(w, "carol", "member")
    run = w.enqueue("audited")
    must(ask(w, "POST", f"/api/v1/runs/{run}/cancel", token), 200)
    must(ask(w, "POST", "/api/v1/queues/default", token, {"state": "paused"}), 403)
    page = must(ask(w, "GET", "/api/v1/audit?user=carol&limit=1", TOKEN), 200)
    assert page["entries"][0]["route"] == "/api/v1/queues/{queue}" and page["entries"][0]["status"] == 403, page
    page = must(ask(w, "GET", "/api/v1/audit?user=carol&cursor=" + page["next_cursor"], TOKEN), 200)
    e = page["entries"][0]
    assert (e["user"], e["role"], e["method"], e["params"], e["status"], e["from"]) == \
        ("carol", "member", "POST", {"run": run}, 200, "127.0.0.1"), e
    # Whatever is killed, what was answered is there.
    w.end(w.server, 9)
    with open(sorted(glob.glob(w.dir + "/store/audit/*.jsonl"))[-1], "a") as f:
        f.write('{"torn')
    w.start_server()
    page = must(ask(w, "GET", "/api/v1/audit?user=carol", TOKEN), 200)
    assert len(page["entries"]) == 2, page
    entries, cursor = 0, ""
    while cursor is not None:
        page = must(ask(w, "GET", f"/api/v1/audit?limit=7{'&cursor=' + cursor if cursor else ''}", TOKEN), 200)
        assert len(page["entries"]) <= 7
        entries, cursor = entries + len(page["entries"]), page["next_cursor"]
    lines = sum(len(open(f).readlines()) for f in glob.glob(w.dir + "/store/audit/*.jsonl"))
    assert entries == lines, (entries, lines)
    for bad in ("x", "1", "1-999999999999", "99-0"):
        must(ask(w, "GET", "/api/v1/audit?cursor=" + bad, TOKEN), 422)


def the_commands(w):
    r = w.command("user", "add", "dora", "--role", "member", "--project", "alpha", "--expires", "12h")
    assert r.returncode == 0, r.stderr
    token = r.stdout.strip()
    me = must(ask(w, "GET", "/api/v1/me", token), 200)
    assert me["user"] == "dora" and me["projects"] == ["alpha"] and me["expires_ms"] and token not in r.stderr
    r = w.command("token", "add", "--service", "agents", "--role", "member", "--title", "the agents")
    assert r.returncode == 0 and "without end" in r.stderr, r.stderr
    listed = json.loads(w.command("token", "ls", "--json").stdout)["tokens"]
    mine = [t for t in listed if t.get("service") == "agents"][0]
    assert w.command("token", "revoke", mine["id"]).returncode == 0
    assert ask(w, "GET", "/api/v1/me", r.stdout.strip())[0] in REFUSED
    assert w.command("user", "set", "dora", "--role", "viewer", "--all-projects").returncode == 0
    me = must(ask(w, "GET", "/api/v1/me", token), 200)
    assert me["role"] == "viewer" and me["projects"] is None, me
    assert w.command("user", "rm", "dora").returncode == 0
    r = w.command("user", "rm", "dora")
    assert r.returncode == 1 and "no user dora" in r.stderr, r.stderr
    assert "service:agents" not in w.command("audit", "--user", "dora").stdout
    assert json.loads(w.command("audit", "--json").stdout)["entries"]


def secrets_are_nowhere(w):
    token = user(w, "canary", "admin")
    cookie = login(w, token)[1].split("=")[1]
    for path in ("/api/v1/me", "/nope", "/api/v1/runs/" + token):
        ask(w, "GET", path, token)
    ask(w, "POST", "/api/v1/login", None, b'{"token": "' + token.encode() + b'", "x": 1}')
    ask(w, "POST", "/api/v1/login", None, {"token": "wrong-canary-0123456789"})
    w.end(w.server)
    found = []
    for d, _, files in os.walk(w.dir):
        for f in files:
            if f in ("token",) or not os.path.isfile(os.path.join(d, f)):
                continue
            data = open(os.path.join(d, f), "rb").read()
            for secret in (token, cookie, TOKEN, "wrong-canary-0123456789"):
                if secret.encode() in data:
                    found.append((f, secret))
    w.start_server()
    dump = subprocess.run(["redis-cli", "-s", w.sock, "--scan"], capture_output=True, text=True).stdout
    assert not found and token not in dump, found


def tls_by_files(w):
    d = w.dir + "/tls"
    os.makedirs(d)
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
                    "30", "-keyout", d + "/key", "-out", d + "/cert", "-subj", "/CN=localhost", "-addext",
                    "subjectAltName=DNS:localhost,IP:127.0.0.1"], check=True, capture_output=True)
    argv = [BIN, "serve", "--listen", "127.0.0.1:0", "--data", d + "/store", "--token-file", w.dir + "/token", "--port-file",
            d + "/port"]
    p = w.spawn("tls", argv + ["--tls-cert", d + "/cert", "--tls-key", d + "/key"])
    wait(lambda: os.path.exists(d + "/port"), 60, "the server answers")
    port = int(open(d + "/port").read())
    context = ssl.create_default_context(cafile=d + "/cert")
    c = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
    status, headers, me = ask(w, "POST", "/api/v1/login", None, {"token": TOKEN}, conn=c)
    assert status == 200 and "Secure" in headers["Set-Cookie"] and headers["Strict-Transport-Security"], headers
    blob = os.urandom(3_000_000)
    sha = hashlib.sha256(blob).hexdigest()
    c = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
    must(ask(w, "PUT", "/api/v1/blobs/" + sha, TOKEN, blob, conn=c), 201)
    c = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
    c.request("GET", "/api/v1/blobs/" + sha, headers={"Authorization": "Bearer " + TOKEN})
    assert hashlib.sha256(c.getresponse().read()).hexdigest() == sha
    c.close()
    env = dict(os.environ, SOFTLAUNCH_TOKEN=TOKEN, SOFTLAUNCH_SERVER=f"https://127.0.0.1:{port}")
    for ca, works in ((d + "/cert", True), ("", False)):
        r = subprocess.run([BIN, "token", "ls"], env=dict(env, SOFTLAUNCH_CA_FILE=ca), capture_output=True, text=True, timeout=60)
        assert (r.returncode == 0) == works and TOKEN not in r.stderr, (ca, r.stderr)
    w.end(p)
    for bad in ([], ["--tls-key", w.dir + "/token"], ["--tls-key", d + "/cert"]):
        r = subprocess.run(argv + ["--tls-cert", d + "/cert"] + bad, capture_output=True, text=True, timeout=60)
        assert r.returncode == 1 and ("tls" in r.stderr or "PEM" in r.stderr), (bad, r.stderr)


TESTS = [every_route_by_every_role, a_token_is_kept_as_its_hash, expired_revoked_and_removed, nobody_gives_away_more,
         projects_do_not_leak, artifacts_belong_to_projects, a_rerun_keeps_to_its_spec, runs_tell_who_made_them, cookies_and_csrf, every_answer_has_safe_headers, headers_of_proxies,
         failed_sign_ins_are_limited, the_audit_log_tells_who, the_commands, secrets_are_nowhere, tls_by_files]


def main():
    global SOCK
    import tempfile
    failed = 0
    with tempfile.TemporaryDirectory(prefix="sl-auth-") as tmp:
        SOCK = tmp + "/sock"
        w = World(serve=("--listen-unix", SOCK, "--sign-in-header", "X-Forwarded-User", "--trusted-proxy", "10.9.8.7"))
        for t in TESTS:
            if len(sys.argv) > 1 and t.__name__ not in sys.argv[1:]:
                continue
            try:
                t(w)
                print("ok -", t.__name__.replace("_", " "), flush=True)
            except Skip as e:
                print("ok -", t.__name__.replace("_", " "), "# SKIP", e, flush=True)
            except Exception:
                failed += 1
                print("not ok -", t.__name__.replace("_", " "), flush=True)
                traceback.print_exc()
        w.close()
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
