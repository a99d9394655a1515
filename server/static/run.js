// One run: what it does now, its charts, log, predictions, configuration and lineage.
import {api, get, listRuns, post, put} from "/static/api.js";
import {act, badge, button, dialog, duration, facts, field, fill, FINAL, h, link, number, PRIORITIES, refill, say, select,
        time, toast} from "/static/dom.js";
import {title} from "/static/app.js";
import {RunData} from "/static/rundata.js";
import {soon} from "/static/draw.js";
import {settings} from "/static/plot.js";
import {chartsPart, logPart, predictionsPart, resultsTable} from "/static/run_parts.js";
import {difference, specTable} from "/static/diff.js";
import {artifactOf, showLineage, sourceText} from "/static/lineage.js";
import {runAction} from "/static/runs.js";

const REFRESH_MS = 4000;

export async function show(root, {params: [id], go}) {
  let run = await get("/runs/" + encodeURIComponent(id)), gone = false, timer;
  title(run.name);
  const data = new RunData(run.run), how = settings();
  const others = [];   // runs compared with, {name, data, spec}
  const runs = [{name: run.name, data}];

  // ---- the head: state, progress, what went wrong
  const state = h("span", {"aria-live": "polite"}), actions = h("div", {class: "actions"});
  const cause = h("div", {}), bar = h("progress", {max: 1, value: 0, "aria-label": "Progress"});
  const barText = h("span", {class: "bar-text"}), numbers = h("div", {class: "tiles"});
  const progress = h("div", {class: "run-progress"}, bar, barText);
  const about = h("div", {}), results = h("div", {}), io = h("div", {}), picture = h("div", {class: "picture"});
  const charts = chartsPart(runs, how, Object.keys(run.metrics || {})), log = logPart(data, run.name), predictions = predictionsPart(data);
  const compared = h("div", {class: "compared"});

  root.append(
    h("p", {class: "crumbs"}, link("/", "Runs"), " / ", link("/?project=" + encodeURIComponent(run.project), run.project)),
    h("div", {class: "page-head"}, h("div", {class: "run-title"}, h("h1", {}, run.name), state), actions),
    cause, progress, numbers,
    h("nav", {class: "parts", "aria-label": "Parts of this page"}, [["charts", "Charts"], ["predictions", "Predictions"], ["log", "Log"], ["results", "Results"],
      ["lineage", "Inputs and outputs"], ["configuration", "Configuration"], ["notes", "Notes and tags"]].map(([id, text]) => link("#" + id, text))),
    h("section", {class: "card", id: "charts"}, h("div", {class: "card-head"}, h("h2", {}, "Charts"),
      button("Compare with…", pickOther)), compared, charts.el),
    predictions.el, log.el,
    h("div", {class: "grid"}, h("section", {class: "card"}, h("h2", {}, "About"), about),
      h("section", {class: "card", id: "results"}, h("h2", {}, "Results"), results)),
    h("section", {class: "card", id: "lineage"}, h("h2", {}, "Inputs and outputs"), io, picture),
    h("section", {class: "card", id: "configuration"}, h("div", {class: "card-head"}, h("h2", {}, "Configuration"),
      button("Difference from…", pickDifference)), h("div", {id: "difference"}), specTable(run.spec || {})),
    notesPart());

  function drawRun() {
    fill(state, badge(run.state), run.waiting_for && h("span", {class: "why"}, run.waiting_for));
    const bad = ["failed", "dead"].includes(run.state);
    fill(cause, bad || run.msg && run.state !== "succeeded" ? h("div", {class: bad ? "problem" : "notice"},
      h("h2", {}, bad ? "Why it failed" : "The last attempt"), h("p", {}, h("strong", {}, run.cause || ""), run.cause && run.msg ? ": " : "", run.msg || ""),
      bad && h("p", {class: "hint"}, run.exit_signal ? `The worker was ended by signal ${run.exit_signal}. ` : run.exit_code ? `The worker ended with status ${run.exit_code}. ` : "",
        `${run.attempt} attempt${run.attempt === 1 ? "" : "s"}. `, link("#log", "The last lines of its log"))) : null);
    // An open list of priorities is left alone, as long as it means anything.
    if (document.activeElement.tagName !== "SELECT" || !actions.contains(document.activeElement) || FINAL.has(run.state)) refill(actions, button("Clone and edit", () => go("/new?from=" + run.run), {class: "primary"}), run.state === "succeeded" && button("Make a job…", makeJob), runAction(run, next => next === run.run ? refresh() : go("/runs/" + next)),
      !FINAL.has(run.state) && select(PRIORITIES, run.priority, async p => {
        try {
          await post(`/runs/${run.run}/move`, {priority: p});
          toast(`Priority is ${p} now`);
        } catch (e) {
          toast(e.message, "bad");
        }
        refresh();
      }, {"aria-label": "Priority"}));
    fill(about, facts([["Project", link("/?project=" + encodeURIComponent(run.project), run.project)], ["Queue", run.queue], ["Priority", run.priority],
      ["Created", time(run.created_ms)], ["By", run.created_by], ["Started", time(run.started_ms)], ["Finished", run.finished_ms && time(run.finished_ms)],
      ["Ran for", run.run_ms && duration(run.run_ms)], ["Agent", run.agent && link("/agents", run.agent)], ["Attempts", `${run.attempt || 0} of at most ${run.max_attempts}`],
      ["Preempted", run.preemptions || null], ["Asks for", run.class], ["Checkpoint of step", run.checkpoint_step],
      ["Not before", run.due_ms && time(run.due_ms)], ["Goes on from", run.requeued_from && link("/runs/" + run.requeued_from, run.requeued_from.slice(0, 8))],
      ["Job", run.job || (run.spec && run.spec.job)], ["Run", h("span", {class: "mono"}, run.run)]]));
    fill(results, resultsTable(run.metrics) || h("p", {class: "faint"}, "Nothing yet."));
    const spec = run.spec || {}, source = s => {
      const a = artifactOf(s), t = sourceText(s);
      return h("li", {}, a ? link("/artifacts/" + a.name, t) : h("span", {class: "mono"}, t));
    };
    fill(io, facts([["Model", h("ul", {class: "plain"}, spec.model ? source(spec.model) : null)],
      ...Object.entries(spec.datasets || {}).map(([k, v]) => [`Data: ${k}`, h("ul", {class: "plain"}, v.map(source))]),
      ["Outputs", h("ul", {class: "plain"}, (run.outputs || []).map(o => h("li", {}, link("/artifacts/" + o.artifact, `${o.artifact}:${o.version}`))),
        run.outputs && run.outputs.length ? null : h("li", {class: "faint"}, "none yet"))]]));
    showLineage(picture, run);
    drawLive();
  }

  const tiles = new Map();   // name -> its box and its value, which change in place
  function tile(name, value, label = name) {
    let t = tiles.get(name);
    if (!t) {
      t = {label: h("span", {class: "faint"}), value: h("strong", {})};
      t.box = h("div", {class: "tile"}, t.label, t.value);
      tiles.set(name, t);
      numbers.append(t.box);
    }
    say(t.label, label);
    say(t.value, value);
    return t.box;
  }

  function drawLive() {
    const over = FINAL.has(run.state), steps = data.steps || run.steps, step = Math.max(data.step || 0, run.step || 0);
    const left = data.timeLeft(), fetching = !over && !step && data.progress && data.progress.total > 0 ? data.progress : null;
    const part = steps ? Math.min(1, step / steps) : fetching ? fetching.done / fetching.total : 0;
    if (bar.value !== part) bar.value = part;
    const phase = over ? "" : data.phase || run.phase || "";
    progress.hidden = over && !step;
    say(barText, steps ? `step ${number(step)} of ${number(steps)}${phase ? `, ${phase}` : ""}${left !== null && run.state === "running" ? `, about ${duration(left)} left` : ""}`
      : fetching ? `${fetching.phase} ${Math.round(100 * fetching.done / fetching.total)} %` : phase);
    const m = run.metrics || {};
    const now = name => number(data.last(name) ?? m[name]);
    tile("Loss", now("loss"));
    tile("Validation loss", now("val_loss"));
    tile("Tokens per second", now("tokens_per_s"));
    for (const t of tiles.values()) t.box.hidden = over && !step;
    tile("time", run.started_ms ? duration(over ? run.run_ms : Date.now() - run.started_ms) : "–", over ? "Ran for" : "Running for").hidden = false;
  }

  async function refresh() {
    clearTimeout(timer);
    try {
      const fresh = await get("/runs/" + run.run);
      if (gone) return;
      const changed = JSON.stringify(fresh) !== JSON.stringify(run);
      run = fresh;
      if (changed) drawRun();
      else drawLive();
    } catch (e) {
      if (e.status === 401) return;
    }
    if (!gone && !FINAL.has(run.state)) timer = setTimeout(refresh, REFRESH_MS);
  }

  // ---- other runs beside
  function chooseRun(heading, use) {
    const list = h("ul", {class: "plain choose"}), search = h("input", {type: "search", placeholder: "Search", maxlength: 200, oninput: load});
    const d = dialog(heading, field("Runs of any project", search), list);
    async function load() {
      const page = await listRuns({limit: 20, q: search.value.trim()}).catch(() => ({runs: []})), some = page.runs.filter(r => r.run !== run.run);
      fill(list, some.length ? some.map(r => h("li", {}, button([r.name, " ", badge(r.state), " ", time(r.created_ms)], () => {
        d.close();
        use(r);
      }))) : h("li", {class: "faint"}, "No other run is like that."));
    }
    load();
  }
  function pickOther() {
    chooseRun("Compare with", r => {
      if (others.some(o => o.run === r.run)) return;
      const other = {run: r.run, name: r.name, data: new RunData(r.run).open()};
      others.push(other);
      runs.push(other);
      other.data.listeners.add(charts.update);
      drawCompared();
      charts.update();
    });
  }
  function drawCompared() {
    fill(compared, others.map(o => h("span", {class: "chip"}, link("/runs/" + o.run, o.name), button("×", () => {
      others.splice(others.indexOf(o), 1);
      runs.splice(runs.indexOf(o), 1);
      o.data.close();
      drawCompared();
      charts.update();
    }, {class: "plain", "aria-label": `Stop comparing with ${o.name}`}))),
      others.length ? link(`/compare?runs=${[run.run, ...others.map(o => o.run)].join(",")}`, "Everything side by side") : null);
  }
  function pickDifference() {
    chooseRun("Difference from", async r => {
      const other = await get("/runs/" + r.run);
      fill(document.getElementById("difference"), h("h3", {}, "Difference from ", link("/runs/" + r.run, r.name)), difference([run, other]));
    });
  }

  function makeJob() {
    const name = h("input", {type: "text", value: run.name, required: true, pattern: "[a-z0-9][a-z0-9._\\-]*"});
    const make = button("Make it", () => act(make, async () => {
      await put("/jobs/" + encodeURIComponent(name.value.trim()), {from: run.run});
      d.close();
      go("/new?job=" + encodeURIComponent(name.value.trim()));
    }), {class: "primary"});
    const d = dialog("Make a job of this run", h("p", {}, "Its spec with its inputs pinned, and parameters that whoever enqueues it may set within bounds."),
      field("Name", name), h("div", {class: "actions"}, make));
  }

  // ---- notes and tags
  function notesPart() {
    const notes = h("textarea", {rows: 4, maxlength: 20000, value: run.notes}), tags = h("input", {type: "text", value: run.tags.join(", ")});
    const save = button("Save", () => act(save, async () => {
      await api("PATCH", "/runs/" + run.run, {notes: notes.value, tags: tags.value.split(/[,\s]+/).filter(Boolean)});
      toast("Saved");
    }));
    return h("section", {class: "card", id: "notes"}, h("h2", {}, "Notes"), field("Notes", notes), field("Tags", tags, "Separated by commas."), save);
  }

  data.listeners.add(kinds => {
    if (kinds.has("metric") || kinds.has("caught")) charts.update();
    if (kinds.has("log") || kinds.has("state")) log.update();
    if (kinds.has("prediction")) predictions.update();
    if (kinds.has("state") && data.caught) refresh();
    soon(drawLive);
  });
  data.open();
  drawRun();
  log.update();
  if (!FINAL.has(run.state)) timer = setTimeout(refresh, REFRESH_MS);
  const ticking = setInterval(drawLive, 1000);
  return () => {
    gone = true;
    clearTimeout(timer);
    clearInterval(ticking);
    data.close();
    for (const o of others) o.data.close();
    charts.close();
  };
}
