#!/usr/bin/env python3
"""The store by its commands: serve, artifact put|get|ls, transfer; killed servers and clients, full disks, big files.

Long because it is one suite over one server. Environment: SL_BIN, the folder of `softlaunch`. Prints TAP."""
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import http.server
from pathlib import Path

BIN = os.path.join(os.environ.get("SL_BIN", "build/bin"), "softlaunch")
TOKEN = "system-test-token-0123456789"
BIG = 120_000_000
failed = 0


class Skip(Exception):
    pass


def run(args, env=None, ok=None, timeout=60, **kw):
    p = subprocess.run([BIN] + [str(a) for a in args], env=env, capture_output=True, text=True, timeout=timeout, **kw)
    if ok is True:
        assert p.returncode == 0, f"{args}: exit {p.returncode}: {p.stderr}"
    if ok is False:
        assert p.returncode == 1, f"{args}: exit {p.returncode}: {p.stdout} {p.stderr}"
    return p


class Server:
    def __init__(self, data, token_file):
        self.data, self.token_file = data, token_file
        self.start()

    def start(self):
        port_file = str(self.data) + ".port"
        Path(port_file).unlink(missing_ok=True)
        self.p = subprocess.Popen(
            [BIN, "serve", "--data", str(self.data), "--token-file", str(self.token_file), "--listen", "127.0.0.1:0",
             "--port-file", port_file], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.line = self.p.stdout.readline()
        assert self.line.startswith("serving http://127.0.0.1:"), self.line + self.p.stderr.read()
        self.url = self.line.split()[1]
        while not os.path.exists(port_file):
            time.sleep(0.01)
        assert Path(port_file).read_text().strip() == self.url.rsplit(":", 1)[1]
        self.env = dict(os.environ, SOFTLAUNCH_SERVER=self.url, SOFTLAUNCH_TOKEN=TOKEN)
        for proxy in ("http_proxy", "HTTP_PROXY"):
            self.env[proxy] = "http://127.0.0.1:1"  # loopback goes around any proxy

    def stop(self, signo=signal.SIGTERM):
        if self.p.poll() is None:
            self.p.send_signal(signo)
            self.p.wait(10)
        self.p.stdout.close()
        self.p.stderr.close()
        return self.p.returncode

    def peak_rss_mb(self):
        return peak_rss_mb(self.p.pid)


def peak_rss_mb(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0


def big_file(path, size=BIG):
    block = random.Random(7).randbytes(1 << 20)
    with open(path, "wb") as f:
        for i in range(0, size, 1 << 20):
            f.write(block[: min(1 << 20, size - i)])
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def events_of(text):
    return [json.loads(line) for line in text.splitlines() if line]


# ---- tests: each gets a fresh folder and a server ----

def put_get_ls(tmp, s):
    (tmp / "d" / "sub").mkdir(parents=True)
    (tmp / "d" / "a.txt").write_text("one")
    (tmp / "d" / "sub" / "b.txt").write_text("two")
    out = run(["artifact", "put", "data", tmp / "d", "--alias", "candidate"], s.env, True).stdout
    assert out.startswith("data:v0 ") and "candidate" in out, out
    assert run(["artifact", "put", "data", tmp / "d"], s.env, True).stdout.startswith("data:v0 ")
    (tmp / "d" / "a.txt").write_text("three")
    record = json.loads(run(["artifact", "put", "data", tmp / "d", "--json"], s.env, True).stdout)
    assert record["version"] == "v1" and record["aliases"] == ["latest"]
    run(["artifact", "get", "data:candidate", tmp / "out"], s.env, True)
    assert (tmp / "out" / "a.txt").read_text() == "one" and (tmp / "out" / "sub" / "b.txt").read_text() == "two"
    assert sorted(p.name for p in (tmp / "out").iterdir()) == ["a.txt", "sub"]
    run(["artifact", "get", "data:candidate", tmp / "out"], s.env, True)  # is there already: fine
    p = run(["artifact", "get", "data:latest", tmp / "out"], s.env, False)
    assert "a.txt is there and has other content" in p.stderr, p.stderr
    assert (tmp / "out" / "a.txt").read_text() == "one"
    run(["artifact", "get", "data:v1/a.txt", tmp / "one"], s.env, True)
    assert [p.name for p in (tmp / "one").iterdir()] == ["a.txt"]
    table = run(["artifact", "ls"], s.env, True).stdout
    assert "data" in table and "candidate=v0" in table, table
    listed = json.loads(run(["artifact", "ls", "data", "--json"], s.env, True).stdout)
    assert [v["version"] for v in listed["versions"]] == ["v1", "v0"]
    run(["artifact", "alias", "data:v1", "candidate"], s.env, True)
    assert json.loads(run(["artifact", "ls", "data", "--json"], s.env, True).stdout)["aliases"] == {"candidate": "v1"}


def clear_messages(tmp, s):
    (tmp / "f").write_text("x")
    cases = [
        (["artifact", "get", "nope"], s.env, "there is no artifact nope"),
        (["artifact", "put", "Bad/Name", tmp / "f"], s.env, "is not a name"),
        (["artifact", "put", "a", tmp / "missing"], s.env, "missing: No such file"),
        (["artifact", "put", "a", tmp / "f", "--alias", "latest"], s.env, "alias `latest` is not allowed"),
        (["artifact", "ls"], dict(s.env, SOFTLAUNCH_TOKEN="wrong"), "not the one of this server"),
        (["artifact", "ls"], {k: v for k, v in s.env.items() if k != "SOFTLAUNCH_TOKEN"}, "set SOFTLAUNCH_TOKEN"),
        (["artifact", "ls"], dict(s.env, SOFTLAUNCH_SERVER="http://127.0.0.1:1"), "http://127.0.0.1:1/"),
        (["serve", "--data", s.data, "--token-file", s.token_file, "--listen", "127.0.0.1:0"], s.env, "another server is using"),
        (["serve", "--data", tmp / "x", "--token-file", tmp / "f", "--listen", "127.0.0.1:0"], s.env, "token file"),
        (["serve", "--data", tmp / "x", "--token-file", s.token_file, "--listen", s.url[7:]], s.env, "cannot listen on"),
        (["serve", "--data", tmp / "x", "--token-file", s.token_file, "--listen", "nonsense"], s.env, "HOST:PORT"),
    ]
    for args, env, text in cases:
        p = run(args, env, False)
        assert text in p.stderr, (args, p.stderr)
        assert TOKEN not in p.stderr and "wrong" not in p.stderr.replace("wrong sha256", ""), p.stderr
    assert run(["artifact", "put", "a"], s.env).returncode == 2
    assert run(["artifact", "--help"], s.env).returncode == 0


def big_files_are_streamed(tmp, s):
    big_file(tmp / "big.bin")
    begin = time.time()
    p = subprocess.Popen([BIN, "artifact", "put", "big", str(tmp / "big.bin")], env=s.env, stdout=subprocess.DEVNULL)
    peak = 0
    while p.poll() is None:
        try:
            peak = max(peak, peak_rss_mb(p.pid))
        except (OSError, ValueError):
            pass
        time.sleep(0.02)
    assert p.returncode == 0
    put_s = time.time() - begin
    begin = time.time()
    run(["artifact", "get", "big", tmp / "out"], s.env, True)
    get_s = time.time() - begin
    assert (tmp / "out" / "big.bin").read_bytes() == (tmp / "big.bin").read_bytes()
    server = s.peak_rss_mb()
    print(f"# {BIG / 1e6:.0f} MB: put {put_s:.2f} s, get {get_s:.2f} s; peak memory: client {peak:.0f} MiB, server {server:.0f} MiB")
    if "ASAN_OPTIONS" not in os.environ:
        assert peak < 40 and server < 40, (peak, server)


def server_killed_while_uploading(tmp, s):
    big_file(tmp / "big.bin")
    run(["artifact", "put", "small", s.token_file], s.env, True)
    p = subprocess.Popen([BIN, "artifact", "put", "big", str(tmp / "big.bin")], env=s.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    uploads = s.data / "uploads"
    while not any(f.stat().st_size > 1_000_000 for f in uploads.iterdir()):
        assert p.poll() is None, "the upload ended before the server could be killed in it"
        time.sleep(0.0005)
    s.stop(signal.SIGKILL)
    p.kill()
    p.wait()
    s.start()
    left = [f.stat().st_size for f in uploads.iterdir()]
    assert len(left) == 1 and left[0] > 1_000_000, "what came before the crash is kept"
    assert not list((s.data / "tmp").iterdir())
    names = [a["name"] for a in json.loads(run(["artifact", "ls", "--json"], s.env, True).stdout)["artifacts"]]
    assert names == ["small"], names
    assert run(["artifact", "put", "big", tmp / "big.bin"], s.env, True).stdout.startswith("big:v0")
    assert not list(uploads.iterdir())


class Cutter(threading.Thread):
    """Passes what clients send to the server, and cuts a connection's sending side after so many bytes, a few times."""

    def __init__(self, port, after, times):
        super().__init__(daemon=True)
        self.port, self.after, self.times, self.cuts, self.sent = port, after, times, 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.start()

    def run(self):
        while True:
            client = self.listener.accept()[0]
            server = socket.create_connection(("127.0.0.1", self.port))
            threading.Thread(target=self.up, args=(client, server), daemon=True).start()
            threading.Thread(target=self.down, args=(client, server), daemon=True).start()

    def up(self, client, server):
        passed = 0
        try:
            while data := client.recv(1 << 16):
                server.sendall(data)
                passed += len(data)
                self.sent += len(data)
                if passed > self.after and self.cuts < self.times:
                    self.cuts += 1
                    break
            server.shutdown(socket.SHUT_WR)    # the server still gets all that was passed
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        except OSError:
            pass

    def down(self, client, server):
        try:
            while data := server.recv(1 << 16):
                client.sendall(data)
        except OSError:
            pass
        client.close()


def a_cut_upload_goes_on(tmp, s):
    """Cut more often than one would try again without progress, and hardly a byte is sent twice."""
    size, cuts = 80_000_000, 7
    digest = big_file(tmp / "big.bin", size)
    cutter = Cutter(int(s.url.rsplit(":", 1)[1]), 9_000_000, cuts)
    env = dict(s.env, SOFTLAUNCH_SERVER=cutter.url)
    assert run(["artifact", "put", "big", tmp / "big.bin"], env, True, timeout=85).stdout.startswith("big:v0")
    assert cutter.cuts == cuts, cutter.cuts
    assert cutter.sent < 1.3 * size, cutter.sent    # anew each time it would be nearly twice that
    run(["artifact", "get", "big", tmp / "out"], s.env, True)
    assert hashlib.sha256((tmp / "out" / "big.bin").read_bytes()).hexdigest() == digest


def killed_at_any_time(tmp, s):
    """Whatever was acknowledged is there after SIGKILL at random moments, once, and whole."""
    rng = random.Random(int(os.environ.get("SL_SEED", "1")))
    acked = []  # (name, version, content)
    for kill in range(6):
        done = threading.Event()

        def put(lane, url_env=s.env, kill=kill):
            n = 0
            while not done.is_set():
                content = f"{kill} {lane} {n}"
                path = tmp / f"f{lane}"
                path.write_text(content)
                p = run(["artifact", "put", f"a{lane % 2}", path, "--alias", f"lane{lane}", "--json"], url_env)
                if p.returncode == 0:
                    acked.append((json.loads(p.stdout), content))
                n += 1

        lanes = [threading.Thread(target=put, args=(i,)) for i in range(3)]
        before, end = len(acked), time.monotonic() + 120
        for t in lanes:
            t.start()
        while len(acked) < before + 2 and time.monotonic() < end:    # a busy machine takes its time
            time.sleep(0.01)
        time.sleep(rng.uniform(0.15, 0.6))
        s.stop(signal.SIGKILL)
        done.set()
        for t in lanes:
            t.join()
        s.start()
        assert not list((s.data / "tmp").iterdir()) and not list((s.data / "journal").iterdir())
    assert len(acked) > 10, "too few were acknowledged to say anything"
    manifests = set()
    for record, content in acked:
        now = json.loads(run(["artifact", "get", f"{record['name']}:{record['version']}", tmp / "out" / record["name"] / record["version"], "--json"],
                             s.env, True).stdout)
        assert now["manifest"] == record["manifest"]
        got = [f.read_text() for f in (tmp / "out" / record["name"] / record["version"]).iterdir()]
        assert got == [content], (got, content)
        manifests.add((record["name"], record["version"]))
    assert len(manifests) == len(acked), "two acknowledged puts of different content got one version"
    for name in ("a0", "a1"):
        artifact = json.loads(run(["artifact", "ls", name, "--json"], s.env, True).stdout)
        numbers = [v["number"] for v in artifact["versions"]]
        assert len(set(numbers)) == len(numbers) and artifact["latest"] == f"v{max(numbers)}"
    print(f"# 6 SIGKILLs, {len(acked)} acknowledged puts, none lost, none twice")


def client_killed_while_downloading(tmp, s):
    big_file(tmp / "big.bin")
    run(["artifact", "put", "big", tmp / "big.bin"], s.env, True)
    out = tmp / "out"
    p = subprocess.Popen([BIN, "artifact", "get", "big", str(out)], env=s.env, stdout=subprocess.DEVNULL)
    part = out / ".softlaunch-part" / "partial"
    while not (part.exists() and any(f.stat().st_size > 1_000_000 for f in part.iterdir())):
        assert p.poll() is None, "the download ended before it could be killed"
        time.sleep(0.0005)
    p.kill()
    p.wait()
    assert not (out / "big.bin").exists(), "no half file under its final name"
    before = max(f.stat().st_size for f in part.iterdir())
    assert 0 < before < BIG
    run(["artifact", "get", "big", out], s.env, True)
    assert (out / "big.bin").read_bytes() == (tmp / "big.bin").read_bytes()
    assert [f.name for f in out.iterdir()] == ["big.bin"]
    print(f"# killed after {before} of {BIG} bytes, gone on from there")


def two_putters_at_once(tmp, s):
    for i in range(2):
        (tmp / f"d{i}").mkdir()
        (tmp / f"d{i}" / "same.bin").write_bytes(b"x" * 3_000_000)
        (tmp / f"d{i}" / "own.txt").write_text(str(i))
    ps = [subprocess.Popen([BIN, "artifact", "put", "both", str(tmp / f"d{i % 2}")], env=s.env, stdout=subprocess.PIPE, text=True)
          for i in range(4)]
    out = [p.communicate(timeout=30)[0] for p in ps]
    assert all(p.returncode == 0 for p in ps)
    versions = json.loads(run(["artifact", "ls", "both", "--json"], s.env, True).stdout)["versions"]
    # Two contents; a version is made anew only where the other content came between.
    assert 2 <= len(versions) <= 4 and len({v["manifest"] for v in versions}) == 2, out
    numbers = sorted(v["number"] for v in versions)
    assert numbers == list(range(len(numbers)))
    for a, b in zip(versions, versions[1:]):
        assert a["manifest"] != b["manifest"]


def mount_tmpfs(path, size):
    path.mkdir(exist_ok=True)
    p = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True, text=True)
    if p.returncode:
        raise Skip("a small tmpfs cannot be mounted here: " + p.stderr.strip())


def full_disks(tmp, s):
    big_file(tmp / "big.bin", 12_000_000)
    run(["artifact", "put", "big", tmp / "big.bin"], s.env, True)
    # A limit of files' sizes is as a full disk: said, and nothing half.
    p = run(["artifact", "get", "big", tmp / "limited"], s.env, False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000)))
    assert "File too large" in p.stderr and not (tmp / "limited" / "big.bin").exists(), p.stderr
    small = tmp / "small"
    mount_tmpfs(small, "8m")
    try:
        p = run(["artifact", "get", "big", small / "out"], s.env, False)
        assert "No space left" in p.stderr and "full" in p.stderr and str(small) in p.stderr, p.stderr
        assert not (small / "out" / "big.bin").exists()
        shutil.rmtree(small / "out")
        other = Server(small / "data", s.token_file)
        try:
            p = run(["artifact", "put", "big", tmp / "big.bin"], other.env, False)
            assert "the server's disk is full" in p.stderr, p.stderr
            assert not list((small / "data" / "tmp").iterdir())
            (tmp / "tiny").write_text("tiny")  # and it goes on working
            run(["artifact", "put", "tiny", tmp / "tiny"], other.env, True)
        finally:
            assert other.stop() == 0
    finally:
        subprocess.run(["umount", str(small)])


def transfer(tmp, s, plan, what="fetch", control=None, env=None):
    """Runs the child as an agent does; gives (exit status, events). control(p, write) acts while it runs."""
    (tmp / "plan.json").write_text(json.dumps(plan))
    ev_r, ev_w = os.pipe()
    ct_r, ct_w = os.pipe()
    p = subprocess.Popen([BIN, "transfer", what, "--plan", str(tmp / "plan.json"), "--events-fd", str(ev_w), "--control-fd", str(ct_r)],
                         env=env or s.env, pass_fds=(ev_w, ct_r), stderr=subprocess.PIPE, text=True)
    os.close(ev_w)
    os.close(ct_r)
    text = []
    reader = threading.Thread(target=lambda: text.append(os.fdopen(ev_r).read()))
    reader.start()
    if control:
        control(p, ct_w)
    p.stderr.read()
    status = p.wait(30)
    reader.join()
    try:
        os.close(ct_w)
    except OSError:
        pass
    return status, events_of(text[0])


def transfers(tmp, s):
    sha = big_file(tmp / "big.bin")
    run(["artifact", "put", "big", tmp / "big.bin"], s.env, True)
    plan = {"server": s.url, "cache": str(tmp / "cache"), "allow_paths": [], "run_dir": str(tmp / "run"),
            "items": [{"ref": "big:latest", "dest": "inputs/model"}]}
    assert TOKEN not in json.dumps(plan)
    status, events = transfer(tmp, s, plan)
    assert status == 0 and events[-1]["ev"] == "result" and events[-1]["state"] == "succeeded", events
    progress = [e for e in events if e["ev"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] == BIG, progress[-1]
    r = events[-1]["resolved"][0]
    assert r == {"ref": "big:latest", "name": "big", "version": "v0", "sha256": sha, "bytes": BIG, "path": "inputs/model"}, r
    assert os.path.samefile(tmp / "run" / "inputs" / "model", tmp / "cache" / "sha256" / sha)
    # The second run moves nothing: the blob may even be gone.
    os.rename(s.data / "blobs" / "sha256" / sha[:2] / sha, tmp / "hidden")
    begin = time.time()
    status, events = transfer(tmp, s, plan)
    assert status == 0, events
    print(f"# a fetch from the cache of {BIG / 1e6:.0f} MB takes {time.time() - begin:.3f} s")
    shutil.rmtree(tmp / "cache")
    status, events = transfer(tmp, s, plan)
    assert status == 1 and events[-1]["cause"] == "not_found", events[-1]
    os.rename(tmp / "hidden", s.data / "blobs" / "sha256" / sha[:2] / sha)
    # Causes a run shows.
    for change, cause, says in [({"ref": "nope"}, "not_found", "no artifact nope"),
                                ({"ref": "big", "sha256": "0" * 64}, "data", "0" * 64),
                                ({"ref": "/etc/passwd"}, "denied", "--allow-path"),
                                ({"ref": s.env["SOFTLAUNCH_SERVER"] + "/none?sig=canary"}, "not_found", "/none?... answered 404")]:
        status, events = transfer(tmp, s, dict(plan, items=[dict(change, dest="x")]))
        assert status == 1 and events[-1]["cause"] == cause and says in events[-1]["msg"], events[-1]
        assert "canary" not in str(events), events
    status, events = transfer(tmp, s, dict(plan, items=[{"ref": "big", "dest": "x"}]), env=dict(s.env, SOFTLAUNCH_TOKEN="another-token-of-that-length"))
    assert status == 1 and events[-1]["cause"] == "denied", events[-1]
    status, events = transfer(tmp, s, {"nonsense": 1})
    assert status == 1 and events[-1]["state"] == "failed"


class Drip(http.server.BaseHTTPRequestHandler):
    """Sends slowly, for ever."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(1 << 30))
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"x" * 1000)
                time.sleep(0.02)
        except OSError:
            pass

    def log_message(self, *args):
        pass


def transfers_obey(tmp, s):
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Drip)
    web.daemon_threads = True
    threading.Thread(target=web.serve_forever, daemon=True).start()
    plan = {"server": s.url, "cache": str(tmp / "cache"), "allow_paths": [], "run_dir": str(tmp / "run"),
            "items": [{"ref": f"http://127.0.0.1:{web.server_port}/x", "dest": "x"}]}
    took = {}

    def timed(name, act):
        def control(p, w):
            time.sleep(0.4)
            begin = time.time()
            act(p, w)
            p.wait(20)
            took[name] = time.time() - begin
        return control

    def deadline(p, w):
        with open("/proc/uptime") as f:
            boot_us = int(float(f.read().split()[0]) * 1e6)
        os.write(w, json.dumps({"cmd": "deadline", "boot_us": boot_us + 200000}).encode() + b"\n")

    for name, act, status, state in [
            ("cancel", lambda p, w: os.write(w, b'{"cmd":"cancel"}\n'), 76, "cancelled"),
            ("preempt", lambda p, w: os.write(w, b'{"cmd":"preempt"}\n'), 75, "preempted"),
            ("SIGTERM", lambda p, w: p.terminate(), 75, "preempted"),
            ("agent gone", lambda p, w: os.close(w), 77, None),
            ("deadline", deadline, 77, None)]:
        got, events = transfer(tmp, s, plan, control=timed(name, act))
        assert got == status, (name, got, events)
        if state:
            assert events[-1]["state"] == state, (name, events[-1])
        assert took[name] < 2, (name, took)
    web.shutdown()
    print("# seconds to end: " + ", ".join(f"{k} {v:.2f}" for k, v in took.items()))


def stops_on_sigterm(tmp, s):
    assert s.stop() == 0
    s.start()
    assert s.stop(signal.SIGINT) == 0
    s.start()


TESTS = [put_get_ls, clear_messages, big_files_are_streamed, server_killed_while_uploading, a_cut_upload_goes_on,
         killed_at_any_time,
         client_killed_while_downloading, two_putters_at_once, full_disks, transfers, transfers_obey, stops_on_sigterm]


def main():
    global failed
    print(f"1..{len(TESTS)}")
    for test in TESTS:
        tmp = Path(tempfile.mkdtemp(prefix="sl-store-cli-"))
        server = None
        try:
            (tmp / "token").write_text(TOKEN + "\n")
            server = Server(tmp / "data", tmp / "token")
            test(tmp, server)
            print(f"ok - {test.__name__}", flush=True)
        except Skip as e:
            print(f"ok - {test.__name__} # SKIP {e}", flush=True)
        except Exception:  # whatever went wrong, the next test runs
            failed += 1
            print("# " + traceback.format_exc().replace("\n", "\n# "))
            print(f"not ok - {test.__name__}", flush=True)
        finally:
            if server:
                server.stop()
            shutil.rmtree(tmp, ignore_errors=True)
    sys.exit(1 if failed else 0)


main()
