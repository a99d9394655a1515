#!/usr/bin/env python3
"""Secrets of runs: resolved on the agent, seen by its children, and found nowhere else. Canaries are looked for in Redis,
in every file that the server, the agents and Redis write, in the API's answers, and in the list of processes."""
import stat, urllib.parse
from queue_fixture import *

CANARY = {"hf": "canary-hf-4f9a1c77", "key": "canary-key-line-one\ncanary/key+line two=\n", "other": "canary-other-77ab"}
ALLOWED, FOREIGN = "canary-allowed-99ee", "canary-foreign-1122"
TALKER = """#!/usr/bin/env python3
import json, os, sys, urllib.parse
a = sys.argv
fd = int(a[a.index("--events-fd") + 1])
os.chdir(a[a.index("--run-dir") + 1])
run = json.load(open("run.json"))
def send(**event):
    os.write(fd, (json.dumps(event) + "\\n").encode())
seen = {k: v for k, v in os.environ.items() if "canary" in v}
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        if b"canary" in open("/proc/%s/cmdline" % pid, "rb").read():
            seen["command line of " + pid] = ""
    except OSError:
        pass
json.dump(sorted(seen), open(os.environ["SEEN_FILE"], "w"))
send(ev="start", step=0, steps=1, rows=1, threads=1, kernel="none", resumed=False)
for k, v in seen.items():
    for text in (v, urllib.parse.quote(v, safe=""), json.dumps(v), "x" + v + v + "y"):
        print("on output:", text, flush=True)
        print("on errors:", text, file=sys.stderr, flush=True)
        send(ev="log", level="info", msg="in an event: " + text)
        send(ev="prediction", question=text, answer="a", prediction=[text])
if run["name"] == "failing":
    send(ev="result", state="failed", cause="spec", msg="failed with " + " and ".join(seen.values()), metrics={})
    sys.exit(1)
os.makedirs("out")
open("out/prompt_table.safetensors", "w").write("t")
send(ev="result", state="succeeded", cause="ok", msg="", metrics={})
"""
w = World(serve=("--keep-finished", "1"))
for name in ("model", "data"):
    w.put(name, "{}\n")
secrets = w.dir + "/secrets"
os.makedirs(secrets + "/test")
for name, value in CANARY.items():
    open(f"{secrets}/{name}", "w").write(value + "\n")
open(f"{secrets}/short", "w").write("abc\n")
worker = w.dir + "/talker.py"
open(worker, "w").write(TALKER)
os.chmod(worker, 0o755)
seen_file = w.dir + "/seen.json"
env = dict(os.environ, SOFTLAUNCH_TOKEN=TOKEN, ALLOWED_URL=ALLOWED, FOREIGN_API_KEY=FOREIGN, SEEN_FILE=seen_file)
agent = w.spawn("agent", [BIN, "agent", "--redis", w.redis_url, "--server", w.url, "--work-dir", w.dir + "/work", "--lease-ms", "3000",
                          "--secrets-dir", secrets, "--allow-env", "ALLOWED_URL", "--worker", worker, "--verbose"], env=env)
runs = []


def ended(name, **more):
    run = w.enqueue(name, **more)
    runs.append(run)
    return w.ended(run, 60)


def a_run_gets_what_its_spec_names_and_no_more():
    r = ended("talking", secrets={"HF_TOKEN": "secret:hf", "SSH_KEY": "secret:key"}, env=["ALLOWED_URL"])
    assert r["state"] == "succeeded", r
    assert json.load(open(seen_file)) == ["ALLOWED_URL", "HF_TOKEN", "SSH_KEY"]
    assert r["spec"]["secrets"] == {"HF_TOKEN": "secret:hf", "SSH_KEY": "secret:key"}, r["spec"]
    logs = [e["data"]["msg"] for e in w.events(r["run"], "log")]
    assert sum("***" in m for m in logs) >= 30 and any(m.endswith("x******y") for m in logs), logs


def a_projects_own_secret_goes_first():
    open(secrets + "/test/hf", "w").write("canary-of-the-project\n")
    r = ended("talking", secrets={"HF_TOKEN": "secret:hf"})
    assert r["state"] == "succeeded" and json.load(open(seen_file)) == ["HF_TOKEN"], r
    assert not any("canary" in json.dumps(e) for e in w.events(r["run"]))
    os.unlink(secrets + "/test/hf")


def a_failure_tells_none():
    r = ended("failing", secrets={"HF_TOKEN": "secret:hf", "SSH_KEY": "secret:key"})
    assert r["state"] == "failed" and "failed with ***" in r["msg"], r


def what_is_not_there_is_named():
    for more, said in (({"secrets": {"A_TOKEN": "secret:none"}}, "no secret none"), ({"env": ["FOREIGN_API_KEY"]}, "--allow-env FOREIGN_API_KEY"),
                       ({"secrets": {"A_TOKEN": "secret:short"}}, "shorter than 6")):
        r = ended("missing", **more)
        assert r["state"] == "failed" and said in r["msg"], r
    for more, path in (({"secrets": {"LD_PRELOAD": "secret:hf"}}, "secrets.LD_PRELOAD"), ({"secrets": {"A": "hf"}}, "secrets.A"),
                       ({"secrets": {"A": "secret:../token"}}, "secrets.A"), ({"env": ["SOFTLAUNCH_TOKEN"]}, "env[0]"), ({"env": ["path"]}, "env[0]")):
        status, problem = w.api("POST", "/api/v1/runs", make_spec("bad", **more))
        assert status == 422 and problem["errors"][0]["path"] == path, (more, problem)


def forms():
    """Every text that tells a canary, as bytes."""
    for value in (*CANARY.values(), ALLOWED, FOREIGN, TOKEN):
        for line in {value.strip(), *value.strip().splitlines()}:
            yield line.encode()
            yield urllib.parse.quote(line, safe="").encode()


def canaries_are_nowhere():
    wait(lambda: all(w.cli("exists", "{softlaunch}:run:" + run) == "0" for run in runs), 120, "the runs are archived")
    assert w.cli("dbsize") != "0"
    for run in runs:    # what is archived packed
        for e in w.events(run):
            assert "canary" not in json.dumps(e), e
        assert "canary" not in json.dumps(w.run(run))
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True).stdout
    wait(lambda: w.cli("bgrewriteaof"), 10, "Redis rewrites its file")
    looked, packed = 0, []
    for folder, _, files in os.walk(w.dir):
        for name in files if not folder.startswith(secrets) else ():
            path = os.path.join(folder, name)
            if path == w.dir + "/token" or stat.S_ISSOCK(os.lstat(path).st_mode):
                continue
            try:
                data = open(path, "rb").read()
            except FileNotFoundError:
                continue
            looked += 1
            if data.startswith(b"\x28\xb5\x2f\xfd"):    # the runs' events, and what runs made
                data = subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, check=True).stdout
                packed.append(path)
            for form in forms():
                assert form not in data, (path, form)
    for form in forms():
        assert form not in listed, form
    assert looked > 20 and any(p.endswith("events.ndjson.zst") for p in packed) and len(packed) > 3, (looked, packed)


tap(w, [a_run_gets_what_its_spec_names_and_no_more, a_projects_own_secret_goes_first, a_failure_tells_none, what_is_not_there_is_named,
        canaries_are_nowhere])
