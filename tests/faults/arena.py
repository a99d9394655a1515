"""Redis, a server and agents that faults are done to, and the faults. Everything lies in one folder, speaks over unix
sockets and loopback, and is ended by process id."""
import contextlib, hashlib, json, os, random, shutil, signal, socket, subprocess, sys, threading, time
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "system"))
from queue_fixture import *
import checker

HERE = os.path.dirname(os.path.abspath(__file__))    # not queue_fixture's

STATES = {  # where a victim is stopped: the fault strikes while it stands there
    "queued": "claim.before", "fetching": "fetch.before", "training": "start.after", "checkpointing": "blob.before",
    "publishing": "publish.before", "releasing": "release.before"}
FAULTS = {
    "agent": ["kill", "stop", "cut", "slow", "disk", "clock"], "worker": ["kill", "stop"],
    "server": ["kill", "stop", "disk", "clock"], "redis": ["kill", "restart", "stop", "clock"]}
LEASE_MS = 1500
QUIET_S, LEAVE_S = 120, 60    # nothing has happened for so long: it is stuck; an agent asked to leave has left
STEPS, STEP_MS = 8, 15


def reachable(target, fault, state):
    """A worker, or what fetches or uploads in its place, exists in four states only."""
    return target != "worker" or state not in ("queued", "releasing")


def stopped(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] == "T"
    except FileNotFoundError:
        return False


def children(pid):
    return [int(p) for p in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()]


def wake(pid):
    for p in [pid, *children(pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(p, signal.SIGCONT)


def undisturbed(world, steps):
    """The digest of what worker.c ends with when nothing happens to it."""
    state = 14695981039346656037
    for x in [*open(world.dir + "/data.jsonl", "rb").read(), *range(1, steps + 1)]:
        state = ((state ^ x) * 1099511628211) & (2**64 - 1)
    return hashlib.sha256(f"{state}\n".encode()).hexdigest()


def until_stopped(agent, releasing, seconds):
    """Whether a victim has stopped itself in time. releasing: it is told to go as soon as it trains."""
    told, limit = False, time.monotonic() + seconds
    while not stopped(agent.pid):
        if time.monotonic() > limit or agent.poll() is not None:
            return False
        if releasing and not told and "fetching -> training" in open(agent.log).read():
            agent.send_signal(signal.SIGTERM)
            told = True
        time.sleep(0.02)
    return True


class Clock:
    """The wall clock of a process (clock.c): can be put forward."""

    def __init__(self, path, library):
        self.path, self.offset, self.library = path, 0, library
        open(path, "wb").write(bytes(8))

    def step(self, seconds=60):
        self.offset += seconds
        with open(self.path, "r+b") as f:
            f.write(self.offset.to_bytes(8, "little"))

    def env(self):
        return {"LD_PRELOAD": self.library, "SL_CLOCK_FILE": self.path}


class Line:
    """Between an agent and a socket: can be cut, and slowed."""

    def __init__(self, listen, connect):
        self.listen_at, self.connect_to, self.delay_s, self.is_cut, self.ends = listen, connect, 0, False, []
        self.deaf = False    # what is sent arrives, and no answer comes back
        family = socket.AF_UNIX if isinstance(listen, str) else socket.AF_INET
        self.listener = socket.socket(family)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(listen)
        self.listener.listen(64)
        self.port = None if family == socket.AF_UNIX else self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def cut(self):
        self.is_cut = True
        ends, self.ends = self.ends, []
        for s in ends:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.cut()
        self.listener.close()

    def accept(self):
        while True:
            try:
                client = self.listener.accept()[0]
            except OSError:
                return
            try:
                if self.is_cut:
                    raise OSError
                server = socket.socket(socket.AF_UNIX if isinstance(self.connect_to, str) else socket.AF_INET)
                server.connect(self.connect_to)
            except OSError:
                client.close()
                continue
            self.ends += [client, server]
            for a, b in ((client, server), (server, client)):
                threading.Thread(target=self.forward, args=(a, b, a is server), daemon=True).start()

    def forward(self, source, sink, answers):
        try:
            while data := source.recv(1 << 16):
                if answers and self.deaf:
                    continue
                if self.delay_s:
                    time.sleep(self.delay_s)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for s in (source, sink):
                with contextlib.suppress(OSError):
                    s.shutdown(socket.SHUT_RDWR)


class Arena(World):
    LEFT_OUT = ()    # faults that cannot be done here

    def __init__(self, build, program=None, small_disks=True):
        self.build, self.faulty = build, program or os.path.join(build, "faults", "softlaunch")
        self.worker = os.path.join(build, "faults", "worker")
        self.fix = threading.RLock()    # one outage of server or Redis at a time
        self.rnd, self.n, self.clocks, self.disks = random.Random(), 0, {}, {}
        self.acked, self.lock, self.redis_steps = {}, threading.Lock(), []
        self.small_disks = small_disks
        self.ready = False
        super().__init__(LEASE_MS, program or os.path.join(build, "bin", "softlaunch"))
        self.ready = True
        self.put("model", "weights\n")
        self.put("data", '{"taskname":"t","a":"x","b":"y"}\n')

    # ---- parts whose clock can be put forward, and whose disk can be full
    def clock(self, name):
        if name not in self.clocks:
            self.clocks[name] = Clock(f"{self.dir}/{name}.clock", os.path.join(self.build, "faults", "clock.so"))
        return self.clocks[name]

    def small_disk(self, name, size):
        path = f"{self.dir}/{name}"
        if name not in self.disks and self.small_disks:
            os.makedirs(path, exist_ok=True)
            r = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True)
            self.disks[name] = path if r.returncode == 0 else None
        return self.disks.get(name)

    def start_redis(self, **kw):
        super().start_redis(env=dict(os.environ, **self.clock("redis").env()))

    def start_server(self, port=0, **kw):
        self.small_disk("store", "2g")
        super().start_server(port, env=dict(os.environ, **self.clock("server").env()))

    def close(self):
        super_keep = os.environ.get("SL_KEEP")
        for p in reversed(self.procs):
            if p.poll() is None:
                p.send_signal(signal.SIGCONT)
                p.kill()
                p.wait()
        for path in filter(None, self.disks.values()):
            subprocess.run(["umount", "-l", path], capture_output=True)
        if not super_keep:
            shutil.rmtree(self.dir, ignore_errors=True)

    def undisturbed(self, steps=STEPS):
        return undisturbed(self, steps)

    def add_run(self, queue="default", mode="ok", steps=STEPS):
        with self.lock:
            self.n += 1
            artifact = f"result-{self.n}"
        key = os.urandom(12).hex()
        while True:    # the same key: a lost answer makes no second run
            try:
                status, reply = self.api("POST", "/api/v1/runs", make_spec(
                    f"fault.{steps}.{STEP_MS}.{mode}", queue=queue, priority=random.choice(["high", "medium", "low"]),
                    outputs={"artifact": artifact}, retry={"max_attempts": 100}), **{"Idempotency-Key": key})
                if status in (200, 201) and self.is_kept(reply["run"]):
                    with self.lock:
                        self.acked[reply["run"]] = artifact
                    return reply["run"]
            except OSError:
                pass
            time.sleep(0.2)

    def is_kept(self, run):
        """Whether an enqueued run counts as acknowledged. False: it was lost before that, and the same key makes it anew."""
        return True

    def start_agent(self, name, queue="default", point=None, lines=None, clock=None, slots=1, work=None):
        env = dict(os.environ, SOFTLAUNCH_TOKEN=TOKEN, **(clock.env() if clock else {}))
        if point:
            env["SL_FAULT_POINT"] = f"{point}:stop:{self.dir}/{name}.mark"
        redis_url, url = ("unix://" + lines[0].listen_at, f"http://127.0.0.1:{lines[1].port}") if lines else (self.redis_url, self.url)
        return self.spawn(name, [self.faulty if point else self.program, "agent", "--redis", redis_url, "--server", url,
                                 "--work-dir", work or f"{self.dir}/work", "--lease-ms", str(LEASE_MS), "--worker",
                                 self.worker, "--queue", queue, "--slots", str(slots), "--verbose"], env=env)

    # ---- what is struck. Each returns with the fault over.
    def strike(self, target, fault, agent, lines, clock, disk):
        past_lease_s = LEASE_MS / 1000 + 0.7
        kids = children(agent.pid)
        if target == "agent":
            if fault == "kill":
                agent.kill()
                wake(agent.pid)
                for p in kids:    # they were stopped with it: let them see that it is gone
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(p, signal.SIGCONT)
            elif fault == "stop":
                time.sleep(past_lease_s)
                wake(agent.pid)
            elif fault == "cut":
                for line in lines:
                    line.cut()
                wake(agent.pid)
                time.sleep(past_lease_s)
                for line in lines:
                    line.is_cut = False
            elif fault == "slow":
                for line in lines:
                    line.delay_s = 0.3
                wake(agent.pid)
                time.sleep(past_lease_s)
                for line in lines:
                    line.delay_s = 0
            elif fault == "disk":
                with self.full(disk):
                    wake(agent.pid)
                    time.sleep(1)
            elif fault == "clock":
                clock.step()
                wake(agent.pid)
        elif target == "worker":
            for p in kids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(p, signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
            os.kill(agent.pid, signal.SIGCONT)
            if fault == "stop":
                time.sleep(past_lease_s)
                wake(agent.pid)
        elif target == "server":
            with self.fix:
                if fault == "kill":
                    self.server.kill()
                    self.server.wait()
                    wake(agent.pid)
                    time.sleep(random.uniform(0, 0.5))
                    self.start_server(self.port)
                elif fault == "stop":
                    self.server.send_signal(signal.SIGSTOP)
                    wake(agent.pid)
                    time.sleep(1)
                    self.server.send_signal(signal.SIGCONT)
                elif fault == "disk":
                    with self.full(self.disks["store"]):
                        wake(agent.pid)
                        time.sleep(0.7)
                else:
                    self.clock("server").step()
                    wake(agent.pid)
        else:
            with self.fix:
                if fault in ("kill", "restart"):
                    (self.redis.kill if fault == "kill" else self.redis.terminate)()
                    self.redis.wait()
                    wake(agent.pid)
                    time.sleep(random.uniform(0, 0.5))
                    self.start_redis()
                elif fault == "stop":
                    self.redis.send_signal(signal.SIGSTOP)
                    wake(agent.pid)
                    time.sleep(1)
                    self.redis.send_signal(signal.SIGCONT)
                else:
                    self.clock("redis").step()
                    self.redis_steps.append(time.time())
                    wake(agent.pid)

    @contextlib.contextmanager
    def full(self, disk):
        filler = disk + "/.filler"
        with open(filler, "wb", buffering=0) as f:
            try:
                while True:
                    f.write(bytes(1 << 20))
            except OSError:
                pass
        try:
            yield
        finally:
            os.unlink(filler)

    # ---- the end
    def settle(self, runs=None, quiet_s=QUIET_S):
        """Waits until every run has ended and every version record is written, as long as that goes on."""
        pending, seen, since = list(runs or self.acked), None, time.monotonic()
        while pending or self.left()["outbox"]:
            states = [(r, self.api("GET", "/api/v1/runs/" + r)[1] or {}) for r in pending]
            pending = [r for r, x in states if x.get("state", "gone") not in (*checker.FINAL, "gone")]
            now = [[x.get(k) for k in ("state", "attempt", "step", "lost")] for _, x in states]
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > quiet_s:
                return
            time.sleep(0.3)

    # ---- the history
    def outcome(self, run):
        """(record, versions, events) of an acknowledged run, as clients see it."""
        status, record = self.api("GET", "/api/v1/runs/" + run)
        if status == 404:
            return None, [], []
        status, made = self.api("GET", f"/api/v1/artifacts/{self.acked[run]}")
        versions = [] if status == 404 else made["versions"]
        for v in versions:
            files = self.api("GET", f"/api/v1/artifacts/{self.acked[run]}/{v['version']}")[1]["files"]
            v["state"] = next((e["sha256"] for e in files[0]["entries"] if e["path"] == "state"), None)
        return record, versions, self.events(run)

    def left(self):
        keys = self.cli("keys", "{softlaunch}:ready*").split()
        return {"ready": sum(int(self.cli("zcard", k) or 0) for k in keys), "leases": int(self.cli("zcard", "{softlaunch}:leases")),
                "delayed": int(self.cli("zcard", "{softlaunch}:delayed")), "outbox": int(self.cli("hlen", "{softlaunch}:outbox"))}

    def judge(self, run, steps=STEPS):
        record, versions, events = self.outcome(run)
        return checker.check_run(run, record, versions, events, self.undisturbed(steps)), record, events
