"""What real agents say to Redis, heard with MONITOR, to be said again by many; and a connection to say it on."""
import os, re, socket, subprocess, sys, time
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "system"))
from queue_fixture import *


class Ear:
    def __init__(self, sock):
        self.p = subprocess.Popen(["redis-cli", "-s", sock, "monitor"], stdout=subprocess.PIPE)
        self.p.stdout.readline()    # OK

    def heard(self):
        """(seconds, arguments) of each command that a client has sent, not those within scripts."""
        self.p.terminate()
        out = []
        for line in self.p.stdout.read().decode("utf-8", "replace").splitlines():
            m = re.match(r"([\d.]+) \[\d+ (\S+?)\] (.*)", line)
            if m and m[2] != "lua":
                out.append((float(m[1]), [re.sub(r"\\(.)", r"\1", w) for w in re.findall(r'"((?:[^"\\]|\\.)*)"', m[3])]))
        return out


def encoded(args):
    parts = [a if isinstance(a, bytes) else str(a).encode() for a in args]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)


def parse(readline, readexactly):
    """One reply."""
    line = readline()
    kind, rest = line[:1], line[1:-2]
    if kind == b"-":
        raise RuntimeError(rest.decode())
    if kind == b"$":
        return None if rest == b"-1" else readexactly(int(rest) + 2)[:-2]
    if kind == b"*":
        return None if rest == b"-1" else [parse(readline, readexactly) for _ in range(int(rest))]
    return rest


class Connection:
    def __init__(self, path):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.connect(path)
        self.f = self.s.makefile("rb")

    def send(self, commands):
        self.s.sendall(b"".join(map(encoded, commands)))

    def reply(self):
        return parse(self.f.readline, self.f.read)

    def ask(self, *args):
        self.send([args])
        return self.reply()
