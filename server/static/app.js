// The frame of all pages: navigation, who is signed in, light and dark, the keyboard, and which page an address shows.
import {session, signOut, whenSignedOut, whoAmI} from "/static/api.js";
import {button, dialog, fill, h, link, say, select, store} from "/static/dom.js";
import {onStreamStatus} from "/static/stream.js";

const PAGES = [
  // address, module, name in the navigation, key after g
  [/^\/$/, "runs", "Runs", "r", "/"],
  [/^\/new$/, "new", "New run", "n", "/new"],
  [/^\/queues$/, "queues", "Queues", "q", "/queues"],
  [/^\/agents$/, "agents", "Agents", "a", "/agents"],
  [/^\/artifacts(?:\/([^/]+))?$/, "artifacts", "Artifacts", "f", "/artifacts"],
  [/^\/registry(?:\/([^/]+))?$/, "registry", "Registry", "m", "/registry"],
  [/^\/runs\/([^/]+)$/, "run"],
  [/^\/compare$/, "compare"],
  [/^\/login$/, "login"],
];

const main = document.getElementById("main");
let leave = null, showing = 0, shown = "";

export async function go(href, {replace = false} = {}) {
  if (replace) history.replaceState(null, "", href);
  else history.pushState(null, "", href);
  await show();
}

async function show() {
  const mine = ++showing, path = location.pathname.replace(/(.)\/$/, "$1");
  shown = location.pathname + location.search;
  if (leave) leave();
  leave = null;
  if (!session.me && path !== "/login") {
    try {
      if (!await whoAmI()) return toLogin();
    } catch (e) {
      return failed(e);
    }
  }
  frame(path);
  const found = PAGES.map(p => [p, path.match(p[0])]).find(([, m]) => m);
  if (!found) {
    document.title = "Not found · softlaunch";
    fill(main, h("div", {class: "empty"}, h("h1", {}, "There is no page here"), h("p", {}, link("/", "All runs"))));
    return;
  }
  const [[, name], match] = found;
  try {
    const page = await import(`/static/${name}.js`);
    if (mine !== showing) return;
    const root = h("div", {class: `page page-${name}`});
    fill(main, root);
    const cleanup = await page.show(root, {params: match.slice(1).map(x => x && decodeURIComponent(x)),
                                           query: new URLSearchParams(location.search), go});
    if (mine !== showing) cleanup && cleanup();
    else leave = cleanup || null;
  } catch (e) {
    if (mine === showing && e.name !== "AbortError" && e.status !== 401) failed(e, name);
  }
}

// A whole page that could not be shown.
const LISTS = {run: ["/", "All runs"], artifacts: ["/artifacts", "All artifacts"], registry: ["/registry", "All models"], new: ["/new", "A new run"]};
function failed(e, name) {
  const [href, text] = LISTS[name] || ["/", "All runs"], missing = e.status === 404;
  document.title = (missing ? "Not found" : e.title || "Error") + " · softlaunch";
  fill(main, h("div", {class: "empty"}, h("h1", {}, missing ? "There is no such thing here" : "This page could not be shown"),
    h("p", {role: "alert"}, e.message || String(e)), missing && h("p", {}, "It may have been removed, or be in a project that is not yours to see."),
    h("p", {class: "actions"}, link(href, text), !missing && button("Try again", show))));
}

function toLogin() {
  if (location.pathname === "/login") return;
  const back = location.pathname + location.search;
  go("/login" + (back === "/" ? "" : "?to=" + encodeURIComponent(back)) + location.hash, {replace: true});
}
whenSignedOut(() => {
  session.me = null;
  toLogin();
});

// ---- the bar above

export function title(text) {
  document.title = text + " · softlaunch";
}

function frame(path) {
  const nav = document.getElementById("nav"), account = document.getElementById("account");
  fill(nav, PAGES.filter(p => session.me && p[2]).map(([pattern, , name, , href]) =>
    h("a", {href, "aria-current": pattern.test(path) || href === "/" && path.startsWith("/runs/") ? "page" : null}, name)));
  const here = nav.querySelector("[aria-current]"); // on a phone the bar scrolls sideways
  if (here) nav.scrollLeft = here.offsetLeft - nav.offsetLeft - (nav.clientWidth - here.offsetWidth) / 2;
  if (!account.childElementCount) {
    const live = h("span", {class: "live", role: "status"});
    onStreamStatus(s => {
      live.dataset.status = s;
      say(live, {live: "live", waiting: "reconnecting", idle: ""}[s] || "");
    });
    const theme = select([["", "◐ Auto"], ["light", "☀ Light"], ["dark", "☾ Dark"]], store.get("theme", ""), value => {
      store.set("theme", value);
      applyTheme();
    }, {"aria-label": "Colours", class: "quiet"});
    account.append(live, theme, h("span", {id: "who"}));
  }
  const me = session.me;
  fill(document.getElementById("who"), me && h("span", {class: "who"}, me.name || me.user || "", me.role ? ` (${me.role})` : ""),
    me && button("Sign out", async () => {
      await signOut();
      toLogin();
    }, {class: "quiet"}));
}

function applyTheme() {
  const theme = store.get("theme", "");
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  dispatchEvent(new Event("themechange"));
}
applyTheme();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("themechange")));

// ---- links within, and the keyboard

document.addEventListener("click", e => {
  const a = e.target.closest && e.target.closest("a[href]");
  if (!a || e.defaultPrevented || e.button || e.metaKey || e.ctrlKey || e.shiftKey || a.target || a.hasAttribute("download")) return;
  const url = new URL(a.href);
  if (url.origin !== location.origin || url.pathname.startsWith("/api/") || url.pathname.startsWith("/static/")) return;
  if (url.hash && url.pathname === location.pathname) return;
  e.preventDefault();
  go(url.pathname + url.search).then(() => {
    scrollTo(0, 0);
    main.focus({preventScroll: true});
  });
});
addEventListener("popstate", () => { // a place on the same page is no other page
  if (location.pathname + location.search !== shown) show();
});

const KEYS = [["/", "search"], ["g r", "runs"], ["g n", "new run"], ["g q", "queues"], ["g a", "agents"],
              ["g f", "artifacts"], ["g m", "registry"], ["?", "this list"]];
let before = "", forgetting;
addEventListener("keydown", e => {
  const t = e.target;
  if (e.ctrlKey || e.metaKey || e.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(t.tagName) || t.isContentEditable ||
      document.querySelector("dialog[open]") || !store.get("keys", true) && e.key !== "?") return;
  const pair = before;
  before = e.key;
  clearTimeout(forgetting);
  forgetting = setTimeout(() => { before = ""; }, 1200);
  if (e.key === "?") {
    const on = h("input", {type: "checkbox", checked: store.get("keys", true), onchange: () => store.set("keys", on.checked)});
    dialog("Keyboard", h("dl", {class: "keys"}, KEYS.map(([k, what]) =>
      h("div", {}, h("dt", {}, k.split(" ").map(x => [h("kbd", {}, x), " "])), h("dd", {}, what)))),
      h("label", {class: "check"}, on, " Keys without Ctrl are on"));
  } else if (e.key === "/") {
    const search = main.querySelector("input[type=search]");
    if (search) e.preventDefault(), search.focus();
  } else if (pair === "g") {
    const page = PAGES.find(p => p[3] === e.key);
    if (page) e.preventDefault(), go(page[4]);
  }
});

show();
