// Events of runs for all tabs: one stream from the server, shared. Runs in a SharedWorker, or in the page where
// there is none.
//
// A subscriber (a tab) names runs and the id of the last event it has of each. It gets every later event once and in
// order: the stream is opened first, then what happened before is read page by page, and ids sort out what comes twice.
// The same happens after every break, so nothing depends on what the server remembers of a connection.

const PAGE = 1000;          // events in one read
const RUNS_MAX = 50;        // in one stream
const RETRY_MS = [500, 1000, 2000, 5000];
const SILENT_MS = 40000;    // a stream that says nothing, not even a comment, is dead
const GONE_MS = 180000;     // a tab that does not call is gone

const ended = new Set(["succeeded", "failed", "dead", "cancelled"]);

// Ids are MILLISECONDS-NUMBER.
export function later(a, b) {
  const [x, i] = a.split("-"), [y, k] = b.split("-");
  return +x - +y || (+i || 0) - (+k || 0);
}

export class Hub {
  constructor() {
    this.tabs = new Map();   // send function -> {seen, subs: Map(run -> {last, caught, held})}
    this.user = null;
    this.open = null;        // {runs, controller}
    this.failures = 0;
    this.status = "idle";
    setInterval(() => this.sweep(), 20000);
  }

  // ---- what tabs ask

  hello(send, message) {
    let tab = this.tabs.get(send);
    if (!tab) this.tabs.set(send, tab = {subs: new Map()});
    tab.seen = Date.now();
    if (message.op === "bye") {
      this.tabs.delete(send);
      this.settle();
    } else if (message.op === "watch") {
      if (message.user !== this.user) { // another one has signed in: the stream is the one's before
        this.user = message.user;
        this.close();
      }
      for (const run of [...tab.subs.keys()]) if (!(run in message.runs)) tab.subs.delete(run);
      for (const [run, last] of Object.entries(message.runs))
        if (!tab.subs.has(run)) tab.subs.set(run, {last: last || "0", caught: false, held: [], over: false});
      send({status: this.status});
      this.settle();
    }
  }

  sweep() {
    for (const [send, tab] of this.tabs) if (Date.now() - tab.seen > GONE_MS) this.tabs.delete(send);
    this.settle();
  }

  *subs(run) {
    for (const [send, tab] of this.tabs) {
      for (const [r, sub] of tab.subs) if (!run || r === run) yield [send, sub, r];
    }
  }

  wanted() {
    const runs = new Set();
    for (const [, sub, run] of this.subs()) if (!sub.over) runs.add(run);
    return [...runs].sort().slice(0, RUNS_MAX);
  }

  say(status) {
    if (status === this.status) return;
    this.status = status;
    for (const send of this.tabs.keys()) send({status});
  }

  // ---- the stream

  settle() {
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.connect(), 30);
  }

  close() {
    if (this.open) this.open.controller.abort();
    this.open = null;
  }

  async connect() {
    const runs = this.wanted(), key = runs.join(",");
    if (this.open && this.open.key === key) {
      for (const [send, sub, run] of this.subs()) if (!sub.caught && !sub.over) this.catchUp(send, sub, run);
      return;
    }
    this.close();
    if (!runs.length) return this.say("idle");
    const controller = new AbortController(), mine = this.open = {key, controller};
    try {
      await this.stream(key, controller);
    } catch (e) {
      if (controller.signal.aborted && this.open !== mine) return; // replaced by a newer one
      controller.abort();
    }
    if (this.open !== mine) return;
    this.open = null;
    this.say("waiting");
    setTimeout(() => this.settle(), RETRY_MS[Math.min(this.failures++, RETRY_MS.length - 1)]);
  }

  async stream(key, controller) {
    const answer = await fetch("/api/v1/events?runs=" + key, {
      headers: {Accept: "text/event-stream"}, signal: controller.signal, credentials: "same-origin", cache: "no-store"});
    if (!answer.ok) throw new Error("refused");
    this.failures = 0;
    this.say("live");
    for (const [send, sub, run] of this.subs()) if (!sub.over) sub.caught = false, this.catchUp(send, sub, run);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "", watchdog;
    const alive = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => controller.abort(), SILENT_MS);
    };
    try {
      for (;;) {
        alive();
        const {value, done} = await reader.read();
        if (done) return;
        rest += value;
        const blocks = rest.split(/\r?\n\r?\n/);
        rest = blocks.pop();
        this.took(blocks);
      }
    } finally {
      clearTimeout(watchdog);
    }
  }

  took(blocks) {
    const batches = new Map();
    for (const block of blocks) {
      let id = null, type = "message", data = "";
      for (const line of block.split(/\r?\n/)) {
        const at = line.indexOf(":"), name = line.slice(0, at), value = line.slice(at + 1).replace(/^ /, "");
        if (name === "id") id = value;
        else if (name === "event") type = value;
        else if (name === "data") data += value;
      }
      if (!data && type !== "reset") continue;
      let e;
      try {
        e = JSON.parse(data || "{}");
      } catch {
        continue;
      }
      const run = e.run;
      if (type === "reset") {
        for (const [send, sub, r] of this.subs(run)) sub.caught = false, this.catchUp(send, sub, r);
        continue;
      }
      if (!run) continue;
      // The stream's own id may be one of all runs together; the event's is in its data.
      const event = e.data !== undefined ? {type, ...e, id: e.id || id} : {id: e.id || id, type, time_ms: e.time_ms, attempt: e.attempt, data: e};
      if (!batches.has(run)) batches.set(run, []);
      batches.get(run).push(event);
    }
    for (const [run, events] of batches)
      for (const [send, sub] of this.subs(run)) {
        if (sub.caught) this.deliver(send, sub, run, events);
        else sub.held.push(...events);
      }
  }

  deliver(send, sub, run, events) {
    const fresh = events.filter(e => later(e.id, sub.last) > 0);
    if (!fresh.length) return;
    sub.last = fresh[fresh.length - 1].id;
    send({run, events: fresh});
    for (const e of fresh) if (e.type === "state") sub.over = ended.has(e.data.state);
    if (sub.over) this.settle();
  }

  // Reads what lies behind sub.last; afterwards the stream's events go straight on.
  async catchUp(send, sub, run) {
    if (sub.busy) {
      sub.again = true;
      return;
    }
    sub.busy = true;
    try {
      do {
        sub.again = false;
        for (;;) {
          const answer = await fetch(`/api/v1/runs/${run}/events?after=${sub.last}&limit=${PAGE}`,
            {headers: {Accept: "application/json"}, credentials: "same-origin"});
          if (answer.status === 404) sub.over = true;
          if (!answer.ok) throw new Error("refused");
          const page = await answer.json();
          if (page.trimmed && sub.last !== "0") send({run, gap: true});
          if (!page.events.length) break;
          this.deliver(send, sub, run, page.events);
        }
      } while (sub.again);
      sub.caught = true;
      this.deliver(send, sub, run, sub.held.splice(0));
      if (!sub.told) sub.told = true, send({run, caught: true});
    } catch {
      if (this.open) this.open.controller.abort(); // begin anew, with its delays
    } finally {
      sub.busy = false;
    }
  }
}
