// Elements, times and small things that every page uses. Nothing here makes HTML from text: texts become text nodes.

export function h(tag, attrs, ...children) {
  const el = document.createElement(tag);
  set(el, attrs);
  el.append(...flat(children));
  return el;
}

export function svg(tag, attrs, ...children) {
  const el = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [k, v] of Object.entries(attrs || {})) el.setAttribute(k, v);
  el.append(...flat(children));
  return el;
}

function set(el, attrs) {
  for (const [k, v] of Object.entries(attrs || {})) {
    if (v === null || v === undefined || v === false) continue;
    if (k.startsWith("on")) el.addEventListener(k.slice(2), v);
    else if (k === "value" || k === "checked" || k === "disabled" || k === "indeterminate") el[k] = v;
    else el.setAttribute(k, v === true ? "" : v);
  }
}

function flat(children) {
  return children.flat(Infinity).filter(c => c !== null && c !== undefined && c !== false);
}

export function fill(el, ...children) {
  el.replaceChildren(...flat(children));
  return el;
}

// Gives a part these children; those that it has stay where they are, with the focus and what is chosen in them.
export function arrange(el, children) {
  const wanted = new Set(children);
  let at = el.firstChild;
  const skip = () => {
    while (at && !wanted.has(at)) {
      const old = at;
      at = at.nextSibling;
      old.remove();
    }
  };
  for (const c of children) {
    skip();
    if (c === at) at = at.nextSibling;
    else el.insertBefore(c, at);
  }
  skip();
}

// Fills what is drawn again and again: the focus stays on what says the same as before, else in the same part (data-part).
export function refill(root, ...children) {
  const was = document.activeElement, name = e => e.getAttribute("aria-label") || e.textContent, part = e => e.closest("[data-part]")?.dataset.part;
  const focused = was !== root && root.contains(was), said = focused && name(was), where = focused && part(was);
  fill(root, ...children);
  if (!focused) return;
  const all = [...root.querySelectorAll("a[href], button, select, input, [tabindex]")];
  const next = all.find(e => e.tagName === was.tagName && name(e) === said) || where && all.find(e => e.tagName === was.tagName && part(e) === where);
  if (next) next.focus({preventScroll: true});
}

// A text node is replaced only when it says something new, so that screen readers and selections are left alone.
export function say(el, text) {
  if (el.textContent !== text) el.textContent = text;
  return el;
}

let ids = 0;
export const uid = stem => `${stem}-${++ids}`;

// ---- numbers and times, in the reader's language and zone

const whole = new Intl.NumberFormat(), digits4 = new Intl.NumberFormat(undefined, {maximumSignificantDigits: 4});
export function number(x) {
  if (typeof x !== "number" || !isFinite(x)) return x === null || x === undefined ? "–" : String(x);
  if (x === 0 || Number.isInteger(x) && Math.abs(x) < 1e13) return whole.format(x);
  const a = Math.abs(x);
  if (a >= 1e7 || a < 1e-3) return x.toExponential(2);
  return a >= 1000 ? whole.format(Math.round(x)) : digits4.format(x);
}

export function bytes(n) {
  if (typeof n !== "number") return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  while (n >= 1024 && i < units.length - 1) n /= 1024, i++;
  return `${i ? n.toFixed(n < 10 ? 1 : 0) : n} ${units[i]}`;
}

export function duration(ms) {
  if (typeof ms !== "number" || ms < 0) return "–";
  const s = Math.round(ms / 1000);
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s % 86400 / 3600)} h`;
}

const full = new Intl.DateTimeFormat(undefined, {dateStyle: "medium", timeStyle: "medium"});
const clock = new Intl.DateTimeFormat(undefined, {timeStyle: "medium"});
export const clockTime = ms => clock.format(new Date(ms));

export function ago(ms) {
  const d = Date.now() - ms;
  if (d < 10000 && d > -10000) return "just now";
  return d > 0 ? duration(d).split(" ").slice(0, 2).join(" ") + " ago" : "in " + duration(-d);
}

// A <time> that says how long ago, and in full when pointed at; refreshed by itself while it is on the page.
export function time(ms) {
  if (!ms) return h("span", {class: "faint"}, "–");
  if (typeof ms === "string") ms = Date.parse(ms);
  const d = new Date(ms);
  return h("time", {datetime: d.toISOString(), title: full.format(d), "data-ago": ms}, ago(ms));
}
setInterval(() => {
  for (const t of document.querySelectorAll("time[data-ago]")) say(t, ago(+t.dataset.ago));
}, 5000);

// ---- states

export const FINAL = new Set(["succeeded", "failed", "dead", "cancelled"]);
export const STATES = ["queued", "delayed", "running", "succeeded", "failed", "dead", "cancelled"];
export const PRIORITIES = ["critical", "high", "medium", "low"];
const MARKS = {queued: "◷", delayed: "◷", running: "▶", succeeded: "✓", failed: "✕", dead: "✕", cancelled: "⊘",
               active: "▶", paused: "‖", draining: "⇣", idle: "◷", busy: "▶", quarantined: "!"};
export function badge(state) {
  return h("span", {class: `badge ${state}`}, h("span", {"aria-hidden": "true"}, MARKS[state] || "•"), " ", state);
}

// ---- parts of pages

export function link(href, ...children) {
  return h("a", {href}, ...children);
}

export function button(text, onclick, attrs) {
  return h("button", {type: "button", onclick, ...attrs}, text);
}

export function field(label, input, hint) {
  if (!input.id) input.id = uid("f");
  return h("div", {class: "field"}, h("label", {for: input.id}, label), input, hint && h("p", {class: "hint"}, hint));
}

export function select(options, value, onchange, attrs) {
  const el = h("select", {...attrs, onchange: onchange && (() => onchange(el.value))},
    options.map(o => {
      const [v, text] = Array.isArray(o) ? o : [o, o];
      return h("option", {value: v, selected: v === value}, text);
    }));
  return el;
}

// A table in a box that scrolls sideways on its own and can be reached with the keyboard.
export function table(label, heads, rows, attrs) {
  return h("div", {class: "scroll", role: "region", "aria-label": label, tabindex: "0"},
    h("table", attrs || {}, h("thead", {}, h("tr", {}, heads.map(x =>
      typeof x === "string" ? h("th", {scope: "col"}, x) : x))), h("tbody", {}, rows)));
}

export function row(...cells) {
  return h("tr", {}, cells.map(c => c instanceof HTMLTableCellElement ? c : h("td", {}, c)));
}

export function facts(pairs) {
  return h("dl", {class: "facts"}, pairs.filter(p => p && p[1] !== null && p[1] !== undefined && p[1] !== "")
    .map(([k, v, more]) => h("div", more || {}, h("dt", {}, k), h("dd", {}, v))));
}

export function empty(title, text, ...actions) {
  return h("div", {class: "empty"}, h("h2", {}, title), h("p", {}, text), h("div", {class: "actions"}, actions));
}

// A command line to copy.
export function command(text) {
  const copy = navigator.clipboard && button("Copy", () => act(copy, async () => {
    await navigator.clipboard.writeText(text);
    toast("Copied");
  }), {class: "quiet small", "aria-label": "Copy the command"});
  return h("div", {class: "command"}, h("code", {}, text), copy);
}

export function problem(e, again) {
  return h("div", {class: "problem", role: "alert"}, h("h2", {}, e.title || "That did not work"),
    h("p", {}, e.message || String(e)), again && button("Try again", again));
}

export function toast(text, kind) {
  const box = document.getElementById("toasts");
  const el = h("div", {class: `toast ${kind || ""}`}, text,
    button("×", () => el.remove(), {"aria-label": "Dismiss", class: "plain"}));
  box.append(el);
  setTimeout(() => el.remove(), kind === "bad" ? 15000 : 6000);
}

// Runs an action of a button: it is off meanwhile but keeps the focus, and what goes wrong is said.
export async function act(el, work) {
  if (el.hasAttribute("aria-disabled")) return;
  el.setAttribute("aria-disabled", "true");
  try {
    return await work();
  } catch (e) {
    toast(e.message, "bad");
  } finally {
    el.removeAttribute("aria-disabled");
  }
}

// Enter in a field presses the primary button, and that one works only when every field holds what it may.
export function dialog(title, ...children) {
  const label = uid("dialog");
  const form = h("form", {method: "dialog"}, h("div", {class: "dialog-head"}, h("h2", {id: label}, title),
    button("×", () => d.close(), {class: "plain", "aria-label": "Close"})), children);
  const d = h("dialog", {"aria-labelledby": label}, form);
  const primary = () => form.querySelector("button.primary");
  form.addEventListener("keydown", e => {
    if (e.key !== "Enter" || e.target.tagName !== "INPUT") return;
    e.preventDefault();
    if (primary()) primary().click();
  });
  form.addEventListener("click", e => {
    if (primary() && primary().contains(e.target) && !form.reportValidity()) e.stopPropagation();
  }, true);
  d.addEventListener("close", () => d.remove());
  document.body.append(d);
  d.showModal();
  return d;
}

// What a browser keeps for its reader: columns, saved views. Everything works without.
export const store = {
  get(key, otherwise) {
    try {
      const text = localStorage.getItem("softlaunch." + key);
      return text === null ? otherwise : JSON.parse(text);
    } catch {
      return otherwise;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem("softlaunch." + key, JSON.stringify(value));
    } catch { /* private windows */ }
  },
};
