#!/usr/bin/env python3
"""How transfers get out: proxies (http, and https through CONNECT, with a password), no_proxy, an own CA, a limit of the bandwidth;
and which of a project's artifacts a reference means.

The proxy is our own and knows names that nothing else resolves, so that what arrives has gone through it. Environment: SL_BIN, the folder
of `softlaunch`. Prints TAP."""
import base64
import http.server
import json
import os
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from transfer_fixture import BIN, TOKEN, StoreServer, check, failed, leave, work

PASSWORD = "canary" + os.urandom(8).hex()


class Files:
    """Serves self.data everywhere, over TLS when there is a certificate."""

    def __init__(self, data, cert=None):
        files, self.data, self.seen = self, data, []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                files.seen.append((self.path, dict(self.headers.items())))
                self.send_response(200)
                self.send_header("Content-Length", str(len(files.data)))
                self.end_headers()
                self.wfile.write(files.data)

            def log_message(self, *a):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *a):
                pass
        self.http = Server(("127.0.0.1", 0), Handler)
        if cert:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*cert)
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.port = self.http.server_port
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


class Proxy:
    """Knows `names`: host -> port here. With a password, wants it."""

    def __init__(self, names, password=None):
        self.names, self.password, self.seen = names, password, []
        self.listen = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listen.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            s, _ = self.listen.accept()
            threading.Thread(target=self.serve, args=(s,), daemon=True).start()

    def serve(self, s):
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                more = s.recv(65536)
                if not more:
                    return
                head += more
            line, *headers = head.split(b"\r\n\r\n")[0].decode().split("\r\n")
            method, where, _ = line.split()
            self.seen.append((method, where, headers))
            given = [h for h in headers if h.lower().startswith("proxy-authorization:")]
            if self.password and given != ["Proxy-Authorization: Basic " + base64.b64encode(b"me:" + self.password.encode()).decode()]:
                s.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\n"
                          b"Content-Length: 0\r\nConnection: close\r\n\r\n")
                return
            host = where.removeprefix("http://").split("/")[0].split(":")[0]
            if host not in self.names:
                s.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            out = socket.create_connection(("127.0.0.1", self.names[host]))
            if method == "CONNECT":
                s.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                path = "/" + where.removeprefix("http://").partition("/")[2]
                out.sendall("\r\n".join([f"{method} {path} HTTP/1.1", *headers, "Connection: close", "", ""]).encode())
            threading.Thread(target=self.pump, args=(s, out), daemon=True).start()
            self.pump(out, s)
        except OSError:
            pass
        finally:
            s.close()

    @staticmethod
    def pump(a, b):
        try:
            while data := a.recv(65536):
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def fetch(refs, env, server=None):
    """(result event, the run's folder, seconds)"""
    run_dir = Path(tempfile.mkdtemp(dir=work))
    plan = run_dir / "plan.json"
    items = [{"ref": r, "dest": f"inputs/{i}"} for i, r in enumerate(refs)]
    plan.write_text(json.dumps({"cache": str(run_dir / "cache"), "run_dir": str(run_dir), "items": items,
                                **({"server": server} if server else {})}))
    clean = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and k not in (
        "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")}
    began = time.monotonic()
    p = subprocess.run([BIN, "transfer", "fetch", "--plan", str(plan)], env={**clean, "SOFTLAUNCH_TOKEN": TOKEN, **env},
                       capture_output=True, text=True, timeout=200)
    took = time.monotonic() - began
    assert PASSWORD not in p.stdout + p.stderr, p.stdout + p.stderr
    return json.loads(p.stdout.strip().splitlines()[-1]), run_dir / "inputs", took


def good(refs, env, **kw):
    event, inputs, took = fetch(refs, env, **kw)
    assert event["state"] == "succeeded", event
    return event["resolved"], inputs, took


def bad(refs, env, cause, says, **kw):
    event, _, _ = fetch(refs, env, **kw)
    assert event["state"] == "failed" and event["cause"] == cause and says in event["msg"], event


def openssl(*args):
    subprocess.run(["openssl", *args], check=True, capture_output=True)


def make_ca():
    ca, key, cert, request, own = (str(work / n) for n in ("ca.pem", "ca.key", "cert.pem", "cert.csr", "cert.key"))
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", ca, "-days", "2", "-subj", "/CN=our CA")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", own, "-out", request, "-subj", "/CN=files.test")
    names = work / "names"
    names.write_text("subjectAltName=DNS:files.test,IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", request, "-CA", ca, "-CAkey", key, "-CAcreateserial", "-out", cert, "-days", "2", "-extfile", str(names))
    return ca, (cert, own)


def by_http_proxy():
    files, elsewhere = Files(b"through the proxy"), Files(b"directly")
    proxy = Proxy({"files.test": files.port})
    _, inputs, _ = good(["http://files.test/a"], {"http_proxy": "http://" + proxy.address})
    assert (inputs / "0").read_bytes() == b"through the proxy"
    assert [s[:2] for s in proxy.seen] == [("GET", "http://files.test/a")], proxy.seen
    # What is on this machine is not asked of a proxy, and what no_proxy names neither.
    _, inputs, _ = good([f"http://127.0.0.1:{elsewhere.port}/a"], {"http_proxy": "http://" + proxy.address})
    assert (inputs / "0").read_bytes() == b"directly" and len(proxy.seen) == 1
    bad(["http://files.test/a"], {"http_proxy": "http://" + proxy.address, "no_proxy": "files.test"}, "retry", "files.test")
    assert len(proxy.seen) == 1
    bad(["http://other.test/a"], {"http_proxy": "http://" + proxy.address}, "not_found", "404")


def by_password():
    files = Files(b"through the proxy")
    proxy = Proxy({"files.test": files.port}, password=PASSWORD)
    good(["http://files.test/a"], {"http_proxy": f"http://me:{PASSWORD}@{proxy.address}"})
    bad(["http://files.test/a"], {"http_proxy": f"http://me:{PASSWORD}x@{proxy.address}"}, "spec", "407")
    assert files.seen and not any(PASSWORD in str(s) or "roxy-" in str(s) for s in files.seen[1:]), files.seen


def by_https(ca, cert):
    files = Files(b"over TLS", cert)
    proxy = Proxy({"files.test": files.port}, password=PASSWORD)
    env = {"https_proxy": f"http://me:{PASSWORD}@{proxy.address}"}
    _, inputs, _ = good(["https://files.test/a"], {**env, "SOFTLAUNCH_CA_FILE": ca})
    assert (inputs / "0").read_bytes() == b"over TLS"
    assert proxy.seen[0][:2] == ("CONNECT", "files.test:443")
    assert not any("roxy-" in str(s) for s in files.seen), files.seen
    bad(["https://files.test/a"], env, "io", "certificate")


def by_own_ca(ca, cert):
    files = Files(b"over TLS", cert)
    url = f"https://127.0.0.1:{files.port}/a"
    good([url], {"SOFTLAUNCH_CA_FILE": ca})
    good([url], {"SSL_CERT_FILE": ca})
    bad([url], {}, "io", "certificate")
    bad([url], {"SOFTLAUNCH_CA_FILE": str(work / "none.pem")}, "io", "none.pem")
    bad([f"https://localhost:{files.port}/a"], {"SOFTLAUNCH_CA_FILE": ca}, "io", "")  # not a name of the certificate
    assert len(files.seen) == 2, files.seen


def limited(server):
    """Less than the limit is always right; how much less is the machine's matter."""
    data = os.urandom(3_000_000)
    files = Files(data)
    _, inputs, took = good([f"http://127.0.0.1:{files.port}/a"], {"SOFTLAUNCH_BANDWIDTH": "1M"})
    assert (inputs / "0").read_bytes() == data and took >= 2, took
    _, _, took = good([f"http://127.0.0.1:{files.port}/{i}" for i in range(2)], {"SOFTLAUNCH_BANDWIDTH": "2M"})
    assert took >= 2, took
    # several files of one artifact share it
    folder = work / "several"
    folder.mkdir()
    for i in range(6):
        (folder / str(i)).write_bytes(os.urandom(500_000))
    server.call(["artifact", "put", "several", str(folder)])
    _, _, took = good(["several"], {"SOFTLAUNCH_BANDWIDTH": "1M"}, server=server.url)
    assert took >= 2, took
    # a large one, which comes in ranges
    (work / "large").write_bytes(os.urandom(36 << 20))
    server.call(["artifact", "put", "large", str(work / "large")])
    _, _, took = good(["large"], {"SOFTLAUNCH_BANDWIDTH": "12M"}, server=server.url)
    assert took >= 2, took
    began = time.monotonic()
    server.call(["artifact", "put", "up", str(inputs / "0"), "--bandwidth", "1M"])
    assert time.monotonic() - began >= 2
    bad(["several"], {"SOFTLAUNCH_BANDWIDTH": "fast"}, "spec", "write 500k, 20M or 1G", server=server.url)
    for wrong in ("0", "-1", "5X", "1MB", "99999999999999999999"):
        bad(["several"], {"SOFTLAUNCH_BANDWIDTH": wrong}, "spec", "bandwidth", server=server.url)


def of_a_project(server):
    (work / "f").write_bytes(b"ours")
    server.call(["artifact", "put", "squad", str(work / "f"), "--project", "team", "--alias", "candidate"])
    for ref in ("team/squad:candidate", "team/squad:v0", "team/squad:latest/f", "squad:candidate"):
        resolved, inputs, _ = good([ref], {}, server=server.url)
        assert (inputs / "0").read_bytes() == b"ours" and resolved[0]["version"] == "v0", resolved
    bad(["others/squad:candidate"], {}, "not_found", "project others has no artifact squad", server=server.url)
    server.call(["artifact", "get", "team/squad:v0", str(work / "got")])
    assert (work / "got" / "f").read_bytes() == b"ours"
    server.call(["artifact", "get", "others/squad:v0", str(work / "got2")], fails="project others has no artifact")


def main():
    server = StoreServer(work / "server")
    try:
        ca, cert = make_ca()
        check("http through a proxy; loopback and no_proxy around it", by_http_proxy)
        check("a proxy's password goes to the proxy alone", by_password)
        check("https through a proxy, end to end", by_https, ca, cert)
        check("an own CA; without it, or for another name, nothing comes", by_own_ca, ca, cert)
        check("a limit of the bandwidth holds, for one file, several, ranges and uploads", limited, server)
        check("project/name:alias", of_a_project, server)
    finally:
        server.end()
    return 1 if failed else 0


if __name__ == "__main__":
    leave(main())
