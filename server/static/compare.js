// Several runs side by side: their curves, what they differ in, what they ended with, and which one to promote.
import {get} from "/static/api.js";
import {badge, duration, empty, fill, h, link, number, table} from "/static/dom.js";
import {title} from "/static/app.js";
import {RunData} from "/static/rundata.js";
import {settings} from "/static/plot.js";
import {chartsPart} from "/static/run_parts.js";
import {difference} from "/static/diff.js";
import {promoteButton} from "/static/promote.js";

const LESS_IS_BETTER = /loss|perplexity/;
const NOT_SCORES = new Set(["step", "epoch", "tokens", "lr", "grad_norm", "tokens_per_s"]);

export async function show(root, {query}) {
  title("Compare");
  const ids = [...new Set((query.get("runs") || "").split(",").filter(Boolean))].slice(0, 8);
  if (ids.length < 2) {
    root.append(h("h1", {}, "Compare"), empty("Nothing to compare", "Select two or more runs in the list and press Compare.", link("/", "All runs")));
    return null;
  }
  let runs = await Promise.all(ids.map(id => get("/runs/" + encodeURIComponent(id)))), gone = false;
  const how = settings(), shown = runs.map(r => ({name: r.name, data: new RunData(r.run)}));
  runs.forEach((r, i) => { // runs of one name are told apart
    if (runs.some((x, k) => k !== i && x.name === r.name)) shown[i].name = `${r.name} ${r.run.slice(0, 4)}`;
  });
  const charts = chartsPart(shown, how, runs.flatMap(r => Object.keys(r.metrics || {}))), scores = h("div", {});
  root.append(h("p", {class: "crumbs"}, link("/", "Runs"), " / Compare"), h("h1", {}, "Compare"),
    h("section", {class: "card", id: "scores"}, h("h2", {}, "Results"), scores),
    h("section", {class: "card", id: "charts"}, h("h2", {}, "Charts"), charts.el),
    h("section", {class: "card", id: "difference"}, h("h2", {}, "What differs"), difference(runs)));

  function drawScores() {
    const names = [...new Set(runs.flatMap(r => Object.keys(r.metrics || {})))].filter(n => !NOT_SCORES.has(n))
      .sort((a, b) => LESS_IS_BETTER.test(b) - LESS_IS_BETTER.test(a) || b.startsWith("val_") - a.startsWith("val_") || a.localeCompare(b));
    const rows = names.map(n => {
      const values = runs.map(r => r.metrics && r.metrics[n]), valid = values.filter(v => typeof v === "number");
      const comparable = !/majority|untuned/.test(n), best = LESS_IS_BETTER.test(n) ? Math.min(...valid) : Math.max(...valid), differs = comparable && new Set(valid).size > 1;
      return h("tr", {}, h("th", {scope: "row", class: "mono key"}, n), values.map(v => h("td", {class: differs && v === best ? "best" : null},
        number(v), differs && v === best ? h("span", {class: "badge right"}, "best") : null)));
    });
    fill(scores, table("Results", ["", ...runs.map((r, i) => h("th", {scope: "col"}, link("/runs/" + r.run, shown[i].name), " ", badge(r.state)))], [
      h("tr", {}, h("th", {scope: "row"}, "Ran for"), runs.map(r => h("td", {}, duration(r.run_ms)))), ...rows,
      h("tr", {}, h("th", {scope: "row"}, "Promote"), runs.map(r => h("td", {}, promoteButton(r) || h("span", {class: "faint"}, "no result yet"))))]));
  }
  drawScores();
  for (const s of shown) {
    s.data.listeners.add(async kinds => {
      charts.update();
      if (!kinds.has("state") || !s.data.caught || gone) return;
      runs = await Promise.all(runs.map(r => get("/runs/" + r.run).catch(() => r)));
      if (!gone) drawScores();
    });
    s.data.open();
  }
  return () => {
    gone = true;
    for (const s of shown) s.data.close();
    charts.close();
  };
}
