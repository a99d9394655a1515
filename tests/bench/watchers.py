#!/usr/bin/env python3
"""How late events reach their readers, and what that costs the server: WATCHERS readers of one run's events in PROCESSES
processes, a worker that reports RATE metric points a second through an agent. --chromium: the run's page in Chromium beside them, how
late each point comes to the page and how late it is painted in the chart of the loss, and for which part of the time the page's thread is busy.
usage: tests/bench/watchers.py [--watchers 500] [--rate 200] [--seconds 30] [--chromium]        writes build/reports/watchers.json"""
import argparse, json, multiprocessing, os, resource, selectors, socket, subprocess, sys, time
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE + "/../system", HERE + "/../web"]
from queue_fixture import TOKEN, World, wait

PROCESSES, GOAL_MS, GOAL_MIB = 4, 250, 100


def read_all(port, run, n, out):
    """A process of n readers: how late each metric point came, in ms."""
    select, late, rest = selectors.DefaultSelector(), [], {}
    for _ in range(n):
        s = socket.create_connection(("127.0.0.1", port))
        s.sendall(f"GET /api/v1/events?runs={run} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        select.register(s, selectors.EVENT_READ)
        rest[s] = b""
    last = time.time()
    while time.time() - last < 5 or not late:
        for key, _ in select.select(0.5):
            s, now = key.fileobj, time.time()
            data = s.recv(1 << 16)
            if not data:
                select.unregister(s)
                continue
            lines = (rest[s] + data).split(b"\n")
            rest[s] = lines[-1]
            for line in lines[:-1]:
                at = line.find(b'"lr":')
                if at >= 0:
                    late.append((now - float(line[at + 5:].split(b",")[0].rstrip(b"}\r "))) * 1000)
                    last = now
    out.put(late)


# What the page notes: [when, step, worker's time] of each point that comes, [when, newest step] of each picture of the chart. Behind a
# frame's callback comes its painting, and behind that the next message.
NOTE = """const run = arguments[0], done = arguments[1];
window.came = [], window.painted = [];
const raf = window.requestAnimationFrame.bind(window);
let framed = false;    // in a frame's callback: its painting is the one that comes
window.requestAnimationFrame = f => raf(t => {
  framed = true;
  f(t);
  framed = false;
});
Chart.register({id: "painted", afterDraw(chart) {
  const points = chart.data.datasets[0].data, last = points[points.length - 1];
  if (chart.canvas.getAttribute("aria-label") !== "Loss" || !last) return;
  const behind = () => {
    const c = new MessageChannel();
    c.port1.onmessage = () => painted.push([Date.now(), last.x]);
    c.port2.postMessage(0);
  };
  if (framed) behind();
  else raf(behind);
}});
import("/static/stream.js").then(m => m.watch(run, message => {
  for (const e of message.events || []) if (e.data.lr) came.push([Date.now(), e.data.step, e.data.lr]);
  if (message.caught) done();
}))"""


def chromium(w, run, steps):
    """The run's page; the function that ends it and gives how late points came and were painted, in ms, and how busy it was."""
    from browser import Browser
    b = Browser(w.url)
    b.sign_in(TOKEN)
    b.open("/runs/" + run)
    b.until(lambda: b.js("return !!document.querySelector('#charts')"), "the page")
    b.driver.execute_async_script(NOTE, run)
    b.cdp("Performance.enable")
    busy = lambda: next(m["value"] for m in b.cdp("Performance.getMetrics")["metrics"] if m["name"] == "TaskDuration")
    before, since = busy(), time.monotonic()

    def end():
        share = (busy() - before) / (time.monotonic() - since)
        wait(lambda: b.js("return painted.length && painted[painted.length - 1][1] >= arguments[0]", steps), 60, "the last point in the chart")
        came, painted = b.js("return [came, painted]")
        b.close()
        late, drawn, at = [], [], 0
        for when, step, told in came:
            late.append(when - told * 1000)
            while painted[at][1] < step:
                at += 1
            drawn.append(painted[at][0] - told * 1000)
        return sorted(late), sorted(drawn), round(share, 2)
    return end


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--watchers", type=int, default=500)
    p.add_argument("--rate", type=int, default=200)
    p.add_argument("--seconds", type=int, default=30)
    p.add_argument("--chromium", action="store_true")
    a = p.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    w = World(lease_ms=15000)
    w.appendfsync = "everysec"
    w.put("model", '{"m": 1}\n')
    w.put("data", '{"a": "x", "b": "y"}\n')
    run = w.enqueue(f"fake.{a.rate * a.seconds}.{1000 // a.rate}.timed")
    out = multiprocessing.Queue()
    readers = [multiprocessing.Process(target=read_all, args=(w.port, run, a.watchers // PROCESSES, out))
               for _ in range(PROCESSES)]
    for r in readers:
        r.start()
    seen = chromium(w, run, a.rate * a.seconds) if a.chromium else None
    time.sleep(3)
    stat = lambda: sum(map(int, open(f"/proc/{w.server.pid}/stat").read().rsplit(")", 1)[1].split()[11:13]))
    w.agent("agent")
    w.until(run, lambda r: r["state"] != "queued", 60)
    cpu, began = stat(), time.time()
    w.ended(run, a.seconds * 4)
    cpu, took = (stat() - cpu) / os.sysconf("SC_CLK_TCK"), time.time() - began
    rss = int(next(l for l in open(f"/proc/{w.server.pid}/status") if l.startswith("VmHWM")).split()[1]) / 1024
    late = sorted(x for _ in readers for x in out.get(timeout=120))
    at = lambda q, late=late: round(late[min(len(late) - 1, int(q * len(late)))], 1)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    report = {"command": " ".join(sys.argv), "commit": commit, "watchers": a.watchers, "points_per_s": round(a.rate * a.seconds / took),
              "received": len(late), "expected": a.watchers // PROCESSES * PROCESSES * a.rate * a.seconds,
              "p50_ms": at(0.5), "p99_ms": at(0.99), "server_cores": round(cpu / took, 2), "server_peak_mib": round(rss, 1)}
    if seen:
        came, painted, share = seen()
        report["chromium"] = {"received": len(came), "p50_ms": at(0.5, came), "p99_ms": at(0.99, came),
                              "painted_p50_ms": at(0.5, painted), "painted_p99_ms": at(0.99, painted), "thread_busy": share}
    path = os.path.join(os.environ.get("SL_BUILD", "build"), "reports")
    os.makedirs(path, exist_ok=True)
    json.dump(report, open(path + "/watchers.json", "w"), indent=1)
    print(json.dumps(report))
    ok = report["p99_ms"] < GOAL_MS and report["server_peak_mib"] < GOAL_MIB and report["server_cores"] < 1
    ok = ok and report["received"] == report["expected"]
    if seen:
        ok = ok and len(came) == a.rate * a.seconds and report["chromium"]["p99_ms"] < GOAL_MS
    print("ok" if ok else "not ok", "- watchers")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
