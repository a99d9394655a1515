// The REST API: one function for all calls, the session, and errors as people read them.

export class ApiError extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `the server answered ${status}`);
    this.status = status;
    this.title = problem.title;
    this.errors = problem.errors || [];
  }
}

export const session = {me: null};    // who is signed in: the cookie says it, GET /me tells it

let onSignedOut = () => {};
export function whenSignedOut(f) {
  onSignedOut = f;
}

// Gives the parsed answer; throws ApiError. body: an object, sent as JSON.
export async function api(method, path, body, more = {}) {
  const headers = {Accept: "application/json", ...more.headers};
  if (method !== "GET" && session.me && session.me.csrf) headers["X-CSRF-Token"] = session.me.csrf;
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

// null: nobody is signed in.
export async function whoAmI() {
  session.me = null;
  try {
    session.me = await get("/me", {quiet: true});
  } catch (e) {
    if (e.status !== 401) throw e;
  }
  return session.me;
}

export async function signIn(token) {
  await post("/login", {token}, {quiet: true});
  return whoAmI();
}

export async function signOut() {
  try {
    await post("/logout", undefined, {quiet: true});
  } catch { /* gone already */ }
  session.me = null;
}

// ---- runs, a page at a time: {runs, next: the next page's cursor or null, total, live: Redis is there}

export async function listRuns({limit = 50, cursor, sort, status, q, ...filters}, signal) {
  const page = await get("/runs" + query({limit, cursor, sort, state: status, q, ...filters}), {signal});
  return {runs: page.runs, next: page.next_cursor, total: page.total, live: page.live};
}
