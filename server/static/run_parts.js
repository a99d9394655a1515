// The larger parts of a run's page: its log, its predictions, its charts.
import {button, clockTime, fill, h, number, say, select} from "/static/dom.js";
import {soon} from "/static/draw.js";
import {isRight, isSeries} from "/static/rundata.js";
import {controls, Plot, panels} from "/static/plot.js";

const LINES_SHOWN = 2000;    // of the log, at once: the newest that match
const PREDICTIONS_PAGE = 50;

export function logPart(data, runName) {
  const pre = h("div", {class: "log mono", tabindex: "0", role: "log", "aria-label": "Log", "aria-live": "off"});
  const search = h("input", {type: "search", placeholder: "Search the log", "aria-label": "Search the log", oninput: () => redraw()});
  const follow = h("input", {type: "checkbox", checked: true, onchange: () => follow.checked && end()});
  const found = h("span", {class: "faint", role: "status"});
  let shown = 0, hits = 0, base = 0;   // lines looked at since the run began, of them those that match; those that had been dropped

  const end = () => { pre.scrollTop = pre.scrollHeight; };
  pre.addEventListener("wheel", e => { if (e.deltaY < 0) follow.checked = false; }, {passive: true});
  const matches = l => !search.value || l.msg.toLowerCase().includes(search.value.toLowerCase());
  function line(l) {
    const q = search.value.toLowerCase(), at = q ? l.msg.toLowerCase().indexOf(q) : -1;
    const text = at < 0 ? l.msg : [l.msg.slice(0, at), h("mark", {}, l.msg.slice(at, at + q.length)), l.msg.slice(at + q.length)];
    return h("div", {class: `l ${l.level}`}, h("span", {class: "t"}, clockTime(l.time_ms)), " ", text);
  }
  function redraw() {
    const all = data.log.filter(matches), some = all.slice(-LINES_SHOWN);
    fill(pre, some.map(line));
    base = data.logDropped;
    shown = base + data.log.length;
    hits = all.length;
    count();
    if (follow.checked) end();
  }
  function count() {
    say(found, search.value ? `${hits} of ${data.log.length} lines` : hits > LINES_SHOWN ? `the last ${LINES_SHOWN} of ${hits} lines` : "");
  }
  function update() {
    if (search.value && data.logDropped !== base) return redraw();
    const fresh = data.log.slice(Math.max(0, shown - data.logDropped)), matching = fresh.filter(matches), over = pre.childElementCount + matching.length - LINES_SHOWN;
    if (!fresh.length) return;
    shown = data.logDropped + data.log.length;
    hits = search.value ? hits + matching.length : data.log.length;
    for (let i = Math.min(over, pre.childElementCount); i > 0; i--) pre.firstChild.remove();
    const part = document.createDocumentFragment();
    part.append(...matching.slice(-LINES_SHOWN).map(line));
    pre.append(part);
    count();
    if (follow.checked && matching.length) end();
  }
  function save() {
    const text = data.log.map(l => `${new Date(l.time_ms).toISOString()} ${l.level} ${l.msg}\n`).join("");
    const a = h("a", {href: URL.createObjectURL(new Blob([text], {type: "text/plain"})), download: `${runName}.log`});
    a.click();
    setTimeout(() => URL.revokeObjectURL(a.href), 1000);
  }
  return {el: h("section", {class: "card", id: "log"}, h("h2", {}, "Log"),
    h("div", {class: "filters"}, search, h("label", {class: "check"}, follow, " Follow"), button("Save", save, {"aria-label": "Save the log as a file"}), found), pre), update: () => soon(update)};
}

export function predictionsPart(data) {
  const body = h("div", {}), count = h("p", {class: "faint", role: "status"});
  let shown = PREDICTIONS_PAGE;
  const search = h("input", {type: "search", placeholder: "Search predictions", "aria-label": "Search predictions", oninput: draw});
  const which = select([["", "All"], ["right", "Right"], ["wrong", "Wrong"]], "", draw, {"aria-label": "Right or wrong"});
  const task = select([["", "All tasks"]], "", draw, {"aria-label": "Task"});
  const filters = h("div", {class: "filters"}, search, which, task);
  const el = h("section", {class: "card", id: "predictions"}, h("h2", {}, "Predictions"), filters, count, body);
  function draw() {
    const all = data.predictions, q = search.value.toLowerCase();
    for (const t of new Set(all.map(p => p.task).filter(Boolean)))
      if (![...task.options].some(o => o.value === t)) task.append(h("option", {value: t}, t));
    const some = all.filter(p => (!task.value || p.task === task.value) &&
      (!which.value || isRight(p) === (which.value === "right")) &&
      (!q || [p.context, p.question, p.answer, p.prediction].some(x => String(x ?? "").toLowerCase().includes(q))));
    const judged = all.filter(p => isRight(p) !== null), right = judged.filter(isRight).length;
    say(count, all.length ? `${judged.length ? `${right} of ${judged.length} right. ` : ""}${some.length === all.length ? "" : `${some.length} shown.`}` : "");
    filters.hidden = !all.length;
    if (!all.length) {
      fill(body, h("p", {class: "faint"}, "Predictions for test rows come at the end of training. A run without test rows has none."));
      return;
    }
    const untuned = all.some(p => p.untuned !== undefined), trial = all.some(p => p.trial);
    const heads = ["Task", trial && "Trial", "Context", "Question", "Answer", "Prediction", untuned && "Without the prompts", "Right?"].filter(Boolean);
    fill(body, h("div", {class: "scroll tall", tabindex: "0", role: "region", "aria-label": "Predictions"},
      h("table", {class: "cards predictions"}, h("thead", {}, h("tr", {}, heads.map(x => h("th", {scope: "col"}, x)))),
        h("tbody", {}, some.slice(0, shown).map(p => {
          const ok = isRight(p), cell = (label, x, c) => h("td", {"data-label": label, class: c}, x);
          return h("tr", {}, cell("Task", p.task || "–"), trial && cell("Trial", p.trial || "–"), cell("Context", text(p.context), "wide"), cell("Question", text(p.question), "wide"),
            cell("Answer", text(p.answer)), cell("Prediction", text(p.prediction)), untuned && cell("Without the prompts", text(p.untuned), "faint"),
            cell("Right?", ok === null ? "–" : h("span", {class: `badge ${ok ? "right" : "wrong"}`}, ok ? "✓ right" : "✕ wrong")));
        })))), some.length > shown && button(`Show ${Math.min(PREDICTIONS_PAGE, some.length - shown)} more`, () => {
      shown += PREDICTIONS_PAGE;
      draw();
    }));
  }
  draw();
  return {el, update: () => soon(draw)};
}
const text = x => x === undefined || x === null ? "–" : x === "" ? h("span", {class: "faint"}, "(empty)") : String(x);

// Charts of one or several runs. runs: [{name, data}], the first is the page's own. expected: numbers that are known to
// come, whose charts have their place at once, so that nothing jumps when they do.
export function chartsPart(runs, how, expected = []) {
  const main = h("div", {class: "plots"}), system = h("div", {class: "plots"}), plots = new Map();
  const none = h("p", {class: "faint"}, "Numbers appear here as soon as training has begun."), bar = controls(how);
  bar.hidden = true;
  const systemBox = h("div", {hidden: true}, h("h3", {}, "The machine"), system);
  const el = h("div", {}, bar, none, main, systemBox);
  let closed = false;

  function lines(names) {
    const out = [];
    runs.forEach((r, i) => {
      for (const s of r.data.series.values()) {
        const at = names.indexOf(s.name);
        if (at < 0) continue;
        const several = runs.length > 1;
        out.push({...s, label: [several && r.name, s.trial, names.length > 1 || !several && !s.trial ? s.name : null].filter(Boolean).join(" "),
                  colour: several || s.trial ? undefined : at, dash: several || s.trial ? at : 0, group: several ? i : s.trial});
      }
    });
    out.sort((a, b) => names.indexOf(a.name) - names.indexOf(b.name));
    const groups = [...new Set(out.map(l => l.group))];
    for (const l of out) if (l.colour === undefined) l.colour = groups.indexOf(l.group);
    return out;
  }
  function update() {
    if (closed) return;
    const names = new Set(runs.every(r => r.data.caught) ? [] : expected.filter(isSeries)), wanted = new Set();
    for (const r of runs) for (const s of r.data.series.values()) names.add(s.name);
    none.hidden = names.size > 0;
    bar.hidden = !none.hidden;
    for (const [title, series, isSystem] of panels(names)) {
      wanted.add(title);
      let plot = plots.get(title);
      if (!plot) {
        plot = new Plot(title, how, () => lines(plot.names));
        plots.set(title, plot);
        (isSystem ? system : main).append(plot.figure);
        if (isSystem) systemBox.hidden = false;
      }
      plot.names = series;
      plot.draw();
    }
    for (const [title, plot] of plots) {
      if (wanted.has(title)) continue;
      plot.close();
      plot.figure.remove();
      plots.delete(title);
    }
  }
  if (expected.length) update();
  return {el, update: () => soon(update), close: () => {
    closed = true;
    plots.forEach(p => p.close());
  }};
}

// The scores of test rows and whatever else a run ends with.
export function resultsTable(metrics) {
  const rows = Object.entries(metrics || {}).filter(([k, v]) => typeof v === "number" && !["step", "epoch", "tokens"].includes(k));
  if (!rows.length) return null;
  return h("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "Results"}, h("table", {}, h("tbody", {},
    rows.map(([k, v]) => h("tr", {}, h("th", {scope: "row", class: "mono key"}, k), h("td", {class: "num"}, number(v)))))));
}

