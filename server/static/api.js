// The REST API: one function for all calls, the session, and errors as people read them.

export class ApiError extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `the server answered ${status}`);
    this.status = status;
    this.title = problem.title;
    this.errors = problem.errors || [];
  }
}

export const session = {me: null, token: null};
try {
  session.token = sessionStorage.getItem("softlaunch.token");
} catch { /* no storage: the cookie alone */ }

let onSignedOut = () => {};
export function whenSignedOut(f) {
  onSignedOut = f;
}

export function authHeaders(method = "GET") {
  const headers = {};
  if (session.token) headers.Authorization = "Bearer " + session.token;
  const csrf = session.me && session.me.csrf;
  if (method !== "GET" && csrf) headers["X-CSRF-Token"] = csrf;
  return headers;
}

// Gives the parsed answer; throws ApiError. body: an object, sent as JSON.
export async function api(method, path, body, more = {}) {
  const headers = {Accept: "application/json", ...authHeaders(method), ...more.headers};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch("/api/v1" + path, {method, headers, signal: more.signal, credentials: "same-origin",
                                            body: body === undefined ? undefined : JSON.stringify(body)});
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new ApiError(0, {title: "the server is away",
                           detail: "The server does not answer. This page goes on by itself once it is back."});
  }
  const text = await answer.text();
  let value = null;
  try {
    value = text ? JSON.parse(text) : null;
  } catch {
    if (more.text) return text;
    if (answer.ok) throw new ApiError(answer.status, {title: "not JSON", detail: "the answer of the server is not JSON"});
  }
  if (answer.ok) return value;
  const e = new ApiError(answer.status, value || {});
  if (answer.status === 401 && !more.quiet) onSignedOut();
  throw e;
}

export const get = (path, more) => api("GET", path, undefined, more);
export const post = (path, body, more) => api("POST", path, body, more);
export const put = (path, body) => api("PUT", path, body);

// Fetches what may not be on this server: null when there is no such thing.
export async function getOr(path, otherwise = null) {
  try {
    return await get(path);
  } catch (e) {
    if (e.status === 404 || e.status === 405) return otherwise;
    throw e;
  }
}

export function query(params) {
  const q = new URLSearchParams();
  for (const [k, v] of Object.entries(params)) if (v !== "" && v !== null && v !== undefined) q.set(k, v);
  const text = q.toString();
  return text ? "?" + text : "";
}

export const randomKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), b => b.toString(16).padStart(2, "0")).join("");

// ---- the session

export async function whoAmI() {
  try {
    session.me = await get("/me", {quiet: true});
  } catch (e) {
    session.me = null;
    if (e.status === 401) return null;
    if (e.status !== 404) throw e;
    session.me = {user: "token"}; // a server with one token and no users
  }
  return session.me;
}

export async function signIn(token) {
  session.token = null;
  try {
    await post("/login", {token}, {quiet: true});
  } catch (e) {
    if (e.status !== 404 && e.status !== 401) throw e;
    // A server without sessions: the token itself, for as long as this tab is open.
    session.token = token;
    try {
      await get("/runs?limit=1", {quiet: true});
    } catch (second) {
      session.token = null;
      throw second.status === 401 ? e : second;
    }
    try {
      sessionStorage.setItem("softlaunch.token", token);
    } catch { /* for this page only */ }
  }
  return whoAmI();
}

export async function signOut() {
  try {
    await post("/logout", undefined, {quiet: true});
  } catch { /* gone already */ }
  session.me = session.token = null;
  try {
    sessionStorage.removeItem("softlaunch.token");
  } catch { /* none */ }
}

// ---- pages of runs: {runs, next, total, whole}

// whole: the server searches and sorts all runs itself. One that cannot is asked for its newest, and they are searched here.
const SEARCHED_MAX = 2000;
const SORTS = {created: r => r.created_ms, finished: r => r.finished_ms || 0, name: r => r.name, state: r => r.state, project: r => r.project,
               queue: r => r.queue, val_loss: r => (r.metrics && r.metrics.val_loss) ?? Infinity};

export async function listRuns({limit = 50, cursor, sort, status, q, ...filters}, signal) {
  const ask = (count, from) => get("/runs" + query({limit: count, cursor: from, below: from, sort, status, state: status, q, ...filters}), {signal});
  const page = await ask(limit, cursor);
  if ("next_cursor" in page) return {runs: page.runs, next: page.next_cursor, total: page.total ?? null, live: page.live !== false, whole: true};
  const by = sort && sort.replace("-", ""), plain = !q && (!by || sort === "-created");
  let runs = page.runs, next = page.next;
  const wanted = r => !q || r.name.includes(q.toLowerCase());
  if (!plain) {
    while (next && runs.length < SEARCHED_MAX && (by || runs.filter(wanted).length < limit)) {
      const more = await ask(200, next);
      runs = runs.concat(more.runs);
      next = more.next;
    }
    runs = runs.filter(wanted);
    if (by && SORTS[by]) {
      const key = SORTS[by], sign = sort.startsWith("-") ? -1 : 1;
      runs.sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * sign);
      runs = runs.slice(0, limit);
      next = null;
    }
  }
  return {runs, next: next || null, total: null, live: page.live !== false, whole: false};
}
