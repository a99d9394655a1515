#!/usr/bin/env python3
"""The story without a mouse: sign in, write a spec in the form, enqueue, watch, move to another priority, compare, promote. At every stop of
the Tab key the place can be seen (an outline, within the window) and has a name for a screen reader (Chromium's own computation)."""
import os, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from browser import Browser, require
require()
from queue_fixture import TOKEN, World, tap
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

STOPS_MAX = 200    # of one page
w = World(lease_ms=20000)
w.put("tiny", "m\n")
w.put("words", "d\n")
b = Browser(w.url)
runs = []


def press(*keys, hold=None):
    chain = ActionChains(b.driver)
    (chain.key_down(hold).send_keys(*keys).key_up(hold) if hold else chain.send_keys(*keys)).perform()


def write(field, text):
    tab_to(field)
    press("a", hold=Keys.CONTROL)
    press(text)


def here():
    """What has the focus: its name, tag, and whether one sees where it is."""
    try:
        return look_at(b.driver.switch_to.active_element)
    except StaleElementReferenceException:    # the page was drawn anew in between
        return here()


def look_at(e):
    tag, seen, inside = b.js("""const e = arguments[0], s = getComputedStyle(e), r = e.getBoundingClientRect();
        return [e.tagName, s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 1, r.bottom > 0 && r.top < innerHeight && r.right > 0 && r.left < innerWidth]""", e)
    return e, e.accessible_name, tag, seen and inside


def tab_to(name, tag=None, back=False):
    """Presses Tab until what has the focus is called so; each stop on the way has a name and is seen."""
    names = []
    for _ in range(STOPS_MAX):
        press(Keys.TAB, hold=Keys.SHIFT if back else None)
        e, called, is_tag, seen = here()
        if is_tag in ("BODY", "HTML"):
            names.append("(out)")
            continue
        assert called, f"no name: {e.get_attribute('outerHTML')[:200]}"
        assert seen, f"the focus is not seen on {called}: {e.get_attribute('outerHTML')[:200]}"
        names.append(called)
        if name in called and (tag is None or is_tag == tag):
            return e
    raise AssertionError(f"Tab never comes to {name!r}: {names[:60]}")


def signs_in():
    b.open("/login?to=/")
    b.until(lambda: b.driver.switch_to.active_element.accessible_name == "Token", "the field has the focus at once")
    press(TOKEN, Keys.ENTER)
    b.sees("No runs yet")


def writes_a_spec():
    b.js("document.activeElement.blur()")
    press("g", "n")
    b.sees("The whole spec")
    for field, text in (("Name", "fake.3.10.ok.first"), ("Project", "paint"), ("Base model", "tiny:latest"), ("Training rows", "words:latest/words.jsonl"),
                        ("Artifact", "colours")):
        write(field, text)
    tab_to("Enqueue", "BUTTON")
    b.until(lambda: b.find("button.primary", "Enqueue").is_enabled(), "the spec is valid")
    press(Keys.ENTER)
    b.until(lambda: "/runs/" in b.driver.current_url, "the run's page")
    runs.append(b.driver.current_url.rsplit("/", 1)[1])


def moves_it_to_another_priority():
    press("g", "q")
    b.sees("fake.3.10.ok.first")
    tab_to("Priority of fake.3.10.ok.first", "SELECT")
    press("h")    # high
    w.until(runs[0], lambda r: r["priority"] == "high", 60)
    b.find(f"[data-priority=high] [data-run='{runs[0]}']")
    b.until(lambda: here()[1] == "Priority of fake.3.10.ok.first", "the focus goes with the run")


def pauses_and_resumes_a_queue():
    for button, state in (("Pause default", "paused"), ("Resume default", "active")):
        tab_to(button, "BUTTON", back=True)
        press(Keys.ENTER)
        b.until(lambda: w.api("GET", "/api/v1/queues")[1]["queues"][0]["state"] == state, f"the queue is {state}")
        b.find(f".queue .badge.{state}")
        b.until(lambda: here()[2] == "BUTTON" and "default" in here()[1], "the focus stays on the queue's buttons")


def watches_and_clones():
    w.agent()
    w.ended(runs[0], 120)
    press("g", "r")
    b.find("tr[data-run]")
    tab_to("fake.3.10.ok.first", "A")
    press(Keys.ENTER)
    b.sees("succeeded", ".run-title")
    tab_to("Clone and edit", "BUTTON")
    press(Keys.ENTER)
    b.sees("A copy of")
    write("Name", "fake.3.10.ok.second")
    write("Learning rate", "0.01")
    tab_to("Enqueue", "BUTTON")
    b.until(lambda: b.find("button.primary", "Enqueue").is_enabled(), "the spec is valid")
    press(Keys.ENTER)
    b.until(lambda: "/runs/" in b.driver.current_url, "the run's page")
    runs.append(b.driver.current_url.rsplit("/", 1)[1])
    w.ended(runs[1], 120)


def compares_and_promotes():
    press("g", "r")
    b.until(lambda: len(b.all("tr[data-run]")) == 2, "both runs")
    for name in ("fake.3.10.ok.second", "fake.3.10.ok.first"):
        tab_to(f"Select {name}", "INPUT")
        press(Keys.SPACE)
    tab_to("Compare 2", "BUTTON", back=True)
    press(Keys.ENTER)
    b.sees("What differs")
    out = w.run(runs[1])["outputs"][0]
    tab_to(f"Promote {out['artifact']}:{out['version']}", "BUTTON")
    press(Keys.ENTER)
    b.find("dialog[open]")
    press(Keys.ESCAPE)
    b.until(lambda: not b.all("dialog"), "Escape closes it")
    assert here()[1] == f"Promote {out['artifact']}:{out['version']}", here()[1]    # back where it was opened
    press(Keys.ENTER)
    b.find("dialog[open]")
    tab_to("Promote", "BUTTON")
    press(Keys.ENTER)
    b.sees("is production now", "#toasts")
    assert w.api("GET", f"/api/v1/registry/{out['artifact']}")[1]["stages"]["production"]["version"] == out["version"]


def every_stop_of_every_page():
    for key, heading in (("r", "Runs"), ("n", "New run"), ("q", "Queues"), ("a", "Agents"), ("f", "Artifacts"), ("m", "Registry")):
        b.js("document.activeElement.blur()")
        press("g", key)
        b.until(lambda: b.text("h1") == heading, heading)
        tab_to("Sign out", "BUTTON")
        for _ in range(STOPS_MAX):    # from there through the page to its end
            press(Keys.TAB)
            e, called, tag, seen = here()
            if tag in ("BODY", "HTML") or called == "Skip to the content":
                break
            assert called and seen, (heading, called, e.get_attribute("outerHTML")[:200])


try:
    tap(w, [signs_in, writes_a_spec, moves_it_to_another_priority, pauses_and_resumes_a_queue, watches_and_clones, compares_and_promotes,
            every_stop_of_every_page])
finally:
    b.close()
