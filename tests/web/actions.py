#!/usr/bin/env python3
"""What people do on the pages beside the story: drag a run to another priority, pause a queue, requeue and cancel runs, filter, sort,
choose columns, save a view, the keyboard, a failed run's cause, an agent paused."""
import os, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from browser import Browser, require
require()
from queue_fixture import TOKEN, World, tap

w = World(lease_ms=20000)
w.put("model", "m\n")
w.put("data", "d\n")
b = Browser(w.url)
ids = {}


def change(css, value):
    b.find(css)
    b.js("const e = document.querySelector(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('change'))", css, value)


def drags_a_run_to_another_priority():
    for name in ("fake.3.10.ok.a", "fake.3.10.ok.b"):
        ids[name] = w.enqueue(name)
    b.sign_in(TOKEN, "/queues")
    card, lane = f"[data-run='{ids['fake.3.10.ok.a']}']", "[data-priority=high]"
    b.find(card)
    # The browser's own events of a drag, since its driver makes none of them.
    b.js("const c = document.querySelector(arguments[0]), l = document.querySelector(arguments[1]), dataTransfer = new DataTransfer();"
         "for (const [e, t] of [[c, 'dragstart'], [l, 'dragenter'], [l, 'dragover'], [l, 'drop'], [c, 'dragend']])"
         "  e.dispatchEvent(new DragEvent(t, {dataTransfer, bubbles: true, cancelable: true}))", card, lane)
    w.until(ids["fake.3.10.ok.a"], lambda r: r["priority"] == "high", 60)
    b.find(f"{lane} {card}")
    # Without a mouse: the list in the card.
    change(f"[data-run='{ids['fake.3.10.ok.b']}'] select", "low")
    w.until(ids["fake.3.10.ok.b"], lambda r: r["priority"] == "low", 60)


def pauses_and_drains_a_queue():
    def state():
        return w.api("GET", "/api/v1/queues")[1]["queues"][0]["state"]
    for button, after in (("Pause", "paused"), ("Drain", "draining"), ("Resume", "active")):
        b.click(".queue button", button)
        b.until(lambda: state() == after, f"the queue is {after}")
        b.find(f".queue .badge.{after}")


def says_why_a_run_failed_and_requeues_it():
    ids["bad"] = w.enqueue("fake.3.10.spec.bad", retry={"max_attempts": 1})
    w.agent()
    for r in ids.values():
        w.ended(r, 120)
    b.open("/")
    b.sees("the template names a field that no row has", "table")
    b.open("/runs/" + ids["bad"])
    b.sees("the template names a field that no row has", ".problem")
    b.click("button", "Requeue")
    b.until(lambda: ids["bad"] not in b.driver.current_url and "/runs/" in b.driver.current_url, "the new run's page")
    again = w.run(b.driver.current_url.rsplit("/", 1)[1])
    assert again["requeued_from"] == ids["bad"], again


def cancels_a_run():
    run = w.enqueue("fake.100000.100.ok.long")
    b.open("/runs/" + run)
    w.until(run, lambda r: r["state"] == "running", 120)
    b.find(".badge.running")
    b.click("button", "Cancel")
    b.sees("cancelled", ".run-title")
    assert w.ended(run, 60)["state"] == "cancelled"


def names():
    return [e.text for e in b.all("tr[data-run] .c-name")]


def filters_and_sorts():
    b.open("/")
    b.until(lambda: len(names()) >= 5, "all runs")
    change("[aria-label=State]", "cancelled")
    b.until(lambda: names() == ["fake.100000.100.ok.long"], "the cancelled one")
    b.until(lambda: "status=cancelled" in b.driver.current_url, "the address says what is shown")
    b.driver.refresh()
    b.until(lambda: names() == ["fake.100000.100.ok.long"], "the same after a reload")
    change("[aria-label=State]", "")
    b.type("main input[type=search]", "spec.bad")
    b.until(lambda: set(names()) == {"fake.3.10.spec.bad"}, "what the search finds")
    b.open("/?status=cancelled")
    b.until(lambda: names() == ["fake.100000.100.ok.long"], "the cancelled one")
    change("[aria-label='Saved views']", "+")
    b.type("dialog input", "gone")
    b.click("dialog button.primary", "Save")
    b.open("/")
    b.until(lambda: len(names()) >= 5, "all runs again")
    b.until(lambda: b.js("return [...document.querySelector(\"[aria-label='Saved views']\").options].some(o => o.value === 'vgone')"), "the view")
    change("[aria-label='Saved views']", "vgone")
    b.until(lambda: names() == ["fake.100000.100.ok.long"], "the saved view")
    b.open("/")
    b.until(lambda: len(names()) >= 5, "all runs")
    b.click("button.sort", "Name")
    b.until(lambda: names() == sorted(names(), reverse=True), "by name, downwards")
    b.click("button.sort", "Name")
    b.until(lambda: names() == sorted(names()), "by name, upwards")
    b.click("button", "Columns")
    b.click("dialog label", "Agent")
    b.js("document.querySelector('dialog').close()")
    b.until(lambda: "Agent" in b.text("thead"), "the chosen column")


def notes_and_tags():
    b.open("/runs/" + ids["bad"])
    b.type("#notes textarea", "the template was wrong")
    b.type("#notes input", "odd, template")
    b.click("#notes button", "Save")
    b.until(lambda: w.run(ids["bad"])["notes"] == "the template was wrong" and sorted(w.run(ids["bad"])["tags"]) == ["odd", "template"], "notes and tags are kept")
    b.open("/?q=template+was")    # words of the notes
    b.until(lambda: names() == ["fake.3.10.spec.bad"], "the run with these notes")
    b.open("/")
    for run in (ids["fake.3.10.ok.a"], ids["fake.3.10.ok.b"]):
        b.click(f"[data-run='{run}'] input")
    b.click("button", "Tag…")
    b.type("dialog input", "pair")
    b.click("dialog button.primary", "Add")
    b.until(lambda: not b.all("dialog"), "the tag is given")
    b.click("a.tag", "pair")
    b.until(lambda: sorted(names()) == ["fake.3.10.ok.a", "fake.3.10.ok.b"], "the runs with the tag")


def goes_by_keyboard():
    from selenium.webdriver.common.action_chains import ActionChains
    ActionChains(b.driver).send_keys("g", "q").perform()
    b.sees("Queues", "h1")
    ActionChains(b.driver).send_keys("g", "r").perform()
    b.sees("Runs", "h1")
    b.find("input[type=search]")
    ActionChains(b.driver).send_keys("/").perform()
    b.until(lambda: b.js("return document.activeElement.type") == "search", "the search has the focus")


def shows_and_pauses_agents():
    b.open("/agents")
    b.click("main button", "Pause")
    b.until(lambda: w.api("GET", "/api/v1/agents")[1]["agents"][0]["wanted"] == "paused", "the agent is paused")
    b.sees("paused")


def text_from_others_stays_text():
    """A name cannot hold markup, but what a model predicts, and a log line, may say anything."""
    run = w.enqueue("fake.3.10.ok.text")
    w.cli("xadd", "{softlaunch}:events:" + run, "*", "t", "log", "a", "1", "d", '{"level":"info","msg":"<img src=x onerror=document.title=1>"}')
    b.open("/runs/" + run)
    b.sees("<img src=x onerror=document.title=1>", "#log")
    assert not b.all("#log img")
    bad = [l for l in b.console() if "Content Security Policy" in l or "Uncaught" in l]
    assert not bad, bad


def signs_in_by_the_address_that_the_demo_prints():
    b.open("/")
    b.click("button", "Sign out")
    b.sees("Sign in")
    b.open("/queues")
    b.sees("Sign in")    # nobody is signed in any more
    b.driver.get("about:blank")    # a new address, not another place on the same page
    b.open("/login#token=" + TOKEN)
    b.click("form button.primary")
    b.sees("Runs", "h1")
    assert TOKEN not in b.driver.current_url


try:
    tap(w, [drags_a_run_to_another_priority, pauses_and_drains_a_queue, says_why_a_run_failed_and_requeues_it, cancels_a_run, filters_and_sorts,
            notes_and_tags, goes_by_keyboard, shows_and_pauses_agents, text_from_others_stays_text, signs_in_by_the_address_that_the_demo_prints])
finally:
    b.close()
