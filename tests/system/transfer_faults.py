#!/usr/bin/env python3
"""Transfers through a proxy that cuts, delays, corrupts, truncates, lies about length and range, and answers 429, 500
and 503 with Retry-After, at random: each ends with the right bytes, or fails cleanly and leaves nothing behind.

Environment: SL_BIN; SL_TRANSFERS, how many (100); SL_SEED replays. Prints TAP."""
import hashlib
import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter

from transfer_fixture import BIN, TOKEN, StoreServer, leave, work

TRANSFERS = int(os.environ.get("SL_TRANSFERS", "100"))
SEED = int(os.environ.get("SL_SEED", str(random.randrange(1 << 30))))
CODES = {"retry", "data", "io", "spec", "not_found"}
rng, rng_lock, struck = random.Random(SEED), threading.Lock(), Counter()
FAULTS = ["cut", "delay", "corrupt", "truncate", "long", "range", "whole", "status", "silent"]


def draw():
    with rng_lock:
        fault = rng.choice(FAULTS) if rng.random() < 0.3 else "none"
        return fault, rng.random(), rng.choice([429, 500, 503]), rng.choice([0, 0, 1])


class Proxy:
    def __init__(self, port):
        self.upstream = port
        self.listen = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = "http://127.0.0.1:%d" % self.listen.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            s, _ = self.listen.accept()
            threading.Thread(target=self.serve, args=(s,), daemon=True).start()

    def serve(self, s):
        try:
            f = s.makefile("rb")
            while self.one(s, f):
                pass
        except (OSError, http.client.HTTPException, ValueError):
            pass
        s.close()

    def one(self, s, f):
        """Answers one request; false: the connection is to be closed."""
        line = f.readline().decode()
        if not line:
            return False
        method, path, _ = line.split(" ", 2)
        headers = {}
        while (h := f.readline().decode().strip()):
            k, v = h.split(":", 1)
            headers[k.strip()] = v.strip()
        body = f.read(int(headers.get("Content-Length", "0")))
        c = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        c.request(method, path, body or None, headers)
        r = c.getresponse()
        data, status = r.read(), r.status
        out = {k: v for k, v in r.getheaders() if k.lower() not in ("connection", "content-length")}
        c.close()
        fault, at, code, after = draw()
        blob = "/blobs/" in path and status in (200, 206) and data
        if not blob and fault in ("corrupt", "truncate", "long", "range", "whole"):
            fault = "none"
        if fault == "range" and status != 206 or fault == "whole" and status != 206:
            fault = "cut"
        struck[fault] += 1
        middle, length = int(len(data) * at), None
        if fault == "delay":
            time.sleep(at / 3)
        elif fault == "silent":
            return False
        elif fault == "corrupt":
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1:]
        elif fault == "truncate":
            data = data[:middle]
        elif fault == "long":
            length = len(data) + 1 + middle
        elif fault == "cut":
            length, data = len(data), data[:middle]
        elif fault == "range":
            first, rest = out["Content-Range"].removeprefix("bytes ").split("-", 1)
            out["Content-Range"] = f"bytes {int(first) + 1 + middle}-{rest}"
        elif fault == "whole":
            status = 200
            out.pop("Content-Range")
        elif fault == "status":
            status, data, out = code, b"", {"Retry-After": str(after)}
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(data) if length is None else length}\r\n"
        head += "".join(f"{k}: {v}\r\n" for k, v in out.items())
        s.sendall((head + "\r\n").encode() + data)
        return length is None


def sha(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while (b := f.read(1 << 20)):
            h.update(b)
    return h.hexdigest()


def one(i, proxy, digests, keep):
    """Returns "right" or the cause; raises when something is silently wrong."""
    names = sorted(digests)
    name = names[i % len(names)]
    run_dir = work / f"r{i}"
    cache = work / "cache-kept" / str(i % 8) if keep else run_dir / "cache"
    run_dir.mkdir()
    plan = run_dir / "plan.json"
    plan.write_text(json.dumps({"server": proxy.url, "cache": str(cache), "run_dir": str(run_dir),
                                "items": [{"ref": f"files:v0/{name}", "dest": "x"}]}))
    p = subprocess.run([BIN, "transfer", "fetch", "--plan", str(plan)], capture_output=True, text=True, timeout=400,
                       env=dict(os.environ, SOFTLAUNCH_TOKEN=TOKEN))
    event = json.loads(p.stdout.strip().splitlines()[-1])
    dest = run_dir / "x"
    if event["state"] == "succeeded":
        assert p.returncode == 0 and sha(dest) == digests[name] == event["resolved"][0]["sha256"], event
        result = "right"
    else:
        assert p.returncode == 1 and event["cause"] in CODES and event["msg"], (p.returncode, event, p.stderr)
        assert not dest.exists()
        result = event["cause"]
    for whole in (cache / "sha256").iterdir() if (cache / "sha256").exists() else []:
        assert sha(whole) == whole.name, f"a wrong file in the cache: {whole}"
    shutil.rmtree(run_dir)
    return result


def main():
    source = work / "files"
    source.mkdir()
    content = random.Random(1)
    for name, size in {"empty": 0, "small": 20_000, "middle": 1_500_000, "large": 50_000_000}.items():
        (source / name).write_bytes(content.randbytes(size))
    server = StoreServer(work / "server")
    results, wrong = Counter(), []
    try:
        server.call(["artifact", "put", "files", str(source)])
        digests = {p.name: sha(p) for p in source.iterdir()}
        proxy = Proxy(int(server.url.rsplit(":", 1)[1]))
        numbers, lock = iter(range(TRANSFERS)), threading.Lock()

        def work_off():
            while True:
                with lock:
                    i = next(numbers, None)
                if i is None:
                    return
                try:
                    r = one(i, proxy, digests, keep=i % 3 == 0)
                except BaseException as e:
                    r = "wrong"
                    wrong.append(f"{i}: {e!r}")
                with lock:
                    results[r] += 1
        threads = [threading.Thread(target=work_off) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        server.end()
    print(f"# seed {SEED}; faults {dict(struck)}; results {dict(results)}")
    for w in wrong[:5]:
        print("# " + w[:1000].replace("\n", "\n# "))
    checks = [(not wrong and sum(results.values()) == TRANSFERS,
               f"{TRANSFERS} transfers: right or cleanly failed, none silently wrong"),
              (results["right"] >= TRANSFERS // 2, "most of them came right"),
              (TRANSFERS < 500 or all(struck[f] for f in FAULTS), "each kind of fault struck")]
    for ok, name in checks:
        print(("ok" if ok else "not ok"), "-", name)
    return 0 if all(ok for ok, _ in checks) else 1


if __name__ == "__main__":
    leave(main())
