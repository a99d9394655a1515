// Promoting a version: to a stage of a registered model, or, where the server has no registry, by the alias
// "production" of its artifact.
import {getOr, put} from "/static/api.js";
import {act, button, dialog, field, h, select, toast} from "/static/dom.js";

export const STAGES = ["candidate", "staging", "production"];

export async function promote(artifact, version, {model, stage = "production"} = {}) {
  if (model && await getOr("/registry")) await put(`/registry/${encodeURIComponent(model)}/stages/${stage}`, {artifact, version});
  else await put(`/artifacts/${encodeURIComponent(artifact)}/aliases/${stage}`, {version});
}

// Asks for the stage, then promotes. done() afterwards.
export async function askPromote(artifact, version, done, suggested = artifact) {
  const registry = await getOr("/registry").catch(() => null);
  const models = registry ? (registry.models || registry.registry || []).map(m => m.model || m.name) : null;
  const stage = select(STAGES, "production");
  const model = models && h("input", {type: "text", value: suggested, list: "models", required: true, pattern: "[a-z0-9][a-z0-9._\\-]*"});
  const go = h("button", {class: "primary", type: "button", onclick: () => act(go, async () => {
    await promote(artifact, version, {model: model && model.value.trim(), stage: stage.value});
    d.close();
    toast(`${artifact}:${version} is ${stage.value} now`);
    if (done) done();
  })}, "Promote");
  const d = dialog(`Promote ${artifact}:${version}`,
    model && field("Registered model", model, "A new name registers a new model."),
    model && h("datalist", {id: "models"}, models.map(m => h("option", {value: m}))),
    field("Stage", stage, "What was there before stays as a version."), h("div", {class: "actions"}, go));
}

export function promoteButton(run, done) {
  const out = run.outputs && run.outputs[0];
  return out ? button(`Promote ${out.artifact}:${out.version}`, () => askPromote(out.artifact, out.version, done)) : null;
}

