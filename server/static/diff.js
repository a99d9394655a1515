// Specs as flat lists of keys, and what two or more of them differ in.
import {fill, h, table} from "/static/dom.js";

export function flatten(value, path = "", out = new Map()) {
  if (value !== null && typeof value === "object" && (Array.isArray(value) ? value.length : Object.keys(value).length)) {
    for (const [k, v] of Object.entries(value)) flatten(v, Array.isArray(value) ? `${path}[${k}]` : path ? `${path}.${k}` : k, out);
  } else {
    out.set(path, value);
  }
  return out;
}

const text = v => v === undefined ? "–" : typeof v === "string" ? v : JSON.stringify(v);

// runs: [{name, spec}]; a table of the keys that are not the same everywhere.
export function difference(runs, except = ["name"]) {
  const flats = runs.map(r => flatten(r.spec || {}));
  const keys = [...new Set(flats.flatMap(f => [...f.keys()]))].filter(k => !except.includes(k))
    .filter(k => new Set(flats.map(f => text(f.get(k)))).size > 1);
  if (!keys.length) return h("p", {class: "faint"}, "Nothing but the name.");
  return table("What differs in the configurations", ["Key", ...runs.map(r => r.name)], keys.map(k =>
    h("tr", {}, h("th", {scope: "row", class: "mono key"}, k), flats.map(f => h("td", {class: "mono"}, text(f.get(k)))))));
}

// All keys of one spec, searched as one types.
export function specTable(spec) {
  const all = [...flatten(spec)], body = h("div", {});
  const search = h("input", {type: "search", placeholder: "Search keys and values", "aria-label": "Search the configuration", oninput: draw});
  function draw() {
    const q = search.value.toLowerCase();
    const found = all.filter(([k, v]) => (k + " " + text(v)).toLowerCase().includes(q));
    fill(body, found.length ? h("div", {class: "scroll tall", tabindex: "0", role: "region", "aria-label": "Configuration"}, h("table", {}, h("tbody", {},
      found.map(([k, v]) => h("tr", {}, h("th", {scope: "row", class: "mono key"}, k), h("td", {class: "mono"}, text(v)))))))
      : h("p", {class: "faint"}, "No key is like that."));
  }
  draw();
  return h("div", {}, h("div", {class: "filters"}, search), body);
}
