"""Redis servers, Sentinels, Clusters and certificates of a test's own, and the product over any of them."""
import socket
from queue_fixture import *

DOCTOR_S = 20 * PATIENCE


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Servers:
    """Processes in one folder; ended at exit."""

    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="sl-redis-")
        self.procs = []
        atexit.register(self.close)

    def start(self, name, *args, port=None, ready="ping", sentinel=None, env=None):
        """redis-server with these options, or a Sentinel with these lines of configuration."""
        folder = f"{self.dir}/{name}"
        os.makedirs(folder, exist_ok=True)
        port = port or free_port()
        if sentinel is not None:
            conf = folder + "/sentinel.conf"
            open(conf, "w").write(f"port {port}\ndir {folder}\n" + sentinel)
            argv = ["redis-server", conf, "--sentinel"]
        else:
            argv = ["redis-server", "--port", str(port), "--dir", folder, "--appendonly", "yes", "--save", "",
                    "--bind", "127.0.0.1", *map(str, args)]
        log = open(folder + "/log", "ab")
        p = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env)
        p.port, p.dir, p.argv = port, folder, argv
        self.procs.append(p)
        if ready:
            wait(lambda: cli(port, *ready.split()) != "", 10, f"{name} answers")
        return p

    def close(self):
        for p in self.procs:
            if p.poll() is None:
                p.kill()
                p.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


def cli(port, *args, more=()):
    r = subprocess.run(["redis-cli", "-p", str(port), *more, *map(str, args)], capture_output=True, text=True, timeout=60)
    return r.stdout.strip()


def start_pair(start):
    """A primary and its replica, in step, each started by start(name, option...)."""
    first = start("first")
    second = start("second", "--replicaof", f"127.0.0.1 {first.port}")
    wait(lambda: "master_link_status:up" in cli(second.port, "info", "replication"), 30, "the replica is in step")
    return first, second


def start_sentinels(servers, name, primary, conf="", **start):
    """Three Sentinels that know each other and watch a primary under this name. conf: more lines; with `requirepass`, start says how
    to ask: more=(redis-cli's options)."""
    more = start.pop("more", ())
    conf = (f"sentinel monitor {name} 127.0.0.1 {primary.port} 2\nsentinel down-after-milliseconds {name} 500\n"
            f"sentinel failover-timeout {name} 3000\n" + conf)
    found = [servers.start(f"sentinel{i}", sentinel=conf, **start) for i in range(3)]
    for s in found:
        wait(lambda: "num-other-sentinels\n2" in cli(s.port, "sentinel", "master", name, more=more), 60, "the Sentinels know each other")
    return found


def start_cluster(start, node_timeout_ms):
    """Three primaries that have made a Cluster, each started by start(name, option...)."""
    nodes = [start(f"node{i}", "--cluster-enabled", "yes", "--cluster-port", free_port(), "--cluster-node-timeout", node_timeout_ms)
             for i in range(3)]
    subprocess.run(["redis-cli", "--cluster", "create", *(f"127.0.0.1:{n.port}" for n in nodes), "--cluster-yes"], check=True,
                   capture_output=True, timeout=60)
    wait(lambda: all("cluster_state:ok" in cli(n.port, "cluster", "info") for n in nodes), 60, "the Cluster stands")
    return nodes


def openssl(*args):
    subprocess.run(["openssl", *args], check=True, capture_output=True)


class Certificates:
    """An authority in a folder, and what it signs: openssl's own command makes them."""

    def __init__(self, folder):
        self.dir = folder
        os.makedirs(folder)
        self.ca = folder + "/ca.pem"
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=a test's authority",
                "-keyout", folder + "/ca.key", "-out", self.ca, "-days", "2")
        open(folder + "/index", "w").close()
        open(folder + "/serial", "w").write("01\n")
        open(folder + "/ca.cnf", "w").write(
            f"[ca]\ndefault_ca=a\n[a]\ndatabase={folder}/index\nserial={folder}/serial\nnew_certs_dir={folder}\n"
            "default_md=sha256\npolicy=p\ncopy_extensions=copy\nunique_subject=no\n[p]\ncommonName=supplied\n")

    def make(self, name, san="DNS:redis.test,IP:127.0.0.1", start="20250101000000Z", end="20990101000000Z"):
        key, cert, csr = (f"{self.dir}/{name}.{x}" for x in ("key", "pem", "csr"))
        openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                "-addext", "subjectAltName=" + san, "-keyout", key, "-out", csr)
        openssl("ca", "-batch", "-notext", "-config", self.dir + "/ca.cnf", "-cert", self.ca, "-keyfile", self.dir + "/ca.key",
                "-in", csr, "-out", cert, "-startdate", start, "-enddate", end)
        return cert, key


def doctor(url, *more):
    """What `softlaunch doctor` says of a Redis: its checks by name; also that it says so in time."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("SOFTLAUNCH_")}
    start = time.monotonic()
    r = subprocess.run([BIN, "doctor", "--no-device", "--json", "--redis", url, *more], capture_output=True, text=True,
                       env=env, timeout=DOCTOR_S)
    reply = json.loads(r.stdout)
    assert reply["ok"] == (r.returncode == 0), r
    return {c["what"]: dict(c, seconds=time.monotonic() - start) for c in reply["checks"]}


class Over(World):
    """A server and agents over a Redis that stands already."""

    def __init__(self, url, agent_url=None, **kw):
        self.given, self.agent_url = url, agent_url
        super().__init__(**kw)

    def start_redis(self):
        self.redis, self.redis_url = None, self.given

    def start_server(self, port=0):
        super().start_server(port)
        self.put("model", "weights\n")
        self.put("data", '{"taskname":"t","a":"x","b":"y"}\n')
        self.redis_url = self.agent_url or self.given

    def enqueue(self, name, flags=(), **more):
        """By the command: it goes on when the server says that Redis is away for the moment."""
        path = f"{self.dir}/{name}.json"
        json.dump(make_spec(name, **more), open(path, "w"))
        r = self.command("enqueue", path, "--json", *flags)
        assert r.returncode == 0, r.stderr
        return json.loads(r.stdout)["run"]

    def published_once(self, run):
        """Its outputs are told a moment after its end."""
        wait(lambda: self.events(run, "outputs"), 10, "the outputs are in the store")
        ends = [e for e in self.events(run, "state") if e["data"]["state"] == "succeeded"]
        return len(ends) == 1 and len(self.events(run, "outputs")) == 1
