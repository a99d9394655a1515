// All runs: a page of them at a time, filtered and sorted by the server, so that a hundred thousand are no more work
// than fifty.
import {api, get, getOr, listRuns, post, query} from "/static/api.js";
import {act, arrange, badge, button, command, dialog, duration, empty, field, fill, FINAL, h, link, number, problem, say, select,
        STATES, store, table, time, toast} from "/static/dom.js";
import {title} from "/static/app.js";

const REFRESH_MS = 2500;
const PAGE = 50;    // runs of one page
const FILTERS = ["q", "status", "project", "queue", "tag", "sort", "group", "cursor"];

// Why a run waits or has failed.
const why = r => r.waiting_for || (r.state === "failed" || r.state === "dead" ? r.msg || r.cause : null);
const metric = name => r => number(r.metrics && r.metrics[name]);
// name, head, cell, what the server sorts by
const COLUMNS = [
  ["name", "Name", r => link("/runs/" + r.run, r.name), "name"],
  ["state", "State", r => [badge(r.state), why(r) && h("span", {class: "why short", title: why(r)}, why(r))], "state"],
  ["progress", "Progress", progress, null],
  ["project", "Project", r => r.project, "project"],
  ["queue", "Queue", r => r.queue, "queue"],
  ["priority", "Priority", r => r.priority, "priority"],
  ["loss", "Loss", metric("loss"), "loss"],
  ["val_loss", "Validation loss", metric("val_loss"), "val_loss"],
  ["created", "Created", r => time(r.created_ms), "created"],
  ["took", "Ran for", r => r.run_ms || r.started_ms ? duration(FINAL.has(r.state) || !r.started_ms ? r.run_ms : Date.now() - r.started_ms) : "–", "duration"],
  ["tags", "Tags", r => r.tags.map(t => [h("a", {class: "tag", href: "/" + query({tag: t})}, t), " "]), null],
  ["agent", "Agent", r => r.agent || "–", null],
  ["by", "By", r => r.created_by || "–", "user"],
  ["cause", "Cause", r => r.cause || "–", null],
];
const USUAL = ["name", "state", "progress", "project", "val_loss", "created", "took", "tags"];

export function progress(r) {
  if (r.state === "running" && r.phase && r.phase !== "training" && !r.step) return r.phase;
  if (!r.steps) return "–";
  const p = Math.min(1, (r.step || 0) / r.steps);
  return h("span", {class: "bar-line"},
    h("progress", {max: 1, value: p, "aria-label": `progress of ${r.name}`}), ` ${number(r.step || 0)} / ${number(r.steps)}`);
}

export async function show(root, {query: address, go}) {
  title("Runs");
  const state = Object.fromEntries(FILTERS.map(k => [k, address.get(k) || ""]));
  const chosen = new Set(), back = [];
  let columns = store.get("columns", USUAL), page = null, gone = false, timer, controller;

  const change = changes => {
    Object.assign(state, {cursor: ""}, changes);
    if (!("cursor" in changes)) back.length = 0;
    history.replaceState(null, "", "/" + query(state));
    load();
  };

  // ---- the bar of filters
  const search = h("input", {type: "search", placeholder: "Search", "aria-label": "Search names, projects, tags, notes, users", maxlength: 200, value: state.q});
  let typing;
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => change({q: search.value.trim()}), 250);
  });
  const status = select([["", "Any state"], ...STATES], state.status, v => change({status: v}), {"aria-label": "State"});
  const project = select([["", "All projects"]], "", v => change({project: v}), {"aria-label": "Project"});
  const group = h("input", {type: "checkbox", checked: state.group === "project",
                            onchange: () => change({group: group.checked ? "project" : ""})});
  const tag = h("input", {type: "text", class: "short", placeholder: "Tag", "aria-label": "Tag", value: state.tag,
                          onchange: () => change({tag: tag.value.trim()})});
  const views = h("select", {"aria-label": "Saved views", onchange: () => useView(views.value)});
  const compare = button("Compare", () => go("/compare?runs=" + [...chosen].join(",")), {class: "primary", disabled: true});
  const mark = button("Tag…", askTags, {disabled: true});
  const body = h("div", {class: "runs-body", "aria-busy": "true"});
  const count = h("p", {class: "faint", role: "status"});
  const previous = button("Newer", () => change({cursor: back.pop() || ""}), {disabled: true});
  const next = button("Older", () => {
    back.push(state.cursor);
    change({cursor: page.next});
  }, {disabled: true});
  const notice = h("div", {});

  root.append(
    h("div", {class: "page-head"}, h("h1", {}, "Runs"), link("/new", h("span", {class: "button primary"}, "New run"))),
    h("div", {class: "filters", role: "search"}, search, status, project, tag,
      h("label", {class: "check"}, group, " Group by project"), views,
      button("Columns", chooseColumns), mark, compare),
    notice, body, h("div", {class: "pager"}, count, h("div", {class: "actions"}, previous, next)));
  listViews();
  getOr("/projects", {projects: []}).then(p => {
    offer([state.project, ...p.projects.map(x => x.project)]);
    project.value = state.project;
  }).catch(() => {});

  // Projects to filter by: those with limits or runs in line, and what the list has shown.
  function offer(names) {
    const known = new Set([...project.options].map(o => o.value));
    for (const name of [...new Set(names)].filter(n => !known.has(n)).sort()) project.append(h("option", {value: name}, name));
  }

  function listViews() {
    const saved = store.get("views", {});
    fill(views, h("option", {value: ""}, "Views"), Object.keys(saved).map(k => h("option", {value: "v" + k}, k)),
      h("option", {value: "+"}, "Save this view…"), Object.keys(saved).length ? h("option", {value: "-"}, "Remove a view…") : null);
  }
  function useView(value) {
    const saved = store.get("views", {});
    views.value = "";
    if (value.startsWith("v")) go(saved[value.slice(1)]);
    if (value === "+") {
      const name = h("input", {type: "text", required: true, maxlength: 60});
      const d = dialog("Save this view", field("Name", name), h("div", {class: "actions"}, button("Save", () => {
        if (!name.value.trim()) return name.focus();
        store.set("views", {...saved, [name.value.trim()]: location.pathname + location.search});
        listViews();
        d.close();
      }, {class: "primary"})));
    }
    if (value === "-") {
      const d = dialog("Remove a view", h("ul", {class: "plain"}, Object.keys(saved).map(k => h("li", {}, button(`Remove ${k}`, () => {
        delete saved[k];
        store.set("views", saved);
        listViews();
        d.close();
      })))));
    }
  }
  function chooseColumns() {
    dialog("Columns", h("div", {class: "checks"}, COLUMNS.filter(c => c[0] !== "name").map(([key, head]) => {
      const box = h("input", {type: "checkbox", checked: columns.includes(key), onchange: () => {
        columns = COLUMNS.map(c => c[0]).filter(k => k === key ? box.checked : columns.includes(k));
        store.set("columns", columns);
        draw();
      }});
      return h("label", {class: "check"}, box, " ", head);
    })));
  }

  // ---- the table
  const rows = new Map();   // run -> {tr, text}: a row is made anew only when it says something else

  function headCell([, head, , sort]) {
    if (!sort) return h("th", {scope: "col"}, head);
    const now = (state.sort || "-created").replace("-", "") === sort, down = (state.sort || "-created").startsWith("-");
    return h("th", {scope: "col", "aria-sort": now ? (down ? "descending" : "ascending") : null},
      button([head, h("span", {"aria-hidden": "true"}, now ? (down ? " ↓" : " ↑") : "")],
        () => change({sort: now && down ? sort : "-" + sort}), {class: "sort"}));
  }
  function makeRow(r, shown) {
    const box = h("input", {type: "checkbox", checked: chosen.has(r.run), "aria-label": `Select ${r.name}`, onchange: () => {
      if (box.checked) chosen.add(r.run);
      else chosen.delete(r.run);
      chose();
    }});
    return h("tr", {"data-run": r.run}, h("td", {class: "pick"}, box),
      shown.map(([key, head, cell]) => h("td", {"data-label": head, class: "c-" + key}, cell(r))));
  }
  function chose() {
    compare.disabled = chosen.size < 2;
    mark.disabled = !chosen.size;
    say(compare, chosen.size > 1 ? `Compare ${chosen.size}` : "Compare");
  }
  function askTags() {
    const tags = h("input", {type: "text", required: true, maxlength: 200}), words = () => tags.value.split(/[,\s]+/).filter(Boolean);
    // of: a run's tags -> what they are to be
    const write = of => async () => {
      for (const id of chosen) {
        const had = (await get("/runs/" + id)).tags;
        await api("PATCH", "/runs/" + id, {tags: of(had)});
      }
      d.close();
      load();
    };
    const add = button("Add", () => act(add, write(had => [...new Set([...had, ...words()])])), {class: "primary"});
    const remove = button("Remove", () => tags.reportValidity() && act(remove, write(had => had.filter(t => !words().includes(t)))));
    const d = dialog(`Tags of ${chosen.size} run${chosen.size > 1 ? "s" : ""}`, field("Tags", tags, "Separated by commas or blanks."), h("div", {class: "actions"}, add, remove));
  }
  let drawn = "", tbody = null;
  function draw() {
    if (!page) return;
    const shown = COLUMNS.filter(c => columns.includes(c[0]));
    const shape = columns.join() + state.sort + state.group;
    if (!page.runs.length) {
      drawn = "";
      fill(body, FILTERS.some(k => state[k])
        ? empty("No run is like that", "Nothing matches these filters.", button("Clear the filters", () => go("/")))
        : empty("No runs yet", "A run teaches a frozen model a task. Fill in a form, or enqueue a spec from the command line.",
          command("softlaunch enqueue examples/wordnet.json --follow"), link("/new", h("span", {class: "button primary"}, "New run"))));
      return;
    }
    if (drawn !== shape || !tbody || !tbody.isConnected) {
      rows.clear();
      fill(body, table("Runs", [h("th", {scope: "col", class: "pick"}, h("span", {class: "sr"}, "Select")), ...shown.map(headCell)],
        [], {class: "cards runs-table"}));
      tbody = body.querySelector("tbody");
      drawn = shape;
    }
    const list = [];
    let last = null;
    const ordered = state.group === "project" ? [...page.runs].sort((a, b) => a.project.localeCompare(b.project)) : page.runs;
    for (const r of ordered) {
      if (state.group === "project" && r.project !== last) {
        last = r.project;
        list.push(h("tr", {class: "group"}, h("th", {colspan: shown.length + 1, scope: "colgroup"}, last,
          h("span", {class: "faint"}, ` ${ordered.filter(x => x.project === last).length} on this page`))));
      }
      const text = JSON.stringify(r), known = rows.get(r.run);
      if (known && known.text === text && FINAL.has(r.state)) list.push(known.tr);
      else {
        const focused = known && known.tr.contains(document.activeElement);
        const tr = focused ? known.tr : makeRow(r, shown);
        rows.set(r.run, {tr, text: focused ? "" : text});
        list.push(tr);
      }
    }
    arrange(tbody, list);
  }

  async function load() {
    clearTimeout(timer);
    if (controller) controller.abort();
    controller = new AbortController();
    const mine = controller;
    try {
      const sort = state.group === "project" ? "project" : state.sort;
      const fresh = await listRuns({limit: PAGE, cursor: state.cursor, sort, status: state.status, q: state.q,
                                    project: state.project, queue: state.queue, tag: state.tag}, mine.signal);
      if (gone || mine !== controller) return;
      page = fresh;
      offer(page.runs.map(x => x.project));
      body.setAttribute("aria-busy", "false");
      fill(notice, page.live ? null : h("p", {class: "notice"}, "Redis does not answer: runs that have not ended are shown as they were last seen. It comes back by itself."));
      draw();
      const first = state.cursor && !back.length ? null : back.length * PAGE + 1;    // a page that was opened by its address has no number
      say(count, page.total > page.runs.length && first ? `${number(first)} to ${number(first + page.runs.length - 1)} of ${number(page.total)} runs` : `${number(page.total)} run${page.total === 1 ? "" : "s"}`);
      previous.disabled = !back.length && !state.cursor;
      next.disabled = !page.next;
      previous.hidden = next.hidden = previous.disabled && next.disabled;
    } catch (e) {
      if (gone || e.name === "AbortError" || e.status === 401) return;
      if (!page) fill(body, problem(e, load));
      else fill(notice, h("p", {class: "notice"}, e.message));
    }
    if (!gone) timer = setTimeout(load, document.hidden ? REFRESH_MS * 4 : REFRESH_MS);
  }
  await load();
  return () => {
    gone = true;
    clearTimeout(timer);
    if (controller) controller.abort();
  };
}

// Cancel or requeue, as its state allows.
export function runAction(r, done) {
  if (FINAL.has(r.state)) {
    if (r.state === "succeeded") return null;
    const b = button("Requeue", () => act(b, async () => {
      const answer = await post(`/runs/${r.run}/requeue`);
      toast(`${r.name} is in line again`);
      done(answer.run);
    }));
    return b;
  }
  const b = button("Cancel", () => act(b, async () => {
    await post(`/runs/${r.run}/cancel`);
    toast(`${r.name} is being cancelled`);
    done(r.run);
  }), {class: "danger"});
  return b;
}

