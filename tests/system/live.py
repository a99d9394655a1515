#!/usr/bin/env python3
"""Events as they happen (server-sent): every event once and in order, going on after a break, gaps told, slow
readers, tokens of other projects."""
import http.client, json, os, socket, sys, threading, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from queue_fixture import TOKEN, World, tap, wait

w = World()
w.put("model", '{"m": 1}\n')
w.put("data", '{"a": "x", "b": "y"}\n')


class Reader:
    """Reads blocks on a thread: dicts of id, event, data; a comment is {"comment": True}."""

    def __init__(self, path, token=TOKEN, **headers):
        self.c = http.client.HTTPConnection("127.0.0.1", w.port, timeout=120)
        self.c.request("GET", path, headers={"Authorization": "Bearer " + token, "Accept": "text/event-stream", **headers})
        self.r = self.c.getresponse()
        self.status, self.type = self.r.status, self.r.getheader("Content-Type")
        self.blocks, self.over = [], False
        if self.status == 200:
            threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        block = {}
        try:
            for line in self.r:
                line = line.decode().rstrip("\n")
                if line.startswith(":"):
                    block["comment"] = True
                elif line:
                    key, value = line.split(": ", 1)
                    block[key] = value
                else:
                    self.blocks.append((time.monotonic(), block))
                    block = {}
        except (OSError, http.client.HTTPException, AttributeError, ValueError):
            pass
        self.over = True

    def close(self):
        if self.c.sock:
            self.c.sock.shutdown(socket.SHUT_RDWR)

    def events(self, run=None):
        got = [dict(json.loads(b["data"]), type=b["event"]) for _, b in list(self.blocks) if "data" in b]
        return [e for e in got if run in (None, e["run"])]


def ids(events):
    return [e["id"] for e in events]


def all_told(run):
    """The run's events once nothing more comes: its results are recorded a moment after it has ended."""
    w.ended(run, 90)
    wait(lambda: w.cli("hexists", "{softlaunch}:outbox", run) == "0", 60, "the results are recorded")
    told = w.events(run)
    while True:
        time.sleep(0.5)
        more = w.events(run)
        if len(more) == len(told):
            return told
        told = more


def a_reader_from_the_start_and_one_that_came_late_see_what_the_pages_say():
    run = w.enqueue("fake.60.20.ok")
    early = Reader(f"/api/v1/runs/{run}/events")
    assert early.status == 200 and early.type == "text/event-stream", (early.status, early.type)
    w.agent("first")
    wait(lambda: len(early.events()) > 20, 60, "events come while the run runs")
    late = Reader(f"/api/v1/runs/{run}/events")
    told = all_told(run)
    for r in (early, late):
        wait(lambda: len(r.events()) >= len(told), 30, "all events")
        assert ids(r.events()) == ids(told), (ids(r.events()), ids(told))
        assert [(e["type"], e.get("data")) for e in r.events()] == [(e["type"], e.get("data")) for e in told]
        assert [b["id"] for _, b in r.blocks if "data" in b] == ids(told)
        r.close()


def after_a_break_it_goes_on_from_the_last_id():
    run = w.enqueue("fake.2.5.ok")
    told = ids(all_told(run))
    r = Reader(f"/api/v1/runs/{run}/events", **{"Last-Event-ID": told[2]})
    wait(lambda: len(r.events()) >= len(told) - 3, 30, "the rest")
    assert ids(r.events()) == told[3:]
    r.close()
    assert Reader(f"/api/v1/runs/{run}/events", **{"Last-Event-ID": "yesterday"}).status == 422


def several_runs_in_one_stream_go_on_together():
    runs = [w.enqueue(f"fake.30.20.ok.{i}") for i in range(3)]
    first = Reader("/api/v1/events?runs=" + ",".join(runs))
    assert first.status == 200
    wait(lambda: len({e["run"] for e in first.events()}) >= 1 and len(first.events()) > 15, 60, "some events")
    first.close()
    at = next(b["id"] for _, b in reversed(first.blocks) if "id" in b)
    time.sleep(0.3)
    second = Reader("/api/v1/events?runs=" + ",".join(runs), **{"Last-Event-ID": at})
    pages = {run: ids(all_told(run)) for run in runs}
    started = {run: next((e["id"] for e in first.events(run)), None) for run in runs}
    for run in runs:
        told = pages[run]
        if started[run]:
            told = told[told.index(started[run]):]
        def both():
            got = ids(first.events(run))
            return got + [i for i in ids(second.events(run)) if i not in got]
        wait(lambda: both()[-len(told):] == told or both()[-1:] == told[-1:], 30, "all events of " + run)
        got = both()
        assert got == told[len(told) - len(got):], (run, got, told)
        if started[run]:
            assert len(got) == len(told)
    second.close()


def a_gap_is_told():
    run = w.enqueue("fake.20.5.ok")
    told = ids(all_told(run))
    w.cli("xtrim", "{softlaunch}:events:" + run, "maxlen", "5")
    r = Reader(f"/api/v1/runs/{run}/events?after={told[0]}")
    wait(lambda: len([b for _, b in r.blocks if "data" in b]) >= 6, 30, "what is left")
    seen = [b for _, b in r.blocks if "data" in b]
    assert seen[0]["event"] == "reset" and json.loads(seen[0]["data"])["run"] == run, seen[0]
    assert [b["id"] for b in seen[1:6]] == told[-5:]
    r.close()


def what_the_archive_takes_of_a_long_run_reaches_its_readers_first():
    run = w.enqueue("fake.60.100.spam")
    reader = Reader(f"/api/v1/runs/{run}/events")
    agent = w.agent("long")
    w.ended(run, 120)
    want = [f"line {i} of step {step}" for step in range(1, 61) for i in range(200)]
    lines = lambda: [e["data"]["msg"] for e in reader.events() if e["type"] == "log" and " of step " in e["data"].get("msg", "")]
    wait(lambda: len(lines()) >= len(want), 30, "every line; the first missing of %d: %s" % (len(lines()), next((a for a, b in zip(want, lines()) if a != b), None)))
    assert lines() == want and not [b for _, b in reader.blocks if b.get("event") == "reset"]
    reader.close()
    w.end(agent)


def a_silent_stream_is_kept_awake():
    run = w.enqueue("fake.1.5.ok")
    w.ended(run, 60)
    r = Reader("/api/v1/events?runs=" + run)
    wait(lambda: any("comment" in b for _, b in r.blocks), 25, "a comment")
    r.close()


def what_is_not_there_is_said():
    assert Reader("/api/v1/runs/0123456789abcdef0123456789abcdef/events").status == 404
    assert Reader("/api/v1/events?runs=0123456789abcdef0123456789abcdef").status == 404
    for query in ("", "?runs=", "?runs=,", "?runs=" + ",".join(["a"] * 51), "?runs=" + "a" * 500):
        assert Reader("/api/v1/events" + query).status == 422, query


def a_token_of_another_project_sees_nothing():
    run = w.enqueue("fake.1.5.ok")
    w.ended(run, 60)
    made = w.command("token", "add", "--service", "stranger", "--role", "viewer", "--project", "other")
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    assert Reader("/api/v1/events?runs=" + run, token=token).status == 404
    assert Reader(f"/api/v1/runs/{run}/events", token=token).status == 404
    assert Reader("/api/v1/events?runs=" + run, token="x" * 40).status == 401


def memory_kib():
    return int(next(l for l in open(f"/proc/{w.server.pid}/status") if l.startswith("VmRSS")).split()[1])


def who_reads_slowly_holds_up_nobody_and_misses_nothing():
    run = w.enqueue("fake.1.5.ok")
    w.ended(run, 60)
    good = Reader("/api/v1/events?runs=" + run)
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", w.port))
    slow.sendall(f"GET /api/v1/events?runs={run} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
    wait(lambda: good.blocks, 30, "the stream is open")
    slow.recv(1)
    time.sleep(0.3)                                   # both are taken in
    before = memory_kib()
    filler, n = "y" * 8000, 1500                      # 12 MB, more than sockets hold
    for at in range(0, n, 50):
        w.cli("eval", "for i = 1, 50 do redis.call('XADD', KEYS[1], '*', 't', 'log', 'a', '1', 'd', ARGV[1]) end", 1,
              "{softlaunch}:events:" + run, json.dumps(filler))
        wait(lambda: sum(filler in b.get("data", "") for _, b in list(good.blocks)) == at + 50, 60, "the good reader has them all")
    grown = memory_kib() - before
    assert grown < 40 << 10, f"the server grew by {grown} KiB"
    good.close()
    slow.settimeout(60)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)    # else each 4 KB wait for two processes' turns
    left, rest = n, b""
    while left > 0:
        data = slow.recv(1 << 16)
        assert data, "cut off"
        lines = (rest + data).split(b"\n")
        left -= sum(line.startswith(b"event: log") for line in lines[:-1])
        rest = lines[-1]
    slow.close()


def the_server_stops_at_once_with_readers():
    run = w.enqueue("fake.1.5.ok")
    w.ended(run, 60)
    readers = [Reader("/api/v1/events?runs=" + run) for _ in range(20)]
    assert w.end(w.server, timeout=10) == 0
    wait(lambda: all(r.over for r in readers), 20, "every stream ends")


tap(w, [a_reader_from_the_start_and_one_that_came_late_see_what_the_pages_say, after_a_break_it_goes_on_from_the_last_id,
        several_runs_in_one_stream_go_on_together, a_gap_is_told, what_the_archive_takes_of_a_long_run_reaches_its_readers_first,
        a_silent_stream_is_kept_awake, what_is_not_there_is_said,
        a_token_of_another_project_sees_nothing, who_reads_slowly_holds_up_nobody_and_misses_nothing,
        the_server_stops_at_once_with_readers])
