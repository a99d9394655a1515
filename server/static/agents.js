// Agents: what runs where, on which devices, when they were heard last, and which are quarantined.
import {get, post} from "/static/api.js";
import {act, badge, bytes, button, command, duration, empty, fill, h, link, number, problem, refill} from "/static/dom.js";
import {title} from "/static/app.js";
import {offerText} from "/static/spec.js";

const REFRESH_MS = 3000;
const SILENT_MS = 30000;    // an agent calls more often than that

export async function show(root) {
  title("Agents");
  const body = h("div", {class: "agents"});
  let gone = false, timer, last = "";
  root.append(h("h1", {}, "Agents"), body);

  function card(a) {
    const silent = a.age_ms > SILENT_MS, set = (text, state) => {
      const b = button(text, () => act(b, async () => {
        await post("/agents/" + encodeURIComponent(a.agent), {state});
        last = "";
        load();
      }), {"aria-label": `${text} ${a.agent}`});
      return b;
    };
    const wanted = a.wanted || "active", quarantined = a.quarantined || a.quarantine;
    const devices = a.devices || a.gpus || [];
    return h("section", {class: "card", "data-part": a.agent}, h("div", {class: "card-head"}, h("h2", {}, a.agent, " ", badge(silent ? "silent" : quarantined ? "quarantined" : wanted !== "active" ? wanted : a.state || "idle")),
      h("div", {class: "actions"}, wanted !== "active" && set("Resume", "active"), wanted !== "paused" && set("Pause", "paused"), wanted !== "draining" && set("Drain", "draining"))),
      quarantined && h("p", {class: "problem"}, "Quarantined: ", typeof quarantined === "string" ? quarantined : quarantined.reason || a.reason || "its health check failed"),
      silent && h("p", {class: "notice"}, `Not heard for ${duration(a.age_ms)}. Its runs go to another agent once their leases end.`),
      h("dl", {class: "facts"}, [["Host", a.host], ["Offers", offerText(a.offer)], ["Queues", (a.queues || []).join(", ")], ["Heard", a.age_ms < 3000 ? "just now" : duration(a.age_ms) + " ago"],
        ["Slots", `${(a.runs || []).length} of ${a.slots} in use`], ["Version", a.version]].filter(x => x[1]).map(([k, v]) => h("div", {}, h("dt", {}, k), h("dd", {}, v)))),
      Array.isArray(devices) && devices.length ? h("ul", {class: "plain"}, devices.map(d => h("li", {}, typeof d === "string" ? d : [d.name || d.id || "GPU", " ",
        d.memory_bytes && bytes(d.memory_bytes), d.utilization !== undefined && ` ${number(d.utilization)} %`]))) : null,
      h("h3", {}, "Runs"), (a.runs || []).length ? h("ul", {class: "plain"}, a.runs.map(r => {
        const id = typeof r === "string" ? r : r.run;
        return h("li", {}, link("/runs/" + id, r.name || id.slice(0, 12)), r.phase ? ` ${r.phase}` : "", r.step ? ` step ${r.step}` : "");
      })) : h("p", {class: "faint"}, "none"));
  }

  async function load() {
    clearTimeout(timer);
    try {
      const {agents} = await get("/agents");
      if (gone) return;
      const text = JSON.stringify(agents.map(a => ({...a, seen_ms: 0, age_ms: Math.round(a.age_ms / 5000)})));
      if (text !== last) {
        last = text;
        refill(body, agents.length ? h("div", {class: "grid"}, agents.map(card))
          : empty("No agents", "Runs wait until one comes. On a machine that is to train, start one; --redis is the address of the server's Redis.",
            command(`softlaunch agent --redis redis://HOST:6379 --server ${location.origin} --work-dir work`)));
      }
    } catch (e) {
      if (!gone && e.status !== 401 && !last) fill(body, problem(e, load));
    }
    if (!gone) timer = setTimeout(load, REFRESH_MS);
  }
  await load();
  return () => {
    gone = true;
    clearTimeout(timer);
  };
}
