"""The arena over Redis with Sentinels, and over a Cluster of three primaries. What a line of an agent's own does (cut, slow)
is left to the single Redis: here Sentinel or MOVED names the address that an agent goes to."""
from arena import *
from redis_fixture import Servers
import redis_fixture

NAME = "prime"


class Nodes(Arena):
    LEFT_OUT = ("cut", "slow")

    def node(self, name, *args, port=None):
        p = self.servers.start(name, *args, port=port, env=dict(os.environ, **self.clock("redis").env()))
        p.name, p.args = name, args
        return p

    def again(self, node):
        """A node that has ended comes back with its name, port and files."""
        node.__dict__.update(self.node(node.name, *node.args, port=node.port).__dict__)

    def cli(self, *args):
        return redis_fixture.cli(self.holder().port, *args)

    def strike(self, target, fault, agent, lines, clock, disk):
        if target != "redis":
            return super().strike(target, fault, agent, lines, clock, disk)
        with self.fix:
            self.whole()
            node = self.holder()
            if fault == "clock":
                self.clock("redis").step()
                self.redis_steps.append(time.time())
                wake(agent.pid)
            elif fault == "stop":
                node.send_signal(signal.SIGSTOP)
                wake(agent.pid)
                self.without(node)
                node.send_signal(signal.SIGCONT)
            else:
                (node.kill if fault == "kill" else node.terminate)()
                node.wait()
                wake(agent.pid)
                self.without(node)
                self.again(node)
            self.whole()


class Sentinels(Nodes):
    """A primary and a replica that change places with every outage. Acknowledged is a run when the replica has it."""

    def start_redis(self):
        self.servers, self.redis = Servers(), None
        self.nodes = redis_fixture.start_pair(self.node)
        self.watchers = redis_fixture.start_sentinels(self.servers, NAME, self.nodes[0])
        self.redis_url = "redis+sentinel://" + ",".join(f"127.0.0.1:{s.port}" for s in self.watchers) + "/" + NAME

    def holder(self):
        port = redis_fixture.cli(self.watchers[0].port, "sentinel", "get-master-addr-by-name", NAME).split()[1]
        return next(n for n in self.nodes if n.port == int(port))

    def whole(self):
        def is_so():
            about = redis_fixture.cli(self.holder().port, "info", "replication")
            return "role:master" in about and "state=online" in about
        wait(is_so, 60, "primary and replica are there")

    def without(self, node):
        """Until the Sentinels have another primary."""
        wait(lambda: self.holder() is not node and "role:master" in redis_fixture.cli(self.holder().port, "info", "replication"),
             60, "the replica is promoted")

    def is_kept(self, run):
        while True:
            status, reply = self.api("POST", f"/api/v1/runs/{run}/sync?replicas=1")
            if status == 200 and reply["replicas"] >= 1:
                return True
            if status == 404:
                return False
            time.sleep(0.1)


class Cluster(Nodes):
    """Three primaries without replicas: while the one that holds our slot is gone, the Cluster is down."""

    def start_redis(self):
        self.servers, self.redis = Servers(), None
        self.nodes = redis_fixture.start_cluster(self.node, 1000)
        self.home = next(n for n in self.nodes if "MOVED" not in redis_fixture.cli(n.port, "exists", "{softlaunch}"))
        other = next(n for n in self.nodes if n is not self.home)
        self.redis_url = f"redis://127.0.0.1:{other.port}"

    def holder(self):
        return self.home

    def whole(self):
        wait(lambda: all("cluster_state:ok" in redis_fixture.cli(n.port, "cluster", "info") for n in self.nodes), 60, "the Cluster stands")

    def without(self, node):
        time.sleep(random.uniform(0, 2))    # noticed by the others, or not


ARENAS = {"single": Arena, "sentinel": Sentinels, "cluster": Cluster}
