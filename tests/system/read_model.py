#!/usr/bin/env python3
"""The read model of runs: every order and filter against the same done here over the records; notes and tags; nothing
missed over kills of the server, nothing lost with the file. Environment: SL_BIN. Prints TAP."""
import glob, http.client, itertools, os, random, signal, sys, threading, urllib.parse
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from queue_fixture import *

N = 400
SORTS = {"created": lambda r: r["seq"], "finished": lambda r: r["finished_ms"], "name": lambda r: r["name"].encode(),
         "state": lambda r: r["state"], "queue": lambda r: r["queue"], "project": lambda r: r["project"],
         "priority": lambda r: ["critical", "high", "medium", "low"].index(r["priority"]), "user": lambda r: r["created_by"],
         "duration": lambda r: r["run_ms"], "loss": lambda r: (r["metrics"] or {}).get("loss"),
         "val_loss": lambda r: (r["metrics"] or {}).get("val_loss")}
FILTERS = [{}, {"project": "blue"}, {"queue": "q1"}, {"state": "dead"}, {"tag": "best"}, {"tag": "best,old"}, {"q": "squad"},
           {"q": "SQUAD lora"}, {"q": "seven%"}, {"q": "_"}, {"project": "red", "state": "failed"}, {"q": "qa", "tag": "old"},
           {"project": "nobody"}, {"q": "user3", "queue": "q0", "state": "succeeded"}, {"q": "nightly"}, {"q": "qa squ"}, {"q": "GRÖßE"}, {"q": "ße"},
           {"q": '"better"'}, {"q": 'seven% "bet'}, {"q": "a_b"}, {"q": "QA says"}, {"q": "better' OR"}, {"q": "lor* NOT"}]
r = random.Random(5)
w = World(serve=["--keep-finished", "1"])


def folder(run):
    return f"{w.dir}/store/runs/{run[:2]}/{run}"


def make_record(i):
    words = ["squad", "Sentiment", "qa", "lora", "größe", "seven%", "a_b"]
    return {"run": "%032x" % r.getrandbits(128), "seq": 100 + i, "name": "-".join(r.sample(words, 2)), "project": r.choice(["red", "blue", "green"]),
            "queue": f"q{r.randrange(3)}", "state": r.choice(FINAL), "priority": r.choice(["critical", "high", "medium", "low"]),
            "created_by": r.choice([None, "user1", "user2", "service:user3"]), "job": r.choice([None, None, "nightly"]),
            "created_ms": 1000 * i, "finished_ms": r.choice([2000 * i + 5, 77]), "run_ms": r.choice([None, r.randrange(9)]),
            "metrics": r.choice([None, {}, {"loss": r.random(), "val_loss": r.choice([0.5, 1, r.random()])}]), "spec": {"name": "x"}}


def make_archive():
    """Finished runs as the archiver leaves them, some with notes."""
    global records
    records = [make_record(i) for i in range(N)]
    w.end(w.server)
    for x in records:
        os.makedirs(folder(x["run"]))
        json.dump(x, open(folder(x["run"]) + "/record.json", "w"))
        x["tags"], x["notes"] = r.choice([[], [], ["best"], ["old", "best"], ["old"]]), r.choice(["", "", "QA says\nseven% \"better\""])
        if x["tags"] or x["notes"]:
            json.dump({"tags": x["tags"], "notes": x["notes"]}, open(folder(x["run"]) + ".notes.json", "w"))
    w.start_server()


def matches(x, f):
    text = "\n".join([x["name"], x["run"], x["project"], x["queue"], x["created_by"] or "", x["job"] or "", *x["tags"], x["notes"]]).lower()
    return (all(x[k] == f[k] for k in ("project", "queue", "state") if k in f) and
            all(t in x["tags"] for t in f.get("tag", "").split(",") if t) and all(word in text for word in f.get("q", "").lower().split()))


def expected(sort, f):
    key, down = SORTS[sort.lstrip("-")], sort.startswith("-")
    some = sorted((x for x in records if matches(x, f)), key=lambda x: x["seq"], reverse=down)
    return sorted((x for x in some if key(x) is not None), key=key, reverse=down) + [x for x in some if key(x) is None]


def pages(limit, **query):
    out, cursor, totals = [], "", set()
    while True:
        status, page = w.api("GET", "/api/v1/runs?" + urllib.parse.urlencode({"limit": limit, "cursor": cursor, **query}))
        assert status == 200, page
        totals.add(page["total"])
        out += page["runs"]
        if not page["next_cursor"]:
            assert totals == {len(out)}, (totals, len(out))
            return out
        assert len(page["runs"]) == limit
        cursor = page["next_cursor"]


def every_order_and_filter():
    for sort, f in itertools.product([d + s for s in SORTS for d in ("", "-")], FILTERS):
        want, got = expected(sort, f), pages(r.choice([37, 200]), sort=sort, **f)
        assert [x["run"] for x in got] == [x["run"] for x in want], (sort, f, len(got), len(want))
    for got, want in zip(pages(200), sorted(records, key=lambda x: -x["seq"])):
        assert {k: got[k] for k in want if k != "spec"} == {k: v for k, v in want.items() if k != "spec"} and "spec" not in got


def bad_questions_are_refused():
    cursor = w.api("GET", "/api/v1/runs?limit=1&sort=name")[1]["next_cursor"]
    for query, word in (("sort=colour", "sort"), ("sort=-", "sort"), (f"sort=-name&cursor={cursor}", "-name"), (f"cursor={cursor}", "name"),
                        ("cursor=abc", "cursor"), ("cursor=" + "A" * 3000, "cursor"), ("cursor=W10.", "cursor"), ("q=" + "a" * 500, "q"), ("q=" + "a+" * 20, "words")):
        status, problem = w.api("GET", "/api/v1/runs?" + query)
        assert status in (400, 422) and word in json.dumps(problem), (query, status, problem)


def notes_last():
    run = w.enqueue("fake.1.1.ok", project="noted", schedule={"delay_s": 86400})
    for body in ({}, [], {"tags": "a"}, {"tags": ["a b"]}, {"tags": ["a,b"]}, {"tags": [""]}, {"tags": [1]}, {"tags": ["x" * 65]},
                 {"tags": ["t%d" % i for i in range(21)]}, {"notes": 5}, {"notes": "x" * 20001}, {"name": "new"}, {"notes": "a\0b"}):
        status, problem = w.api("PATCH", "/api/v1/runs/" + run, body)
        assert status == 422 and problem["errors"][0]["detail"], (body, status, problem)
    assert w.api("PATCH", "/api/v1/runs/" + "0" * 32, {"notes": "x"})[0] == 404
    assert w.api("PATCH", "/api/v1/runs/" + run, {"tags": ["a", "b", "a"]}) == (200, {"tags": ["a", "b"], "notes": ""})
    assert w.api("PATCH", "/api/v1/runs/" + run, {"notes": "größer 100%"}) == (200, {"tags": ["a", "b"], "notes": "größer 100%"})
    w.command("cancel", run)
    wait(lambda: os.path.exists(folder(run) + "/record.json"), 30, "it is archived")
    for turn in range(2):
        x = w.run(run)
        assert x["tags"] == ["a", "b"] and x["notes"] == "größer 100%", x
        for query in ("tag=b", "tag=b,a", "q=" + urllib.parse.quote("größer"), "q=100%25&tag=a"):
            assert [y["run"] for y in w.api("GET", "/api/v1/runs?" + query)[1]["runs"]] == [run], query
        assert not w.api("GET", "/api/v1/runs?tag=b,c")[1]["runs"]
        w.end(w.server, signal.SIGKILL)
        os.unlink(w.dir + "/store/read.db")
        w.start_server()
    p = w.command("runs", "note", run[:12], "--tag", "x", "--note", "by hand")
    assert p.returncode == 0, p.stderr
    got = json.loads(w.command("runs", "ls", "-q", "hand", "--tag", "x", "--sort", "name", "--json").stdout)["runs"]
    assert [x["run"] for x in got] == [run] and got[0]["notes"] == "by hand"
    for gone in ("größer", "100%"):    # no word of an earlier note is found
        assert not w.api("GET", "/api/v1/runs?q=" + urllib.parse.quote(gone))[1]["runs"], gone
    assert w.command("runs", "note", run, "--tag", "").returncode == 0 and w.run(run)["tags"] == []


def reindexed():
    p = w.command("reindex", "--json", timeout=240)
    assert p.returncode == 0 and json.loads(p.stdout)["n_differences"] == 0, (p.returncode, p.stdout, p.stderr)
    return json.loads(p.stdout)["runs"]


def a_list_is_never_behind():
    w.command("queues", "pause", "default")
    for i in range(20):
        run = w.enqueue(f"fresh{i}")
        first = w.api("GET", "/api/v1/runs?limit=1")[1]["runs"][0]
        assert first["run"] == run and first["waiting_for"], first
        w.api("POST", f"/api/v1/runs/{run}/move", {"priority": "high"})
        assert w.api("GET", "/api/v1/runs?sort=priority&q=" + run)[1]["runs"][0]["priority"] == "high"
        if i % 2:
            w.api("POST", f"/api/v1/runs/{run}/cancel")
            assert run in [x["run"] for x in w.api("GET", "/api/v1/runs?state=cancelled&limit=5")[1]["runs"]]
    w.command("queues", "resume", "default")


def kills_lose_nothing():
    """Runs are enqueued, moved, cancelled and run all the while."""
    done, made = threading.Event(), []

    def people():
        mine = random.Random(7)
        while not done.is_set():
            try:
                run = w.enqueue(f"fake.{mine.randrange(3)}.1." + mine.choice(["ok", "ok", "crash"]), retry={"max_attempts": 1}, project="kills")
                made.append(run)
                other = mine.choice(made)
                mine.choice([lambda: w.api("POST", f"/api/v1/runs/{other}/cancel"), lambda: w.api("PATCH", f"/api/v1/runs/{other}", {"tags": ["t"]}),
                             lambda: w.api("POST", f"/api/v1/runs/{other}/move", {"priority": "low"})])()
            except (OSError, ValueError, urllib.error.URLError, http.client.HTTPException):
                time.sleep(0.02)    # the server is down

    agent, thread = w.agent(), threading.Thread(target=people)
    thread.start()
    for _ in range(4):
        before = len(made)
        wait(lambda: len(made) > before + 3, 60, "more runs")
        time.sleep(r.random() / 2)
        w.end(w.server, signal.SIGKILL)
        w.start_server(w.port)
    done.set()
    thread.join()
    known = set(made) | {x["run"] for x in pages(200, project="kills")}    # a kill may have cut off an answer
    for run in known:
        w.api("POST", f"/api/v1/runs/{run}/cancel")
    wait(lambda: all(w.run(x)["state"] in FINAL for x in known), 60, "all have ended")
    w.end(agent)
    shown = {x: w.run(x)["state"] for x in known}
    # A list takes over what waits for SL_HISTORY_CATCH_UP_MS: of all these cancellations that may be a part.
    wait(lambda: {x["run"]: x["state"] for x in pages(200, project="kills")} == shown, 30, "the list shows what each run does")
    assert reindexed() >= N + len(made)
    wait(lambda: all(os.path.exists(folder(x) + "/record.json") for x in known), 60, "all are archived")
    assert reindexed() >= N + len(made)


def what_is_missing_in_it_is_told_and_mended():
    """Also what a power cut or a fault of ours would leave: rows that are old, gone, or too many."""
    import sqlite3
    w.end(w.server)
    before = w.dir + "/before.db"
    db = sqlite3.connect(w.dir + "/store/read.db")
    db.execute("vacuum into ?", (before,))
    db.execute("update runs set queue = 'elsewhere' where n = 3")
    db.execute("update runs set name = 'other' where n = 5")
    n = db.execute("select n from runs where archived order by n desc").fetchone()[0]
    db.execute("update runs set archived = 0, state = 'running' where n = ?", (n,))
    db.commit()
    db.close()
    w.start_server()
    p = w.command("reindex", timeout=240)
    assert p.returncode == 1 and "2 differences" in p.stdout and p.stdout.count(" differs in ") == 2, p.stdout
    assert reindexed() >= N
    assert not glob.glob(w.dir + "/store/read.db.second*")
    w.end(w.server)
    with open(w.dir + "/store/read.db", "r+b") as f:    # a page of it is gone
        f.seek(8192)
        f.write(os.urandom(4096))
    w.start_server()
    assert len(pages(200)) >= N
    assert reindexed() >= N
    w.end(w.server)
    db = sqlite3.connect(w.dir + "/store/read.db")    # as an earlier version leaves it
    db.executescript("drop table runs_text; pragma user_version = 1")
    db.close()
    w.start_server()
    held = sqlite3.connect(w.dir + "/store/read.db")    # somebody looks into the file meanwhile
    held.execute("select * from runs").fetchone()
    assert reindexed() >= N
    assert {x["run"] for x in pages(200, q="sentiment")} == {x["run"] for x in records if matches(x, {"q": "sentiment"})}
    held.close()


def with_redis_away_history_opens():
    run = w.enqueue("last", schedule={"delay_s": 86400})
    w.api("GET", "/api/v1/runs")
    w.end(w.redis)
    status, page = w.api("GET", "/api/v1/runs?sort=name&limit=200")
    assert status == 200 and page["live"] is False and page["total"] > N
    assert w.api("GET", "/api/v1/runs?q=last")[1]["runs"][0]["state"] == "delayed"
    w.start_redis()
    wait(lambda: w.api("GET", "/api/v1/runs")[1]["live"], 30, "Redis is back")
    w.cli("del", "{softlaunch}:run:" + run)
    w.cli("zrem", "{softlaunch}:runs", run)    # as after a failover that lost it
    w.end(w.redis)
    w.api("GET", "/api/v1/runs")
    w.start_redis()
    wait(lambda: not w.api("GET", "/api/v1/runs?q=last")[1]["runs"], 30, "what Redis lost is gone")


def a_token_sees_its_projects():
    w.api("POST", "/api/v1/users", {"user": "eve", "role": "viewer", "projects": ["red", "green"]})
    status, made = w.api("POST", "/api/v1/tokens", {"user": "eve"})
    assert status == 201, made
    auth = {"Authorization": "Bearer " + made["token"]}
    page = w.api("GET", "/api/v1/runs?limit=200&q=squad", **auth)[1]
    want = [x for x in records if x["project"] in ("red", "green") and matches(x, {"q": "squad"})]
    assert page["total"] == len(want) and {x["run"] for x in page["runs"]} == {x["run"] for x in want}
    assert w.api("GET", "/api/v1/runs?project=blue", **auth)[0] == 403
    assert w.api("GET", "/api/v1/runs?project=red", **auth)[1]["total"] == len([x for x in records if x["project"] == "red"])
    assert w.api("POST", "/api/v1/reindex", **auth)[0] == 403


make_archive()
tap(w, [every_order_and_filter, bad_questions_are_refused, notes_last, a_list_is_never_behind, kills_lose_nothing, what_is_missing_in_it_is_told_and_mended,
     with_redis_away_history_opens, a_token_sees_its_projects])
