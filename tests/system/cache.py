#!/usr/bin/env python3
"""The cache that the agents of a machine share: nothing is fetched twice, nothing in use goes, and a kill at any
instant leaves nothing wrong."""
import hashlib, json, os, random, signal, subprocess, sys, threading, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from queue_fixture import *

KILLS = int(os.environ.get("SL_KILLS", "25"))
SEED = int(os.environ.get("SL_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)


class Counter:
    """Stands between clients and the server and counts what is asked of it."""

    def __init__(self, port):
        self.server, self.seen = port, b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.lock = threading.Lock()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client = self.listener.accept()[0]
            server = socket.create_connection(("127.0.0.1", self.server))
            for source, sink, requests in ((client, server, True), (server, client, False)):
                threading.Thread(target=self.forward, args=(source, sink, requests), daemon=True).start()

    def forward(self, source, sink, requests):
        try:
            while data := source.recv(1 << 20):
                if requests:
                    with self.lock:
                        self.seen += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass    # one end has gone

    def blobs(self):
        with self.lock:
            return self.seen.count(b"GET /api/v1/blobs/")


w = World()
counter = Counter(w.port)
w.put("data", '{"a": 1}\n')


def model(name, seed, size=3_000_000):
    path = f"{w.dir}/{name}.gguf"
    open(path, "wb").write(random.Random(seed).randbytes(size))
    r = w.command("artifact", "put", name, path)
    assert r.returncode == 0, r.stderr
    return hashlib.sha256(open(path, "rb").read()).hexdigest()


def agent(name, work, *more):
    env = dict(os.environ, SOFTLAUNCH_TOKEN=TOKEN)
    return w.spawn(name, [BIN, "agent", "--redis", w.redis_url, "--server", counter.url, "--work-dir", f"{w.dir}/{work}",
                          "--lease-ms", "10000", "--worker", HERE + "/fake_worker.py", "--verbose", *more], env=env)


def cache(verb, work, *more, status=0):
    r = w.command("cache", verb, "--work-dir", f"{w.dir}/{work}", "--json", *more)
    assert r.returncode == status, f"{r.returncode}: {r.stderr}"
    return json.loads(r.stdout)


def age(work, hours=10):
    """All files of the cache were last used so long ago."""
    folder = f"{w.dir}/{work}/cache/sha256"
    for name in os.listdir(folder):
        st = os.stat(f"{folder}/{name}")
        os.utime(f"{folder}/{name}", ns=(st.st_atime_ns - hours * 3600 * 10**9, st.st_mtime_ns))


def second_run_starts_without_a_transfer():
    model("model", 1)
    agent("first", "shared", "--max-runs", "1")
    assert w.ended(w.enqueue("fake.2.10.ok"), 60)["state"] == "succeeded"
    assert counter.blobs() == 2, counter.blobs()    # the model and the data
    agent("second", "shared", "--max-runs", "1")
    assert w.ended(w.enqueue("fake.2.10.ok.again"), 60)["state"] == "succeeded"
    assert counter.blobs() == 2, counter.blobs()
    w.stop_agents()


def two_that_start_at_once_fetch_once():
    model("twin", 2, 20_000_000)
    before = counter.blobs()
    a, b = agent("a", "twins", "--max-runs", "1"), agent("b", "twins", "--max-runs", "1")
    runs = [w.enqueue(f"fake.2.10.ok.{i}", model="twin:v0") for i in range(2)]
    for run in runs:
        assert w.ended(run, 60)["state"] == "succeeded"
    assert counter.blobs() == before + 2, counter.blobs() - before    # twin and data, once each
    for p in (a, b):
        w.end(p)


def a_running_run_keeps_its_model():
    used, idle = model("used", 3), model("idle", 4)
    agent("keeper", "keep", "--cache-gib", "0")    # all that no run uses may go
    assert w.ended(w.enqueue("fake.2.10.ok.idle", model="idle:v0"), 60)["state"] == "succeeded"
    run = w.enqueue("fake.100000.20.ok.used", model="used:v0")
    w.until(run, lambda r: (r.get("step") or 0) > 0, 60)
    age("keep")
    report = cache("gc", "keep", "--max-gib", "0")
    assert report["removed_files"] == 1, report
    listed = {f["sha256"]: f for f in cache("ls", "keep")["files"]}
    assert listed[used]["in_use"] and idle not in listed, listed
    assert w.command("cancel", run).returncode == 0
    assert w.ended(run, 60)["state"] == "cancelled"
    wait(lambda: not any(f["in_use"] for f in cache("ls", "keep")["files"]), 60, "nothing is in use")
    age("keep")
    assert cache("gc", "keep", "--max-gib", "0")["files"] == 0
    w.stop_agents()


def a_changed_file_is_fetched_again():
    digest = model("spoilt", 5)
    agent("one", "spoil", "--max-runs", "1")
    assert w.ended(w.enqueue("fake.2.10.ok.s1", model="spoilt:v0"), 60)["state"] == "succeeded"
    path = f"{w.dir}/spoil/cache/sha256/{digest}"
    st = os.stat(path)
    os.chmod(path, 0o644)
    with open(path, "r+b") as f:
        f.seek(1000)
        f.write(b"spoilt")
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))
    assert cache("verify", "spoil", status=1)["dropped"] == [digest]
    assert cache("verify", "spoil")["dropped"] == []
    agent("two", "spoil", "--max-runs", "1")
    assert w.ended(w.enqueue("fake.2.10.ok.s2", model="spoilt:v0"), 60)["state"] == "succeeded"
    assert hashlib.sha256(open(path, "rb").read()).hexdigest() == digest
    w.stop_agents()


def killed_at_any_instant():
    """Fetches killed at random beside evictions: what is there is right, and the next fetch succeeds."""
    print(f"# seed {SEED}", flush=True)
    r = random.Random(SEED)
    digests = {f"kill{i}": model(f"kill{i}", 10 + i, 4_000_000) for i in range(3)}
    work = f"{w.dir}/killed"
    env = dict(os.environ, SOFTLAUNCH_TOKEN=TOKEN)

    def fetch(n):
        run_dir = f"{work}/runs/{n}"
        os.makedirs(run_dir, exist_ok=True)
        items = [{"ref": f"{name}:v0", "dest": f"inputs/{name}"} for name in r.sample(sorted(digests), 2)]
        plan = {"server": w.url, "cache": work + "/cache", "cache_bytes": 0, "allow_paths": [], "run_dir": run_dir,
                "items": items}
        json.dump(plan, open(run_dir + "/plan.json", "w"))
        return subprocess.Popen([BIN, "transfer", "fetch", "--plan", run_dir + "/plan.json"], env=env,
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True), run_dir, items

    for n in range(KILLS):
        ps = [fetch(f"{n}-{i}") for i in range(2)]
        time.sleep(r.random() * 0.15)    # any instant will do: nothing waits for it
        for p, run_dir, items in ps:
            if r.random() < 0.8:
                p.kill()
            if p.wait(60) == 0:
                for item in items:
                    data = open(f"{run_dir}/{item['dest']}", "rb").read()
                    assert hashlib.sha256(data).hexdigest() == digests[item["dest"].split("/")[1]]
            shutil.rmtree(run_dir)
        age("killed")
    assert cache("verify", "killed")["dropped"] == []
    p, _, _ = fetch("last")
    assert p.wait(60) == 0, p.stderr.read()


tap(w, [second_run_starts_without_a_transfer, two_that_start_at_once_fetch_once, a_running_run_keeps_its_model,
        a_changed_file_is_fetched_again, killed_at_any_instant])
