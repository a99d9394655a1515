#!/usr/bin/env python3
"""What operators do to queues, projects, agents and runs by the command; and finished runs in the archive."""
import json, os, subprocess, time
from queue_fixture import BIN, TOKEN, World, in_time, make_spec, tap, wait

w = World(serve=["--keep-finished", "1"])
P = "{softlaunch}"
w.put("model", "m\n")
w.put("data", '{"a": "b"}\n')


def command(*args):
    r = w.command(*args)
    assert r.returncode == 0, (args, r.stderr)
    return r.stdout


def queue(name="default"):
    return next(q for q in json.loads(command("queues", "--json"))["queues"] if q["queue"] == name)


def spec_file(name, **more):
    path = w.dir + "/admin.json"
    json.dump(make_spec(name, **more), open(path, "w"))
    return path


def left_redis(run):
    wait(lambda: w.cli("exists", f"{P}:run:{run}", f"{P}:events:{run}") == "0", 20, "the run has left Redis")


def pause_and_limits_by_command():
    command("queues", "pause", "default")
    a = w.agent()
    run = command("enqueue", spec_file("fake.2.10.ok")).strip()
    time.sleep(0.5)
    r = w.run(run)
    assert r["state"] == "queued" and r["waiting_for"] == "queue default is paused", r
    assert "waiting_for  queue default is paused" in command("runs", "show", run, "--table")
    assert queue()["state"] == "paused" and queue()["classes"] == [{"class": "cpu", "ready": 0, "held": 1, "agents": True}], queue()
    command("queues", "resume", "default")
    assert w.ended(run)["state"] == "succeeded"
    command("queues", "set", "default", "max_running=1", "rate_per_minute=6000")
    assert queue()["max_running"] == 1 and queue()["rate_per_minute"] == 6000
    command("queues", "set", "default", "max_running=0", "rate_per_minute=0")
    r = w.command("queues", "set", "default", "max_runing=1")
    assert r.returncode == 1 and "max_runing" in r.stderr, r.stderr
    assert w.command("queues", "stop", "default").returncode == 2
    command("queues", "drain", "default")
    r = w.command("enqueue", spec_file("fake.2.10.ok"))
    assert r.returncode == 1 and "queue default is drained" in r.stderr, r.stderr
    command("queues", "resume", "default")
    w.end(a)


def times_keys_and_moves_by_command():
    late = command("enqueue", spec_file("fake.1.10.ok"), "--delay", "1h").strip()
    at = command("enqueue", spec_file("fake.1.10.ok"), "--at", "2099-01-01T00:00:00Z").strip()
    assert w.run(at)["due_ms"] == 4070908800000 and w.run(at)["cause"] == "scheduled"
    assert abs(w.run(late)["due_ms"] / 1000 - time.time() - 3600) < 30
    r = w.command("enqueue", spec_file("fake.1.10.ok"), "--at", "tomorrow")
    assert r.returncode == 1 and "schedule.at" in r.stderr, r.stderr
    one = command("enqueue", spec_file("fake.1.10.ok", queue="other"), "--dedupe", "nightly").strip()
    assert command("enqueue", spec_file("fake.3.10.ok", queue="other"), "--dedupe", "nightly").strip() == one
    command("runs", "move", one, "--priority", "critical")
    assert w.run(one)["priority"] == "critical"
    assert w.command("runs", "move", one, "--priority", "urgent").returncode == 1
    assert w.command("runs", "move", one).returncode == 2
    a = w.agent()
    time.sleep(0.3)
    assert w.run(one)["state"] == "queued"
    command("runs", "move", one, "--queue", "default")
    assert w.ended(one)["state"] == "succeeded"
    w.end(a)
    for run in (late, at):
        assert "cancelled" in command("cancel", run)


def agents_pause_and_drain():
    a = w.agent()
    name = wait(lambda: w.api("GET", "/api/v1/agents")[1]["agents"], 10, "the agent is there")[0]["agent"]
    command("agents", "pause", name)
    wait(lambda: "asked to take no runs" in open(a.log).read(), 5, "the agent has heard it")
    run = w.enqueue("fake.20.50.ok")
    time.sleep(0.7)
    assert w.run(run)["state"] == "queued"
    assert "paused" in command("agents", "--table")
    command("agents", "resume", name)
    w.until(run, lambda r: r["state"] == "running", 5)
    command("agents", "drain", name)
    assert a.wait(15 * 4) == 0    # PATIENCE
    assert w.run(run)["state"] == "succeeded", w.run(run)
    assert w.command("agents", "pause", "nobody").returncode == 1


def a_finished_run_is_archived_and_still_found():
    a = w.agent()
    run = w.enqueue("fake.30.5.ok", key="archived")
    r = w.ended(run)
    wait(lambda: w.events(run, "outputs"), 5, "the outputs are recorded")
    r, events = w.run(run), w.events(run)
    left_redis(run)
    again = w.run(run)
    assert again == r, (r, again)
    assert w.events(run) == events and len(events) > 30
    page = w.api("GET", f"/api/v1/runs/{run}/events?after={events[5]['id']}&limit=3")[1]
    assert page["events"] == events[6:9] and page["last"] == events[8]["id"]
    assert run in [x["run"] for x in json.loads(command("runs", "--json"))["runs"]]
    assert command("logs", run).splitlines()[0] == "starting at step 0"
    assert w.enqueue("fake.30.5.ok", key="archived") == run     # the key outlives the run
    folder = f"{w.dir}/store/runs/{run[:2]}/{run}"
    text = subprocess.run(["zstd", "-dc", folder + "/events.ndjson.zst"], capture_output=True, text=True).stdout
    assert [json.loads(line) for line in text.splitlines()] == events
    assert json.load(open(folder + "/record.json"))["spec"]["name"] == "fake.30.5.ok"
    assert w.api("GET", "/api/v1/runs/" + "0" * 32)[0] == 404 and w.api("GET", "/api/v1/runs/" + "0" * 32 + "/events")[0] == 404
    w.end(a)


def lists_go_over_redis_and_the_archive():
    command("queues", "pause", "default")
    fresh = [w.enqueue(f"fake.1.1.ok{i}", project="lists") for i in range(7)]
    every, below = [], ""
    while below is not None:
        page = w.api("GET", f"/api/v1/runs?limit=4{'&below=' + below if below else ''}")[1]
        every += [(x["seq"], x["run"]) for x in page["runs"]]
        below = page["next"]
    assert every == sorted(every, reverse=True) and len({r for _, r in every}) == len(every)
    assert [r for _, r in every[:7]] == fresh[::-1]
    assert len(every) == 7 + len([n for _, _, f in os.walk(w.dir + "/store/runs") for n in f if n == "record.json"])
    assert len(w.api("GET", "/api/v1/runs?project=lists")[1]["runs"]) == 7
    for run in fresh:
        command("cancel", run)
    for run in fresh:
        left_redis(run)
    assert len(w.api("GET", "/api/v1/runs?project=lists&state=cancelled")[1]["runs"]) == 7
    command("queues", "resume", "default")


def a_dead_run_is_requeued_from_its_checkpoint():
    a = w.agent()
    run = w.enqueue("fake.20.20.crash", retry={"max_attempts": 1, "backoff_s": 0.1})
    r = w.ended(run)
    assert r["state"] == "dead" and r["cause"] == "crash" and r["log_tail"] and r["failures"] == 1, r
    assert r["exit_code"] is None and r["exit_signal"] == 9, r
    failure = w.events(run, "failure")[0]["data"]
    assert failure["kind"] == "crash" and failure["agent"], failure
    left_redis(run)
    assert run in [x["run"] for x in w.api("GET", "/api/v1/runs?state=dead")[1]["runs"]]
    w.end(a)
    new = command("runs", "requeue", run, "--key", "again").strip()
    assert new != run and command("runs", "requeue", run, "--key", "again").strip() == new
    n = w.run(new)
    assert n["requeued_from"] == run and n["checkpoint"] == r["checkpoint"] and n["failures"] == 0, n
    ok = next(x["run"] for x in w.api("GET", "/api/v1/runs?state=succeeded")[1]["runs"])
    bad = w.command("runs", "requeue", ok)
    assert bad.returncode == 1 and "succeeded" in bad.stderr, bad.stderr
    command("cancel", new)


def a_run_over_its_time_is_stopped():
    a = w.agent()
    run = w.enqueue("fake.500.20.ok", time_limit_s=1, retry={"timeout": 2, "backoff_s": 0.1})
    r = w.ended(run, 15)
    assert r["state"] == "dead" and r["cause"] == "timeout" and r["timeouts"] == 2 and r["failures"] == 0, r
    kinds = [e["data"]["kind"] for e in w.events(run, "failure")]
    assert kinds == ["timeout", "timeout"], kinds
    assert 900 <= r["run_ms"], r["run_ms"]
    in_time(r["run_ms"] / 1000, 2.5)
    ok = w.enqueue("fake.5.20.ok", time_limit_s=30)
    assert w.ended(ok)["state"] == "succeeded"
    w.end(a)


def the_index_is_made_anew_and_numbers_go_on():
    wait(lambda: w.cli("zcard", P + ":ended") == "0", 20, "what has ended is in the archive")
    before = [x["run"] for x in w.api("GET", "/api/v1/runs?limit=200")[1]["runs"]]
    highest = w.api("GET", "/api/v1/runs?limit=1")[1]["runs"][0]["seq"]
    w.end(w.server)
    w.end(w.redis)
    open(w.dir + "/store/read.db", "wb").write(b"no database at all, " * 500)
    for name in os.listdir(w.dir):
        if name.startswith("appendonly"):
            subprocess.run(["rm", "-rf", w.dir + "/" + name], check=True)
    w.start_redis()
    w.start_server()
    after = [x["run"] for x in w.api("GET", "/api/v1/runs?limit=200")[1]["runs"]]
    assert set(after) <= set(before) and len(after) >= len(before) - 1, (before, after)    # but for what Redis held
    wait(lambda: int(w.cli("get", P + ":seq") or 0) >= highest - 1, 5, "numbers go on")


def a_long_log_is_whole():
    a = w.agent()
    run = w.enqueue("fake.150.50.spam")
    w.until(run, lambda r: (r["step"] or 0) > 120, 40)
    early = w.events(run, "log")     # while it runs: the beginning comes from the archive
    assert int(w.cli("xlen", f"{P}:events:{run}")) < len(early) and early[0]["data"]["msg"] == "starting at step 0"
    assert w.ended(run, 60)["state"] == "succeeded"
    left_redis(run)
    lines = [e["data"]["msg"] for e in w.events(run, "log") if e["data"]["msg"].startswith("line ")]
    assert lines == [f"line {i} of step {s}" for s in range(1, 151) for i in range(200)], len(lines)
    w.end(a)


tap(w, [pause_and_limits_by_command, times_keys_and_moves_by_command, agents_pause_and_drain,
        a_finished_run_is_archived_and_still_found, lists_go_over_redis_and_the_archive,
        a_dead_run_is_requeued_from_its_checkpoint, a_run_over_its_time_is_stopped,
        the_index_is_made_anew_and_numbers_go_on, a_long_log_is_whole])
