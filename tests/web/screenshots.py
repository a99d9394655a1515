#!/usr/bin/env python3
"""Every page at desktop and phone width, light and dark: a picture in build/screenshots, and axe-core's opinion of it.
build/reports/screenshots.json: pages (pictures made), accessibility_serious (faults that axe calls serious or critical).
usage: tests/web/screenshots.py [NAME...]   only pages with such a name"""
import json, os, subprocess, sys, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from browser import Browser, not_run, require
require()
from job_fixture import TOKEN, Jobs, make_job

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
BUILD = os.environ.get("SL_BUILD", os.path.join(ROOT, "build"))
# name, width, height, dark, phone, asks axe: both widths and both sets of colours once
LOOKS = [("desktop-light", 1280, 900, False, False, True), ("desktop-dark", 1280, 900, True, False, False),
         ("phone-light", 390, 844, False, True, False), ("phone-dark", 390, 844, True, True, True)]


def axe_source():
    python = subprocess.run([os.path.join(ROOT, "tests", "peer-python.sh"), "web"], capture_output=True, text=True)
    if python.returncode:
        not_run("axe-core could not be installed: " + python.stderr.strip()[-200:])
    path = subprocess.run([python.stdout.strip(), "-c", "import axe_core_python, os; print(os.path.dirname(axe_core_python.__file__))"],
                          capture_output=True, text=True, check=True).stdout.strip()
    return open(path + "/axe.min.js", encoding="utf-8").read()


def fill(w):
    """Runs of every kind; their names and ids."""
    w.agent()
    runs = {}
    spec = make_job("colours", trainer__max_steps=400, trainer__val_check_interval=50, exp_manager__create_early_stopping_callback=False)
    spec["project"] = "paint"
    runs["first"] = w.submit(spec)
    spec["name"] = "colours-2"
    runs["second"] = w.submit(spec, "model.optim.lr=0.005")
    broken = make_job("wrong-model")
    broken["model"], broken["retry"] = "smollm3:latest", {"infrastructure": 1, "max_attempts": 1}
    runs["broken"] = w.submit(broken)
    for r in runs.values():
        w.ended(r, 300)
    for i, priority in enumerate(("high", "medium", "medium", "low")):
        waiting = make_job(f"wants-a-gpu-{i + 1}")
        waiting["resources"], waiting["priority"] = {"gpus": 1}, priority
        runs["waiting"] = w.submit(waiting)
    out = w.run(runs["second"])["outputs"][0]
    if w.api("PUT", f"/api/v1/registry/colours/stages/production", {"artifact": out["artifact"], "version": out["version"]})[0] != 200:
        w.api("PUT", f"/api/v1/artifacts/{out['artifact']}/aliases/production", {"version": out["version"]})
    long = make_job("going-on", trainer__max_steps=2000000, trainer__val_check_interval=100, exp_manager__create_early_stopping_callback=False)
    runs["running"] = w.submit(long)
    w.until(runs["running"], lambda r: (r["step"] or 0) > 150, 300)
    return runs


def settle(b):
    """Until what the page shows has stopped to grow."""
    b.until(lambda: b.js("return document.readyState === 'complete' && document.querySelector('main h1') !== null && !document.querySelector('[aria-busy=true]')"), "the page")
    last, since = None, time.monotonic()
    while time.monotonic() - since < 0.4:
        now = b.js("return document.querySelectorAll('main *').length")
        if last is None or abs(now - last) > 5:
            last, since = now, time.monotonic()
        time.sleep(0.1)


def main():
    only, axe = sys.argv[1:], axe_source()
    w = Jobs(lease_ms=20000)
    runs = fill(w)
    pages = [("runs", "/"), ("run-live", "/runs/" + runs["running"]), ("queues", "/queues"), ("agents", "/agents"), ("run", "/runs/" + runs["first"]), ("run-failed", "/runs/" + runs["broken"]),
             ("compare", f"/compare?runs={runs['first']},{runs['second']}"), ("new", "/new"), ("clone", "/new?from=" + runs["first"]),
             ("artifacts", "/artifacts"), ("artifact", "/artifacts/colours"), ("registry", "/registry"), ("login", None)]
    if w.api("GET", "/api/v1/registry/colours")[0] == 200:
        pages.append(("model", "/registry/colours"))
    os.makedirs(f"{BUILD}/screenshots", exist_ok=True)
    os.makedirs(f"{BUILD}/reports", exist_ok=True)
    b, made, faults, wide, failed = Browser(w.url), 0, [], [], []
    try:
        b.sign_in(TOKEN)
        for name, path in sorted(pages, key=lambda p: p[1] is None):    # the sign-in last: it needs nobody signed in
            if only and not any(o in name for o in only):
                continue
            if name == "run":    # what follows needs nothing that runs
                w.api("POST", f"/api/v1/runs/{runs['running']}/cancel")
            if path is None:
                b.click("button", "Sign out")
                b.sees("Sign in")
            for look, width, height, dark, phone, ask in LOOKS:
                b.look(width, height, dark, phone)
                b.open(path or "/login")
                settle(b)
                if name in ("run", "run-live", "compare"):
                    b.until(lambda: b.js("const c = document.querySelector('[data-plot=Loss] canvas'); return c && c.dataset.points > 1"), "the chart")
                b.picture(f"{BUILD}/screenshots/{name}-{look}.png")
                made += 1
                sideways = b.js("return document.documentElement.scrollWidth - innerWidth")
                if sideways > 1:
                    wide.append(f"{name} {look}: {sideways} pixels")
                if not ask:
                    continue
                b.js(axe)
                found = b.driver.execute_async_script("const done = arguments[0]; axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations), e => done([{id: String(e), impact: 'critical', nodes: []}]))")
                for v in found:
                    line = {"page": name, "look": look, "id": v["id"], "impact": v["impact"], "nodes": [n["html"][:160] for n in v["nodes"][:3]]}
                    if v["impact"] in ("serious", "critical"):
                        faults.append(line)
                    elif look == "desktop-light":
                        print(f"# {v['impact']}: {name}: {v['id']} {line['nodes'][:1]}")
        failed = [l for l in b.console() if "Content Security Policy" in l or "Uncaught" in l]
    finally:
        b.close()
    json.dump({"pages": made, "accessibility_serious": len(faults), "faults": faults, "wider_than_the_window": wide}, open(f"{BUILD}/reports/screenshots.json", "w"), indent=1)
    for f in faults:
        print("#", json.dumps(f))
    print(f"{'not ' if faults else ''}ok - axe-core finds no serious fault on {made} pages" + (f": {len(faults)}" if faults else ""))
    print(f"{'not ' if wide else ''}ok - no page is wider than its window" + (f": {'; '.join(wide)}" if wide else ""))
    print(f"{'not ' if failed else ''}ok - the policy stops nothing and no script fails" + (f": {failed[:3]}" if failed else ""))
    sys.exit(1 if faults or wide or failed else 0)


main()
