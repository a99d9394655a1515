#!/usr/bin/env python3
"""Every page, with data and without, at desktop and phone width, light and dark: a picture in build/screenshots, axe-core's
opinion of it, and how far its parts jumped while it came (Chromium's layout shift; 0.1 and less counts as steady).
build/reports/screenshots.json: pages (pictures made), accessibility_serious (faults that axe calls serious or critical).
usage: tests/web/screenshots.py [NAME...]   only pages with such a name"""
import json, os, subprocess, sys, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from browser import Browser, not_run, require
require()
from job_fixture import TOKEN, Jobs, World, make_job

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
BUILD = os.environ.get("SL_BUILD", os.path.join(ROOT, "build"))
# name, width, height, dark, phone
LOOKS = [("desktop-light", 1280, 900, False, False), ("desktop-dark", 1280, 900, True, False),
         ("phone-light", 390, 844, False, True), ("phone-dark", 390, 844, True, True)]
SHIFT_MAX = 0.1
AXE = """const done = arguments[0];
axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations), e => done([{id: String(e), impact: 'critical', nodes: []}]))"""
SHIFT = """const done = arguments[0]; let sum = 0;
new PerformanceObserver(l => { for (const e of l.getEntries()) if (!e.hadRecentInput) sum += e.value; }).observe({type: 'layout-shift', buffered: true});
setTimeout(() => done(sum), 50)"""


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


class Pages:
    def __init__(self, only):
        self.only, self.axe, self.made = only, axe_source(), 0
        self.faults, self.wide, self.jumps, self.failed, self.least = [], [], [], [], []

    def look(self, b, name, path, ready=lambda: True, before=None):
        """One page in all looks. before(): opens what is to be seen on it."""
        if self.only and not any(o in name for o in self.only):
            return
        for look, width, height, dark, phone in LOOKS:
            b.look(width, height, dark, phone)
            b.open(path)
            settle(b)
            b.until(ready, f"{name} is there")
            shift = b.driver.execute_async_script(SHIFT)
            if before:
                before()
                settle(b)
            b.picture(f"{BUILD}/screenshots/{name}-{look}.png")
            self.made += 1
            sideways = b.js("return document.documentElement.scrollWidth - innerWidth")
            if sideways > 1:
                self.wide.append(f"{name} {look}: {sideways} pixels")
            if shift > SHIFT_MAX:
                self.jumps.append(f"{name} {look}: {shift:.2f}")
            b.js(self.axe)
            for v in b.driver.execute_async_script(AXE):
                line = {"page": name, "look": look, "id": v["id"], "impact": v["impact"], "nodes": [n["html"][:160] for n in v["nodes"][:3]]}
                (self.faults if v["impact"] in ("serious", "critical") else self.least).append(line)

    def end(self, b):
        self.failed += [l for l in b.console() if "Content Security Policy" in l or "Uncaught" in l]
        b.close()

    def report(self):
        json.dump({"pages": self.made, "accessibility_serious": len(self.faults), "accessibility_other": len(self.least), "faults": self.faults + self.least,
                   "wider_than_the_window": self.wide, "jumping": self.jumps}, open(f"{BUILD}/reports/screenshots.json", "w"), indent=1)
        for f in self.faults + self.least:
            print("#", json.dumps(f))
        said = [("axe-core finds no serious fault", self.faults), ("no page is wider than its window", self.wide),
                (f"nothing jumps while a page comes (layout shift at most {SHIFT_MAX})", self.jumps),
                ("the policy stops nothing and no script fails", self.failed)]
        for what, bad in said:
            print(f"{'not ' if bad else ''}ok - {what} ({self.made} pages)" + (f": {len(bad)}: {bad[:6]}" if bad else ""))
        return 1 if any(bad for _, bad in said) else 0


def empty_pages(p):
    w = World(lease_ms=20000)
    b = Browser(w.url)
    try:
        b.sign_in(TOKEN)
        for name, path in (("runs", "/"), ("queues", "/queues"), ("agents", "/agents"), ("artifacts", "/artifacts"), ("registry", "/registry"), ("compare", "/compare"),
                           ("run", "/runs/" + "0" * 32)):
            p.look(b, name + "-none", path)
    finally:
        p.end(b)
        w.close()


def full_pages(p):
    w = Jobs(lease_ms=20000)
    runs = fill(w)
    assert w.api("PUT", "/api/v1/jobs/paint-colours", {"from": runs["second"]})[0] == 200
    b = Browser(w.url)
    chart = lambda: " points" in b.text("[data-plot=Loss] .sr")    # said also where the chart is out of sight
    dialog = lambda: b.find("dialog[open]")
    try:
        b.sign_in(TOKEN)
        p.look(b, "runs", "/")
        p.look(b, "run-live", "/runs/" + runs["running"], chart)
        p.look(b, "queues", "/queues")
        p.look(b, "agents", "/agents")
        w.api("POST", f"/api/v1/runs/{runs['running']}/cancel")    # what follows needs nothing that runs
        p.look(b, "run", "/runs/" + runs["first"], chart)
        p.look(b, "run-numbers", "/runs/" + runs["first"], chart, lambda: b.click("figure button", "Numbers"))
        for part in ("predictions", "results", "lineage", "configuration"):
            p.look(b, "run-" + part, "/runs/" + runs["first"], chart,
                   lambda: b.js("document.getElementById(arguments[0]).scrollIntoView()", part))
        p.look(b, "run-failed", "/runs/" + runs["broken"])
        p.look(b, "compare", f"/compare?runs={runs['first']},{runs['second']}", chart)
        p.look(b, "new", "/new")
        p.look(b, "clone", "/new?from=" + runs["first"])
        p.look(b, "job", "/new?job=paint-colours")
        p.look(b, "artifacts", "/artifacts")
        p.look(b, "artifact", "/artifacts/colours")
        p.look(b, "registry", "/registry")
        p.look(b, "model", "/registry/colours")
        p.look(b, "columns", "/", before=lambda: (b.click("button", "Columns"), dialog()))
        p.look(b, "promote", "/artifacts/colours", before=lambda: (b.click("main button", "Promote"), dialog()))
        p.look(b, "keys", "/agents", before=lambda: (b.js("dispatchEvent(new KeyboardEvent('keydown', {key: '?'}))"), dialog()))
        b.open("/")
        b.click("button", "Sign out")
        b.sees("Sign in")
        p.look(b, "login", "/login")
    finally:
        p.end(b)
        w.close()


def main():
    for folder in ("screenshots", "reports"):
        os.makedirs(f"{BUILD}/{folder}", exist_ok=True)
    p = Pages(sys.argv[1:])
    empty_pages(p)
    full_pages(p)
    sys.exit(p.report())


main()
