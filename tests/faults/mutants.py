#!/usr/bin/env python3
"""The checker itself is tested: scripts that are wrong in one place (mutants/*.sed) run live, in server and agents, under
stopped and killed owners; it must find a violation with each, and none with the right ones."""
import concurrent.futures, glob
from arena import *
import queue_fixture

BUILD = os.path.realpath(os.environ.get("SL_BUILD", "build"))
PARALLEL = int(os.environ.get("SL_PARALLEL", 3))
POINTS = ["append.before", "append.after", "renew.before", "checkpoint.before", "publish.before", "fail.before", "release.before", "start.after"]
# A run that has not ended by then is stuck: an undisturbed one takes a second. The right scripts have all the time that a
# busy machine takes.
END_S, STOP_S, RIGHT_END_S, RIGHT_STOP_S = 25, 12, 150, 60
queue_fixture.PATIENCE = 1


def written(arena):
    """The version records, unless they never are: others are about to be, too, so this is no longer than it takes."""
    limit = time.monotonic() + arena.end_s
    while arena.left()["outbox"] and time.monotonic() < limit:
        time.sleep(0.1)


def gone_on(arena, old, queue, releasing):
    """Waits until a woken owner has said what it was about to say: it has ended, or has run the queue's next run."""
    run = None if releasing else arena.add_run(queue, steps=1)
    limit = time.monotonic() + arena.end_s
    while old.poll() is None and time.monotonic() < limit:
        if run and arena.run(run)["state"] in checker.FINAL:
            return
        time.sleep(0.1)
    if run:    # scripts that are wrong may leave it
        arena.api("POST", f"/api/v1/runs/{run}/cancel")


def owner_is_replaced(arena, point, kill):
    """One owner stops at a point, another one finishes the run, the first wakes up (or is killed). Violations."""
    queue = f"{point}.{'kill' if kill else 'stop'}"
    # Long enough for a renewal to be due, and for the new owner to name a checkpoint behind the old one's.
    steps = 60 if point.startswith(("renew", "checkpoint")) else STEPS
    run = arena.add_run(queue, "crash" if point.startswith("fail") else "ok", steps)
    old = arena.start_agent(queue + ".old", queue, point=point)
    until_stopped(old, point == "release.before", arena.stop_s)
    if kill:
        kids = children(old.pid)
        old.kill()
        for p in kids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(p, signal.SIGCONT)
    new = arena.start_agent(queue + ".new", queue)
    limit = time.monotonic() + arena.end_s
    while arena.run(run)["state"] not in checker.FINAL and time.monotonic() < limit:
        time.sleep(0.1)
    written(arena)
    before = arena.run(run)
    arena.end(new)
    if not kill:
        wake(old.pid)
        gone_on(arena, old, queue, point == "release.before")
    found, record, _ = arena.judge(run, steps)
    if before["state"] in checker.FINAL:
        found += checker.changed(run, before, record)
    arena.end(old)
    return found


def an_answer_is_lost(arena):
    """What the agent has sent is done, the answer does not come, the connection breaks: it says everything again."""
    line = Line(f"{arena.dir}/deaf.sock", arena.sock)
    web = Line(("127.0.0.1", 0), ("127.0.0.1", arena.port))
    run = arena.add_run("deaf", steps=60)
    agent = arena.start_agent("deaf", "deaf", lines=[line, web])
    arena.until(run, lambda r: (r["step"] or 0) >= 5, arena.end_s)
    for _ in range(3):
        line.deaf = True
        time.sleep(0.15)
        line.cut()
        line.deaf = line.is_cut = False
        time.sleep(0.1)
    arena.ended(run, arena.end_s)
    written(arena)
    found, _, _ = arena.judge(run, 60)
    arena.end(agent)
    line.close()
    web.close()
    return found


def a_publication_comes_late(arena):
    """The request of an owner that has lost its lease, after another one has published other bytes."""
    run = arena.add_run("late")
    old = arena.start_agent("late.old", "late", point="start.after")
    wait(lambda: stopped(old.pid), arena.stop_s, "the owner is stopped")
    lease = arena.cli("hget", "{softlaunch}:run:" + run, "lease")
    new = arena.start_agent("late.new", "late")
    before = arena.ended(run, arena.end_s)
    path = arena.dir + "/late"
    open(path, "w").write("what an old owner has made\n")
    r = arena.command("artifact", "put", "late", path)
    assert r.returncode == 0, r.stderr
    manifest = arena.api("GET", "/api/v1/artifacts/late/v0")[1]["manifest"]
    status, reply = arena.api("POST", f"/api/v1/runs/{run}/publish", {"lease": lease, "outputs": [
        {"output": "prompts", "artifact": arena.acked[run], "manifest": manifest, "aliases": []}]})
    written(arena)
    found, record, _ = arena.judge(run)
    found += checker.changed(run, before, record)
    if status < 400:
        found.append(("stale", f"run {run[:12]}: a publication under a lease that is gone was taken: {reply}"))
    old.kill()
    wake(old.pid)
    old.wait()
    arena.end(new)
    return found


def or_stuck(scenario, *args):
    try:
        return scenario(*args)
    except AssertionError as e:    # what an undisturbed run does in a second did not happen
        return [("stuck", str(e))]


def try_scripts(program):
    arena = Arena(BUILD, program, small_disks=False)
    right = program == programs["as they are"]
    arena.end_s, arena.stop_s = (RIGHT_END_S, RIGHT_STOP_S) if right else (END_S, STOP_S)
    try:
        # Killed right behind its claim, an owner has renewed nothing, however slow the machine.
        cases = [(p, False) for p in POINTS] + [("start.after", True), ("claim.after", True)]
        with concurrent.futures.ThreadPoolExecutor(len(cases) + 2) as pool:
            others = [pool.submit(or_stuck, f, arena) for f in (an_answer_is_lost, a_publication_comes_late)]
            found = sum(pool.map(lambda c: or_stuck(owner_is_replaced, arena, *c), cases), [])
            found = sum([f.result() for f in others], found)
        return found + checker.check_left(arena.left())
    finally:
        arena.close()


programs = {"as they are": os.path.join(BUILD, "faults", "softlaunch")}
for path in sorted(glob.glob(os.path.join(HERE, "mutants", "*.sed"))):
    name = os.path.basename(path)[:-4]
    programs[name] = os.path.join(BUILD, "faults", "mutant-" + name)
only = os.environ.get("SL_ONLY", "")
failed = 0
with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
    futures = {pool.submit(try_scripts, path): name for name, path in programs.items() if only in name}
    for f in concurrent.futures.as_completed(futures):
        name = futures[f]
        try:
            found = f.result()
            good = not found if name == "as they are" else bool(found)
        except Exception as e:
            found, good = [("harness", f"{type(e).__name__}: {e}"[:300])], False
        failed += not good
        print(("ok" if good else "not ok") + f" - scripts {name}: {len(found)} violations", flush=True)
        for kind, text in found[:1 if good else 10]:
            print(f"#   {kind}: {text}", flush=True)
sys.exit(1 if failed else 0)
