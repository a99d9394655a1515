#!/usr/bin/env python3
"""make bench-artifacts: transfers on loopback beside curl, aria2c and s3cmd, all of which check sha256 too.

One large file (SL_LARGE_MB, 4096) and many small ones (SL_SMALL, 10000 of 20 kB) from `softlaunch serve`, which curl and
aria2c fetch from by the same URLs; s3cmd does not speak its interface, so both fetch from moto (SL_S3_MB, 128, and
SL_S3_SMALL, 200). Whoever fetches, what came is on the disk (sync) and checked at the end; the best of SL_ROUNDS (2)
counts, taken in turns; a peer that took over three times the best in the first round is not asked again. Limits are
measured here too, before and after each transfer, and the best counts: writing and syncing the disk, loopback, `openssl
speed sha256`, and for many files the disk's rate for as many files as that (`files`: made, written and synced from
Python, nothing fetched or hashed). ratio_limit is of the slowest of all, ratio_line of the slowest without `files`.
Folders with many files stay to the end: ext4 gives the inodes of files that were deleted in the last minutes to nobody,
and looks through all of them for each new file, so whoever comes after a deletion of 10,000 files waits seconds for it.
SL_ONLY=large,small,s3 names those to do, and keeps the report's other rows.
Needs curl, aria2 and s3cmd (Debian) and tests/peer-python.sh's Python. Writes $SL_BUILD/reports/bench-artifacts.json."""
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

BUILD = Path(os.environ.get("SL_BUILD", "build"))
BIN = str(BUILD / "bin" / "softlaunch")
LARGE, SMALL = int(os.environ.get("SL_LARGE_MB", "4096")) << 20, int(os.environ.get("SL_SMALL", "10000"))
S3_LARGE, S3_SMALL = int(os.environ.get("SL_S3_MB", "128")) << 20, int(os.environ.get("SL_S3_SMALL", "200"))
ROUNDS, SMALL_BYTES, TOKEN = int(os.environ.get("SL_ROUNDS", "2")), 20_000, "bench-token-0123456789abcdef"
work = Path(tempfile.mkdtemp(prefix="sl-bench-artifacts-", dir=os.environ.get("SL_BENCH_DIR")))
env = dict(os.environ, SOFTLAUNCH_TOKEN=TOKEN)


def command(args, **kw):
    p = subprocess.run([str(a) for a in args], capture_output=True, text=True, env=env, **kw)
    assert p.returncode == 0, f"{args}: {p.returncode}: {p.stdout[-500:]} {p.stderr[-500:]}"


def timed(name, prepare_and_run, few):
    """Seconds until all is there, checked, and synced. few: the files may be deleted now."""
    out = Path(tempfile.mkdtemp(prefix="out-", dir=work))
    os.sync()
    start = time.monotonic()
    prepare_and_run(out)
    command(["sync", "-f", out])
    seconds = time.monotonic() - start
    if few:
        shutil.rmtree(out)
    print(f"{name}: {seconds:.2f} s", flush=True)
    return seconds


def check(sums):
    """sha256sum -c of "DIGEST  PATH" lines, over both processors."""
    lines = sums.read_text().splitlines()
    halves = [lines[::2], lines[1::2]] if len(lines) > 1 else [lines]
    running = []
    for i, half in enumerate(halves):
        part = sums.with_suffix(f".{i}")
        part.write_text("\n".join(half) + "\n")
        running.append(subprocess.Popen(["sha256sum", "--quiet", "-c", str(part)]))
    assert not any([p.wait() for p in running])


def peak_mb(args):
    """The largest resident size of a command, in MB."""
    p = subprocess.Popen(["/usr/bin/env", "python3", "-c", "import resource, subprocess, sys; "
                          "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
                          "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)", *map(str, args)],
                         stdout=subprocess.PIPE, text=True, env=env)
    out = p.communicate()[0]
    assert p.returncode == 0
    return int(out) / 1024


def limits(size, files):
    """MB/s of the disk (as many bytes written and synced), of loopback, of sha256 on one core, and of making files."""
    block = os.urandom(1 << 20)
    os.sync()
    start = time.monotonic()
    with open(work / "disk", "wb") as f:
        for _ in range(size >> 20):
            f.write(block)
        f.flush()
        os.fsync(f.fileno())
    disk = size / (time.monotonic() - start) / 1e6
    (work / "disk").unlink()
    listen = socket.create_server(("127.0.0.1", 0))

    def send():
        s, _ = listen.accept()
        for _ in range(size >> 20):
            s.sendall(block)
        s.close()
    threading.Thread(target=send, daemon=True).start()
    c = socket.create_connection(listen.getsockname())
    buffer = bytearray(1 << 20)
    start = time.monotonic()
    while c.recv_into(buffer):
        pass
    loopback = size / (time.monotonic() - start) / 1e6
    text = subprocess.run(["openssl", "speed", "-seconds", "2", "-bytes", "262144", "sha256"], capture_output=True,
                          text=True).stdout.strip().splitlines()[-1]
    found = {"disk": disk, "loopback": loopback, "sha256": float(text.split()[-1].rstrip("k")) / 1000}
    if files > 1:
        out, data = tempfile.mkdtemp(prefix="floor-", dir=work), block[:size // files]
        os.sync()
        start = time.monotonic()
        for i in range(files):
            fd = os.open(f"{out}/f{i:05}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(fd, data)
            os.close(fd)
        command(["sync", "-f", out])
        found["files"] = size / (time.monotonic() - start) / 1e6
    return found


def serve():
    token = work / "token"
    token.write_text(TOKEN)
    p = subprocess.Popen([BIN, "serve", "--data", str(work / "data"), "--token-file", str(token), "--listen",
                          "127.0.0.1:0", "--port-file", str(work / "port")], stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL, text=True)
    url = p.stdout.readline().split()[1]
    env["SOFTLAUNCH_SERVER"] = url
    return p, url


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.stat().st_size < 1 << 26 else \
        subprocess.run(["sha256sum", str(path)], capture_output=True, text=True).stdout[:64]


def large(url):
    source = work / "large"
    block = os.urandom(1 << 24)
    with open(source, "wb") as f:
        for i in range(LARGE >> 24):
            f.write(i.to_bytes(8, "big") + block[8:])
    command([BIN, "artifact", "put", "large", source])
    sha = digest(source)
    source.unlink()
    blob, header = f"{url}/api/v1/blobs/{sha}", f"Authorization: Bearer {TOKEN}"

    def ours(out):
        command([BIN, "artifact", "get", "large", out])

    def curl(out):  # hashed while it comes
        command(["bash", "-c", f'set -o pipefail; [ "$(curl -sSf -H "{header}" {blob} | tee {out}/large | sha256sum)" = '
                               f'"{sha}  -" ]'])

    def aria2c(out):
        command(["aria2c", "-q", "-x8", "-s8", "-k16M", "--file-allocation=none", f"--header={header}",
                 f"--checksum=sha-256={sha}", "-d", out, "-o", "large", blob])
    return ours, {"curl": curl, "aria2c": aria2c}, LARGE, [BIN, "artifact", "get", "large", work / "memory-large"]


def small(url):
    source = work / "small"
    source.mkdir()
    digests = {}
    for i in range(SMALL):
        data = i.to_bytes(8, "big") + os.urandom(SMALL_BYTES - 8)
        (source / f"f{i:05}").write_bytes(data)
        digests[f"f{i:05}"] = hashlib.sha256(data).hexdigest()
    command([BIN, "artifact", "put", "small", source])
    header = f"Authorization: Bearer {TOKEN}"

    def sums(out):
        path = work / "sums"
        path.write_text("".join(f"{s}  {out}/{n}\n" for n, s in digests.items()))
        check(path)

    def ours(out):
        command([BIN, "artifact", "get", "small", out])

    def curl(out):
        config = work / "curl.config"
        config.write_text("".join(f'url = "{url}/api/v1/blobs/{s}"\noutput = "{out}/{n}"\n' for n, s in digests.items()))
        command(["curl", "-sSf", "-Z", "--parallel-max", "32", "-H", header, "-K", config])
        sums(out)

    def aria2c(out):
        config = work / "aria2.list"
        config.write_text("".join(f"{url}/api/v1/blobs/{s}\n out={n}\n checksum=sha-256={s}\n"
                                  for n, s in digests.items()))
        command(["aria2c", "-q", "-j32", f"--header={header}", "--file-allocation=none", "-i", config, "-d", out])
    return ours, {"curl": curl, "aria2c": aria2c}, SMALL * SMALL_BYTES, \
        [BIN, "artifact", "get", "small", work / "memory-small"]


def s3():
    """moto answers in Python: what is compared here is the clients, not the line."""
    import logging
    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer
    import boto3
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host = "%s:%d" % server.get_host_and_port()
    boto3.client("s3", endpoint_url="http://" + host, region_name="us-east-1", aws_access_key_id="x",
                 aws_secret_access_key="x").create_bucket(Bucket="bench")
    backend, digests = s3_backends["123456789012"]["aws"], {}
    for name, data in [("large", os.urandom(1 << 20) * (S3_LARGE >> 20))] + \
            [(f"f{i:05}", os.urandom(SMALL_BYTES)) for i in range(S3_SMALL)]:
        backend.put_object("bench", "all/" + name, data)
        digests[name] = hashlib.sha256(data).hexdigest()
    env.update(AWS_ENDPOINT_URL="http://" + host, AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x",
               AWS_REGION="us-east-1")

    def sums(out):
        path = work / "sums"
        path.write_text("".join(f"{s}  {out}/{n}\n" for n, s in digests.items()))
        check(path)

    def ours(out):
        plan = work / "plan.json"
        plan.write_text(json.dumps({"cache": str(out / "cache"), "run_dir": str(out),
                                    "items": [{"ref": "s3://bench/all/", "dest": "all"}]}))
        command([BIN, "transfer", "fetch", "--plan", plan])
        sums(out / "all")  # as the peers, since S3 names no digest to us either

    def s3cmd(out):
        command(["s3cmd", "get", "--recursive", "-q", "--no-ssl", "--host", host, "--host-bucket", host,
                 "--access_key=x", "--secret_key=x", "s3://bench/all/", str(out) + "/"])
        sums(out)
    return ours, {"s3cmd": s3cmd}, S3_LARGE + S3_SMALL * SMALL_BYTES, None


def main():
    missing = [t for t in ("curl", "aria2c", "s3cmd", "openssl") if not shutil.which(t)]
    if missing:
        print("not run: needs", ", ".join(missing))
        return 77
    path = BUILD / "reports" / "bench-artifacts.json"
    only = os.environ.get("SL_ONLY", "large,small,s3").split(",")
    before = json.loads(path.read_text())["transfers"] if "SL_ONLY" in os.environ and path.exists() else []
    report = {"transfers": [r for r in before if r["name"] not in only]}
    server, url = serve()
    try:
        for name, make in (("large", lambda: large(url)), ("small", lambda: small(url)), ("s3", s3)):
            if name not in only:
                continue
            ours, peers, size, memory = make()
            files = SMALL if name == "small" else 1
            best, first = {}, limits(size, files)
            for n in range(ROUNDS):
                for who, how in {"ours": ours, **peers}.items():
                    if n and best[who] > 3 * min(best.values()):
                        continue
                    seconds = timed(f"{name} {who}", how, few=files == 1)
                    best[who] = min(seconds, best.get(who, seconds))
            last = limits(size, files)
            bound = {k: max(first[k], last[k]) for k in first}
            slowest = min(bound, key=bound.get)
            line = min((k for k in bound if k != "files"), key=bound.get)
            peer = min(peers, key=best.get)
            row = {"name": name, "bytes": size, "rounds": ROUNDS, "ours": size / best["ours"] / 1e6,
                   "best_peer": size / best[peer] / 1e6, "peer": peer, "ratio_best_peer": best[peer] / best["ours"],
                   "limit": slowest, "ratio_limit": size / best["ours"] / 1e6 / bound[slowest],
                   "ratio_line": size / best["ours"] / 1e6 / bound[line], "limits_mb_s": bound, "seconds": best}
            if memory:
                row["peak_mb"] = peak_mb(memory)
                if files == 1:
                    shutil.rmtree(memory[-1])
            report["transfers"].append(row)
            print(json.dumps(row), flush=True)
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(work, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    bad = [r["name"] for r in report["transfers"] if r["ratio_best_peer"] < 1 or r.get("peak_mb", 0) > 64]
    print("behind a peer, or over 64 MB:", bad if bad else "none")
    return 1 if bad else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
