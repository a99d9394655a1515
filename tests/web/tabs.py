#!/usr/bin/env python3
"""Seven tabs of one browser on seven running runs stay live at once, over one stream: a browser opens only six connections
to a server. Also: a tab that comes back after the server was away goes on without a reload and without a gap."""
import os, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from browser import Browser, require
require()
from queue_fixture import TOKEN, World, tap, wait

TABS = 7
STEPS = 100000    # the runs outlast the test
w = World(lease_ms=20000)
w.put("model", "m\n")
w.put("data", "d\n")
b = Browser(w.url, 900, 700)
tabs, runs = [], []


def last_step():
    return int(b.js("const t = document.querySelector('.bar-text'); const m = t && t.textContent.match(/step ([\\d,]+)/); return m ? m[1].replace(/,/g, '') : 0"))


def each(f):
    out = []
    for handle in tabs:
        b.driver.switch_to.window(handle)
        out.append(f())
    return out


def seven_tabs_stay_live():
    for i in range(TABS):
        w.agent(f"agent{i}")
        runs.append(w.enqueue(f"fake.{STEPS}.100.ok.{i}"))
    for run in runs:
        w.until(run, lambda r: r["state"] == "running", 120)
    b.sign_in(TOKEN)
    tabs.append(b.driver.current_window_handle)
    b.open("/runs/" + runs[0])
    for run in runs[1:]:
        # As a link opened in a new tab: it has the session, and the same browser's connections.
        b.js("open(arguments[0], '_blank')", "/runs/" + run)
        b.driver.switch_to.window(wait(lambda: next((x for x in b.driver.window_handles if x not in tabs), None), 60, "a new tab"))
        tabs.append(b.driver.current_window_handle)
    each(lambda: b.until(lambda: last_step() > 0, "the first steps"))
    for _ in range(3):
        before = each(last_step)
        for i, handle in enumerate(tabs):
            b.driver.switch_to.window(handle)
            b.until(lambda: last_step() > before[i], f"tab {i} goes on")
    assert len(set(each(lambda: b.text("h1")))) == TABS


def one_connection_streams():
    """While all seven are open another page still gets its answers: the tabs do not hold the six connections."""
    b.driver.switch_to.window(tabs[0])
    ms = b.js("const t = performance.now(); return fetch('/api/v1/health', {cache: 'no-store'}).then(r => r.json()).then(() => performance.now() - t)")
    assert ms < 20000, ms


def goes_on_after_the_server_was_away():
    w.end(w.server)
    w.start_server(port=w.port)
    before = each(last_step)
    for i, handle in enumerate(tabs):
        b.driver.switch_to.window(handle)
        b.until(lambda: last_step() > before[i] + 3, f"tab {i} goes on after the server was away", 120)
    b.driver.switch_to.window(tabs[0])
    # No gap: the chart has every step that the run's events have. Both numbers are of one drawing.
    known = max(e["data"]["step"] for e in w.events(runs[0], "metric"))
    b.click("[data-plot=Loss] button", "Numbers")
    def complete():
        words, newest = b.js("const f = document.querySelector('[data-plot=Loss]'); return [f.querySelector('.sr').textContent, f.querySelector('tbody tr').cells[1].textContent]")
        return int(newest) >= known and f"loss: {newest} points" in words
    b.until(complete, f"{known} steps in the chart", 240)


try:
    tap(w, [seven_tabs_stay_live, one_connection_streams, goes_on_after_the_server_was_away])
finally:
    b.close()
