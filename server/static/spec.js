// Job specs as the form sees them: which keys it shows, their types by the job's JSON Schema, and what can serve one.

// [path, label, more]; type, bounds, choices and the sentence below come from the schema.
export const SECTIONS = [
  ["The run", [["name", "Name"], ["project", "Project"], ["queue", "Queue"], ["priority", "Priority"]]],
  ["Model and data", [["model", "Base model", {list: "artifacts"}], ["datasets.train", "Training rows", {lines: true}],
    ["datasets.validation", "Validation rows", {lines: true}], ["datasets.test", "Test rows", {lines: true}]]],
  ["Training", [["config.model.virtual_prompt_style", "What is trained", {choices: ["p-tuning", "prompt-tuning"]}], ["config.model.p_tuning.encoder_type", "Prompt encoder"],
    ["config.model.p_tuning.encoder_hidden", "Encoder width"], ["config.model.optim.lr", "Learning rate"], ["config.model.optim.sched.warmup_steps", "Warm-up steps"],
    ["config.trainer.max_steps", "Steps"], ["config.trainer.max_epochs", "Epochs"], ["config.trainer.val_check_interval", "Validate every"],
    ["config.model.global_batch_size", "Batch size"], ["config.model.micro_batch_size", "Rows at a time"], ["config.trainer.precision", "Precision"], ["config.model.seed", "Seed"]]],
  ["Resources", [["resources.gpus", "GPUs"], ["resources.gpu_memory_gib", "Memory of each, GiB"], ["resources.labels", "Labels of the agent", {lines: true}],
    ["time_limit_s", "Time limit, seconds"], ["retry.max_attempts", "Attempts"]]],
  ["Results", [["outputs.artifact", "Artifact"], ["outputs.aliases", "Aliases", {lines: true}]]],
];
export const TASK_FIELDS = [["taskname", "Task"], ["prompt_template", "Prompt template", {area: true}], ["total_virtual_tokens", "Virtual tokens"],
  ["answer_field", "Answer's field"]];

export const BLANK = {
  api: "softlaunch/v1", name: "", project: "default", queue: "default", priority: "medium", model: "",
  datasets: {train: []},
  config: {
    trainer: {max_epochs: -1, max_steps: 200, val_check_interval: 50},
    model: {virtual_prompt_style: "p-tuning",
            task_templates: [{taskname: "task", prompt_template: "<|VIRTUAL_PROMPT_0|>{context}\nAnswer: {answer}", total_virtual_tokens: 16,
                              answer_only_loss: true, answer_field: "answer"}],
            p_tuning: {encoder_type: "tpmlp", encoder_hidden: 2048}, optim: {lr: 0.003, sched: {warmup_steps: 10}}},
  },
  outputs: {artifact: "", aliases: ["candidate"]},
};

export function at(object, path) {
  return path.split(".").reduce((o, k) => o === null || o === undefined ? undefined : o[k], object);
}

// undefined removes the key.
export function setAt(object, path, value) {
  const keys = path.split("."), last = keys.pop();
  let o = object;
  for (const k of keys) {
    if (o[k] === null || typeof o[k] !== "object") {
      if (value === undefined) return;
      o[k] = {};
    }
    o = o[k];
  }
  if (value === undefined) delete o[last];
  else o[last] = value;
}

// A path as the command line has it, "model.optim.lr", in the spec: "config.model.optim.lr".
export const inSpec = path => /^(trainer|exp_manager|model|inference)\./.test(path) ? "config." + path : path;

// What one page hands to the form of the next: a spec to begin with.
export const draft = {spec: null};

// The schema of a path, references followed.
export function schemaOf(schema, path) {
  const follow = s => {
    while (s && s.$ref) {
      const {$ref, ...rest} = s;
      s = {...at(schema, $ref.slice(2).replace(/\//g, ".")), ...rest};
    }
    return s;
  };
  let s = follow(schema);
  for (const k of path.split(".")) {
    s = follow(s && (/^\d+$/.test(k) ? s.items : s.properties && s.properties[k]));
    if (!s) return {};
  }
  return s;
}

// ---- who can serve it, by the rules of queue/queue.h

export function ask(spec) {
  const r = spec.resources || {};
  return {gpus: r.gpus || 0, memory: r.gpus ? r.gpu_memory_gib || 0 : 0, labels: r.labels || []};
}

function parseOffer(text) {
  const offer = {gpus: 0, memory: 0, labels: []};
  for (const part of String(text || "").split("+")) {
    if (/^gpu\d+$/.test(part)) offer.gpus = +part.slice(3);
    else if (/^mem\d+$/.test(part)) offer.memory = +part.slice(3);
    else if (part !== "cpu") offer.labels.push(part);
  }
  return offer;
}
// "gpu2+mem80+zone=eu" -> "2 GPUs of 80 GiB, zone=eu"
export function offerText(text) {
  const {gpus, memory, labels} = parseOffer(text);
  return [gpus ? `${gpus} GPU${gpus > 1 ? "s" : ""}${memory ? ` of ${memory} GiB` : ""}` : "CPU", ...labels].join(", ");
}
const covers = (offer, a) => offer.gpus >= a.gpus && (!a.gpus || offer.memory >= a.memory) && a.labels.every(l => offer.labels.includes(l));

// A sentence when no agent serves it, else null.
export function unservable(spec, agents, queues) {
  const a = ask(spec), queue = spec.queue || "default";
  const here = agents.filter(x => (x.queues || []).includes(queue));
  const known = queues.find(q => q.queue === queue);
  if (here.some(x => covers(parseOffer(x.offer), a)) || known && (known.offers || []).some(o => covers(parseOffer(o), a))) {
    if (known && known.state === "draining") return `The queue ${queue} is draining: it takes no runs.`;
    if (known && known.state === "paused") return `The queue ${queue} is paused: the run waits until it is active again.`;
    return null;
  }
  const wants = [a.gpus ? `${a.gpus} GPU${a.gpus > 1 ? "s" : ""}` : null, a.memory ? `${a.memory} GiB each` : null, ...a.labels].filter(Boolean).join(", ") || "a CPU";
  return `No agent can serve this now: none of queue ${queue} offers ${wants}. ` +
    (here.length ? `Its agents offer ${[...new Set(here.map(x => offerText(x.offer)))].join("; ")}.` : "No agent listens on it.") +
    " The run waits until one comes.";
}

// The spec with its keys in the order in which the schema tells them, which is how people write one.
export function ordered(schema, value, path = "") {
  if (Array.isArray(value)) return value.map((v, i) => ordered(schema, v, `${path}.${i}`));
  if (value === null || typeof value !== "object") return value;
  const s = path ? schemaOf(schema, path.replace(/^\./, "")) : schema, known = Object.keys(s.properties || {});
  const rank = k => known.includes(k) ? known.indexOf(k) : known.length;
  return Object.fromEntries(Object.keys(value).sort((a, b) => rank(a) - rank(b)).map(k => [k, ordered(schema, value[k], `${path}.${k}`)]));
}
