// A page's end of the shared stream: watch runs, get their events.
import {Hub} from "/static/hub.js";
import {session} from "/static/api.js";

const watches = new Map();   // run -> {last, listeners}
const onStatus = new Set();
let status = "idle";
let post;

function heard(message) {
  if (message.status) {
    status = message.status;
    for (const f of onStatus) f(status);
    return;
  }
  const watch = watches.get(message.run);
  if (!watch) return;
  if (message.events) watch.last = message.events[message.events.length - 1].id;
  for (const f of watch.listeners) f(message);
}

function start() {
  if (window.SharedWorker) {
    try {
      const worker = new SharedWorker("/static/stream-worker.js", {type: "module", name: "softlaunch-events"});
      worker.port.onmessage = e => heard(e.data);
      post = message => worker.port.postMessage(message);
    } catch { /* below */ }
  }
  if (!post) {
    const hub = new Hub();
    post = message => hub.hello(heard, message);
  }
  setInterval(() => post({op: "here"}), 15000);
  addEventListener("pagehide", () => post({op: "bye"}));
  addEventListener("pageshow", e => e.persisted && tell());
}

let telling;
function tell() {
  clearTimeout(telling);
  telling = setTimeout(() => {
    if (!post) start();
    const runs = {};
    for (const [run, watch] of watches) runs[run] = watch.last;
    post({op: "watch", runs, user: session.me && session.me.user});
  }, 0);
}

// listener({events} or {caught: true} or {gap: true}); gives the function that ends it. A run has one `after`: that of
// its first watcher on this page.
export function watch(run, listener, after = "0") {
  let entry = watches.get(run);
  if (!entry) watches.set(run, entry = {last: after, listeners: new Set()});
  entry.listeners.add(listener);
  tell();
  return () => {
    entry.listeners.delete(listener);
    if (!entry.listeners.size && watches.get(run) === entry) watches.delete(run);
    tell();
  };
}

export function onStreamStatus(f) {
  onStatus.add(f);
  f(status);
  return () => onStatus.delete(f);
}
