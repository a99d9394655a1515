// Artifacts: the store's names, and of one its versions, aliases, files, digests and lineage.
import {get, put} from "/static/api.js";
import {act, button, bytes, command, dialog, empty, facts, field, fill, h, link, problem, refill, table, time, toast} from "/static/dom.js";
import {title} from "/static/app.js";
import {graphOf, picture} from "/static/lineage.js";
import {askPromote} from "/static/promote.js";

export async function show(root, {params: [name], query}) {
  return name ? one(root, name, query.get("version")) : all(root);
}

async function all(root) {
  title("Artifacts");
  const {artifacts} = await get("/artifacts");
  const search = h("input", {type: "search", placeholder: "Search names", "aria-label": "Search artifacts", oninput: draw}), body = h("div", {});
  root.append(h("h1", {}, "Artifacts"), h("div", {class: "filters"}, search), body);
  function draw() {
    const some = artifacts.filter(a => a.name.includes(search.value.trim().toLowerCase()));
    fill(body, !artifacts.length ? empty("Nothing is stored yet", "Models and data come in by the command line. Runs store their prompt tables here.", command("softlaunch artifact put smollm2-135m model.gguf"))
      : some.length ? table("Artifacts", ["Name", "Versions", "Latest", "Aliases"], some.slice(0, 1000).map(a => h("tr", {}, h("td", {class: "c-name"}, link("/artifacts/" + a.name, a.name)),
        h("td", {"data-label": "Versions"}, String(typeof a.versions === "number" ? a.versions : (a.versions || []).length)), h("td", {"data-label": "Latest"}, a.latest), h("td", {"data-label": "Aliases"}, aliasTags(Object.entries(a.aliases || {}).map(([k, v]) => `${k}: ${v}`))))), {class: "cards"})
      : empty("No artifact is called that", "Try a part of the name.", button("Clear", () => {
        search.value = "";
        draw();
      })));
  }
  draw();
  return null;
}

const aliasTags = list => list.map(a => [h("span", {class: "tag"}, a), " "]);

async function one(root, name, wanted) {
  title(name);
  const body = h("div", {}), detail = h("div", {});
  root.append(h("p", {class: "crumbs"}, link("/artifacts", "Artifacts")), h("div", {class: "page-head"}, h("h1", {}, name)), body, detail);
  let artifact;

  async function load() {
    artifact = await get("/artifacts/" + encodeURIComponent(name));
    const versions = [...artifact.versions].sort((a, b) => b.number - a.number);
    refill(body, table(`Versions of ${name}`, ["Version", "Aliases", "Size", "Created", "Made by", "Digest", ""], versions.map(v => h("tr", {}, h("td", {class: "c-name"}, button(v.version, () => open(v.version), {class: "plain link"})),
      h("td", {"data-label": "Aliases"}, aliasTags(v.aliases || [])), h("td", {"data-label": "Size"}, bytes(v.bytes)), h("td", {"data-label": "Created"}, time(v.created)),
      h("td", {"data-label": "Made by"}, v.made_by && v.made_by.run ? link("/runs/" + v.made_by.run, "run " + v.made_by.run.slice(0, 8)) : v.created_by || "upload"),
      h("td", {"data-label": "Digest", class: "mono"}, v.manifest.slice(0, 12)),
      h("td", {}, h("div", {class: "actions"}, button("Promote", () => askPromote(name, v.version, load), {"aria-label": `Promote ${v.version}`}), button("Alias", () => setAlias(v.version), {"aria-label": `Set an alias to ${v.version}`}))))), {class: "cards"}));
    if (!detail.childElementCount && versions.length) open(wanted && versions.some(v => v.version === wanted) ? wanted : versions[0].version);
  }
  function setAlias(version) {
    const input = h("input", {type: "text", required: true, placeholder: "production"}), save = button("Set", () => act(save, async () => {
      await put(`/artifacts/${encodeURIComponent(name)}/aliases/${encodeURIComponent(input.value.trim())}`, {version});
      d.close();
      toast(`${name}:${input.value.trim()} is ${version} now`);
      load();
    }), {class: "primary"});
    const d = dialog(`Set an alias to ${name}:${version}`, field("Alias", input, "It moves here from wherever it was."), h("div", {class: "actions"}, save));
  }
  async function open(version) {
    try {
      const record = await get(`/artifacts/${encodeURIComponent(name)}/${encodeURIComponent(version)}`);
      const files = (record.files || []).flatMap(f => [[f.path, f.bytes, f.sha256, false], ...(f.entries || []).map(e => [e.path, e.bytes, e.sha256, true])]);
      const lineage = h("div", {class: "picture"});
      fill(detail, h("section", {class: "card"}, h("h2", {}, `${name}:${version}`), facts([["Size", bytes(record.bytes)], ["Created", time(record.created)], ["By", record.created_by],
        ["Manifest, sha256", h("span", {class: "mono"}, record.manifest), {class: "long"}]]),
        h("h3", {}, "Files"), table("Files", ["Path", "Size", "sha256"], files.map(([path, size, sha, inner]) => h("tr", {}, h("td", {class: "mono" + (inner ? " inner" : "")},
          inner ? path : h("a", {href: `/api/v1/blobs/${sha}`, download: path.split("/").pop()}, path)), h("td", {}, bytes(size)), h("td", {class: "mono"}, sha.slice(0, 16)))))),
        h("section", {class: "card"}, h("h2", {}, "Lineage"), lineage));
      const graph = await graphOf(name, version).catch(() => null) || simple(record);
      fill(lineage, graph ? picture(graph.nodes, graph.edges, graph.root || (graph.nodes.find(n => n.label === `${name}:${version}`) || {}).id) : h("p", {class: "faint"}, "It was uploaded: nothing is known of what it was made from."));
    } catch (e) {
      fill(detail, problem(e, () => open(version)));
    }
  }
  await load();
  return null;
}

function simple(record) {
  const run = record.made_by && record.made_by.run, id = `artifact:${record.name}:${record.version}`;
  if (!run) return null;
  return {root: id, nodes: [{id: "run:" + run, kind: "run", label: "run " + run.slice(0, 8), href: "/runs/" + run}, {id, kind: "artifact", label: `${record.name}:${record.version}`}],
          edges: [{from: "run:" + run, to: id, role: record.made_by.output}]};
}
