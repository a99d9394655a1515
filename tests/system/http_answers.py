#!/usr/bin/env python3
"""JSON answers: an ETag that says when nothing has changed, and gzip for those who take it; read by Python's http and gzip."""
import gzip, http.client, os, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from queue_fixture import *


def ask(w, path, method="GET", **headers):
    c = http.client.HTTPConnection("127.0.0.1", w.port, timeout=60)
    c.request(method, path, headers={"Authorization": "Bearer " + TOKEN, **{k.replace("_", "-"): v for k, v in headers.items()}})
    a = c.getresponse()
    body = a.read()
    c.close()
    return a.status, {k.lower(): v for k, v in a.getheaders()}, body


def an_unchanged_answer_is_not_sent_again():
    for i in range(12):
        w.enqueue(f"etag-{i}")
    path = "/api/v1/runs?state=queued"
    status, h, body = ask(w, path)
    assert status == 200 and h["etag"] and "no-cache" in h["cache-control"] and len(json.loads(body)["runs"]) == 12, (status, h)
    for known in (h["etag"], '"another", ' + h["etag"], h["etag"].removeprefix("W/"), "*"):
        again, h2, none = ask(w, path, If_None_Match=known)
        assert again == 304 and none == b"" and h2["etag"] == h["etag"], (known, again, h2)
    assert ask(w, path, If_None_Match='"another"')[0] == 200
    head, h2, none = ask(w, path, "HEAD")
    assert head == 200 and none == b"" and h2["etag"] == h["etag"]
    w.enqueue("etag-more")
    status, h2, body = ask(w, path, If_None_Match=h["etag"])
    assert status == 200 and h2["etag"] != h["etag"] and len(json.loads(body)["runs"]) == 13


def long_answers_go_packed_to_those_who_take_it():
    path = "/api/v1/runs?state=queued"
    plain = ask(w, path)
    assert "content-encoding" not in plain[1] and "Accept-Encoding" in plain[1]["vary"]
    for takes in ("gzip", "deflate, gzip;q=0.5", "br,GZIP"):
        status, h, body = ask(w, path, Accept_Encoding=takes)
        assert status == 200 and h["content-encoding"] == "gzip" and len(body) < len(plain[2]) / 3, (takes, h)
        assert gzip.decompress(body) == plain[2] and h["etag"] == plain[1]["etag"]
    for refuses in ("identity", "gzip;q=0", "gzip; q=0.0, deflate", "gzipped", "x", ""):
        status, h, body = ask(w, path, Accept_Encoding=refuses)
        assert status == 200 and "content-encoding" not in h and body == plain[2], (refuses, h)
    assert "content-encoding" not in ask(w, "/api/v1/health", Accept_Encoding="gzip")[1], "too short to be worth it"


def errors_and_answers_to_changes_are_kept_by_nobody():
    for method, path, want in (("GET", "/api/v1/runs/" + "0" * 32, 404), ("GET", "/api/v1/none", 404), ("DELETE", "/api/v1/runs", 405)):
        status, h, body = ask(w, path, method)
        assert status == want and h["cache-control"] == "no-store" and "etag" not in h, (path, status, h)
        assert h["content-type"] == "application/problem+json" and json.loads(body)["status"] == want
    assert ask(w, "/api/v1/none", If_None_Match="*")[0] == 404


def an_unknown_address_shows_a_browser_a_page():
    browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"    # as Chromium and Firefox ask
    page = ask(w, "/", Accept=browser)[2]
    for path in ("/nowhere", "/runs/a/b/c", "/nowhere?x=1"):
        status, h, body = ask(w, path, Accept=browser)
        assert status == 404 and h["content-type"].startswith("text/html") and body == page and "etag" not in h, (path, status, h)
        assert ask(w, path, "HEAD", Accept=browser)[0] == 404
        for accept in ("*/*", "application/json"):
            status, h, body = ask(w, path, Accept=accept)
            assert status == 404 and h["content-type"] == "application/problem+json", (path, status, h)
    for method, path in (("GET", "/api/v1/none"), ("POST", "/nowhere"), ("GET", "/static/none.js")):
        status, h, body = ask(w, path, method, Accept=browser)
        assert status == 404 and h["content-type"] == "application/problem+json", (path, status, h)


w = World()
tap(w, [an_unchanged_answer_is_not_sent_again, long_answers_go_packed_to_those_who_take_it,
        errors_and_answers_to_changes_are_kept_by_nobody, an_unknown_address_shows_a_browser_a_page])
