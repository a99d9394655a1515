#!/usr/bin/env python3
"""Clients that mean no good: thousands of idle connections, requests that never end, bodies and headers over the limits,
paths that climb. Others are answered as before."""
import json, os, resource, socket, sys, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from queue_fixture import TOKEN, World, in_time, tap, wait

IDLE, LORIS = 10000, 300
HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (HARD, HARD))
w = World()
AUTH = f"Authorization: Bearer {TOKEN}\r\n"


def connect():
    return socket.create_connection(("127.0.0.1", w.port), timeout=60)


def status_of(request):
    """The status of the answer to raw bytes; None: the connection was closed without one."""
    with connect() as s:
        try:
            s.sendall(request)
            answer = b""
            while b"\r\n" not in answer:
                data = s.recv(4096)
                if not data:
                    return None
                answer += data
        except (ConnectionResetError, BrokenPipeError):
            return None
    return int(answer.split()[1])


def others_are_answered(promise):
    for _ in range(5):
        start = time.monotonic()
        assert w.api("GET", "/api/v1/runs")[0] == 200
        in_time(time.monotonic() - start, promise)


def ten_thousand_idle_connections():
    n = min(IDLE, HARD - 600)
    idle = []
    try:
        for _ in range(n):
            idle.append(connect())
        others_are_answered(1)
        rss = int(next(l for l in open(f"/proc/{w.server.pid}/status") if l.startswith("VmRSS")).split()[1]) / 1024
        print(f"# {n} idle connections: the server has {rss:.0f} MiB")
        assert rss < 600, rss
    finally:
        for s in idle:
            s.close()


def requests_that_never_end():
    loris = [connect() for _ in range(LORIS)]
    for i, s in enumerate(loris):
        s.sendall(b"GET /api/v1/runs HTTP/1.1\r\nHost: x\r\n" if i % 2 else
                  b"POST /api/v1/runs HTTP/1.1\r\nHost: x\r\n" + AUTH.encode() + b"Content-Length: 1000\r\n\r\n{")
    for _ in range(3):
        for s in loris:
            s.sendall(b"X")
        others_are_answered(1)
    for s in loris:
        s.close()


def what_is_too_large():
    big = b"GET /api/v1/runs HTTP/1.1\r\nHost: x\r\n" + AUTH.encode()
    assert status_of(big + b"X-Big: " + b"y" * 100000 + b"\r\n\r\n") in (None, 413, 431)
    assert status_of(big + b"".join(b"X-%d: y\r\n" % i for i in range(10000)) + b"\r\n") in (None, 413, 431)
    assert status_of(b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n" + AUTH.encode() + b"\r\n") in (404, 414, 431)
    head = b"POST /api/v1/runs HTTP/1.1\r\nHost: x\r\n" + AUTH.encode()
    assert status_of(head + b"Content-Type: application/json\r\nContent-Length: 5000000000\r\n\r\n") == 413
    assert status_of(head + b"Content-Length: -5\r\n\r\n") in (None, 400)
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    assert status_of(head + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 3 + b"0\r\n\r\n") in (None, 413, 422)
    assert w.api("POST", "/api/v1/runs", b"[" * 100000)[0] in (400, 422)
    others_are_answered(1)


def paths_that_climb():
    secret = os.path.join(w.dir, "token")
    assert os.path.exists(secret)
    for path in ("/static/../token", "/static/..%2f..%2ftoken", "/static/%2e%2e/%2e%2e/token", "/static//etc/passwd",
                 "/..%00/token", "/static/%00", "/api/v1/artifacts/..%2f..%2ftoken", "/api/v1/artifacts/../../token",
                 "/api/v1/blobs/..%2f..%2ftoken", "/api/v1/runs/..%2f..%2f..%2ftoken", "/api/v1/runs/%2e%2e/events"):
        with connect() as s:
            s.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{AUTH}\r\n".encode())
            answer = b""
            while data := s.recv(1 << 16):
                answer += data
        assert answer.split()[1] in (b"400", b"404", b"422"), (path, answer[:200])
        assert TOKEN.encode() not in answer, path


def the_server_still_stands():
    assert w.server.poll() is None
    others_are_answered(1)


tap(w, [ten_thousand_idle_connections, requests_that_never_end, what_is_too_large, paths_that_climb, the_server_still_stands])
