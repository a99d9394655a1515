#!/usr/bin/env python3
"""Many small files in one answer: what the server answers, and what a client makes of it when it is cut, altered or
unknown, or is killed itself. Digests are Python's. Environment: SL_BIN, SL_SEED. Prints TAP."""
import hashlib, http.client, http.server, os, random, shutil, subprocess, sys, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from queue_fixture import *

FILES, KILLS, AT_ONCE = 450, 20, 100
SEED = int(os.environ.get("SL_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
w = World()
rng = random.Random(SEED)


class Between(http.server.BaseHTTPRequestHandler):
    """Stands between a client and the server, and spoils answers as `spoil` says."""
    protocol_version = "HTTP/1.1"
    spoil, seen = None, []

    def do_GET(self):
        batch = self.path.startswith("/api/v1/blobs?")
        Between.seen.append(self.path)
        c = http.client.HTTPConnection("127.0.0.1", w.port, timeout=60)
        keep = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
        c.request("GET", self.path, headers=keep)
        r = c.getresponse()
        status, data, length = r.status, bytearray(r.read()), None
        c.close()
        if batch and Between.spoil == "unknown":
            status, data = 404, bytearray(b'{"title": "not found", "status": 404, "detail": "there is nothing"}')
        elif batch and Between.spoil == "corrupt":
            data[200] ^= 1
        elif batch and Between.spoil == "other":    # the second file's line is another's
            at = data.index(b"\n")
            data[:64] = b"0" * 64 if at else data[:64]
        elif batch and Between.spoil == "cut":
            length, data = len(data), data[:len(data) // 2]
        elif batch and Between.spoil == "noise":
            data = bytearray(random.Random(1).randbytes(len(data)))
        self.send_response(status)
        self.send_header("Content-Length", length or len(data))
        self.end_headers()
        self.wfile.write(data)
        if length:
            self.close_connection = True

    def log_message(self, *args):
        pass


between = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Between)
between.daemon_threads = True
between.handle_error = lambda *a: None    # clients that are killed leave in the middle
threading.Thread(target=between.serve_forever, daemon=True).start()
env = dict(os.environ, SOFTLAUNCH_TOKEN=TOKEN, SOFTLAUNCH_SERVER=f"http://127.0.0.1:{between.server_port}")

source = w.dir + "/source"
digests = {}
for i in range(FILES):    # some are empty, equal to another, or in a folder
    size = 0 if i == 7 else rng.choice([9, 100, 20_000, 65_536])
    data = b"twice the same" if i in (20, 430) else rng.randbytes(size)
    name = f"sub{i % 3}/f{i}" if i % 4 == 0 else f"f{i}"
    os.makedirs(os.path.dirname(f"{source}/{name}"), exist_ok=True)
    open(f"{source}/{name}", "wb").write(data)
    digests[name] = hashlib.sha256(data).hexdigest()
put = w.command("artifact", "put", "many", source)
assert put.returncode == 0, put.stderr


def ask(path, token=TOKEN, method="GET"):
    c = http.client.HTTPConnection("127.0.0.1", w.port, timeout=60)
    c.request(method, path, headers={"Authorization": "Bearer " + token} if token else {})
    r = c.getresponse()
    return r.status, r.read(), r.headers


def url(shas):
    return "/api/v1/blobs?sha256=" + ",".join(shas)


def found(folder):
    """Digests of what has its final name."""
    files = {}
    for d, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f != ".softlaunch-part"]
        for n in names:
            path = os.path.join(d, n)
            files[os.path.relpath(path, folder)] = hashlib.sha256(open(path, "rb").read()).hexdigest()
    return files


def get(spoil=None):
    Between.spoil, Between.seen = spoil, []
    out = tempfile.mkdtemp(dir=w.dir)
    r = subprocess.run([BIN, "artifact", "get", "many", out], env=env, capture_output=True, text=True, timeout=120)
    assert r.returncode == 0, r.stderr
    assert found(out) == digests
    assert not os.path.exists(out + "/.softlaunch-part")
    assert all(os.stat(f"{out}/{n}").st_mode & 0o777 == 0o644 for n in digests)
    assert all(time.time() - os.stat(f"{out}/{n}").st_mtime < 600 for n in digests)
    batches = sum(p.startswith("/api/v1/blobs?") for p in Between.seen)
    alone = sum(p.startswith("/api/v1/blobs/") for p in Between.seen)
    return batches, alone


def the_answer_has_each_file_in_order():
    big = rng.randbytes((1 << 20) + 1)
    open(w.dir + "/big", "wb").write(big)
    assert w.command("artifact", "put", "big", w.dir + "/big").returncode == 0
    names = list(digests)[:97]
    absent = hashlib.sha256(b"nobody has this").hexdigest()
    asked = [digests[n] for n in names] + [absent, hashlib.sha256(big).hexdigest(), digests[names[0]]]
    status, body, headers = ask(url(asked))
    assert status == 200 and int(headers["Content-Length"]) == len(body), (status, headers)
    want = b"".join(b"%s %d\n%s" % (digests[n].encode(), os.path.getsize(f"{source}/{n}"), open(f"{source}/{n}", "rb").read())
                    for n in names)
    want += b"".join(b"%s -\n" % a.encode() for a in asked[97:99])
    first = open(f"{source}/{names[0]}", "rb").read()
    assert body == want + b"%s %d\n%s" % (asked[-1].encode(), len(first), first)
    status, body, headers = ask(url(asked), method="HEAD")
    assert status == 200 and body == b"" and int(headers["Content-Length"]) > 0


def what_is_no_list_of_digests_is_refused():
    some = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(AT_ONCE + 1)]
    for path in (url(some), url([]), "/api/v1/blobs", url(["x" * 64]), url([some[0].upper()]), url([some[0], ""]),
                 url([some[0] + "0", some[1][1:]]), url(["../" * 21 + "x"])):
        status, body, _ = ask(path)
        assert status == 422, (path[:100], status, body)
    assert ask(url(some[:AT_ONCE]))[0] == 200
    assert ask(url(some[:1]), token=None)[0] == 401
    assert ask(url(some[:1]), token="a-wrong-token-0123456789")[0] == 401


def small_files_come_together():
    batches, alone = get()
    assert FILES / AT_ONCE <= batches <= FILES / AT_ONCE + 3, batches
    assert alone <= 1, alone    # the one that another file equals


def a_server_of_an_older_build_is_asked_for_each():
    batches, alone = get("unknown")
    assert alone >= FILES - 1, (batches, alone)


def what_comes_wrong_comes_alone():
    for spoil in ("corrupt", "other", "cut", "noise"):
        batches, alone = get(spoil)
        assert batches and alone, (spoil, batches, alone)


def a_kill_leaves_no_half_file():
    Between.spoil = None
    begin = time.monotonic()
    get()
    whole_s, cut = time.monotonic() - begin, 0
    out = tempfile.mkdtemp(dir=w.dir)
    for _ in range(KILLS):
        p = subprocess.Popen([BIN, "artifact", "get", "many", out], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            p.wait(rng.uniform(0, whole_s))
        except subprocess.TimeoutExpired:
            p.kill()
            p.wait()
            cut += 1
        there = found(out)
        assert all(digests[n] == sha for n, sha in there.items()), SEED
        if len(there) == FILES and rng.random() < 0.7:
            shutil.rmtree(out)
            os.mkdir(out)
    assert cut, (whole_s, SEED)
    r = subprocess.run([BIN, "artifact", "get", "many", out], env=env, capture_output=True, text=True, timeout=120)
    assert r.returncode == 0 and found(out) == digests, (r.stderr, SEED)
    assert not os.path.exists(out + "/.softlaunch-part")


def a_killed_run_leaves_nothing_in_the_cache():
    Between.spoil = None
    cache, run_dir, plan = w.dir + "/work/cache", w.dir + "/run", w.dir + "/plan.json"
    def fetch():
        shutil.rmtree(run_dir, ignore_errors=True)
        os.mkdir(run_dir)
        json.dump({"server": env["SOFTLAUNCH_SERVER"], "cache": cache, "run_dir": run_dir,
                   "items": [{"ref": "many:latest", "dest": "many"}]}, open(plan, "w"))
        return subprocess.Popen([BIN, "transfer", "fetch", "--plan", plan], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    left = False
    for _ in range(KILLS):
        p = fetch()
        try:
            wait(lambda: p.poll() is not None or (os.path.isdir(cache + "/partial") and os.listdir(cache + "/partial")), 60, "files come")
            time.sleep(rng.uniform(0, 0.05))
        finally:
            p.kill()
            p.wait()
        left = left or any(os.path.isdir(f"{cache}/partial/{n}") for n in os.listdir(cache + "/partial"))
        if rng.random() < 0.5:
            shutil.rmtree(cache + "/sha256", ignore_errors=True)    # so that there is more to fetch
    r = w.command("cache", "verify", "--work-dir", w.dir + "/work", "--json")
    assert r.returncode == 0 and json.loads(r.stdout)["dropped"] == [], (r.stdout, r.stderr)
    p = fetch()
    assert p.wait(120) == 0, p.stderr.read()
    assert found(run_dir + "/many") == digests
    assert os.listdir(cache + "/partial") == [], (left, SEED)
    p = fetch()    # all is there now
    Between.seen = []
    assert p.wait(120) == 0, p.stderr.read()
    assert not any("/blobs" in path for path in Between.seen), Between.seen


tap(w, [the_answer_has_each_file_in_order, what_is_no_list_of_digests_is_refused, small_files_come_together,
        a_server_of_an_older_build_is_asked_for_each, what_comes_wrong_comes_alone, a_kill_leaves_no_half_file,
        a_killed_run_leaves_nothing_in_the_cache])
