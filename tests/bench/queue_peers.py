#!/usr/bin/env python3
"""Claim to done of no-op runs by our scripts, beside rq and celery, in turn in one Redis (appendonly everysec), each
with one process that does nothing but claim and finish. Ours says what an agent and a server were heard to say, one
run at a time, and with 50 under way, of two agents. usage: queue_peers.py [RUNS]"""
import statistics
from wire import *

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RUNS = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
ROUNDS, PIPE, AGENTS, GOAL = 3, 25, 2, 10
PEERS = '''
import os, sys, time
def nothing():
    pass
def rq(sock, n):
    from redis import Redis
    from rq import Queue, SimpleWorker
    import peers, logging
    logging.disable(logging.CRITICAL)
    r = Redis(unix_socket_path=sock)
    q = Queue(connection=r)
    for _ in range(n):
        q.enqueue(peers.nothing)
    worker = SimpleWorker([q], connection=r)
    start = time.monotonic()
    worker.work(burst=True)
    seconds = time.monotonic() - start
    assert q.finished_job_registry.count >= n
    print(n / seconds)
    r.delete(*r.keys("rq:*"))
def celery(sock, n):
    from celery import Celery
    from celery.signals import task_postrun
    app = Celery("peers", broker="redis+socket://" + sock, backend="redis+socket://" + sock)
    app.conf.update(worker_hijack_root_logger=False, broker_connection_retry_on_startup=True)
    task = app.task(name="nothing")(nothing)
    for _ in range(n):
        task.delay()
    times = []
    @task_postrun.connect(weak=False)
    def done(**kw):
        times.append(time.monotonic())
        if len(times) == n:
            print((n - 1) / (times[-1] - times[0]), file=sys.__stdout__, flush=True)    # it redirects the other
            os._exit(0)
    app.worker_main(["worker", "--pool", "solo", "--loglevel", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat"])
if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
'''
r = subprocess.run(["sh", ROOT + "/tests/peer-python.sh", "queues"], capture_output=True, text=True)
if r.returncode:
    print("not run: rq and celery cannot be installed: " + r.stderr.strip()[-100:])
    sys.exit(77)
python = r.stdout.strip()
w = World(lease_ms=30000)
w.cli("config", "set", "appendfsync", "everysec")
open(w.dir + "/peers.py", "w").write(PEERS)


busy_us = []    # of Redis's CPU for a run


def redis_cpu_s():
    return sum(float(l.split(":")[1]) for l in w.cli("info", "cpu").splitlines()
               if re.match("used_cpu_(user|sys)_main_thread", l))


def heard():
    """The claim and the finish of a run, as an agent and the server send them."""
    w.put("model", "m\n")
    w.put("data", '{"a": "b"}\n')
    a = w.agent()
    wait(lambda: w.cli("hkeys", "{softlaunch}:agents"), 10, "the agent is there")
    w.ended(w.enqueue("fake.1.1.ok"))    # now Redis knows the scripts
    ear = Ear(w.sock)
    time.sleep(0.3)
    run = w.enqueue("fake.1.1.ok")
    assert w.ended(run)["state"] == "succeeded"
    time.sleep(0.3)
    said = [c for _, c in ear.heard() if c[0] == "EVALSHA"]
    finish = [c for c in said if c[4] == run and '"manifest"' in c[6]]
    lease = finish[0][5]
    claim = [c for c in said if c[4] == lease]
    w.end(a)
    assert len(finish) == 1 and claim, said
    return claim[0], finish[0]


def ours(claim, finish, at_once):
    spec = make_spec("fake.1.1.ok")
    for _ in range(RUNS):
        assert w.api("POST", "/api/v1/runs", spec)[0] == 201
    w.server.send_signal(signal.SIGSTOP)    # it would write the version records of results that nobody has made
    run, lease = (x.encode() for x in finish[4:6])
    claim, finish = encoded(claim).replace(claim[4].encode(), b"LEASE"), encoded(finish).replace(lease, b"LEASE").replace(run, b"RUN")
    left, start = RUNS, time.monotonic()
    cpu_0 = redis_cpu_s()

    def agent(c):
        """Yields when it has sent something: Redis works for one while the next one reads."""
        nonlocal left
        while left:
            leases = [os.urandom(16).hex().encode() for _ in range(min(at_once, left))]
            left -= len(leases)
            c.s.sendall(b"".join(claim.replace(b"LEASE", lease) for lease in leases))
            yield
            runs = [c.reply()[0] for _ in leases]
            c.s.sendall(b"".join(finish.replace(b"LEASE", lease).replace(b"RUN", run) for run, lease in zip(runs, leases)))
            yield
            assert all(c.reply()[1] == b"new" for _ in leases)

    agents = [agent(Connection(w.sock)) for _ in range(1 if at_once == 1 else AGENTS)]
    while agents:
        for a in list(agents):
            if next(a, "done") == "done":
                agents.remove(a)
    seconds = time.monotonic() - start
    busy_us.append((redis_cpu_s() - cpu_0) / RUNS * 1e6)
    w.cli("del", "{softlaunch}:outbox")
    w.server.send_signal(signal.SIGCONT)
    return RUNS / seconds


def peer(name):
    w.server.send_signal(signal.SIGSTOP)    # nor does our server take anything from a peer
    p = subprocess.run([python, "peers.py", name, w.sock, str(RUNS)], cwd=w.dir, capture_output=True, text=True, timeout=120)
    w.server.send_signal(signal.SIGCONT)
    assert p.stdout.strip(), p.stderr[-1500:]
    return float(p.stdout.split()[-1])


ratio = {}    # median over the rounds, by who is compared


def rates_are_measured():
    claim, finish = heard()
    rates = {"ours, one at a time": [], "ours, 50 under way": [], "rq": [], "celery": []}
    for _ in range(ROUNDS):
        rates["ours, one at a time"].append(ours(claim, finish, 1))
        rates["ours, 50 under way"].append(ours(claim, finish, PIPE))
        rates["rq"].append(peer("rq"))
        rates["celery"].append(peer("celery"))
    median = {k: round(statistics.median(v)) for k, v in rates.items()}
    ratio.update({f"{o} / {p}": round(statistics.median(a / b for a, b in zip(rates[o], rates[p])), 1)    # of one round each
                  for o in list(rates)[:2] for p in ("rq", "celery")})
    print(f"# no-op runs a second, claim to done, medians of {ROUNDS} rounds of {RUNS}: {median}; {ratio}; "
          f"ours cost Redis {statistics.median(busy_us):.0f} us a run")
    build = os.environ.get("SL_BUILD", "build")
    os.makedirs(build + "/reports", exist_ok=True)
    json.dump({"runs": RUNS, "rates_per_s": rates, "median_per_s": median, "ratio": ratio, "appendfsync": "everysec"},
              open(build + "/reports/queue_peers.json", "w"), indent=1)


def ten_times_rq():
    assert ratio["ours, 50 under way / rq"] >= GOAL, ratio


def ten_times_celery():
    assert ratio["ours, 50 under way / celery"] >= GOAL, ratio


tap(w, [rates_are_measured, ten_times_rq, ten_times_celery])
