#!/usr/bin/env python3
"""Runs through queue, agent and server as a user meets them, with a worker that only pretends to train."""
import hashlib, json, os, re, signal, subprocess, sys, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from queue_fixture import *

w = World()
w.put("model", "weights\n")
w.put("data", '{"taskname":"t","a":"x","b":"y"}\n')


def expected(steps):
    """What an undisturbed run ends with."""
    state = hashlib.sha256(open(w.dir + "/data.jsonl", "rb").read()).hexdigest()
    losses = []
    for step in range(1, steps + 1):
        state = hashlib.sha256((state + str(step)).encode()).hexdigest()
        losses.append(int(state[:6], 16) / 2**24)
    return state, losses


def check_result(run, steps):
    r = w.run(run)
    assert r["state"] == "succeeded", r
    out = r["outputs"][0]
    dest = f"{w.dir}/got-{run}"
    g = w.command("artifact", "get", f"{out['artifact']}:{out['version']}", dest)
    assert g.returncode == 0, g.stderr
    assert os.listdir(dest) == ["result.tar.zst"], os.listdir(dest)
    state, losses = expected(steps)
    made = w.api("GET", f"/api/v1/artifacts/result/{out['version']}")[1]
    entries = {e["path"]: e["sha256"] for e in made["files"][0]["entries"]}
    assert entries["prompt_table.safetensors"] == hashlib.sha256(state.encode()).hexdigest(), entries
    made_by = made["made_by"]["run"]    # of equal results the first run's: no new version
    assert made_by == run or w.run(made_by)["name"].split(".")[1] == str(steps), made
    seen = {}
    for e in w.events(run, "metric"):
        if "loss" in e["data"]:
            assert e["data"]["loss"] == losses[e["data"]["step"] - 1]
            seen[e["data"]["step"]] = e
    assert sorted(seen) == list(range(1, steps + 1)), sorted(seen)
    return r


def worker_pids():
    return subprocess.run(["pgrep", "-f", f"fake_worker.py train --run-dir {w.dir}/"], capture_output=True,
                          text=True).stdout.split()


def checkpoint_of(agent):
    """The newest checkpoint in the only run folder of an agent."""
    runs = f"{w.dir}/{agent}/runs"
    return max(os.listdir(f"{runs}/{os.listdir(runs)[0]}/checkpoints"), key=lambda name: int(name.split("-")[1].split(".")[0]))


def no_worker_left():
    wait(lambda: not subprocess.run(["pgrep", "-f", f"fake_worker.py train --run-dir {w.dir}/"],
                                    capture_output=True).stdout, 5, "no worker is left")


def a_run_from_enqueue_to_artifact():
    a = w.agent()
    run = w.enqueue("fake.10.10.ok")
    r = w.ended(run)
    check_result(run, 10)
    assert r["attempt"] == 1 and r["failures"] == 0 and r["step"] == 10 and r["steps"] == 10, r
    assert r["metrics"]["val_loss"] == 0.5, r
    logs = [e["data"]["msg"] for e in w.events(run, "log")]
    assert "starting at step 0" in logs and "a line on standard output" in logs, logs
    assert w.events(run, "prediction")[0]["data"]["prediction"] == "a"
    phases = [e["data"]["phase"] for e in w.events(run, "phase")]
    assert phases == ["fetching", "training", "publishing"], phases
    assert w.api("GET", "/api/v1/artifacts/result/candidate")[1]["version"] == r["outputs"][0]["version"]
    second = w.enqueue("fake.10.10.ok")     # identical content: no new version
    assert w.ended(second)["outputs"][0]["version"] == r["outputs"][0]["version"]
    wait(lambda: w.api("GET", "/api/v1/agents")[1]["agents"][0]["state"] == "idle", 5, "the agent is idle")
    assert w.end(a) == 0
    assert os.listdir(w.dir + "/agent/runs") == []
    wait(lambda: w.api("GET", "/api/v1/agents")[1]["agents"] == [], 2, "it has said goodbye")


def commands_for_people():
    a = w.agent()
    path = w.dir + "/spec.json"
    json.dump(make_spec("fake.8.20.ok"), open(path, "w"))
    r = w.command("enqueue", path, "priority=high", "--follow")
    assert r.returncode == 0, r.stderr
    run = r.stdout.split()[0]
    assert "starting at step 0" in r.stdout and "succeeded" in r.stdout, r.stdout
    show = w.command("runs", "show", run[:10], "--table").stdout
    assert "priority     high" in show and "result:v" in show, show
    assert run[:12] in w.command("runs", "--table").stdout
    assert json.loads(w.command("runs").stdout)["runs"][0]["run"] == run
    log = w.command("logs", run)
    assert log.stdout.splitlines()[0] == "starting at step 0", log.stdout
    bad = make_spec("fake.1.1.ok", prority="high")
    bad["config"]["model"]["optim"] = {"lr": "fast"}
    json.dump(bad, open(path, "w"))
    r = w.command("enqueue", path)
    assert r.returncode == 1 and "priority" in r.stderr and "config.model.optim.lr" in r.stderr, r.stderr
    status, problem = w.api("POST", "/api/v1/runs", bad)
    assert status == 422 and {"prority", "config.model.optim.lr"} <= {e["path"] for e in problem["errors"]}, problem
    json.dump(make_spec("fake.2.10.spec"), open(path, "w"))
    assert w.command("enqueue", path, "--wait").returncode == 1
    assert w.command("cancel", "no-such-run").returncode == 1
    w.end(a)
    env = dict(os.environ, SOFTLAUNCH_TOKEN=TOKEN)
    r = subprocess.run([BIN, "runs", "--server", "http://127.0.0.1:9"], capture_output=True, text=True, env=env)
    assert r.returncode == 1 and "127.0.0.1:9" in r.stderr, r.stderr


def enqueue_twice_is_one_run():
    one, two = w.enqueue("fake.1.1.ok", key="k1"), w.enqueue("fake.1.1.ok", key="k1")
    assert one == two
    status, _ = w.api("POST", "/api/v1/runs", make_spec("fake.2.1.ok"), **{"Idempotency-Key": "k1"})
    assert status == 409
    assert w.api("POST", f"/api/v1/runs/{one}/cancel")[1]["state"] == "cancelled"


def agent_killed_another_goes_on():
    a = w.agent("killed")
    run = w.enqueue("fake.40.50.ok")
    w.until(run, lambda r: r["checkpoint_step"])
    a.kill()
    killed = time.monotonic()
    no_worker_left()    # within 5 s; its worker's pipe has closed
    in_time(time.monotonic() - killed, 3)
    b = w.agent("second")
    r = w.until(run, lambda r: r["attempt"] >= 2)
    took = time.monotonic() - killed
    in_time(took, w.lease_ms / 1000 + 2.5)
    r = w.ended(run)
    check_result(run, 40)
    assert r["lost"] == 1 and r["failures"] == 0, r
    assert any(e["data"]["msg"].startswith("starting at step") and e["data"]["msg"] != "starting at step 0"
               for e in w.events(run, "log"))
    w.end(b)


def term_takes_a_large_state_along():
    """Within 15 s, when it leaves in any case; what is not up by then leaves the checkpoint before it."""
    a = w.agent("laden")
    run = w.enqueue("fake.400.20.big")
    before = w.until(run, lambda r: r["checkpoint_step"])["checkpoint_step"]
    start = time.monotonic()
    assert w.end(a) == 0
    took = time.monotonic() - start
    r = w.until(run, lambda r: r["state"] == "queued")
    print(f"# an agent with a state of 100 MB left {took:.1f} s after SIGTERM, its checkpoint of step {r['checkpoint_step']}")
    assert r["checkpoint_step"] >= before and r["failures"] == 0, r
    if took < 14:    # not at its time's end
        assert r["checkpoint_step"] == r["step"] and r["preemptions"] == 1, r
    in_time(took, 15)
    b = w.agent("relieves")
    w.until(run, lambda x: x["attempt"] >= 2 and (x["step"] or 0) > r["checkpoint_step"])
    assert w.events(run, "start")[-1]["data"]["step"] == r["checkpoint_step"]
    w.api("POST", f"/api/v1/runs/{run}/cancel")
    w.ended(run)
    w.end(b)


def term_hands_the_run_over():
    a = w.agent("leaving")
    run = w.enqueue("fake.40.50.ok")
    w.until(run, lambda r: (r["step"] or 0) >= 7)
    start = time.monotonic()
    assert w.end(a) == 0
    took = time.monotonic() - start
    in_time(took, 5)
    r = w.run(run)
    assert r["state"] == "queued" and r["preemptions"] == 1 and r["failures"] == 0, r
    assert r["checkpoint_step"] >= 7, r
    b = w.agent("next")
    r = w.ended(run)
    check_result(run, 40)
    steps = [e["data"]["step"] for e in w.events(run, "metric") if "loss" in e["data"]]
    assert len(steps) == 40, steps    # no step was trained twice
    w.end(b)


def stopped_agent_writes_nothing_after_its_lease():
    a = w.agent("stopped")
    run = w.enqueue("fake.60.50.ok")
    w.until(run, lambda r: r["checkpoint_step"])
    a.send_signal(signal.SIGSTOP)
    b = w.agent("successor")
    w.until(run, lambda r: r["attempt"] >= 2 and (r["step"] or 0) > 20)
    a.send_signal(signal.SIGCONT)
    r = w.ended(run)
    check_result(run, 60)
    assert r["attempt"] == 2, r
    events = w.events(run)
    taken = next(i for i, e in enumerate(events) if e["attempt"] == 2)
    assert all(e["attempt"] == 2 for e in events[taken:])
    assert "the lease is lost" in open(a.log).read()
    other = w.enqueue("fake.3.10.ok")   # and it is of use again
    w.end(b)
    w.ended(other)
    w.end(a)


def redis_restarts_in_the_middle():
    a = w.agent("through")
    run = w.enqueue("fake.40.50.ok")
    w.until(run, lambda r: (r["step"] or 0) >= 3)
    w.end(w.redis)
    time.sleep(0.3)
    w.start_redis()
    r = w.ended(run)
    check_result(run, 40)
    assert r["attempt"] == 1 and r["lost"] == 0, r
    w.end(a)


def redis_away_past_the_lease():
    a = w.agent("patient")
    run = w.enqueue("fake.40.50.ok")
    w.until(run, lambda r: (r["step"] or 0) >= 3)
    before = worker_pids()
    w.end(w.redis)
    time.sleep(w.lease_ms / 1000 * 1.5)
    paused = checkpoint_of("patient")
    time.sleep(w.lease_ms / 1000)
    assert checkpoint_of("patient") == paused   # nothing is computed under a lease that may be another's
    w.start_redis()
    r = w.ended(run)
    check_result(run, 40)
    assert r["attempt"] == 1 and r["failures"] == 0, r
    logs = [e["data"]["msg"] for e in w.events(run, "log")]
    assert logs.count("starting at step 0") == 1 and not any("starting at step" in m and m[-1] != "0" for m in logs), logs
    assert len(before) == 1     # and that one was it all the time: nothing was loaded again
    w.end(a)


def a_paused_worker_is_killed_when_the_run_is_anothers():
    link = Link(w.dir + "/cut.sock", w.sock)
    a = w.agent("cut-off", more=["--redis", link.url])
    run = w.enqueue("fake.60.50.ok")
    w.until(run, lambda r: r["checkpoint_step"])
    first = worker_pids()
    link.cut()
    b = w.agent("heir")
    w.until(run, lambda r: r["attempt"] >= 2 and (r["step"] or 0) > 10)
    assert first[0] in worker_pids()    # it waits; the agent does not know yet
    link.mend()
    wait(lambda: first[0] not in worker_pids(), 4, "the first worker is killed")
    check_result(w.ended(run)["run"], 60)
    assert "the lease is lost" in open(a.log).read()
    w.end(a)
    w.end(b)


def a_paused_worker_obeys_term_and_cancel():
    """Redis away, the agent told to leave: it leaves, and the next one goes on; the same with its own Redis back."""
    link = Link(w.dir + "/cut2.sock", w.sock)
    a = w.agent("leaves", more=["--redis", link.url])
    run = w.enqueue("fake.40.50.ok")
    w.until(run, lambda r: r["checkpoint_step"])
    link.cut()
    time.sleep(w.lease_ms / 1000 * 1.3)
    start = time.monotonic()
    w.end(a)
    in_time(time.monotonic() - start, 3)
    no_worker_left()
    b = w.agent("next")
    check_result(w.ended(run)["run"], 40)
    w.end(b)
    link.mend()
    a = w.agent("cancels", more=["--redis", link.url])
    run = w.enqueue("fake.200.50.ok")
    w.until(run, lambda r: (r["step"] or 0) >= 2)
    link.cut()
    time.sleep(w.lease_ms / 1000 * 0.9)     # paused, and its lease still there
    w.api("POST", f"/api/v1/runs/{run}/cancel")
    link.mend()
    assert w.ended(run, 6)["state"] == "cancelled"
    no_worker_left()
    w.end(a)


def redis_down_at_start():
    w.end(w.redis)
    a = w.agent("early")
    wait(lambda: "Redis is away" in open(a.log).read(), 5, "the agent says so")
    status, page = w.api("GET", "/api/v1/runs")     # history still opens
    assert status == 200 and page["live"] is False, page
    assert w.api("GET", "/api/v1/runs/" + "0" * 32)[0] == 503
    w.start_redis()
    run = w.enqueue("fake.3.10.ok")
    w.ended(run)
    check_result(run, 3)
    assert open(a.log).read().count("Redis is away") <= 2
    w.end(a)


def cancel_while_training_and_while_in_line():
    a = w.agent()
    run = w.enqueue("fake.200.50.ok")
    waiting = w.enqueue("fake.200.50.ok")
    w.until(run, lambda r: (r["step"] or 0) >= 2)
    assert w.api("POST", f"/api/v1/runs/{waiting}/cancel")[1]["state"] == "cancelled"
    start = time.monotonic()
    assert w.api("POST", f"/api/v1/runs/{run}/cancel")[1]["state"] == "cancelling"
    r = w.ended(run, 5)
    in_time(time.monotonic() - start, 2)
    assert r["state"] == "cancelled" and not r["outputs"], r
    assert w.run(waiting)["state"] == "cancelled"
    stubborn = w.enqueue("fake.200.50.stubborn")
    w.until(stubborn, lambda r: (r["step"] or 0) >= 2)
    w.api("POST", f"/api/v1/runs/{stubborn}/cancel")
    assert w.ended(stubborn, 8)["state"] == "cancelled"     # killed after the grace
    no_worker_left()
    w.end(a)


def crashes_are_retried_then_dead():
    a = w.agent()
    once = w.enqueue("fake.10.5.crash-once", retry={"max_attempts": 2})
    always = w.enqueue("fake.10.5.crash", retry={"max_attempts": 1})
    r = w.ended(always)
    assert r["state"] == "dead" and r["cause"] == "crash" and "signal 9" in r["msg"], r
    assert "about to crash" in r["log_tail"], r["log_tail"]
    r = w.ended(once)
    assert r["failures"] == 1 and r["attempt"] == 2, r
    check_result(once, 10)
    w.end(a)


def wrong_requests_fail_for_good():
    a = w.agent()
    cases = {
        w.enqueue("fake.5.5.spec"): ("spec", "no row has"),
        w.enqueue("fake.5.5.ok", model="missing:latest"): ("not_found", "missing"),
        w.enqueue("fake.5.5.ok", model={"ref": "model:latest", "sha256": "0" * 64}): ("data", "0" * 64),
        w.enqueue("fake.5.5.ok", model="/etc/passwd"): ("denied", "--allow-path"),
    }
    for run, (cause, text) in cases.items():
        r = w.ended(run)
        assert r["state"] == "failed" and r["cause"] == cause and text in r["msg"], r
        assert r["attempt"] == 1 and any(text in line for line in r["log_tail"]), r
    w.end(a)


def server_down_while_publishing():
    a = w.agent()
    run = w.enqueue("fake.20.50.ok")
    w.until(run, lambda r: (r["step"] or 0) >= 15)
    w.end(w.server)
    time.sleep(1.5)
    w.start_server(w.port)
    check_result(w.ended(run)["run"], 20)
    assert w.run(run)["attempt"] == 1
    w.end(a)


def many_log_lines():
    a = w.agent()
    run = w.enqueue("fake.20.5.spam")
    r = w.ended(run)
    lines = [e["data"]["msg"] for e in w.events(run, "log")
             if e["data"]["msg"].startswith("line ") and e["attempt"] == r["attempt"]]    # a busy machine may have lost a lease
    assert lines == [f"line {i} of step {s}" for s in range(1, 21) for i in range(200)], len(lines)
    w.end(a)


def several_agents_share_the_work():
    agents = [w.agent(f"a{i}", work="shared") for i in range(3)]
    runs = [w.enqueue(f"fake.5.10.ok.{i}") for i in range(9)]
    for run in runs:
        assert w.ended(run)["state"] == "succeeded"
    assert all(w.run(run)["attempt"] == 1 for run in runs)
    for a in agents:
        w.end(a)


def slots_run_side_by_side():
    a = w.agent(more=["--slots", "3"])
    runs = [w.enqueue(f"fake.400.20.ok.{i}") for i in range(4)]
    def training():
        return [r for r in runs if w.run(r)["state"] == "running" and (w.run(r)["step"] or 0) >= 2]
    wait(lambda: len(training()) == 3, 15, "three runs train")
    waiting, = [r for r in runs if w.run(r)["state"] == "queued"]
    busy = w.api("GET", "/api/v1/agents")[1]["agents"][0]
    assert busy["slots"] == 3 and sorted(r["run"] for r in busy["runs"]) == sorted(training()), busy
    cancelled, *others = training()
    w.api("POST", f"/api/v1/runs/{cancelled}/cancel")
    assert w.ended(cancelled, 5)["state"] == "cancelled"
    w.until(waiting, lambda r: (r["step"] or 0) >= 2, 15)    # the fourth takes its place
    assert all(w.run(r)["attempt"] == 1 for r in others)    # undisturbed
    assert w.end(a) == 0
    for r in runs:
        if r != cancelled:
            assert w.run(r)["state"] == "succeeded" or (w.run(r)["state"], w.run(r)["preemptions"]) == ("queued", 1), w.run(r)
    b = w.agent(more=["--slots", "2", "--exit-when-idle"])
    assert b.wait(60 * PATIENCE) == 0
    for r in runs:
        if r != cancelled:
            check_result(r, 400)
    assert w.agent(more=["--exit-when-idle"]).wait(10 * PATIENCE) == 0    # nothing to do at all


def a_lost_slot_disturbs_no_other():
    a = w.agent(more=["--slots", "2"])
    one, two = w.enqueue("fake.200.10.ok.1"), w.enqueue("fake.150.20.ok.2")
    for r in (one, two):
        w.until(r, lambda r: (r["step"] or 0) >= 2)
    w.cli("HSET", "{softlaunch}:run:" + one, "lease", "0" * 32)    # as if it were another's
    assert w.ended(two)["attempt"] == 1
    check_result(two, 150)
    assert "the lease is lost" in open(a.log).read()
    w.end(a)
    w.cli("HSET", "{softlaunch}:run:" + one, "state", "cancelled")


tap(w, [a_run_from_enqueue_to_artifact, commands_for_people, enqueue_twice_is_one_run, agent_killed_another_goes_on,
     term_takes_a_large_state_along, term_hands_the_run_over, stopped_agent_writes_nothing_after_its_lease, redis_restarts_in_the_middle,
     redis_away_past_the_lease,
     a_paused_worker_is_killed_when_the_run_is_anothers, a_paused_worker_obeys_term_and_cancel, redis_down_at_start, cancel_while_training_and_while_in_line,
     crashes_are_retried_then_dead, wrong_requests_fail_for_good, server_down_while_publishing, many_log_lines,
     several_agents_share_the_work, slots_run_side_by_side,
     a_lost_slot_disturbs_no_other])
