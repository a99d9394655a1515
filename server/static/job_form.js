// A run of a job: a form made from the job's typed, bounded parameters, and beside it the spec that comes of them.
import {get, getOr, post, randomKey} from "/static/api.js";
import {act, button, field, fill, h, link, number, PRIORITIES, problem, select, toast} from "/static/dom.js";
import {at, draft, inSpec, setAt, unservable} from "/static/spec.js";
import {yamlText} from "/static/yaml.js";

const CHECK_MS = 250;

// parameters: {name: {path, type, minimum, maximum, choices, default, description}}
function control(name, p) {
  const now = p.default;
  let el, read;
  if (p.choices) {
    el = select(p.choices.map(String), String(now ?? p.choices[0]));
    read = () => p.choices[el.selectedIndex];
  } else if (p.type === "text") {
    el = h("input", {type: "text", value: now ?? "", maxlength: p.max_length});
    read = () => el.value;
  } else {
    el = h("input", {type: "number", step: p.type === "integer" ? 1 : "any", min: p.minimum, max: p.maximum, required: true, value: now ?? ""});
    read = () => el.value === "" ? now : Number(el.value);
  }
  const bounds = p.minimum === undefined ? null : `${number(p.minimum)} to ${number(p.maximum)}`;
  return {name, path: inSpec(p.path), el, read, now, box: field(name, el, [p.description || p.path, bounds].filter(Boolean).join("; "))};
}

export async function showJob(root, name, {go}) {
  const [job, agents, queues] = await Promise.all([get("/jobs/" + encodeURIComponent(name)), getOr("/agents", {agents: []}).catch(() => ({})), getOr("/queues", {queues: []}).catch(() => ({}))]);
  const inputs = Object.entries(job.parameters || {}).map(([k, p]) => control(k, p)), wrong = h("div", {}), warning = h("div", {role: "status"}), said = h("div", {role: "status"});
  let key = randomKey(), timer, gone = false, checking = 0, spec;

  // ---- where it is served
  const queue = h("input", {type: "text", list: "job-queues", value: job.spec.queue || "default", required: true});
  const priority = select(PRIORITIES, job.spec.priority || "medium");
  const gpus = h("input", {type: "number", min: 0, max: 64, step: 1, value: at(job.spec, "resources.gpus") || 0, required: true});
  const place = () => ({queue: queue.value.trim(), priority: priority.value, resources: {...job.spec.resources, gpus: Number(gpus.value)}});

  // ---- the spec beside it
  const text = h("textarea", {class: "mono editor", readonly: true, spellcheck: "false", "aria-label": "The spec that comes of it"});
  const language = select([["json", "JSON"], ["yaml", "YAML"]], "json", write, {"aria-label": "Language of the text"});
  function write() {
    text.value = language.value === "yaml" ? yamlText(spec) : JSON.stringify(spec, null, 2) + "\n";
  }
  function changed() {
    spec = {...structuredClone(job.spec), ...place()};
    for (const i of inputs) setAt(spec, i.path, i.read());
    key = randomKey();
    write();
    clearTimeout(timer);
    timer = setTimeout(check, CHECK_MS);
  }
  async function check() {
    const mine = ++checking, answer = await post("/specs/check", {text: JSON.stringify(spec)}).catch(() => null);
    if (!answer || gone || mine !== checking) return;
    const why = unservable(spec, agents.agents || [], queues.queues || []);
    fill(warning, why && h("p", {class: "notice", id: "unservable"}, why));
    const outside = inputs.filter(i => !i.el.checkValidity()).map(i => ({path: i.name, detail: i.el.validationMessage})), errors = [...outside, ...answer.errors];
    for (const i of inputs) i.el.setAttribute("aria-invalid", String(!i.el.checkValidity()));
    fill(said, errors.length ? h("ul", {class: "errors"}, errors.slice(0, 12).map(e => h("li", {}, h("code", {}, e.path), ": ", e.detail)))
      : h("p", {class: "fine"}, "✓ This spec is valid."));
    submit.disabled = errors.length > 0;
  }

  const submit = h("button", {class: "primary"}, "Enqueue");
  const form = h("form", {class: "new-form", onsubmit: e => {
    e.preventDefault();
    act(submit, async () => {
      const values = Object.fromEntries(inputs.map(i => [i.name, i.read(), i.now]).filter(([, v, now]) => v !== now));
      try {
        const answer = await post(`/jobs/${encodeURIComponent(name)}/runs`, {parameters: values, ...place()}, {headers: {"Idempotency-Key": key}});
        toast(`A run of ${name} is in line`);
        go("/runs/" + answer.run);
      } catch (err) {
        fill(wrong, problem(err), h("ul", {class: "errors"}, err.errors.map(x => h("li", {}, x.path, ": ", x.detail))));
      }
    });
  }}, h("fieldset", {class: "card"}, h("legend", {}, "Parameters"), inputs.length ? h("div", {class: "fields"}, inputs.map(i => i.box)) : h("p", {class: "faint"}, "This job has none: its runs are all alike.")),
  h("fieldset", {class: "card"}, h("legend", {}, "Where it runs"), h("div", {class: "fields"}, field("Queue", queue), field("Priority", priority), field("GPUs", gpus, "that the run needs; 0 runs anywhere")),
    h("datalist", {id: "job-queues"}, (queues.queues || []).map(q => h("option", {value: q.queue})))),
  h("div", {class: "actions"}, submit, button("Edit the whole spec", () => {
    draft.spec = spec;
    go("/new");
  })), wrong);
  form.addEventListener("input", changed);
  root.append(h("h2", {}, `Job ${name}`), h("p", {class: "faint"}, `Version ${job.version}, made of `, job.from ? link("/runs/" + job.from, "run " + job.from.slice(0, 8)) : "a spec", "; its inputs are pinned. Only its parameters change."),
    warning, h("div", {class: "new-run"}, form, h("section", {class: "card spec-text"}, h("div", {class: "card-head"}, h("h2", {}, "The spec that comes of it"), language), text, said)));
  changed();
  return () => {
    gone = true;
    clearTimeout(timer);
  };
}
