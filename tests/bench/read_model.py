#!/usr/bin/env python3
"""100,000 runs in the archive: how long the read model takes to be made, and any page of lists, whatever order, filter and place:
p99 under 100 ms. usage: read_model.py [RUNS [SECONDS]]. Writes $SL_BUILD/reports/read-model.json. Environment: SL_BIN, SL_BUILD."""
import http.client, os, random, re, subprocess, sys, urllib.parse
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "system"))
from queue_fixture import *

RUNS, SECONDS = [int(x) for x in (sys.argv[1:] + [100000, 60][len(sys.argv) - 1:])]
SORTS = "created finished name state queue project priority user duration loss val_loss".split()
WORDS = "squad sentiment qa lora ptune base gpt2 megatron intent slot".split()
r = random.Random(1)
w = World(serve=["--keep-finished", "60"])


def record(i):
    state = r.choice(["succeeded"] * 8 + ["failed", "dead", "cancelled"])
    start = 1_700_000_000_000 + i * 60_000
    return {"run": "%032x" % r.getrandbits(128), "seq": i + 1, "name": "-".join(r.sample(WORDS, 3)) + f"-{i}", "project": f"team{r.randrange(20)}",
            "queue": f"queue{r.randrange(5)}", "class": "gpu1+mem80", "state": state, "priority": r.choice(["high", "medium", "medium", "low"]), "phase": None,
            "cause": None if state == "succeeded" else "crash", "msg": None, "agent": f"agent{r.randrange(50)}", "cancel_requested": False, "requeued_from": None,
            "created_by": f"user{r.randrange(30)}", "job": r.choice([None, None, "nightly"]), "created_ms": start, "started_ms": start + 5, "finished_ms": start + r.randrange(10**7),
            "due_ms": None, "attempt": 1, "max_attempts": 3, "failures": 0, "out_of_memory": None, "timeouts": None, "lost": 0, "preemptions": 0,
            "run_ms": r.randrange(10**7), "exit_code": 0, "exit_signal": None, "step": 1000, "steps": 1000,
            "metrics": {"loss": r.random(), "val_loss": r.random(), "lr": 1e-4, "tokens_per_s": 900.5} if state == "succeeded" else None,
            "checkpoint": "%064x" % r.getrandbits(256), "checkpoint_step": 900, "outputs": [], "spec": {"name": "x"}, "log_tail": []}


def fill():
    for i in range(RUNS):
        x = record(i)
        d = f"{w.dir}/store/runs/{x['run'][:2]}"
        os.makedirs(f"{d}/{x['run']}")
        with open(f"{d}/{x['run']}/record.json", "w") as f:
            json.dump(x, f)
        if i % 10 == 0:
            with open(f"{d}/{x['run']}.notes.json", "w") as f:
                json.dump({"notes": "the best one so far" if i % 100 == 0 else " ".join(r.choices(WORDS, k=300)), "tags": [f"tag{r.randrange(8)}"]}, f)


def question():
    q = {"sort": r.choice(["", "-"]) + r.choice(SORTS), "limit": 50}
    for key, value in (("project", f"team{r.randrange(20)}"), ("queue", f"queue{r.randrange(5)}"), ("tag", f"tag{r.randrange(9)}"),
                       ("state", r.choice(["succeeded", "failed", "running"])), ("q", r.choice(WORDS + ["best", "nightly squad", "no such word", "user7 gpt2", "a", "lo"]))):
        if r.random() < 0.25:
            q[key] = value
    return q


def rss_mib():
    return int(re.search(r"VmHWM:\s+(\d+)", open(f"/proc/{w.server.pid}/status").read())[1]) / 1024


w.end(w.server)
fill()
start = time.monotonic()
w.start_server()
made = time.monotonic() - start
size = os.path.getsize(w.dir + "/store/read.db") / 2**20
w.end(w.server)
start = time.monotonic()
w.start_server()
again = time.monotonic() - start
c = http.client.HTTPConnection("127.0.0.1", w.port)
took, searches, until, slowest, deep = [], [], time.monotonic() + SECONDS, (0, None), 0
while time.monotonic() < until:
    q, cursor, depth = question(), "", 0
    while cursor is not None and depth < 20:    # on and on, as somebody who pages
        start = time.monotonic()
        c.request("GET", "/api/v1/runs?" + urllib.parse.urlencode({**q, "cursor": cursor}), headers={"Authorization": "Bearer " + TOKEN})
        answer = c.getresponse()
        text = answer.read()
        ms = (time.monotonic() - start) * 1000
        took.append(ms)
        if "q" in q:
            searches.append(ms)
        slowest = max(slowest, (ms, json.dumps({**q, "page": depth})))
        assert answer.status == 200, text
        cursor, depth = json.loads(text)["next_cursor"], depth + 1
        deep += depth == 20


def at(times, k):
    return round(sorted(times)[min(len(times) - 1, int(len(times) * k / 100))], 1)


p = {k: at(took, k) for k in (50, 99, 99.9)}
p_reindex = w.command("reindex", "--json", timeout=590)
report = {"runs": RUNS, "pages": len(took), "walks_to_page_20": deep, "p50_ms": p[50], "p99_ms": p[99], "p99_9_ms": p[99.9], "searches_p50_ms": at(searches, 50), "searches_p99_ms": at(searches, 99), "slowest": slowest,
          "made_anew_s": round(made, 1), "start_s": round(again, 1), "reindex_s": round(json.loads(p_reindex.stdout)["seconds"], 1),
          "reindex_differences": json.loads(p_reindex.stdout)["n_differences"], "file_mib": round(size, 1), "server_peak_mib": round(rss_mib(), 1), "cpus": os.cpu_count(),
          "commit": subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip(), "date": time.strftime("%Y-%m-%d")}
out = os.path.join(os.environ.get("SL_BUILD", "build"), "reports")
os.makedirs(out, exist_ok=True)
json.dump(report, open(out + "/read-model.json", "w"), indent=1)
print("#", json.dumps(report))
good = p[99] < 100 and report["reindex_differences"] == 0
print("ok" if good else "not ok", f"- any page of {RUNS} runs: p99 {p[99]} ms")
sys.exit(0 if good else 1)
