// A new run: from nothing, from another run, or from a job. A form and the whole spec beside it; either changes the other.
import {get, getOr, post, randomKey} from "/static/api.js";
import {act, button, field, fill, h, link, PRIORITIES, say, select, toast, uid} from "/static/dom.js";
import {title} from "/static/app.js";
import {at, BLANK, draft, ordered, schemaOf, SECTIONS, setAt, TASK_FIELDS, unservable} from "/static/spec.js";
import {yamlText} from "/static/yaml.js";
import {showJob} from "/static/job_form.js";

const CHECK_MS = 250;

export async function show(root, {query, go}) {
  title("New run");
  const [schema, agents, queues, projects, artifacts, jobs] = await Promise.all([get("/schema"), getOr("/agents", {agents: []}), getOr("/queues", {queues: []}),
    getOr("/projects", {projects: []}), getOr("/artifacts", {artifacts: []}), getOr("/jobs", null)].map(p => p.catch(() => ({}))));
  let spec = structuredClone(BLANK), from = null, key = randomKey(), gone = false, timer, errors = [];
  const inputs = new Map();    // path -> {el, read, write, error}
  const form = h("form", {class: "new-form", novalidate: true, onsubmit: e => e.preventDefault()});
  const source = h("p", {class: "faint"});
  const text = h("textarea", {class: "mono editor", spellcheck: "false", "aria-label": "The whole spec"});
  const language = select([["json", "JSON"], ["yaml", "YAML"]], "json", () => writeText(), {"aria-label": "Language of the text"});
  const said = h("div", {role: "status"}), warning = h("div", {role: "status"});
  const submit = h("button", {class: "primary", type: "button", onclick: enqueue}, "Enqueue");
  const jobList = jobs && (jobs.jobs || jobs) || [];
  const start = h("select", {"aria-label": "Start from a job", onchange: () => start.value && go("/new?job=" + encodeURIComponent(start.value))},
    h("option", {value: ""}, "From a job…"), jobList.map(j => h("option", {value: j.job || j.name}, j.job || j.name)));

  root.append(h("div", {class: "page-head"}, h("h1", {}, "New run"), h("div", {class: "actions"}, jobList.length ? start : null,
    button("Blank", () => go("/new")))), source);
  if (query.get("job")) return showJob(root, query.get("job"), {go, schema});
  root.append(warning, h("div", {class: "new-run"}, form, h("section", {class: "card spec-text"}, h("div", {class: "card-head"}, h("h2", {}, "The whole spec"), language), text, h("div", {class: "actions"}, submit), said)));

  const lists = {artifacts: (artifacts.artifacts || []).map(a => `${a.name}:latest`), project: (projects.projects || []).map(p => p.project), queue: (queues.queues || []).map(q => q.queue)};
  for (const [name, values] of Object.entries(lists)) form.append(h("datalist", {id: "list-" + name}, values.map(v => h("option", {value: v}))));

  // ---- the form

  function control(path, label, more = {}, schemaPath = path) {
    const s = schemaOf(schema, schemaPath), type = [].concat(s.type || [])[0];
    const choices = more.choices || s.enum && [...new Set(s.enum.map(String))];
    const attrs = {"aria-describedby": uid("d")};
    let el, read, write;
    const list = more.list || (["project", "queue"].includes(path) ? path : null);
    if (path === "priority" || choices) {
      el = select([...(s.default === undefined && path !== "priority" ? [""] : []), ...(path === "priority" ? PRIORITIES : choices)], "", null, attrs);
      read = () => el.value === "" ? undefined : el.value;
      write = v => {
        v = v === undefined ? s.default ?? "" : String(v);
        if (![...el.options].some(o => o.value === v)) el.append(h("option", {value: v}, v));
        el.value = v;
      };
    } else if (more.lines) {
      el = h("textarea", {rows: 2, ...attrs});
      read = () => {
        const v = el.value.split("\n").map(x => x.trim()).filter(Boolean);
        return v.length || path === "datasets.train" ? v : undefined;
      };
      write = v => { el.value = [].concat(v ?? []).map(x => typeof x === "string" ? x : JSON.stringify(x)).join("\n"); };
    } else if (type === "integer" || type === "number") {
      el = h("input", {type: "text", inputmode: "decimal", placeholder: s.default !== undefined && s.default !== null ? `${s.default}` : null, ...attrs});
      read = () => el.value.trim() === "" ? undefined : isFinite(Number(el.value)) ? Number(el.value) : el.value.trim();
      write = v => { el.value = v === undefined || v === null ? "" : String(v); };
    } else {
      el = more.area ? h("textarea", {rows: 3, class: "mono", ...attrs}) : h("input", {type: "text", list: list && "list-" + list, placeholder: s.default ?? null, ...attrs});
      read = () => el.value === "" ? (BLANK[path] === "" || path === "outputs.artifact" ? "" : undefined) : el.value;
      write = v => { el.value = v === undefined || v === null ? "" : typeof v === "string" ? v : JSON.stringify(v); };
    }
    const wrong = h("p", {class: "field-error", id: attrs["aria-describedby"]}), entry = {el, read, write, wrong};
    el.addEventListener("blur", () => touch(entry));
    el.addEventListener(el.tagName === "SELECT" ? "change" : "input", () => {
      entry.touched = entry.touched || el.value !== "";
      setAt(spec, path, read());
      key = randomKey();
      writeText();
      later();
    });
    inputs.set(path, entry);
    const limits = [s.minimum !== undefined && `at least ${s.minimum}`, s.exclusiveMinimum !== undefined && `above ${s.exclusiveMinimum}`].filter(Boolean).join(", ");
    const hint = more.lines ? [s.description, "one a line"].filter(Boolean).join("; ") : [s.description, limits].filter(Boolean).join("; ");
    const box = field(label, el, hint);
    box.append(wrong);
    return box;
  }

  const tasks = h("div", {});
  function drawTasks() {
    for (const path of [...inputs.keys()]) if (path.startsWith("config.model.task_templates")) inputs.delete(path);
    const list = at(spec, "config.model.task_templates") || [];
    fill(tasks, list.map((t, i) => h("fieldset", {class: "task"}, h("legend", {}, `Task ${i + 1}`),
      TASK_FIELDS.map(([k, label, more]) => control(`config.model.task_templates.${i}.${k}`, label, more)),
      list.length > 1 && button("Remove this task", () => {
        list.splice(i, 1);
        changedTasks();
      }))), button("Add a task", () => {
        setAt(spec, "config.model.task_templates", [...list, {...(list[list.length - 1] || BLANK.config.model.task_templates[0]), taskname: `task${list.length + 1}`}]);
        changedTasks();
      }));
  }
  function changedTasks() {
    drawTasks();
    writeForm();
    writeText();
    later();
  }
  function drawForm() {
    for (const [name, fields] of SECTIONS) {
      form.append(h("fieldset", {class: "card"}, h("legend", {}, name), h("div", {class: "fields"}, fields.map(f => control(...f)))));
      if (name === "Model and data") form.append(h("fieldset", {class: "card"}, h("legend", {}, "Tasks"), tasks));
    }
    drawTasks();
  }
  function writeForm() {
    if (tasks.querySelectorAll("fieldset").length !== (at(spec, "config.model.task_templates") || []).length) drawTasks();
    for (const [path, i] of inputs) if (document.activeElement !== i.el) i.write(at(spec, path));
  }
  function writeText() {
    text.value = language.value === "yaml" ? yamlText(spec) : JSON.stringify(spec, null, 2) + "\n";
  }

  // ---- judging, as one types
  function later() {
    clearTimeout(timer);
    timer = setTimeout(check, CHECK_MS);
  }
  let checking = 0, edited = false;
  text.addEventListener("input", () => {
    edited = true;
    for (const i of inputs.values()) i.touched = true;
    key = randomKey();
    later();
  });
  // A field is called wrong once somebody has been in it, not before.
  function touch(entry) {
    if (entry.touched) return;
    entry.touched = true;
    showErrors();
  }
  async function check() {
    const mine = ++checking;
    let answer;
    try {
      answer = await post("/specs/check", {text: text.value});
    } catch (e) {
      if (e.status !== 401) say(said, e.message);
      return;
    }
    if (gone || mine !== checking) return;
    errors = answer.errors;
    if (edited && answer.spec && typeof answer.spec === "object" && !Array.isArray(answer.spec)) {
      spec = answer.spec;
      writeForm();
    }
    edited = false;
    showErrors();
    const why = unservable(spec, agents.agents || [], queues.queues || []);
    fill(warning, why && h("p", {class: "notice", id: "unservable"}, why));
  }
  // "config.model.task_templates[0].taskname" and the form's own "….0.taskname" are one path.
  const plain = path => path.replace(/\[(\d+)\]/g, ".$1");
  function showErrors() {
    const left = [], fresh = ![...inputs.values()].some(i => i.touched);
    const by = new Map();
    for (const e of errors) {
      const path = plain(e.path);
      const owner = [...inputs.keys()].find(p => path === p || path.startsWith(p + "."));
      if (owner) by.set(owner, kindly(e.detail));
      left.push(e);
    }
    for (const [path, i] of inputs) {
      const wrong = by.has(path) && i.touched;
      say(i.wrong, wrong ? by.get(path) : "");
      if (wrong) i.el.setAttribute("aria-invalid", "true");
      else i.el.removeAttribute("aria-invalid");
    }
    submit.disabled = errors.length > 0;
    fill(said, errors.length ? h("div", {}, h("p", {class: fresh ? "faint" : "field-error"}, (errors.length === 1 ? "One thing" : `${errors.length} things`) + (fresh ? " to fill in:" : " to mend:")),
      h("ul", {class: "errors"}, left.slice(0, 12).map(e => h("li", {}, e.path && h("code", {}, e.path), e.path ? ": " : "", kindly(e.detail))), left.length > 12 && h("li", {}, `and ${left.length - 12} more`)))
      : h("p", {class: "fine"}, "✓ This spec is valid."));
  }
  async function enqueue() {
    await act(submit, async () => {
      clearTimeout(timer);
      await check();
      if (errors.length) return;
      let answer;
      try {
        answer = await post("/runs", spec, {headers: {"Idempotency-Key": key}});
      } catch (e) {
        if (!e.errors.length) throw e;
        errors = e.errors;
        showErrors();
        return;
      }
      toast(`${spec.name} is in line`);
      go("/runs/" + answer.run);
    });
    if (errors.length) submit.disabled = true;
  }

  // ---- where it begins
  if (query.get("from")) {
    from = await get("/runs/" + encodeURIComponent(query.get("from")));
    spec = ordered(schema, from.spec);
    spec.name = nextName(spec.name);
    delete spec.schedule;
    delete spec.dedupe;
    fill(source, "A copy of ", link("/runs/" + from.run, from.name), ". Change what is to be different; everything else stays as it was.");
  } else if (draft.spec) {
    spec = ordered(schema, draft.spec);
    draft.spec = null;
    fill(source, "A spec of its own now: everything in it may be changed.");
  } else {
    fill(source, "Fill in the form, or write the spec beside it as JSON or YAML. Each shows what the other says. From Python: ",
      h("a", {href: "/softlaunch.py", download: "softlaunch.py"}, "softlaunch.py"), ", one file that needs nothing else.");
  }
  drawForm();
  writeForm();
  writeText();
  await check();
  return () => {
    gone = true;
    clearTimeout(timer);
  };
}

const kindly = detail => /found (""|\[\])$/.test(detail) ? "this is needed" : detail;

// wordnet -> wordnet-2 -> wordnet-3
export function nextName(name) {
  const m = name.match(/^(.*)-(\d{1,4})$/);
  return m ? `${m[1]}-${+m[2] + 1}` : `${name}-2`;
}
