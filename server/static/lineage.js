// Lineage as a picture: runs and artifact versions in columns from what was read to what came of it.
import {getOr} from "/static/api.js";
import {fill, h, svg} from "/static/dom.js";

const W = 190, H = 46, GAP_X = 56, GAP_Y = 18;

// nodes: [{id, kind: run|artifact, label, href}], edges: [{from, to, role}].
export function picture(nodes, edges, here) {
  const byId = new Map(nodes.map(n => [n.id, n])), depth = new Map();
  edges = edges.filter(e => byId.has(e.from) && byId.has(e.to));
  const level = (id, seen) => {
    if (depth.has(id)) return depth.get(id);
    if (seen.has(id)) return 0;
    seen.add(id);
    const d = Math.max(0, ...edges.filter(e => e.to === id).map(e => level(e.from, seen) + 1));
    depth.set(id, d);
    return d;
  };
  const columns = [];
  for (const n of nodes) (columns[level(n.id, new Set())] ||= []).push(n);
  const place = new Map();
  const tallest = Math.max(...columns.map(c => c ? c.length : 0));
  columns.forEach((c, i) => c && c.forEach((n, k) => place.set(n.id, {
    x: 4 + i * (W + GAP_X), y: 4 + (k + (tallest - c.length) / 2) * (H + GAP_Y)})));
  const width = columns.length * (W + GAP_X) - GAP_X + 8, height = tallest * (H + GAP_Y) - GAP_Y + 8;
  const cut = t => t.length > 25 ? t.slice(0, 24) + "…" : t;
  const lines = edges.map(e => {
    const a = place.get(e.from), b = place.get(e.to), x1 = a.x + W, y1 = a.y + H / 2, x2 = b.x, y2 = b.y + H / 2, m = (x1 + x2) / 2;
    return svg("path", {d: `M${x1} ${y1}C${m} ${y1} ${m} ${y2} ${x2 - 5} ${y2}`, class: "edge", "marker-end": "url(#arrow)"}, svg("title", {}, e.role || ""));
  });
  const boxes = nodes.map(n => {
    const p = place.get(n.id), box = svg("g", {class: `node ${n.kind}${n.id === here ? " here" : ""}`, transform: `translate(${p.x} ${p.y})`},
      svg("title", {}, `${n.kind}: ${n.label}`), svg("rect", {width: W, height: H, rx: n.kind === "run" ? 23 : 7}),
      svg("text", {x: W / 2, y: 18, class: "kind"}, n.role || n.kind), svg("text", {x: W / 2, y: 35}, cut(n.label)));
    return n.href && n.id !== here ? svg("a", {href: n.href, "aria-label": `${n.kind} ${n.label}`}, box) : box;
  });
  const words = edges.map(e => `${byId.get(e.from).label} → ${byId.get(e.to).label}${e.role ? ` (${e.role})` : ""}`).join("; ");
  return h("div", {class: "scroll lineage", tabindex: "0", role: "region", "aria-label": "Lineage"},
    svg("svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": "Lineage: " + words},
      svg("defs", {}, svg("marker", {id: "arrow", viewBox: "0 0 8 8", refX: 5, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto"},
        svg("path", {d: "M0 0L8 4L0 8z", class: "arrow"}))), lines, boxes));
}

export function sourceText(source) {
  return typeof source === "string" ? source : source && source.ref || "";
}

// NAME:REF/path of the store, or null for addresses and files.
export function artifactOf(source) {
  const m = sourceText(source).match(/^([a-z0-9][a-z0-9._-]*)(?::([A-Za-z0-9._-]+))?(\/.*)?$/);
  return m && !sourceText(source).includes("://") ? {name: m[1], ref: m[2] || "latest"} : null;
}

// What a run's own record says, where the server keeps no graph.
export function ofRun(r) {
  const nodes = [{id: "run:" + r.run, kind: "run", label: r.name, href: "/runs/" + r.run}], edges = [], seen = new Set();
  const add = (source, role) => {
    const a = artifactOf(source), label = a ? `${a.name}:${a.ref}` : sourceText(source), id = "artifact:" + label;
    if (!label || seen.has(id)) return;
    seen.add(id);
    nodes.push({id, kind: "artifact", label, role, href: a && `/artifacts/${a.name}`});
    edges.push({from: id, to: "run:" + r.run, role});
  };
  const spec = r.spec || {};
  add(spec.model, "model");
  for (const [split, sources] of Object.entries(spec.datasets || {})) for (const s of sources) add(s, split === "train" ? "data" : split);
  for (const o of r.outputs || []) {
    const id = `artifact:${o.artifact}:${o.version}`;
    if (!nodes.some(n => n.id === id)) nodes.push({id, kind: "artifact", label: `${o.artifact}:${o.version}`, role: "prompts", href: `/artifacts/${o.artifact}`});
    edges.push({from: "run:" + r.run, to: id, role: o.output || "output"});
  }
  if (r.requeued_from) {
    nodes.push({id: "run:" + r.requeued_from, kind: "run", label: "the run before", href: "/runs/" + r.requeued_from});
    edges.push({from: "run:" + r.requeued_from, to: "run:" + r.run, role: "requeued"});
  }
  return {nodes, edges};
}

function address(n) {
  const label = n.label || n.id;
  if (n.kind === "run") return "/runs/" + encodeURIComponent(n.run || n.id.replace(/^run:/, ""));
  if (n.kind !== "artifact" || n.deleted) return null;
  return "/artifacts/" + encodeURIComponent((n.name || label.replace(/^artifact:/, "")).split(":")[0]);
}

// The graph around an artifact's version as the server keeps it; null when it keeps none.
export async function graphOf(name, ref) {
  const g = await getOr(`/lineage/${encodeURIComponent(name)}/${encodeURIComponent(ref)}`);
  if (!g || !g.nodes || !g.nodes.length) return null;
  return {nodes: g.nodes.map(n => ({...n, label: n.label || n.id, href: address(n)})), edges: g.edges || []};
}

export async function showLineage(box, run) {
  const out = run.outputs && run.outputs[0];
  const graph = out && await graphOf(out.artifact, out.version).catch(() => null) || ofRun(run);
  const here = (graph.nodes.find(n => n.kind === "run" && (n.id === run.run || n.id.endsWith(run.run))) || {}).id;
  fill(box, picture(graph.nodes, graph.edges, here));
}
