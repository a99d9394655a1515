// Registered models: their versions, and which one is at which stage.
import {get} from "/static/api.js";
import {badge, button, empty, h, link, refill, table, time} from "/static/dom.js";
import {title} from "/static/app.js";
import {askPromote, STAGES} from "/static/promote.js";

export async function show(root, {params: [model]}) {
  return model ? one(root, model) : all(root);
}

const versionLink = v => link(`/artifacts/${encodeURIComponent(v.artifact)}?version=${encodeURIComponent(v.version)}`, `${v.artifact}:${v.version}`);
const stageCells = (stages, names) => names.map(s => h("td", {"data-label": s}, stages && stages[s] ? versionLink(stages[s]) : h("span", {class: "faint"}, "–")));
const columnsOf = models => [...new Set([...STAGES, ...models.flatMap(m => Object.keys(m.stages || {}))])];

// The run that made it, or who brought it.
function origin(v) {
  const run = v.run || v.made_by;
  return run ? ["run ", link("/runs/" + run, run.slice(0, 8))] : v.put_by ? `put by ${v.put_by}` : "–";
}

async function all(root) {
  title("Registry");
  const body = h("div", {});
  root.append(h("h1", {}, "Registry"), body);
  async function load() {
    const {models} = await get("/registry"), stages = columnsOf(models);
    refill(body, models.length ? table("Registered models", ["Model", ...stages, "Versions", ""], models.map(m => h("tr", {}, h("td", {class: "c-name"}, link("/registry/" + m.model, m.model)),
      stageCells(m.stages, stages), h("td", {"data-label": "Versions"}, String(m.versions)),
      h("td", {}, m.stages && m.stages.candidate ? button("Promote the candidate", () => askPromote(m.stages.candidate.artifact, m.stages.candidate.version, load), {"aria-label": `Promote the candidate of ${m.model}`}) : null))), {class: "cards"})
      : empty("No model is registered yet", "Promote a run's result on its page, in a comparison, or from an artifact's versions; or say outputs.register in a spec.", link("/artifacts", h("span", {class: "button"}, "Artifacts"))));
  }
  await load();
  return null;
}

async function one(root, name) {
  title(name);
  const body = h("div", {});
  root.append(h("p", {class: "crumbs"}, link("/registry", "Registry")), h("h1", {}, name), body);
  async function load() {
    const model = await get("/registry/" + encodeURIComponent(name)), at = v => Object.entries(model.stages || {}).filter(([, s]) => s.artifact === v.artifact && s.version === v.version).map(([k]) => k);
    refill(body, table(`Versions of ${name}`, ["Version", "Stages", "Linked", "From", "By", ""], [...model.versions].reverse().map(v => h("tr", {}, h("td", {class: "c-name"}, versionLink(v)),
      h("td", {"data-label": "Stages"}, at(v).map(s => [badge(s), " "])), h("td", {"data-label": "Linked"}, time(v.linked)), h("td", {"data-label": "From"}, origin(v)),
      h("td", {"data-label": "By"}, v.by || "–"), h("td", {}, button("Promote", () => askPromote(v.artifact, v.version, load, name), {"aria-label": `Promote ${v.artifact}:${v.version}`})))), {class: "cards"}),
      model.history && model.history.length ? h("section", {class: "card history"}, h("h2", {}, "History"), h("ul", {class: "plain"}, [...model.history].reverse().slice(0, 50).map(x =>
        h("li", {}, time(x.time), ` ${x.stage}: `, x.version ? versionLink(x) : "taken away", x.by ? ` by ${x.by}` : "")))) : null);
  }
  await load();
  return null;
}
