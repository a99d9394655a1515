"""Files sent to s3:// and gs:// by `softlaunch artifact export`: parts, breaks, refusals, memory.

S3 is moto with authentication enforced, behind a gate that compares each body with the digest which its signature covers, as AWS does
and moto does not; GCS is gcp-storage-emulator behind a gate that wants the token. Both gates can break lines. Needs the
packages of tests/peer-python.sh. Environment: SL_BIN, the folder of `softlaunch`. Prints TAP."""
import base64
import hashlib
import http.server
import json
import os
import random
import socketserver
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import sources
from queue_fixture import tap
from sources import CANARY, sha
from transfer_fixture import BIN, TOKEN, StoreServer, check, failed, leave, work

PART = 16 << 20
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Gate:
    """In front of a service: `spoil(method, path, headers, body)` may change a request, answer it itself (a tuple), or raise Cut, which
    breaks the line after some of the body was read. Keeps what came, without the bodies."""

    class Cut(Exception):
        pass

    def __init__(self, upstream, authorize=lambda headers: None):
        self.spoil = lambda *a: None
        self.seen = seen = []
        gate = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def send(self, status, headers, data):
                self.send_response(status)
                for k, v in headers.items():
                    if k.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                        self.send_header(k, v)
                length = headers.get("Content-Length") if self.command == "HEAD" else None
                self.send_header("Content-Length", length or str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def answer(self):
                n = int(self.headers.get("Content-Length") or 0)
                headers = dict(self.headers.items())
                seen.append((self.command, self.path, headers, n))
                try:
                    said = gate.spoil(self.command, self.path, headers, lambda m=n: self.rfile.read(m))
                except Gate.Cut:
                    self.close_connection = True
                    self.connection.shutdown(2)
                    return
                body, late = None, None
                if isinstance(said, bytes):
                    body = said
                elif callable(said):
                    late = said
                elif said:
                    self.rfile.read(n)
                    return self.send(*said)
                if body is None:
                    body = self.rfile.read(n)
                refused = authorize(headers) or gate.check(headers, body)
                if refused:
                    return self.send(*refused)
                headers = {k: v for k, v in headers.items() if k.lower() not in ("connection", "content-length", "expect")}
                headers.setdefault("Content-Type", "application/octet-stream")  # else urllib calls it a form
                r = urllib.request.Request(upstream + self.path, data=body if self.command in ("PUT", "POST") else None,
                                           headers=headers, method=self.command)
                try:
                    with NO_PROXY.open(r, timeout=120) as a:
                        result = a.status, dict(a.headers.items()), a.read()
                except urllib.error.HTTPError as e:
                    result = e.code, dict(e.headers.items()), e.read()
                if result[1].get("Range") == "bytes=0-0":  # the emulator's word for nothing; the service sends no Range then
                    del result[1]["Range"]
                if late:
                    try:
                        late(result)
                    except Gate.Cut:
                        self.close_connection = True
                        self.connection.shutdown(2)
                        return
                self.send(*result)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

            def log_message(self, *a):
                pass

        class Threading(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *a):
                pass

        self.http = Threading(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @staticmethod
    def check(headers, body):
        said = {k.lower(): v for k, v in headers.items()}.get("x-amz-content-sha256")
        if said and said != sha(body):
            return 400, {}, b"<Error><Code>XAmzContentSHA256Mismatch</Code><Message>The provided digest does not match</Message></Error>"
        return None


class Store(StoreServer):
    """A softlaunch server with some artifacts."""

    def __init__(self):
        self.dir = work / "store"
        super().__init__(self.dir)
        self.files = {"config.json": b'{"a": 1}', "sub/with space+plus \u00fc.txt": b"x" * 999, "empty": b"",
                      "weights.bin": random.Random(5).randbytes(1 << 20) * 53 + b"tail"}  # four parts
        for name, data in self.files.items():
            path = self.dir / "model" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        sources.outputs.clear()
        self.call(["artifact", "put", "model", str(self.dir / "model")], {})

    def call(self, args, env, fails=None):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "HF_", "GOOGLE_", "GCE_", "STORAGE_"))}
        clean.update(self.env, HOME=str(self.dir), AWS_EC2_METADATA_DISABLED="true", GCE_METADATA_HOST="127.0.0.1:1",
                     TMPDIR=str(self.dir))
        clean.update(env)
        p = subprocess.Popen([BIN] + args, env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, errors = p.communicate(timeout=200)
        sources.outputs.append(out + errors)
        assert not list(self.dir.glob("softlaunch-export-*")), "leftovers"
        if fails is None:
            assert p.returncode == 0, (args, errors)
        else:
            assert p.returncode == 1 and fails in errors, (args, p.returncode, errors)
        return out


def s3_objects(prefix=""):
    from moto.s3.models import s3_backends
    bucket = s3_backends["123456789012"]["aws"].buckets["models"]
    return {k[len(prefix):]: v for k, v in bucket.keys.items() if k.startswith(prefix)}, bucket.multiparts


def s3_same(prefix, files):
    found, open_uploads = s3_objects(prefix)
    assert sorted(found) == sorted(files), sorted(found)
    for name, data in files.items():
        assert found[name].value == data, name
        assert found[name].metadata.get("x-amz-meta-sha256") == sha(data), dict(found[name].metadata)
    assert not open_uploads, open_uploads


def s3_folder_and_file(store, gate, env):
    store.call(["artifact", "export", "model", "s3://models/out/a/"], env)
    s3_same("out/a/", store.files)
    parts = [p for m, p, h, n in gate.seen if m == "PUT" and "partNumber" in p]
    assert len(parts) == 4, parts
    for m, p, h, n in gate.seen:  # each body has its own digest, and no unsigned one
        assert {k.lower(): v for k, v in h.items()}["x-amz-content-sha256"] != "UNSIGNED-PAYLOAD"
    store.call(["artifact", "export", "model:v0/config.json", "s3://models/out/one.json"], env)
    s3_same("out/one.json", {"": store.files["config.json"]})
    store.call(["artifact", "export", "model", "s3://models/out/one"], env, fails="names one object")
    store.call(["artifact", "export", "model/none", "s3://models/out/one"], env, fails="no file none")
    store.call(["artifact", "export", "model", "s3://nobucket/out/"], env, fails="nobucket")
    store.call(["artifact", "export", "model", "/tmp/x"], env, fails="s3:// and gs://")


def s3_refusals(store, gate, env):
    def flip(method, path, headers, read):
        auth = headers["Authorization"]
        headers["Authorization"] = auth[:-1] + ("0" if auth[-1] != "0" else "1")

    def alter(method, path, headers, read):  # by somebody who can count digests, too
        if method != "PUT" or (part and "partNumber=2&" not in path):
            return None
        body = bytearray(read())
        body[:1] = b"\xff"
        if recount:
            headers["x-amz-content-sha256"] = sha(bytes(body))
        return bytes(body)
    gate.spoil = flip
    store.call(["artifact", "export", "model/config.json", "s3://models/bad/f"], env, fails="403")
    gate.spoil = alter
    for recount, says in ((True, "403"), (False, "400")):
        part = False
        store.call(["artifact", "export", "model/config.json", "s3://models/bad/f"], env, fails=says)
        part = True
        store.call(["artifact", "export", "model/weights.bin", "s3://models/bad/w"], env, fails=says)
    gate.spoil = lambda *a: None
    s3_same("bad/", {})  # and no upload was left open
    store.call(["artifact", "export", "model/config.json", "s3://models/bad/f"],
               {**env, "AWS_SECRET_ACCESS_KEY": CANARY + "wrong"}, fails="403")
    none = {k: v for k, v in env.items() if "KEY" not in k}
    door = sources.Server(lambda *a: (403, {}, b"<?xml version='1.0'?><Error><Message>Access Denied</Message></Error>"))
    for name in ("config.json", "weights.bin"):
        store.call(["artifact", "export", "model/" + name, "s3://models/bad/f"], {**none, "AWS_ENDPOINT_URL": door.url},
                   fails="AWS_ACCESS_KEY_ID")
    assert not any("authorization" in str(h).lower() for _, _, h, _ in door.seen)
    s3_same("bad/", {})


def s3_breaks(store, gate, env):
    """The line breaks in the middle of a part, a part is answered 503, the answer to the end is lost, and the end fails with status 200."""
    hits = []

    def spoil(method, path, headers, read):
        kind = ("part1" if "partNumber=1&" in path else "part3" if "partNumber=3&" in path else
                "end" if method == "POST" and "uploadId" in path else None)
        if not kind or hits.count(kind) == 2:
            return None
        hits.append(kind)
        if kind == "part1":
            read(1 << 20)
            raise Gate.Cut
        if kind == "part3":
            return 503, {"Retry-After": "1"}, b"<Error><Code>SlowDown</Code><Message>slow</Message></Error>"
        if hits.count("end") == 1:
            return 200, {}, b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>once more</Message></Error>"

        def lose(result):
            raise Gate.Cut
        return lose
    gate.spoil = spoil
    store.call(["artifact", "export", "model", "s3://models/broken/"], env)
    gate.spoil = lambda *a: None
    assert sorted(hits) == ["end", "end", "part1", "part1", "part3", "part3"], hits
    s3_same("broken/", store.files)


def s3_gives_up(store, gate, env):
    """Without end: it fails, says why, and leaves nothing there."""
    def spoil(method, path, headers, read):
        if "partNumber=2&" in path:
            return 403, {}, b"<Error><Code>AccessDenied</Code><Message>not this one</Message></Error>"
    gate.spoil = spoil
    store.call(["artifact", "export", "model", "s3://models/no/"], env, fails="not this one")
    gate.spoil = lambda *a: None
    found, open_uploads = s3_objects("no/")
    assert "weights.bin" not in found and not open_uploads, (sorted(found), open_uploads)


def memory(store, gate, env):
    """The file is far larger than what the command may take."""
    path = store.dir / "large"
    block = random.Random(6).randbytes(1 << 20)
    with open(path, "wb") as f:
        for _ in range(300):
            f.write(block)
    store.call(["artifact", "put", "large", str(path)], {})
    code = "import resource,subprocess,sys; r=subprocess.call(sys.argv[1:]); " \
           "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(r)"
    clean = {**os.environ, **env, "SOFTLAUNCH_SERVER": store.url, "SOFTLAUNCH_TOKEN": TOKEN, "TMPDIR": str(store.dir)}
    p = subprocess.run([sys.executable, "-c", code, BIN, "artifact", "export", "large", "s3://models/large/f"], env=clean,
                       capture_output=True, text=True, timeout=220)
    assert p.returncode == 0, p.stderr
    peak = int(p.stdout.splitlines()[-1]) / 1024
    print(f"# 300 MiB in parts: {peak:.0f} MiB of memory")
    assert peak < 64, peak
    assert s3_objects("large/")[0]["f"].metadata["x-amz-meta-sha256"] == sha(path.read_bytes())


# ---- Google Cloud Storage ---------------------------------------------------------------------------------------

def start_gs():
    from gcp_storage_emulator.server import create_server
    emulator = create_server("127.0.0.1", 0, in_memory=True, default_bucket="models")
    emulator.start()
    token = "ya29." + CANARY
    meta = sources.Server(lambda m, p, h, b: (200, {}, json.dumps({"access_token": token, "expires_in": 3600}).encode())
                          if h.get("Metadata-Flavor") == "Google" else (403, {}, b""))
    gate = Gate("http://127.0.0.1:%d" % emulator._api._httpd.server_port,
                lambda h: None if h.get("Authorization") == "Bearer " + token else (401, {}, b'{"error": {"message": "no token"}}'))
    return gate, {"STORAGE_EMULATOR_HOST": gate.url, "GCE_METADATA_HOST": meta.url.removeprefix("http://")}, token


def gs_same(gate, token, prefix, files):
    def get(path):
        r = urllib.request.Request(gate.url + path, headers={"Authorization": "Bearer " + token})
        with NO_PROXY.open(r, timeout=60) as a:
            return a.read()
    items = {i["name"][len(prefix):]: i for i in json.loads(get("/storage/v1/b/models/o")).get("items", [])
             if i["name"].startswith(prefix)}
    assert sorted(items) == sorted(files), sorted(items)
    for name, data in files.items():
        quoted = urllib.parse.quote(prefix + name, safe="")
        assert get(f"/storage/v1/b/models/o/{quoted}?alt=media") == data, name
        assert items[name]["metadata"]["sha256"] == sha(data)
        assert items[name]["md5Hash"] == base64.b64encode(hashlib.md5(data).digest()).decode()


def gs_folder_and_breaks(store):
    gate, env, token = start_gs()
    store.call(["artifact", "export", "model", "gs://models/out/"], env)
    gs_same(gate, token, "out/", store.files)
    store.call(["artifact", "export", "model/config.json", "gs://models/one"], env)
    gs_same(gate, token, "one", {"": store.files["config.json"]})
    # A piece breaks off, another's answer is lost, a third gets 503: it goes on from what the service has.
    hits = []

    def spoil(method, path, headers, read):
        piece = {k.lower(): v for k, v in headers.items()}.get("content-range", "")
        kind = "cut" if piece.startswith("bytes 0-") else "lost" if piece.startswith(f"bytes {PART}-") else \
            "busy" if piece.startswith(f"bytes {2 * PART}-") else None
        if not kind or kind in hits or not piece.endswith(str(len(store.files["weights.bin"]))):
            return None
        hits.append(kind)
        if kind == "cut":
            read(1 << 20)
            raise Gate.Cut
        if kind == "busy":
            return 503, {}, b"{}"

        def lose(result):
            raise Gate.Cut
        return lose
    gate.spoil = spoil
    gate.seen.clear()
    store.call(["artifact", "export", "model/weights.bin", "gs://models/broken"], env)
    gate.spoil = lambda *a: None
    assert sorted(hits) == ["busy", "cut", "lost"], hits
    sent = [h for m, p, h, n in gate.seen if {k.lower(): v for k, v in h.items()}.get("content-range", "").startswith(f"bytes {PART}-")]
    assert len(sent) == 1, "the piece whose answer was lost was sent again"
    gs_same(gate, token, "broken", {"": store.files["weights.bin"]})

    def alter(method, path, headers, read):
        if method == "PUT":
            return b"\xff" + read()[1:]
    gate.spoil = alter
    store.call(["artifact", "export", "model/config.json", "gs://models/bad"], env, fails="MD5")
    gate.spoil = lambda *a: None
    gs_same(gate, token, "bad", {})
    none = {"STORAGE_EMULATOR_HOST": gate.url}
    store.call(["artifact", "export", "model/config.json", "gs://models/bad"], {**none, "GCE_METADATA_HOST": ""}, fails="token")
    # A session elsewhere would take the token there.
    other = sources.Server(lambda *a: (200, {}, b"{}"))
    gate.spoil = lambda m, p, h, read: (200, {"Location": other.url + "/x"}, b"") if m == "POST" else None
    store.call(["artifact", "export", "model/config.json", "gs://models/bad"], env, fails="no place to upload")
    assert not other.seen


def s3_here():
    """The bucket `models` behind a Gate, where every process of this suite finds it."""
    gate = Gate(sources.start_s3()[0])
    for key in [k for k in os.environ if k.startswith(("AWS_", "GOOGLE_", "GCE_", "STORAGE_"))]:
        del os.environ[key]
    os.environ.update(sources.s3_env, AWS_ENDPOINT_URL=gate.url, AWS_EC2_METADATA_DISABLED="true")
    return gate


def tap_and_leave(world, tests):
    try:
        tap(world, tests)
    except SystemExit as e:
        world.close()
        leave(e.code)


def main():
    gate = Gate(sources.start_s3()[0])
    env = {**sources.s3_env, "AWS_ENDPOINT_URL": gate.url}
    store = Store()
    try:
        check("s3: a folder and a file; large ones in parts, each under its digest", s3_folder_and_file, store, gate, env)
        check("s3: a flipped byte of the signature, an altered body, wrong keys and none are refused", s3_refusals, store, gate, env)
        check("s3: broken lines, 503, a lost answer to the end", s3_breaks, store, gate, env)
        check("s3: what fails for good leaves nothing", s3_gives_up, store, gate, env)
        check("s3: 300 MiB in less than 64 MiB", memory, store, gate, env)
        check("gs: a folder and a file; goes on after breaks; an altered body is refused", gs_folder_and_breaks, store)
        check("secrets are found nowhere", sources.no_secret_is_anywhere)
    finally:
        store.end()
    return 1 if failed else 0


if __name__ == "__main__":
    leave(main())
