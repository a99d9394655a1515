// What a page knows of one run from its events: series of numbers, the log, predictions, how fast it goes.
import {watch} from "/static/stream.js";
import {FINAL} from "/static/dom.js";

const LOG_MAX = 20000;   // lines kept; the oldest go
const NOT_SERIES = new Set(["step", "epoch", "trial", "best", "tokens", "phase", "kernel"]);
export const isSeries = name => !NOT_SERIES.has(name);

export class RunData {
  constructor(run) {
    this.run = run;
    this.series = new Map();   // name, or TRIAL/name -> {name, trial, x: steps, t: ms, y}
    this.log = [];
    this.logDropped = 0;
    this.predictions = [];
    this.states = [];
    this.checkpoints = 0;
    this.attempt = 0;
    this.caught = false;
    this.step = null;
    this.steps = null;
    this.version = 0;
    this.listeners = new Set();
  }

  open(after) {
    this.end = watch(this.run, m => this.heard(m), after);
    return this;
  }

  close() {
    if (this.end) this.end();
    this.listeners.clear();
  }

  heard(message) {
    if (message.caught) this.caught = true;
    if (message.gap) this.gap = true;
    const kinds = new Set(message.caught ? ["caught"] : []);
    for (const e of message.events || []) {
      this.take(e);
      kinds.add(e.type);
    }
    this.version++;
    for (const f of this.listeners) f(kinds);
  }

  take(e) {
    const d = e.data || {};
    if (e.attempt) this.attempt = e.attempt;
    if (e.type === "metric") this.metric(d, e.time_ms);
    else if (e.type === "log") this.line({time_ms: e.time_ms, level: d.level || "info", msg: d.msg || ""});
    else if (e.type === "prediction") this.predictions.push(d);
    else if (e.type === "checkpoint") this.checkpoints++;
    else if (e.type === "start") {
      this.steps = d.steps ?? this.steps;
      this.step = d.step ?? this.step;
      this.startInfo = d;
      this.startedAt = {step: d.step || 0, t: e.time_ms};
    } else if (e.type === "state") {
      this.states.push({time_ms: e.time_ms, attempt: e.attempt, ...d});
      this.state = d.state;
      this.line({time_ms: e.time_ms, level: "state", msg: d.state + (d.agent ? ` on ${d.agent}` : "") + (d.msg ? `: ${d.msg}` : d.cause ? `: ${d.cause}` : "")});
    } else if (e.type === "phase") {
      this.phase = d.phase;
    } else if (e.type === "progress") {
      this.progress = d;
    }
  }

  line(entry) {
    this.log.push(entry);
    if (this.log.length > LOG_MAX + 1000) this.logDropped += this.log.splice(0, this.log.length - LOG_MAX).length;
  }

  metric(d, t) {
    const step = d.step ?? null;
    if (step !== null && !d.trial) this.step = Math.max(this.step || 0, step);
    for (const [name, y] of Object.entries(d)) {
      if (typeof y !== "number" || !isSeries(name)) continue;
      this.point(d.trial ? `${d.trial}/${name}` : name, name, d.trial, step, t, y);
    }
  }

  point(key, name, trial, step, t, y) {
    let s = this.series.get(key);
    if (!s) this.series.set(key, s = {key, name, trial, x: [], t: [], y: []});
    // A run that was taken over goes on from its checkpoint: what it does again replaces what was there. What the machine
    // does is told by time, also several times in one step.
    const least = name.startsWith("system/") ? step + 1 : step;
    while (s.x.length && step !== null && s.x[s.x.length - 1] >= least && s.x[s.x.length - 1] !== null) {
      s.x.pop();
      s.t.pop();
      s.y.pop();
    }
    s.x.push(step);
    s.t.push(t);
    s.y.push(y);
  }

  last(name) {
    const s = this.series.get(name);
    return s && s.y[s.y.length - 1];
  }

  // Milliseconds to the last step, from the speed of the last few; null when nobody knows.
  timeLeft() {
    const s = this.series.get("loss");
    if (!s || s.x.length < 3 || !this.steps || FINAL.has(this.state)) return null;
    const n = s.x.length, from = Math.max(0, n - 30), steps = s.x[n - 1] - s.x[from], ms = s.t[n - 1] - s.t[from];
    return steps > 0 && ms > 0 ? ms / steps * Math.max(0, this.steps - s.x[n - 1]) : null;
  }
}

// Right, wrong, or null when there is no answer to compare with: as exact match counts, blanks and case aside.
export function isRight(p) {
  if (p.answer === undefined || p.answer === null) return null;
  const plain = text => String(text ?? "").toLowerCase().replace(/[.!?\s]+$/u, "").trim().replace(/\s+/gu, " ");
  return plain(p.prediction) === plain(p.answer);
}
