#!/usr/bin/env python3
"""How late events reach their readers, and what that costs the server: WATCHERS readers of one run's events in PROCESSES
processes, a worker that reports RATE metric points a second through an agent.
usage: tests/bench/watchers.py [--watchers 500] [--rate 200] [--seconds 30]        writes build/reports/watchers.json"""
import argparse, json, multiprocessing, os, resource, selectors, socket, subprocess, sys, time
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE + "/../system")
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


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--watchers", type=int, default=500)
    p.add_argument("--rate", type=int, default=200)
    p.add_argument("--seconds", type=int, default=30)
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
    time.sleep(3)
    stat = lambda: sum(map(int, open(f"/proc/{w.server.pid}/stat").read().rsplit(")", 1)[1].split()[11:13]))
    w.agent("agent")
    w.until(run, lambda r: r["state"] != "queued", 60)
    cpu, began = stat(), time.time()
    w.ended(run, a.seconds * 4)
    cpu, took = (stat() - cpu) / os.sysconf("SC_CLK_TCK"), time.time() - began
    rss = int(next(l for l in open(f"/proc/{w.server.pid}/status") if l.startswith("VmHWM")).split()[1]) / 1024
    late = sorted(x for _ in readers for x in out.get(timeout=120))
    at = lambda q: round(late[min(len(late) - 1, int(q * len(late)))], 1)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    report = {"command": " ".join(sys.argv), "commit": commit, "watchers": a.watchers, "points_per_s": round(a.rate * a.seconds / took),
              "received": len(late), "expected": a.watchers // PROCESSES * PROCESSES * a.rate * a.seconds,
              "p50_ms": at(0.5), "p99_ms": at(0.99), "server_cores": round(cpu / took, 2), "server_peak_mib": round(rss, 1)}
    path = os.path.join(os.environ.get("SL_BUILD", "build"), "reports")
    os.makedirs(path, exist_ok=True)
    json.dump(report, open(path + "/watchers.json", "w"), indent=1)
    print(json.dumps(report))
    ok = report["p99_ms"] < GOAL_MS and report["server_peak_mib"] < GOAL_MIB and report["server_cores"] < 1
    print("ok" if ok and report["received"] == report["expected"] else "not ok", "- watchers")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
