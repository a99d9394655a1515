#!/usr/bin/env python3
"""A day of traffic as fast as it goes: runs enqueued, tagged, noted, moved, cancelled, requeued, failing and finishing with metrics, the
server killed again and again in the middle; then every row of the read model against the records on disk, read here, and `reindex`.
usage: read_model_day.py [RUNS]. Agents are connections to Redis that call the queue's scripts. Environment: SL_BIN. Prints TAP."""
import http.client, os, random, signal, sqlite3, sys, threading
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, HERE + "/../bench"]
from queue_fixture import *
from wire import Connection

RUNS = int(sys.argv[1]) if len(sys.argv) > 1 else 20000
PEOPLE, AGENTS = 2, 2
P = "{softlaunch}"
r = random.Random(11)
World.appendfsync = "everysec"    # Redis is not killed here
w = World(lease_ms=600000, serve=["--keep-finished", "1"])
made, asked, over, failed = [], [], threading.Event(), []


def script(name):
    head, body = (open(f"{HERE}/../../queue/scripts/{name}.lua").read().split("\n", 1))
    if not head.startswith("#!"):
        head, body = "#!lua", head + "\n" + body
    return "\n".join([head] + [open(f"{HERE}/../../queue/scripts/{x}.lua").read() for x in ("common", "line")] + [body])


def guarded(f):
    def run(*args):
        try:
            f(*args)
        except BaseException as e:
            failed.append(repr(e))
            over.set()
            raise
    return run


class Person:
    """Requests on one connection, again until the server says something: it may have done what it could not answer."""

    def __init__(self):
        self.c = None

    def ask(self, method, path, body=None, **headers):
        while not over.is_set():
            try:
                self.c = self.c or http.client.HTTPConnection("127.0.0.1", w.port, timeout=60)
                self.c.request(method, path, None if body is None else json.dumps(body), {"Authorization": "Bearer " + TOKEN, "Content-Type": "application/json", **headers})
                answer = self.c.getresponse()
                text = answer.read()
                if answer.status not in (500, 503):
                    return answer.status, json.loads(text or "null")
            except (OSError, http.client.HTTPException, ValueError):
                pass
            self.c = None
            time.sleep(0.05)
        return 0, None


@guarded
def person(seed):
    mine, me, before = random.Random(seed), Person(), []
    names = "squad qa lora ptune base slot".split()
    words = names + ["größe", '"50%"']
    while len(made) < RUNS and not over.is_set():
        spec = make_spec("-".join(mine.sample(names, 2)), project=mine.choice("abcde"), priority=mine.choice(["high", "medium", "low"]), retry={"max_attempts": 2})
        status, run = me.ask("POST", "/api/v1/runs", spec, **{"Idempotency-Key": "%032x" % mine.getrandbits(128)})
        if not run:
            break
        assert status in (200, 201), (status, run)
        made.append(run["run"])
        before = before[-50:] + [run["run"]]
        for share, act in ((0.15, lambda x: ("PATCH", f"/api/v1/runs/{x}", {"tags": mine.sample(words, 2)})),
                           (0.1, lambda x: ("PATCH", f"/api/v1/runs/{x}", {"notes": " ".join(mine.choices(words, k=mine.randrange(40)))})),
                           (0.1, lambda x: ("POST", f"/api/v1/runs/{x}/move", {"priority": mine.choice(["high", "medium", "low"])})),
                           (0.05, lambda x: ("POST", f"/api/v1/runs/{x}/cancel", None)),
                           (0.05, lambda x: ("POST", f"/api/v1/runs/{x}/requeue", None))):
            if mine.random() < share:
                method, path, body = act(mine.choice(before))
                status, answer = me.ask(method, path, body)
                asked.append((path.rsplit("/", 1)[-1][:7] if method == "POST" else "patch", status))
                if path.endswith("/requeue") and status in (200, 201):
                    made.append(answer["run"])


@guarded
def agent(n, offer):
    mine, c = random.Random(n), Connection(w.sock)
    texts = {x: script(x) for x in ("claim", "append", "finish", "fail")}
    sha = {x: c.ask("SCRIPT", "LOAD", t).decode() for x, t in texts.items()}
    call = lambda name, *args: c.ask("EVALSHA", sha[name], "1", P, *args)
    while not over.is_set():
        lease = "%032x" % mine.getrandbits(128)
        got = call("claim", lease, f"day{n}", "600000", offer, "default")
        if not got:
            time.sleep(0.02)
            continue
        if mine.random() < 0.01:
            time.sleep(0.3)    # some wait in line and can be moved
        run = got[0].decode()
        try:
            for batch in (1, 2):
                metrics = json.dumps({"loss": mine.random(), "val_loss": mine.random()})
                call("append", run, lease, batch, "training", batch * 10, 20, metrics, *(x for i in range(5) for x in ("metric", metrics)))
            if mine.random() < 0.2:
                call("fail", run, lease, mine.choice(["crash", "spec", "infrastructure"]), "crash", "it fell over", "1", "", "1", "[]")
            else:
                call("finish", run, lease, "[]", json.dumps({"loss": mine.random(), "val_loss": mine.random()}))
        except RuntimeError as e:    # cancelled meanwhile
            if "CANCELLED" in str(e):
                call("fail", run, lease, "cancelled", "cancelled", "", "", "", "1", "[]")
            elif "LEASE" not in str(e):
                raise


def records():
    """What the disk says of each run: its own record, its tags and note."""
    out, root = {}, w.dir + "/store/runs"
    for part in os.listdir(root):
        for name in os.listdir(f"{root}/{part}"):
            if os.path.exists(f"{root}/{part}/{name}/record.json"):
                note = f"{root}/{part}/{name}.notes.json"
                out[name] = json.load(open(f"{root}/{part}/{name}/record.json")), json.load(open(note)) if os.path.exists(note) else {}
    return out


RANKS = ["critical", "high", "medium", "low"]


def rows_that_differ(truth):
    """Runs whose rows in the read model's tables are not what their records say."""
    db = sqlite3.connect(f"file:{w.dir}/store/read.db?mode=ro", uri=True)
    tags = {}
    for n, tag in db.execute("select n, tag from runs_tags"):
        tags.setdefault(n, set()).add(tag)
    rows = {x[1]: x for x in db.execute("select n, run, archived, seq, name, project, queue, state, priority, user, finished, duration, loss, val_loss, json, note, text "
                                        "from runs left join runs_row using (n) left join runs_text using (n)")}
    db.close()
    bad = set(rows) ^ set(truth)
    for run in set(rows) & set(truth):
        n, _, archived, seq, name, project, queue, state, rank, user, finished, duration, loss, val_loss, text, note, words = rows[run]
        x, noted = truth[run]
        metrics = x["metrics"] or {}
        shown = json.loads(text)
        if ((archived, seq, name, project, queue, state, RANKS[rank], user, finished, duration, loss, val_loss) !=
                (1, x["seq"], x["name"], x["project"], x["queue"], x["state"], x["priority"], x["created_by"], x["finished_ms"], x["run_ms"], metrics.get("loss"), metrics.get("val_loss"))
                or any(shown[k] != x[k] for k in shown if k in x) or tags.get(n, set()) != set(noted.get("tags", []))
                or json.loads(note).get("notes", "") != noted.get("notes", "") or noted.get("notes", "") not in words):
            bad.add(run)
    return bad


def reindexed():
    p = w.command("reindex", "--json", timeout=300)
    return json.loads(p.stdout)


def a_day_of_traffic():
    w.put("model", '{"m": 1}\n')
    w.put("data", '{"a": "x", "b": "y"}\n')
    first = w.enqueue("fake.1.1.ok")
    real = w.agent("real")
    w.ended(first)
    offer = w.cli("zrange", P + ":offers:default", 0, 0)
    w.end(real)
    made.append(first)
    began, kills = time.monotonic(), 0
    people = [threading.Thread(target=person, args=(i,)) for i in range(PEOPLE)]
    agents = [threading.Thread(target=agent, args=(i, offer)) for i in range(AGENTS)]
    for t in people + agents:
        t.start()
    while any(t.is_alive() for t in people):
        due = len(made) + r.randrange(RUNS // 40, RUNS // 10)
        while len(made) < due and any(t.is_alive() for t in people):
            time.sleep(0.01)
        if any(t.is_alive() for t in people):
            w.end(w.server, signal.SIGKILL)
            w.start_server(w.port)
            kills += 1
    assert not failed, failed
    wait(lambda: failed or int(w.cli("scard", P + ":changed")) == 0 and not w.cli("--scan", "--pattern", P + ":run:*"), 300, "all have ended and are archived")
    over.set()
    for t in agents:
        t.join()
    assert not failed, failed
    counts = {x: asked.count(x) for x in sorted(set(asked))}
    print(f"# {len(made)} runs, {kills} kills, {time.monotonic() - began:.0f} s; asked {counts}")
    assert kills >= 2
    truth = records()
    assert set(made) <= set(truth), (len(made), len(truth))
    assert not rows_that_differ(truth)
    report = reindexed()
    assert report["n_differences"] == 0 and report["runs"] == len(truth), report


def one_row_that_was_missed_is_found():
    truth = records()
    gone, stale = sorted(truth)[7], sorted(truth)[8]
    db = sqlite3.connect(w.dir + "/store/read.db", timeout=30)    # beside the server, which at its start takes in what is missing
    db.execute("delete from runs where run = ?", (gone,))
    db.execute("update runs set val_loss = 77 where run = ?", (stale,))
    db.commit()
    db.close()
    bad = rows_that_differ(truth)
    assert bad == {gone, stale}, (gone, stale, len(bad), sorted(bad)[:5])
    report = reindexed()
    assert {x["run"] for x in report["differences"]} == {gone, stale} and report["n_differences"] == 2, report
    assert not rows_that_differ(truth)
    report = reindexed()
    assert report["n_differences"] == 0, report


tap(w, [a_day_of_traffic, one_row_that_was_missed_is_found])
