// A run of a job: a form made from the job's typed, bounded parameters.
import {get, post, randomKey} from "/static/api.js";
import {act, field, fill, h, number, problem, select, toast} from "/static/dom.js";

// parameters: {name: {type, minimum, maximum, choices, default, description}}, or a list of those with their names.
function parametersOf(job) {
  const p = job.parameters || {};
  return Array.isArray(p) ? p.map(x => [x.name, x]) : Object.entries(p).map(([k, v]) => [k, v !== null && typeof v === "object" ? v : {default: v}]);
}

export async function showJob(root, name, {go}) {
  const job = await get("/jobs/" + encodeURIComponent(name)), key = randomKey();
  const parameters = parametersOf(job), inputs = [], wrong = h("div", {});
  for (const [key, p] of parameters) {
    const low = p.minimum ?? p.min, high = p.maximum ?? p.max, choices = p.choices || p.enum, now = p.default ?? p.value;
    let el, read;
    if (choices) {
      el = select(choices.map(String), String(now ?? choices[0]));
      read = () => choices[el.selectedIndex];
    } else if (p.type === "boolean") {
      el = h("input", {type: "checkbox", checked: !!now});
      read = () => el.checked;
    } else if (["integer", "number"].includes(p.type) || typeof now === "number") {
      el = h("input", {type: "number", step: p.type === "integer" ? 1 : "any", min: low, max: high, value: now ?? ""});
      read = () => el.value === "" ? undefined : Number(el.value);
    } else {
      el = h("input", {type: "text", value: now ?? "", maxlength: p.max_length});
      read = () => el.value;
    }
    const bounds = [low !== undefined && low !== null && `at least ${number(low)}`, high !== undefined && high !== null && `at most ${number(high)}`].filter(Boolean).join(", ");
    inputs.push({key, el, read, box: field(key, el, [p.description || p.path, bounds].filter(Boolean).join("; ")), now});
  }
  const submit = h("button", {class: "primary"}, "Enqueue");
  root.append(h("form", {class: "card login", onsubmit: e => {
    e.preventDefault();
    act(submit, async () => {
      const values = {};
      for (const i of inputs) {
        const v = i.read();
        if (v !== undefined && v !== i.now) values[i.key] = v;
      }
      try {
        const answer = await post(`/jobs/${encodeURIComponent(name)}/runs`, {parameters: values}, {headers: {"Idempotency-Key": key}});
        toast(`A run of ${name} is in line`);
        go("/runs/" + answer.run);
      } catch (err) {
        fill(wrong, problem(err), h("ul", {class: "errors"}, err.errors.map(x => h("li", {}, x.path, ": ", x.detail))));
      }
    });
  }}, h("h2", {}, `Job ${name}`), job.description && h("p", {}, job.description),
    inputs.length ? inputs.map(i => i.box) : h("p", {class: "faint"}, "This job has no parameters: its runs are all alike."), submit, wrong));
  return null;
}
