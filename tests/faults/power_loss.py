#!/usr/bin/env python3
"""Power cuts at Redis's machine, under load. SIGKILL alone leaves all that Redis has written to the kernel, so its
append-only file is then cut: to what the last fsync that came back had made safe (fsync.c records it), or, in
every other cut, anywhere between that and its end, as a disk leaves it. Server and agents live on, with what they remember of
what Redis has forgotten. Under `always` nothing acknowledged may be lost; under `everysec` what was acknowledged in the
last second or two, and everything else must end once, published once. Under `no` the same cut has to lose runs: else
this test would prove nothing. usage: power_loss.py [--cuts N] [--seed N] [--report NAME]"""
import argparse, threading
from arena import *

options = argparse.ArgumentParser()
options.add_argument("--cuts", type=int, default=3, help="for each policy")
options.add_argument("--seed", type=int, default=int(time.time()))
options.add_argument("--report", default="power_loss")
options = options.parse_args()
BUILD = os.path.realpath(os.environ.get("SL_BUILD", "build"))
FEEDERS, PAUSE_S, DARK_S, LINE_MAX = 2, 0.05, 0.7, 30
EVERYSEC_S = 2    # Redis begins an fsync a second, by whole seconds, and waits for a slow disk: that comes on top


class Powered(Arena):
    def __init__(self, policy):
        self.policy, self.acked_s, self.lost, self.cuts = policy, {}, [], []
        super().__init__(BUILD, os.path.join(BUILD, "bin", "softlaunch"), small_disks=False)

    def start_redis(self, **kw):
        self.appendfsync, self.synced = self.policy, self.dir + "/synced"
        World.start_redis(self, env=dict(os.environ, LD_PRELOAD=os.path.join(BUILD, "faults", "fsync.so"), SL_FSYNC_FILE=self.synced))

    def feed(self, stop):
        while not stop.is_set():
            run = self.add_run()
            self.acked_s[run] = time.time()
            time.sleep(PAUSE_S)
            while not stop.is_set() and int(self.cli("zcard", "{softlaunch}:ready:default:cpu") or 0) > LINE_MAX:
                time.sleep(PAUSE_S)

    def mend(self, path):
        """As README.md asks of an operator: a Redis that finds half of a transaction at the file's end may leave it there,
        and runs it behind the next restart (valkey pull request 4342)."""
        r = subprocess.run(["redis-check-aof", "--fix", path], input="y\n", capture_output=True, text=True)
        assert r.returncode == 0, r.stdout + r.stderr

    def cut_power(self, torn):
        """Which runs, acknowledged before, are gone with it."""
        cut_s = time.time()
        self.redis.kill()
        self.redis.wait()
        time.sleep(DARK_S)    # answers that were on their way arrive
        acked = dict(self.acked_s)
        folder = self.dir + "/appendonlydir/"
        path = folder + max(f for f in os.listdir(folder) if f.endswith(".incr.aof"))
        marks = [l.split() for l in open(self.synced)]
        marks = [m for m in marks if os.path.basename(m[3]) == os.path.basename(path)]
        safe, size = int(marks[-1][0]) if marks else 0, os.path.getsize(path)
        assert safe <= size, (safe, size)
        left = random.randint(safe, size) if torn else safe
        os.truncate(path, left)
        self.mend(path)
        assert safe <= os.path.getsize(path) <= left, (safe, os.path.getsize(path), left)
        self.start_redis()
        there = set(self.cli("zrange", "{softlaunch}:runs", 0, -1).split())
        lost = [r for r in acked if r not in there]
        lost = [r for r in lost if self.api("GET", "/api/v1/runs/" + r)[0] == 404]    # else it has ended and is archived
        for r in lost:
            del self.acked[r], self.acked_s[r]
        self.lost += lost
        self.cuts.append({"acknowledged": len(acked), "bytes": size, "unsafe_bytes": size - safe, "torn": torn, "lost": len(lost),
                          "oldest_lost_s": round(max([cut_s - acked[r] for r in lost], default=0), 3),
                          "longest_fsync_s": round(max([float(m[2]) for m in marks], default=0), 3)})
        print(f"# {self.policy}: {self.cuts[-1]}", flush=True)


def suffer(policy, cuts):
    """Load, cuts, and then peace until everything has ended: the arena, and what the checker finds."""
    a = Powered(policy)
    agents = [a.start_agent(f"agent{i}", slots=6) for i in range(2)]
    stop = threading.Event()
    feeders = [threading.Thread(target=a.feed, args=(stop,), daemon=True) for _ in range(FEEDERS)]
    for t in feeders:
        t.start()
    for i in range(cuts):
        time.sleep(random.uniform(1.2, 2.2))
        a.cut_power(torn=i % 2 == 1)
    stop.set()
    for t in feeders:
        t.join()
    a.settle()
    found = sum([a.judge(r)[0] for r in a.acked], [])
    found += checker.check_left(a.left())
    found += [("harness", f"an agent has ended: {open(g.log).read()[-300:]}") for g in agents if g.poll() is not None]
    a.close()
    return a, found


random.seed(options.seed)
print(f"# seed {options.seed}", flush=True)
report, failed = {"command": "tests/faults/power_loss.py " + " ".join(sys.argv[1:]), "seed": options.seed}, 0


def say(good, what, found=()):
    global failed
    failed += not good
    print(("ok" if good else "not ok") + " - " + what, flush=True)
    for kind, text in found[:20]:
        print(f"#   {kind}: {text}")


for policy in ("always", "everysec"):
    a, found = suffer(policy, options.cuts)
    oldest_s = max(c["oldest_lost_s"] for c in a.cuts)
    allowed_s = 0 if policy == "always" else EVERYSEC_S + 2 * max(c["longest_fsync_s"] for c in a.cuts)
    runs = len(a.acked) + len(a.lost)
    say(not a.lost or oldest_s <= allowed_s, f"{policy}: {len(a.cuts)} cuts, {runs} runs acknowledged, {len(a.lost)} lost, "
        f"acknowledged at most {oldest_s:.2f} s before the cut")
    say(not found, f"{policy}: each of the other {len(a.acked)} ended once, published once", found)
    report[policy] = {"runs": runs, "lost": len(a.lost), "oldest_lost_s": oldest_s, "cuts": a.cuts, "violations": len(found)}
a = Powered("no")
for _ in range(20):
    a.acked_s[a.add_run()] = time.time()
a.cut_power(torn=False)
a.close()
say(len(a.lost) > 0, f"no: the same cut loses {len(a.lost)} of 20: this test can fail")
report["no"] = {"runs": 20, "lost": len(a.lost)}
os.makedirs(BUILD + "/reports", exist_ok=True)
json.dump(report, open(f"{BUILD}/reports/{options.report}.json", "w"), indent=1)
sys.exit(1 if failed else 0)
