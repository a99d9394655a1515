// Queues: what waits, what runs, what is dead; drag to another priority, pause, drain, requeue.
import {get, listRuns, post} from "/static/api.js";
import {act, badge, button, duration, empty, fill, h, link, PRIORITIES, problem, refill, say, select, time, toast} from "/static/dom.js";
import {title} from "/static/app.js";
import {progress} from "/static/runs.js";

const REFRESH_MS = 2000;
const LANE_MAX = 50;    // runs shown of each lane

export async function show(root, {query, go}) {
  title("Queues");
  const list = h("div", {class: "queue-list"}), detail = h("div", {class: "lanes"}), said = h("div", {role: "status", class: "sr"});
  let chosen = query.get("queue") || "", gone = false, timer, dragging = false, last = "";
  root.append(h("h1", {}, "Queues"), list, detail, said);

  async function setQueue(name, state, b) {
    await act(b, async () => {
      await post("/queues/" + encodeURIComponent(name), {state});
      toast(`Queue ${name} is ${state} now`);
    });
    load();
  }
  function card(q) {
    const count = k => q.classes.reduce((n, c) => n + c[k], 0);
    const starving = q.classes.filter(c => !c.agents && c.ready + c.held);
    const set = (text, state) => {
      const b = button(text, () => setQueue(q.queue, state, b), {"aria-label": `${text} ${q.queue}`});
      return b;
    };
    return h("section", {class: "card queue" + (q.queue === chosen ? " chosen" : ""), "data-part": "queue " + q.queue},
      h("div", {class: "card-head"}, h("h2", {}, h("a", {href: "/queues?queue=" + encodeURIComponent(q.queue), "aria-current": q.queue === chosen ? "true" : null}, q.queue), " ", badge(q.state)),
        h("div", {class: "actions"}, q.state !== "active" && set("Resume", "active"), q.state !== "paused" && set("Pause", "paused"), q.state !== "draining" && set("Drain", "draining"))),
      h("p", {}, `${count("ready")} ready, ${count("held")} held, ${q.running} running`, q.max_running ? ` of at most ${q.max_running}` : "", q.rate_per_minute ? `, ${q.rate_per_minute} a minute` : ""),
      starving.map(c => h("p", {class: "notice"}, `${c.ready + c.held} wait for ${c.class}, which no agent offers.`)));
  }

  async function move(run, name, priority) {
    try {
      await post(`/runs/${run}/move`, {priority});
      say(said, `${name} has priority ${priority} now`);
    } catch (e) {
      toast(e.message, "bad");
    }
    load(true);
  }
  function runCard(r, canMove) {
    const el = h("li", {class: "run-card", draggable: canMove ? "true" : null, "data-run": r.run},
      link("/runs/" + r.run, r.name), h("span", {class: "faint"}, ` ${r.project}`), r.waiting_for && h("p", {class: "why"}, r.waiting_for),
      h("div", {class: "run-card-foot"}, time(r.created_ms), canMove && select(PRIORITIES, r.priority, p => move(r.run, r.name, p), {"aria-label": `Priority of ${r.name}`})));
    if (canMove) {
      el.addEventListener("dragstart", e => {
        dragging = true;
        e.dataTransfer.setData("text/plain", JSON.stringify({run: r.run, name: r.name, priority: r.priority}));
        e.dataTransfer.effectAllowed = "move";
        el.classList.add("dragged");
      });
      el.addEventListener("dragend", () => {
        dragging = false;
        el.classList.remove("dragged");
      });
    }
    return el;
  }
  function lane(priority, runs) {
    const el = h("section", {class: "lane card", "data-priority": priority}, h("h3", {}, priority, h("span", {class: "faint"}, ` ${runs.length}`)),
      h("ul", {class: "plain"}, runs.map(r => runCard(r, true)), runs.length ? null : h("li", {class: "faint"}, "nothing waits")));
    el.addEventListener("dragover", e => {
      e.preventDefault();
      el.classList.add("over");
    });
    el.addEventListener("dragleave", () => el.classList.remove("over"));
    el.addEventListener("drop", e => {
      e.preventDefault();
      el.classList.remove("over");
      dragging = false;
      const {run, name, priority: was} = JSON.parse(e.dataTransfer.getData("text/plain"));
      if (was !== priority) move(run, name, priority);
    });
    return el;
  }

  async function load(moved = false) {
    clearTimeout(timer);
    try {
      const {queues} = await get("/queues");
      if (!chosen && queues.length) chosen = queues[0].queue;
      const of = status => chosen ? listRuns({limit: LANE_MAX, status, queue: chosen}) : {runs: []};
      const [queued, delayed, running, dead, failed] = await Promise.all(["queued", "delayed", "running", "dead", "failed"].map(of));
      if (gone) return;
      const text = JSON.stringify([queues, queued.runs, delayed.runs, running.runs, dead.runs, failed.runs, chosen]);
      const busy = dragging || !moved && detail.contains(document.activeElement) && document.activeElement.tagName === "SELECT";
      if (text !== last && !busy) {
        last = text;
        refill(list, queues.length ? queues.map(card) : empty("No queues yet", "A queue comes into being with its first run, or when it is given a limit.", link("/new", h("span", {class: "button primary"}, "New run"))));
        const waiting = [...queued.runs, ...delayed.runs].reverse();
        const section = (name, page, show) => h("section", {class: "card"}, h("h2", {}, name, h("span", {class: "faint"}, page.runs.length ? ` ${page.runs.length}${page.next ? "+" : ""}` : "")),
          page.runs.length ? h("ul", {class: "plain"}, page.runs.map(show)) : h("p", {class: "faint"}, "none"));
        refill(detail, !chosen ? null : [h("h2", {class: "lanes-head"}, `Waiting in ${chosen}`), h("p", {class: "faint"}, "Drag a run to another priority, or choose it in the run's list."),
          h("div", {class: "lane-row"}, PRIORITIES.map(p => lane(p, waiting.filter(r => r.priority === p)))),
          h("div", {class: "grid"}, section("Running", running, r => h("li", {class: "run-card"}, link("/runs/" + r.run, r.name), " ", progress(r),
            h("div", {class: "run-card-foot faint"}, r.agent || "", " ", r.started_ms ? duration(Date.now() - r.started_ms) : ""))),
            section("Dead and failed", {runs: [...dead.runs, ...failed.runs].sort((a, b) => b.created_ms - a.created_ms).slice(0, LANE_MAX), next: dead.next || failed.next}, r => {
              const b = button("Requeue", () => act(b, async () => {
                const answer = await post(`/runs/${r.run}/requeue`);
                toast(`${r.name} is in line again`);
                go("/runs/" + answer.run);
              }), {"aria-label": `Requeue ${r.name}`});
              return h("li", {class: "run-card"}, h("div", {class: "card-head"}, h("span", {}, link("/runs/" + r.run, r.name), " ", badge(r.state)), b), h("p", {class: "why"}, r.msg || r.cause || ""));
            }))]);
      }
    } catch (e) {
      if (!gone && e.status !== 401 && !last) fill(list, problem(e, load));
    }
    if (!gone) timer = setTimeout(load, document.hidden ? REFRESH_MS * 5 : REFRESH_MS);
  }
  await load();
  return () => {
    gone = true;
    clearTimeout(timer);
  };
}
