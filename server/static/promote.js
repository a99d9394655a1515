// Promoting a version to a stage of a registered model.
import {get, put} from "/static/api.js";
import {act, button, dialog, field, h, select, toast} from "/static/dom.js";

export const STAGES = ["candidate", "staging", "production"];

// Asks for the stage, then promotes. done() afterwards.
export async function askPromote(artifact, version, done, suggested = artifact) {
  const models = (await get("/registry").catch(() => ({models: []}))).models.map(m => m.model);
  const stage = select(STAGES, "production");
  const model = h("input", {type: "text", value: suggested, list: "models", required: true, pattern: "[a-z0-9][a-z0-9._\\-]*"});
  const go = h("button", {class: "primary", type: "button", onclick: () => act(go, async () => {
    await put(`/registry/${encodeURIComponent(model.value.trim())}/stages/${stage.value}`, {artifact, version});
    d.close();
    toast(`${artifact}:${version} is ${stage.value} now`);
    if (done) done();
  })}, "Promote");
  const d = dialog(`Promote ${artifact}:${version}`,
    field("Registered model", model, "A new name registers a new model."),
    h("datalist", {id: "models"}, models.map(m => h("option", {value: m}))),
    field("Stage", stage, "What was there before stays as a version."), h("div", {class: "actions"}, go));
}

export function promoteButton(run, done) {
  const out = run.outputs && run.outputs[0];
  return out ? button(`Promote ${out.artifact}:${out.version}`, () => askPromote(out.artifact, out.version, done)) : null;
}

