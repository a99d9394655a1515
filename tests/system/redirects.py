#!/usr/bin/env python3
"""Credentials when a server points elsewhere: each kind of client meets each status of a redirect, to another port, to
another host by name and back again. What stands at the other end looks for the canary, which is part of every secret here,
in all that comes to it and in every process's command line; afterwards it is looked for in all that was written.

Environment: SL_BIN, the folder of `softlaunch`. Prints TAP."""
import json
import os
import subprocess

import sources
from sources import CANARY, Server, bad, good, sha
from transfer_fixture import BIN, StoreServer, check, failed, leave, work

DATA = b"what lies at the other end"
found = []    # where the canary was seen
visits = []


def command_lines():
    """Processes whose command line has the canary."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                if CANARY.encode() in f.read():
                    found.append(f"the command line of process {pid}")
        except OSError:
            pass    # it has ended


def at_the_other_end(method, path, headers, body):
    visits.append((method, path))
    if CANARY in str((path, headers)) or CANARY.encode() in body:
        found.append(f"{method} {path} {headers}")
    command_lines()
    if "/chain/" in path:    # and on to a third place
        return 302, {"Location": elsewhere("localhost", "/end")}, b""
    return 200, {"ETag": '"x"'}, DATA


other = Server(at_the_other_end)
third = Server(at_the_other_end)


def elsewhere(host="127.0.0.1", path="/x"):
    return (third if host == "localhost" else other).url.replace("127.0.0.1", host) + path


PORT, HOST, CHAIN = elsewhere(), elsewhere("localhost"), elsewhere(path="/chain/x")
REDIRECTS = [(301, PORT), (302, HOST), (303, CHAIN), (307, PORT), (307, HOST), (307, CHAIN), (308, HOST)]


def each(do, redirects=REDIRECTS):
    """do(server, status) with a server that redirects all."""
    for status, place in redirects:
        server = Server(lambda *a, s=status, p=place: command_lines() or (s, {"Location": p}, b""))
        do(server, status)
        assert server.seen, "the first server was not asked"
        server.http.shutdown()
        server.http.server_close()


def nobody_came(before):
    assert len(visits) == before, visits[before:]


def run(args, env, works=False, **kw):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "HF_", "GOOGLE_", "GCE_", "STORAGE_"))}
    p = subprocess.run([BIN, *map(str, args)], env={**clean, "HOME": str(work), **env}, capture_output=True, text=True, timeout=240, **kw)
    sources.outputs.append(p.stdout + p.stderr)
    assert (p.returncode == 0) == works, p.stdout + p.stderr
    return p


# ---- our own server ----

def our_token_is_not_taken_along():
    before, file = len(visits), work / "f"
    file.write_bytes(b"x" * 100)

    def do(server, status):
        env = {"SOFTLAUNCH_SERVER": server.url, "SOFTLAUNCH_TOKEN": CANARY + "-token"}
        for args in (["artifact", "ls"], ["artifact", "put", "a", file], ["artifact", "get", "a", work / "out"], ["runs"],
                     ["cancel", "0" * 32]):
            run(args, env)
        plan = work / "plan.json"
        run_dir = work / "run"
        (run_dir / "out").mkdir(parents=True, exist_ok=True)
        (run_dir / "out" / "f").write_bytes(b"x")
        for direction, items in (("fetch", [{"blob": sha(DATA), "dest": "x"}]), ("fetch", [{"ref": "a:v0", "dest": "x"}]),
                                 ("push", [{"output": "o", "tar": "o.tar", "dir": "out"}])):
            plan.write_text(json.dumps({"server": server.url, "cache": str(work / "cache"), "run_dir": str(run_dir), "run": "0" * 32,
                                        "lease": "0" * 32, "items": items}))
            run(["transfer", direction, "--plan", plan], env)
    each(do)
    nobody_came(before)


def a_url_of_somebody_gets_nothing():
    """Followed, since nothing goes along: neither our token nor another service's key."""
    before = len(visits)
    env = {"SOFTLAUNCH_TOKEN": CANARY + "-token", "HF_TOKEN": CANARY + "-hf", "AWS_ACCESS_KEY_ID": "id", "AWS_REGION": "r",
           "AWS_SECRET_ACCESS_KEY": CANARY + "-aws"}

    def do(server, status):
        got, path = good(server.url + "/file", env)
        assert path.read_bytes() == DATA and got["sha256"] == sha(DATA)
    each(do)
    assert len(visits) > before


# ---- others' services ----

def keys_of_s3_stay():
    before = len(visits)
    env = {"AWS_ACCESS_KEY_ID": CANARY + "-id", "AWS_SECRET_ACCESS_KEY": CANARY + "-secret", "AWS_SESSION_TOKEN": CANARY + "-session",
           "AWS_REGION": "eu-central-1"}

    def do(server, status):
        for ref in ("s3://models/one", "s3://models/all/"):
            bad(ref, {**env, "AWS_ENDPOINT_URL": server.url}, "spec", str(status))
    each(do)
    nobody_came(before)


def keys_by_web_identity_and_of_the_machine_stay():
    before, token = len(visits), work / "identity"
    token.write_text(CANARY + "-identity")

    def do(server, status):
        for env in ({"AWS_WEB_IDENTITY_TOKEN_FILE": str(token), "AWS_ROLE_ARN": "arn:aws:iam::1:role/r", "AWS_ENDPOINT_URL": server.url,
                     "AWS_REGION": "r"}, {"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url}):
            event, _ = sources.fetch("s3://models/one", env)
            assert event["state"] == "failed", event
    each(do, REDIRECTS[:3])    # each takes the tries that a passing fault has
    nobody_came(before)


def tokens_of_gs_stay():
    before = len(visits)
    meta = Server(lambda *a: (200, {}, json.dumps({"access_token": CANARY + "-gs", "expires_in": 3600}).encode()))
    closed = Server(lambda *a: (401, {}, b"{}"))

    def do(server, status):
        for ref in ("gs://models/one", "gs://models/all/"):
            event, _ = sources.fetch(ref, {"STORAGE_EMULATOR_HOST": server.url, "GCE_METADATA_HOST": meta.url.removeprefix("http://")})
            if event["state"] == "succeeded":    # followed without the token
                assert event["resolved"][0]["sha256"] == sha(DATA), event
        # the place that gives tokens points elsewhere
        event, _ = sources.fetch("gs://models/one", {"STORAGE_EMULATOR_HOST": closed.url, "GCE_METADATA_HOST": server.url.removeprefix("http://")})
        assert event["state"] == "failed", event
    each(do)
    assert not any("token" in path for _, path in visits[before:])


def the_token_of_hf_stays():
    def do(server, status):
        event, _ = sources.fetch("hf://org/name/f", {"HF_ENDPOINT": server.url, "HF_TOKEN": CANARY + "-hf"})
        assert event["state"] == "failed", event
    each(do)
    # The hub answers, and its file lies elsewhere, as large ones do.
    commit = "0123456789abcdef0123456789abcdef01234567"
    for status, place in REDIRECTS:
        def hub(method, path, headers, body, s=status, p=place):
            if "/resolve/" in path:
                return s, {"Location": p}, b""
            return 200, {}, json.dumps({"id": "org/name", "sha": commit, "siblings": [
                {"rfilename": "f", "size": len(DATA), "blobId": "0" * 40, "lfs": {"sha256": sha(DATA), "size": len(DATA)}}]}).encode()
        _, path = good("hf://org/name/f", {"HF_ENDPOINT": Server(hub).url, "HF_TOKEN": CANARY + "-hf"})
        assert path.read_bytes() == DATA


def what_is_sent_on_to_a_bucket_goes_nowhere_else():
    before = len(visits)
    store = StoreServer(work / "store", CANARY + "-token")
    try:
        file = work / "f"
        file.write_bytes(b"x" * 100)
        run(["artifact", "put", "a", file], store.env, works=True)
        aws = {"AWS_ACCESS_KEY_ID": CANARY + "-id", "AWS_SECRET_ACCESS_KEY": CANARY + "-secret", "AWS_SESSION_TOKEN": CANARY + "-s",
               "AWS_REGION": "r"}
        meta = Server(lambda *a: (200, {}, json.dumps({"access_token": CANARY + "-gs", "expires_in": 3600}).encode()))

        def do(server, status):
            run(["artifact", "export", "a", "s3://bucket/x/"], {**store.env, **aws, "AWS_ENDPOINT_URL": server.url})
            run(["artifact", "export", "a", "gs://bucket/x/"], {**store.env, "STORAGE_EMULATOR_HOST": server.url,
                                                           "GCE_METADATA_HOST": meta.url.removeprefix("http://")})
        each(do)
    finally:
        store.end()
    nobody_came(before)


def the_canary_is_found_nowhere():
    assert not found, found[:3]
    assert not any(CANARY in o for o in sources.outputs), [o for o in sources.outputs if CANARY in o][0][-500:]
    own = {work / "identity", work / "store" / "token"}    # where the secrets were given
    for path in work.rglob("*"):
        if path.is_file() and path not in own and path.stat().st_size < 1 << 26:
            assert CANARY.encode() not in path.read_bytes(), path
    assert len(visits) >= 2 * len(REDIRECTS) and any("/end" in path for _, path in visits), f"{len(visits)} visits: the other end was hardly asked"


def main():
    for f in (our_token_is_not_taken_along, a_url_of_somebody_gets_nothing, keys_of_s3_stay, keys_by_web_identity_and_of_the_machine_stay,
              tokens_of_gs_stay, the_token_of_hf_stays, what_is_sent_on_to_a_bucket_goes_nowhere_else, the_canary_is_found_nowhere):
        check(f.__name__.replace("_", " "), f)
    return 1 if failed else 0


if __name__ == "__main__":
    leave(main())
