#!/usr/bin/env python3
"""`softlaunch doctor` against a Redis set up well and in each wrong way, a server, a disk and a device."""
import os, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from redis_fixture import *

servers = Servers()
redis = servers.start("redis")
URL = f"redis://127.0.0.1:{redis.port}"


def check(name, level, *words, url=URL):
    found = doctor(url)[name]
    assert found["level"] == level, found
    assert (level == "ok") == (found["do"] == ""), found
    for word in words:
        assert word in found["found"] + " " + found["do"], (word, found)


def config(key, value):
    assert cli(redis.port, "config", "set", key, value) == "OK"


def a_good_redis_is_all_ok():
    found = doctor(URL)
    assert {c["level"] for c in found.values()} == {"ok"}, found
    assert {"redis version", "redis durability", "redis eviction", "redis memory", "redis replicas", "clock"} <= set(found), found
    assert "about the last second" in found["redis durability"]["found"]


def each_wrong_setting_is_named_with_its_remedy():
    config("appendfsync", "always")
    check("redis durability", "ok", "costs nothing")
    config("appendfsync", "no")
    check("redis durability", "error", "appendfsync no", "everysec")
    config("appendfsync", "everysec")
    config("appendonly", "no")
    check("redis durability", "error", "appendonly is off", "set appendonly yes")
    config("appendonly", "yes")
    config("maxmemory-policy", "allkeys-lru")
    check("redis eviction", "error", "allkeys-lru", "noeviction")
    config("maxmemory-policy", "noeviction")
    config("maxmemory", "1")
    check("redis memory", "warn", "raise maxmemory")
    config("maxmemory", "0")
    replica = servers.start("replica", "--replicaof", f"127.0.0.1 {redis.port}")
    wait(lambda: "connected_slaves:1" in cli(redis.port, "info", "replication"), 10, "the replica is there")
    check("redis replicas", "ok", "1 connected")
    replica.kill()


def clocks_that_differ():
    """A stand-in whose clock is a minute ahead, of an old version, without a say on CONFIG."""
    info = "redis_version:6.2.1\r\naof_enabled:1\r\nmaxmemory_policy:noeviction\r\nused_memory:1\r\nconnected_slaves:0\r\n"
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(c):
        buf = b""
        while data := c.recv(4096):
            buf += data
            while True:
                name = next((n for n in (b"EXISTS", b"ROLE", b"INFO", b"CONFIG", b"TIME") if b"\r\n" + n + b"\r\n" in buf), None)
                if not name:
                    break
                first = min((buf.find(b"\r\n" + n + b"\r\n"), n) for n in (b"EXISTS", b"ROLE", b"INFO", b"CONFIG", b"TIME")
                            if b"\r\n" + n + b"\r\n" in buf)[1]
                buf = buf[buf.find(first) + len(first):]
                now = str(int(time.time()) + 60).encode()
                c.sendall({b"EXISTS": b":0\r\n", b"ROLE": b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n",
                           b"INFO": f"${len(info)}\r\n{info}\r\n".encode(), b"CONFIG": b"-NOPERM no\r\n",
                           b"TIME": b"*2\r\n$%d\r\n%s\r\n$1\r\n0\r\n" % (len(now), now)}[first])

    def serve():
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    url = f"redis://127.0.0.1:{listener.getsockname()[1]}"
    check("clock", "warn", "time server", url=url)
    check("redis version", "error", "6.2.1", "Redis 7", url=url)
    check("redis durability", "warn", "may not ask for appendfsync", url=url)


def run(*args):
    env = {k: v for k, v in os.environ.items() if not k.startswith("SOFTLAUNCH_")}
    return subprocess.run([BIN, "doctor", *args], capture_output=True, text=True, env=env, timeout=60)


def disk_and_server():
    w = Over(URL)
    r = run("--no-device", "--server", w.url, "--token-file", w.dir + "/token", "--work-dir", w.dir)
    assert r.returncode == 0 and "takes our token" in r.stdout and "GiB free" in r.stdout, r
    open(w.dir + "/wrong", "w").write("another-token-altogether\n")
    r = run("--no-device", "--server", w.url, "--token-file", w.dir + "/wrong")
    assert r.returncode == 1 and r.stdout.startswith("error  server") and "-> give the token" in r.stdout, r
    w.close()
    r = run("--no-device", "--server", w.url, "--work-dir", w.dir + "/none")
    assert r.returncode == 1 and r.stdout.count("error") == 2 and "is the server running" in r.stdout, r


def the_device():
    r = run("--device", "cpu")
    assert r.returncode == 0 and "cpu" in r.stdout and "multiplies right" in r.stdout, r
    r = run("--device", "cuda:9", "--json")
    checks = json.loads(r.stdout)
    assert r.returncode == 1 and checks["ok"] is False and checks["checks"][0]["what"] == "device", r
    assert run("--device").returncode == 2 and run("extra").returncode == 2


tap(None, [a_good_redis_is_all_ok, each_wrong_setting_is_named_with_its_remedy, clocks_that_differ, disk_and_server, the_device])
