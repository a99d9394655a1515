#!/usr/bin/env python3
"""The whole story in a browser, with the real server, agent and worker on a tiny model: enqueue from the form, watch the
charts move, open predictions, clone with another learning rate, compare the two, promote the better one."""
import os, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from browser import Browser, require
require()
from job_fixture import TOKEN, Jobs, make_job, tap
import json

STEPS = 1500
w = Jobs()
b = Browser(w.url)
runs = []


def row_of(name):
    return b.find("tr[data-run]", name)


def set_field(label, text):
    """Fills the form's field with this label, as a person does."""
    e = b.js("const l = [...document.querySelectorAll('label')].find(l => l.textContent === arguments[0]);"
             "return l && document.getElementById(l.htmlFor)", label)
    assert e, f"no field {label}"
    b.js("arguments[0].scrollIntoView({block: 'center'})", e)
    e.clear()
    e.send_keys(text)


def spec_on_the_page():
    return json.loads(b.js("return document.querySelector('textarea.editor').value"))


def enqueue():
    before = b.driver.current_url
    b.until(lambda: b.find("button.primary", "Enqueue").is_enabled(), "the spec is valid")
    b.click("button.primary", "Enqueue")
    b.until(lambda: "/runs/" in b.driver.current_url and b.driver.current_url != before, "the run's page")
    runs.append(b.driver.current_url.rsplit("/", 1)[1])
    return runs[-1]


def points():
    return int(b.js("const c = document.querySelector('[data-plot=Loss] canvas'); return c && c.dataset.points || 0"))


def words():
    """What the chart of the losses says to who does not see it."""
    return b.js("const e = document.querySelector('[data-plot=Loss] .sr'); return e ? e.textContent : ''")


def sign_in():
    b.open("/queues")
    b.sees("Sign in")
    b.type("input[type=password]", "a token that nobody has")
    b.click("form button.primary")
    b.sees("does not know this token")
    b.type("input[type=password]", TOKEN)
    b.click("form button.primary")
    b.sees("Queues", "h1")
    b.open("/")
    b.sees("No runs yet")


def enqueue_from_the_form():
    b.click("a[href='/new'] .button")
    b.sees("The whole spec")
    set_field("Name", "Colours!")
    b.sees("name", "ul.errors")
    assert not b.find("button.primary", "Enqueue").is_enabled(), "a wrong spec can be enqueued"
    for label, text in (("Name", "colours"), ("Project", "paint"), ("Base model", "tiny:latest"), ("Training rows", "words:latest/train.jsonl"),
                        ("Validation rows", "words:latest/validation.jsonl"), ("Test rows", "words:latest/test.jsonl"), ("Task", "colour"),
                        ("Prompt template", "<|VIRTUAL_PROMPT_0|>{question}: {context} = {answer}"), ("Virtual tokens", "6"), ("Encoder width", "48"),
                        ("Learning rate", "0.0001"), ("Steps", str(STEPS)), ("Validate every", "500"), ("Artifact", "colours")):
        set_field(label, text)
    b.until(lambda: spec_on_the_page()["config"]["model"]["optim"]["lr"] == 0.0001, "the text follows the form")
    # No agent is there: the page warns. The rest of the spec is written as YAML.
    b.sees("No agent can serve this now")
    b.js("const s = document.querySelector('.spec-text select'); s.value = 'yaml'; s.dispatchEvent(new Event('change'))")
    yaml = b.js("return document.querySelector('textarea.editor').value")
    assert "taskname: colour\n" in yaml, yaml
    both = yaml.replace("  trainer:", "  inference: {tokens_to_generate: 6}\n  exp_manager: {create_early_stopping_callback: false}\n  trainer:")
    job = make_job("x")["config"]["model"]["task_templates"][1]
    both = both.replace("    task_templates:\n", f"    task_templates:\n      - {json.dumps(job)}\n")
    b.js("const t = document.querySelector('textarea.editor'); t.value = arguments[0]; t.dispatchEvent(new Event('input'))", both)
    b.until(lambda: b.js("return document.querySelectorAll('fieldset.task').length") == 2, "the form follows the text")
    b.sees("This spec is valid")
    enqueue()


def charts_move():
    b.sees("colours", "h1")
    b.sees("queued")
    w.agent()
    seen = set()
    b.until(lambda: seen.add(points()) or len(seen - {0}) >= 3, "the loss chart moves without a reload")
    assert w.ended(runs[0], 300)["state"] == "succeeded", w.run(runs[0])
    b.sees("succeeded", ".run-title")
    known = len(w.last_metrics(runs[0])[0])
    assert known == STEPS, known
    b.until(lambda: f"loss: {STEPS} points" in words(), "every step is in the chart")
    b.sees("training rows", "#log")
    b.type("#log input[type=search]", "training rows")
    b.until(lambda: len(b.all("#log .l")) == 1, "the log's search")
    b.sees("words:latest/train.jsonl", "#configuration")
    b.sees("tiny:latest", "#lineage")


def predictions_open():
    rows = b.until(lambda: b.all("#predictions tbody tr"), "predictions")
    events = [e["data"] for e in w.events(runs[0], "prediction")]
    assert len(rows) == len(events) > 0, (len(rows), len(events))
    shown = " ".join(b.text("#predictions").split())
    for e in events:
        assert e["question"] in shown and " ".join(e["context"].split()) in shown, (e, shown)
    plain = lambda t: t.lower().strip(" .!?\n")
    right = sum(plain(e["prediction"]) == plain(e["answer"]) for e in events)
    b.sees(f"{right} of {len(events)} right", "#predictions")
    b.js("const s = document.querySelector('#predictions [aria-label=\"Right or wrong\"]'); s.value = 'right'; s.dispatchEvent(new Event('change'))")
    b.until(lambda: len(b.all("#predictions tbody tr")) == right, "only the right ones")


def clone_with_another_learning_rate():
    b.click("button", "Clone and edit")
    b.sees("A copy of colours")
    assert spec_on_the_page()["name"] == "colours-2"
    set_field("Learning rate", "0.02")
    b.until(lambda: spec_on_the_page()["config"]["model"]["optim"]["lr"] == 0.02, "the text follows the form")
    assert "No agent can serve" not in b.text()
    enqueue()
    assert w.ended(runs[1], 300)["state"] == "succeeded"
    first, second = (w.run(r)["spec"] for r in runs)
    assert second["config"]["model"]["optim"].pop("lr") == 0.02 and first["config"]["model"]["optim"].pop("lr") == 0.0001
    first.pop("name"), second.pop("name")
    assert first == second, "the copy differs in more than its name and learning rate"


def compare_the_two():
    b.open("/")
    for name in ("colours-2", "colours"):
        for e in b.until(lambda: b.all("tr[data-run]"), "rows"):
            if e.find_element("css selector", ".c-name").text == name:
                e.find_element("css selector", "input").click()
    b.click("button.primary", "Compare 2")
    b.sees("What differs")
    text = b.text("#difference")
    assert "config.model.optim.lr" in text and "0.02" in text and "0.0001" in text and "max_steps" not in text, text
    b.until(lambda: words().count("points") == 4, "four lines: two runs, two losses")


def promote_the_better():
    losses = {r: w.run(r)["metrics"]["val_loss"] for r in runs}
    better = min(losses, key=losses.get)
    assert losses[runs[0]] != losses[runs[1]]
    out = w.run(better)["outputs"][0]
    column = b.js("const tr = [...document.querySelectorAll('#scores tr')].find(r => r.cells[0].textContent === 'val_loss');"
                  "return [...tr.cells].findIndex(c => c.classList.contains('best')) - 1")
    order = b.driver.current_url.split("runs=")[1].replace("%2C", ",").split(",")
    assert order[column] == better, "the page calls the wrong one the best"
    b.click("button", f"Promote {out['artifact']}:{out['version']}")
    b.click("dialog button.primary", "Promote")
    b.sees("is production now", "#toasts")
    b.open("/registry")
    b.sees(f"{out['artifact']}:{out['version']}")
    model = w.api("GET", "/api/v1/registry/" + out["artifact"])[1]
    assert model["stages"]["production"]["version"] == out["version"], model
    b.open("/registry/" + out["artifact"])
    b.sees("run " + better[:8])


def makes_a_job_and_runs_it():
    """The finished run becomes a job; its form has the job's parameters with their bounds, and the spec beside it follows."""
    b.open("/runs/" + runs[1])
    b.click("button", "Make a job")
    b.type("dialog input", "paint-colours")
    b.click("dialog button.primary", "Make it")
    b.sees("Job paint-colours")
    job = w.api("GET", "/api/v1/jobs/paint-colours")[1]
    for name, p in job["parameters"].items():
        assert b.js("const l = [...document.querySelectorAll('form label')].find(l => l.textContent === arguments[0]); return l && document.getElementById(l.htmlFor).value !== ''",
                    name), f"no field for {name}"
    most = job["parameters"]["max_steps"]["maximum"]
    set_field("max_steps", str(most + 1))
    b.sees("max_steps", "ul.errors")
    set_field("max_steps", "200")
    b.js("const s = [...document.querySelectorAll('form select')].pop(); s.value = 'high'; s.dispatchEvent(new Event('input', {bubbles: true}))")
    b.until(lambda: spec_on_the_page()["config"]["trainer"]["max_steps"] == 200 and spec_on_the_page()["priority"] == "high", "the spec beside follows the form")
    b.until(lambda: b.find("form button.primary", "Enqueue").is_enabled(), "the spec is valid")
    b.click("form button.primary", "Enqueue")
    b.until(lambda: "/runs/" in b.driver.current_url, "the run's page")
    run = w.run(b.driver.current_url.rsplit("/", 1)[1])
    assert run["spec"]["config"]["trainer"]["max_steps"] == 200 and run["priority"] == "high", run


def nothing_was_blocked():
    """The policy stopped nothing of ours, and no script failed."""
    bad = [l for l in b.console() if "Content Security Policy" in l or "Uncaught" in l or "TypeError" in l or "ReferenceError" in l]
    assert not bad, bad


def step(f):
    """Each goes on from where the one before ended: behind a failure nothing can be said."""
    def run():
        assert not failed, f"{failed[0]} failed"
        try:
            f()
        except Exception:
            failed.append(f.__name__)
            raise
    run.__name__ = f.__name__
    return run


failed = []
try:
    tap(w, [step(f) for f in (sign_in, enqueue_from_the_form, charts_move, predictions_open, clone_with_another_learning_rate,
                              compare_the_two, promote_the_better, makes_a_job_and_runs_it, nothing_was_blocked)])
finally:
    b.close()
