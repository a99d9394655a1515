#!/usr/bin/env python3
"""The store's server killed at random instants during puts, alias moves, deletions and collections without grace,
while equal content is uploaded again and again: what was acknowledged is there, whole, and nothing else is wrong.

Environment: SL_BIN or SL_BUILD; SL_OPS operations (150), SL_SEED. Prints TAP."""
import hashlib, http.client, json, os, random, shutil, signal, subprocess, sys, tempfile, threading, time

BIN = os.path.join(os.environ.get("SL_BIN") or os.path.join(os.environ.get("SL_BUILD", "build"), "bin"), "softlaunch")
OPS = int(os.environ.get("SL_OPS", "150"))
SEED = int(os.environ.get("SL_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
TOKEN = "a-token-for-the-tests-only"
NAMES = ["alpha", "beta"]
WRITERS = 3
SPAN_MAX_S = 5      # the longest life of a server
GIVE_UP_S = 120    # without an answer to one operation, however often the server is killed
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


class Server:
    """Killed and started again on the same port and folder."""

    def __init__(self, data):
        self.data, self.port, self.kills, self.log = data, 0, 0, open(data + ".log", "ab")
        open(data + ".token", "w").write(TOKEN)
        self.start()

    def start(self):
        if os.path.exists(self.data + ".port"):
            os.unlink(self.data + ".port")
        self.p = subprocess.Popen([BIN, "serve", "--data", self.data, "--token-file", self.data + ".token", "--listen",
                                   f"127.0.0.1:{self.port}", "--port-file", self.data + ".port", "--collect-every", "0",
                                   *os.environ.get("SL_SERVE", "").split()], stdout=self.log, stderr=self.log)
        end = time.monotonic() + GIVE_UP_S
        while not os.path.exists(self.data + ".port"):
            assert self.p.poll() is None, open(self.data + ".log").read()[-2000:]
            assert time.monotonic() < end, "the server does not start"
            time.sleep(0.01)
        self.port = int(open(self.data + ".port").read())

    def kill(self):
        self.p.kill()
        self.p.wait()
        self.kills += 1

    def stop(self):
        self.p.terminate()
        return self.p.wait(GIVE_UP_S)


class Client:
    """Asks until there is an answer."""

    def __init__(self, server):
        self.server = server

    def once(self, method, path, body=None):
        c = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        try:
            c.request(method, path, body, {"Authorization": "Bearer " + TOKEN})
            r = c.getresponse()
            data = r.read()
            return r.status, data
        finally:
            c.close()

    def ask(self, method, path, body=None):
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        end = time.monotonic() + GIVE_UP_S
        while True:
            try:
                status, reply = self.once(method, path, data)
                if status != 503:
                    return status, json.loads(reply or b"null")
            except (OSError, http.client.HTTPException):
                pass
            assert time.monotonic() < end, f"no answer to {method} {path}"
            time.sleep(0.01)

    def upload(self, data, pieces):
        """A blob in one or in pieces, from where the server has it."""
        sha = hashlib.sha256(data).hexdigest()
        if not pieces:
            status, reply = self.ask("PUT", "/api/v1/blobs/" + sha, data)
            assert status in (200, 201), reply
            return sha
        while True:
            status, reply = self.ask("GET", f"/api/v1/blobs/{sha}/upload")
            assert status == 200, reply
            if "bytes" in reply:
                return sha
            at = reply["offset"]
            piece = data[at:at + len(data) // 3 + 1]
            try:
                status, reply = self.once("PATCH", f"/api/v1/blobs/{sha}/upload?offset={at}&bytes={len(data)}", piece)
            except (OSError, http.client.HTTPException):
                time.sleep(0.01)
                continue
            assert status in (200, 201, 202, 409, 503), reply


class History:
    def __init__(self):
        self.lock = threading.Lock()
        self.content = {}    # (name, number) -> manifest
        self.deleted = set()
        self.doomed = set()    # being deleted, or to be
        self.alias = {}    # (name, alias) -> number
        self.problems = []
        self.done = dict.fromkeys(("put", "alias", "delete", "collect", "again"), 0)

    def say(self, text):
        with self.lock:
            self.problems.append(text)

    def count(self, what):
        with self.lock:
            self.done[what] += 1


def contents(r):
    """Files of one of a few versions of content, so that uploads meet what is there, or was just collected."""
    i = r.randrange(5)
    return {"same.txt": b"in every version", f"{i}.bin": random.Random(i).randbytes(20_000 + 70_000 * i)}


def put(client, history, r):
    name, files = r.choice(NAMES), contents(r)
    while True:
        entries = [{"path": path, "sha256": client.upload(data, r.random() < 0.5), "bytes": len(data)}
                   for path, data in files.items()]
        text = json.dumps({"files": entries}).encode()
        manifest = client.upload(text, False)
        status, reply = client.ask("POST", f"/api/v1/artifacts/{name}/versions", {"manifest": manifest, "aliases": []})
        if status in (200, 201):
            break
        # A collection came between; nothing may be visible then.
        if status not in (404, 422) or not ("no blob" in json.dumps(reply) or "missing from the store" in json.dumps(reply)):
            return history.say(f"put {name}: {status} {reply}")
        history.count("again")
    key = (name, reply["number"])
    with history.lock:
        known = history.content.setdefault(key, manifest)
        if known != manifest or reply["manifest"] != manifest:
            history.problems.append(f"{key} was {known} and is {manifest}")
        if key in history.deleted:
            history.problems.append(f"{key} is back")
    history.count("put")


def move_alias(client, history, r, alias):
    with history.lock:
        known = sorted(k for k in history.content if k not in history.doomed)
    if not known:
        return
    name, number = r.choice(known)
    status, reply = client.ask("PUT", f"/api/v1/artifacts/{name}/aliases/{alias}", {"version": f"v{number}"})
    if status == 404 and (name, number) in history.doomed:
        return    # deleted meanwhile
    if status != 200 or reply["number"] != number:
        return history.say(f"alias {alias} to {name}:v{number}: {status} {reply}")
    with history.lock:
        history.alias[name, alias] = number
    history.count("alias")


def delete(client, history, r):
    with history.lock:
        pointed = {(name, number) for (name, _), number in history.alias.items()}
        known = sorted(k for k in history.content if k not in history.doomed and k not in pointed)
        if not known:
            return
        key = r.choice(known)
        history.doomed.add(key)
    status, reply = client.ask("DELETE", f"/api/v1/artifacts/{key[0]}/versions/v{key[1]}")
    with history.lock:
        if status in (200, 404):    # 404: the reply to an earlier try was lost
            history.deleted.add(key)
        elif status == 409:    # an alias came first
            history.doomed.discard(key)
        else:
            history.problems.append(f"delete {key}: {status} {reply}")
    history.count("delete")


def check_disk(client, data, history):
    """The store's files read by this test alone: what records say, what is there."""
    def content(sha):
        if os.path.exists(blob(data, sha)):
            return open(blob(data, sha), "rb").read()
        status, reply = client.once("GET", "/api/v1/blobs/" + sha)    # in a bucket, with no copy here
        assert status == 200, (sha, status, reply)
        return reply
    for name in os.listdir(data + "/artifacts"):
        for f in os.listdir(f"{data}/artifacts/{name}"):
            path = f"{data}/artifacts/{name}/{f}"
            if not f.startswith("v") or not f.endswith(".json"):
                continue
            record = json.load(open(path))
            key = (name, record["number"])
            if os.path.exists(path[:-5] + ".gone"):
                history.say(f"{key} is there and gone")
            for sha in [record["manifest"]] + [e["sha256"] for e in json.loads(content(record["manifest"]))["files"]]:
                if hashlib.sha256(content(sha)).hexdigest() != sha:
                    history.say(f"{key}: {sha} has other bytes")
            if key in history.deleted:
                history.say(f"{key} was deleted and is there")


def blob(data, sha):
    return f"{data}/blobs/sha256/{sha[:2]}/{sha}"


def check_api(client, history):
    for (name, number), manifest in sorted(history.content.items()):
        status, reply = client.ask("GET", f"/api/v1/artifacts/{name}/versions/v{number}")
        if (name, number) in history.deleted:
            if status != 404:
                history.say(f"{name}:v{number} was deleted: {status}")
        elif status != 200 or reply["manifest"] != manifest:
            history.say(f"{name}:v{number}: {status} {reply}")
    for (name, alias), number in sorted(history.alias.items()):
        status, reply = client.ask("GET", f"/api/v1/artifacts/{name}/versions/{alias}")
        if status != 200 or reply["number"] != number:
            history.say(f"alias {name}:{alias} is {reply.get('number')}, v{number} was acknowledged last")


def verify(client, hash):
    status, reply = client.ask("POST", "/api/v1/store/verifications", {"hash": hash})
    assert status == 202, reply
    end = time.monotonic() + GIVE_UP_S
    while True:
        status, task = client.ask("GET", "/api/v1/store/tasks/" + reply["task"])
        assert status == 200, task
        if task["state"] in ("done", "failed"):
            return task
        assert time.monotonic() < end, task


def main():
    print(f"# seed {SEED}, {OPS} operations", flush=True)
    tmp = tempfile.mkdtemp(prefix="sl-kill-")
    server, history, stop = Server(tmp + "/store"), History(), threading.Event()
    r = random.Random(SEED)
    left, left_lock = [OPS], threading.Lock()

    def next_op():
        with left_lock:
            left[0] -= 1
            return left[0] >= 0

    def guarded(f, *args):
        def run():
            try:
                f(*args)
            except BaseException as e:
                history.say(f"{f.__name__}: {e!r}")
        t = threading.Thread(target=run, daemon=True)
        t.start()
        return t

    def writer(i):
        rnd, client = random.Random(SEED + 1 + i), Client(server)
        while next_op():
            what = rnd.random()
            if what < 0.55:
                put(client, history, rnd)
            elif what < 0.8:
                move_alias(client, history, rnd, f"alias-{i}")
            else:
                delete(client, history, rnd)

    def collector():
        client = Client(server)
        while not stop.is_set():
            status, reply = client.ask("POST", "/api/v1/store/collections", {"grace_s": 0})
            if status != 202:
                return history.say(f"collect: {status} {reply}")
            while not stop.is_set():
                status, task = client.ask("GET", "/api/v1/store/tasks/" + reply["task"])
                if status == 404 or task["state"] == "done":
                    break    # 404: the server was killed meanwhile
                if task["state"] == "failed":
                    return history.say(f"collect: {task}")
            history.count("collect")

    try:
        writers = [guarded(writer, i) for i in range(WRITERS)]
        collecting = guarded(collector)
        span, ended = 0.1, 0
        while any(t.is_alive() for t in writers):
            time.sleep(r.random() ** 2 * span)    # any instant will do: nothing waits for it
            server.kill()
            server.start()
            # Where an operation takes longer (blobs in a bucket) than the server lives, none would ever end.
            now = sum(history.done[what] for what in ("put", "alias", "delete"))
            span, ended = (max(span / 1.1, 0.1) if now > ended else min(span * 1.1, SPAN_MAX_S)), now
        stop.set()
        collecting.join(GIVE_UP_S)
        client = Client(server)
        check_api(client, history)
        for hash in (False, True):
            task = verify(client, hash)
            if task["state"] != "done" or task["report"]["problems_total"]:
                history.say(f"verify: {task}")
        client.ask("POST", "/api/v1/store/collections", {"grace_s": 0})
        task = verify(client, True)
        if task["state"] != "done" or task["report"]["problems_total"]:
            history.say(f"verify after a last collection: {task}")
        check_api(client, history)
        check_disk(client, server.data, history)
        assert server.stop() == 0
        left = os.listdir(server.data + "/journal")
        if left:
            history.say(f"left in the journal: {left}")
    finally:
        if server.p.poll() is None:
            server.p.kill()
            server.p.wait()
    for p in history.problems[:20]:
        print("# " + p)
    done = ", ".join(f"{n} {what}" for what, n in history.done.items())
    print(f"# {server.kills} kills; {done}; {len(history.deleted)} versions deleted")
    ok = not history.problems and history.done["put"] > 0 and history.done["collect"] > 0 and server.kills > 0
    print(("ok" if ok else "not ok") + " - the store after kills at random instants")
    if os.environ.get("SL_KEEP"):
        print("# kept " + tmp)
    else:
        shutil.rmtree(tmp)
    return 0 if ok else 1


sys.exit(main())
