"""A private Redis, server and agents for tests; everything is stopped by its own pid and lies in one folder."""
import atexit, json, os, shutil, signal, socket, subprocess, sys, tempfile, threading, time, urllib.error, urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
BIN = os.path.join(os.environ.get("SL_BIN") or os.path.join(os.environ.get("SL_BUILD", "build"), "bin"), "softlaunch")
TOKEN = "a-token-for-the-tests-only"
START_S = 60    # for a process to answer
PATIENCE = 4    # what is waited for may take so many times as long as its test says, on a busy machine
FINAL = ("succeeded", "failed", "dead", "cancelled")


signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))    # a suite out of time cleans up, too


class Skip(Exception):
    """Raised by a test that cannot run here, with the reason."""


class World:
    appendfsync = "always"

    def __init__(self, lease_ms=1500, program=BIN, serve=()):
        """program: of the server and the agents; serve: more arguments of the server, besides those in SL_SERVE."""
        self.program, self.serve = program, (*serve, *os.environ.get("SL_SERVE", "").split())
        self.dir = tempfile.mkdtemp(prefix="sl-queue-")
        self.lease_ms = lease_ms
        self.procs = []
        self.sock = self.dir + "/redis.sock"
        self.redis_url = "unix://" + self.sock
        open(self.dir + "/token", "w").write(TOKEN + "\n")
        atexit.register(self.close)
        self.start_redis()
        self.start_server()

    # ---- processes
    def spawn(self, name, argv, **kw):
        log = open(f"{self.dir}/{name}.log", "ab")
        p = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **kw)
        p.log = f"{self.dir}/{name}.log"
        self.procs.append(p)
        return p

    def start_redis(self, **kw):
        self.redis = self.spawn("redis", ["redis-server", "--port", "0", "--unixsocket", self.sock, "--dir", self.dir,
                                          "--appendonly", "yes", "--appendfsync", self.appendfsync, "--save", ""], **kw)
        wait(lambda: self.cli("ping") == "PONG", START_S, "Redis answers")

    def start_server(self, port=0, **kw):
        port_file = self.dir + "/port"
        if os.path.exists(port_file):
            os.unlink(port_file)
        self.server = self.spawn("server", [self.program, "serve", "--listen", f"127.0.0.1:{port}", "--data", self.dir + "/store",
                                            "--redis", self.redis_url, "--token-file", self.dir + "/token",
                                            "--port-file", port_file, *self.serve], **kw)
        wait(lambda: os.path.exists(port_file), START_S, "the server answers")
        self.port = int(open(port_file).read())
        self.url = f"http://127.0.0.1:{self.port}"

    def agent(self, name="agent", work=None, **kw):
        env = dict(os.environ, SOFTLAUNCH_TOKEN=TOKEN)
        argv = [self.program, "agent", "--redis", self.redis_url, "--server", self.url, "--work-dir", self.dir + "/" + (work or name),
                "--lease-ms", str(self.lease_ms), "--worker", HERE + "/fake_worker.py", "--verbose"]
        return self.spawn(name, argv + kw.pop("more", []), env=env, **kw)

    def end(self, p, signo=signal.SIGTERM, timeout=20):
        if p.poll() is None:
            p.send_signal(signal.SIGCONT)
            p.send_signal(signo)
        return p.wait(timeout * PATIENCE)

    def stop_agents(self):
        """What a failed test leaves must not disturb the next one."""
        for p in self.procs:
            if p.poll() is None and p not in (self.redis, self.server):
                p.send_signal(signal.SIGCONT)
                p.kill()
                p.wait()
        if self.redis and self.redis.poll() is not None:
            self.start_redis()
        if self.server.poll() is not None:
            self.start_server(self.port)

    def close(self):
        for p in reversed(self.procs):
            if p.poll() is None:
                p.send_signal(signal.SIGCONT)
                p.kill()
                p.wait()
        if os.environ.get("SL_KEEP"):
            print("kept", self.dir, file=sys.stderr)
        else:
            shutil.rmtree(self.dir, ignore_errors=True)

    # ---- talking
    def cli(self, *args):
        r = subprocess.run(["redis-cli", "-s", self.sock, *map(str, args)], capture_output=True, text=True)
        return r.stdout.strip()

    def api(self, method, path, body=None, **headers):
        data = None if body is None else (body if isinstance(body, bytes) else json.dumps(body).encode())
        req = urllib.request.Request(self.url + path, data=data, method=method,
                                     headers={"Authorization": "Bearer " + TOKEN, "Content-Type": "application/json",
                                              **headers})
        try:
            with urllib.request.urlopen(req, timeout=30) as r:
                return r.status, json.loads(r.read() or b"null")
        except urllib.error.HTTPError as e:
            return e.code, json.loads(e.read() or b"null")

    def command(self, *args, **kw):
        env = dict(os.environ, SOFTLAUNCH_TOKEN=TOKEN, SOFTLAUNCH_SERVER=self.url)
        return subprocess.run([BIN, *args], capture_output=True, text=True, env=env, timeout=kw.pop("timeout", 60), **kw)

    def put(self, name, text):
        path = f"{self.dir}/{name}.jsonl"
        open(path, "w").write(text)
        r = self.command("artifact", "put", name, path)
        assert r.returncode == 0, r.stderr

    def enqueue(self, name, key=None, **more):
        spec = make_spec(name, **more)
        status, reply = self.api("POST", "/api/v1/runs", spec, **({"Idempotency-Key": key} if key else {}))
        assert status in (200, 201), reply
        return reply["run"]

    def run(self, run):
        status, r = self.api("GET", "/api/v1/runs/" + run)
        assert status == 200, r
        return r

    def events(self, run, kind=None):
        out, last = [], "0"
        while True:
            status, page = self.api("GET", f"/api/v1/runs/{run}/events?after={last}")
            assert status == 200, page
            if not page["events"]:
                return [e for e in out if kind in (None, e["type"])]
            out += page["events"]
            last = page["last"]

    def until(self, run, what, timeout=30):
        """Waits until what(run as JSON) holds; gives it."""
        return wait(lambda: (lambda r: r if what(r) else None)(self.run(run)), timeout, f"run {run}")

    def ended(self, run, timeout=30):
        return self.until(run, lambda r: r["state"] in FINAL, timeout)


class Link:
    """Stands between an agent and Redis: can be cut, and can refuse one request instead of passing it on."""

    def __init__(self, path, redis):
        self.path, self.url, self.redis = path, "unix://" + path, redis
        self.word, self.refused, self.ends = None, 0, []
        self.mend()

    def refuse(self, word, answer):
        """The first request with word in it."""
        self.word, self.answer = word, answer

    def cut(self):
        os.unlink(self.path)
        for s in [self.listener] + self.ends:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass    # its other end was first
        self.ends = []

    def mend(self):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()

    def accept(self, listener):
        while True:
            try:
                client, server = listener.accept()[0], socket.socket(socket.AF_UNIX)
                server.connect(self.redis)
            except OSError:
                return    # cut
            self.ends += [client, server]
            threading.Thread(target=self.forward, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self.forward, args=(server, client, False), daemon=True).start()

    def forward(self, source, sink, requests):
        try:
            while data := source.recv(1 << 20):
                if requests and self.word and self.word in data and not self.refused:
                    self.refused += 1
                    source.sendall(self.answer)
                else:
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass    # one end has gone


def wait(test, timeout, what):
    end = time.monotonic() + timeout * PATIENCE
    while True:
        try:
            r = test()
        except (OSError, AssertionError):
            r = None
        if r:
            return r
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout * PATIENCE} s: {what}")
        time.sleep(0.02)


def in_time(took, promise):
    """A promise in seconds, kept as well as a busy machine lets it: for figures are queue_latency and `make faults`."""
    assert took < promise * PATIENCE, f"{took:.2f} s, promised are {promise:.2f} s"


def make_spec(name, **more):
    spec = {"api": "softlaunch/v1", "name": name, "project": "test", "model": "model:latest",
            "datasets": {"train": ["data:latest"]},
            "config": {"model": {"virtual_prompt_style": "prompt-tuning", "new_tasks": ["t"],
                                 "task_templates": [{"taskname": "t", "prompt_template": "<|VIRTUAL_PROMPT_0|> {a} {b}",
                                                     "total_virtual_tokens": 4, "virtual_token_splits": [4]}]}},
            "outputs": {"artifact": "result", "aliases": ["candidate"]}}
    spec.update(more)
    return spec


def tap(world, tests):
    """Runs functions in order; prints TAP; exits 1 when one failed."""
    import traceback
    only, bad = os.environ.get("SL_ONLY", ""), 0
    for f in tests:
        if only not in f.__name__:
            continue
        start = time.monotonic()
        try:
            f()
            print(f"ok - {f.__name__} ({time.monotonic() - start:.1f} s)", flush=True)
        except Skip as why:
            print(f"ok - {f.__name__} # SKIP {why}", flush=True)
        except Exception:
            bad += 1
            if world:
                world.stop_agents()
            print(f"not ok - {f.__name__}", flush=True)
            traceback.print_exc()
    sys.exit(1 if bad else 0)
