#!/usr/bin/env python3
"""Writes tests/golden/sigv4.json from AWS's own signing test suite (github.com/awslabs/aws-c-auth, Apache-2.0).

usage: tests/golden/sigv4.py aws-c-auth/tests/aws-signing-test-suite/v4
Only what is signed in headers; requests are split into their parts, nothing is computed here."""
import json
import sys
from pathlib import Path

vectors = []
for folder in sorted(Path(sys.argv[1]).iterdir()):
    context = json.loads((folder / "context.json").read_text())
    text = (folder / "request.txt").read_bytes().decode()
    head, _, body = text.partition("\n\n")
    line, *headers = head.rstrip("\n").split("\n")
    method, target = line.split(" ", 1)
    target = target.rsplit(" ", 1)[0]
    path, _, query = target.partition("?")
    joined = []
    for h in headers:
        if h.startswith(" "):
            joined[-1] += "\n" + h
        else:
            joined.append(h)
    read = lambda name: (folder / f"header-{name}.txt").read_bytes().decode().rstrip("\n")
    keys = context["credentials"]
    vectors.append({
        "name": folder.name, "method": method, "path": path, "query": query,
        "headers": [h.split(":", 1) for h in joined], "body": body, "sign_body": context["sign_body"],
        "normalize": context["normalize"], "region": context["region"], "service": context["service"],
        "time": context["timestamp"].replace("-", "").replace(":", ""),
        "key_id": keys["access_key_id"], "secret": keys["secret_access_key"],
        "token": "" if context.get("omit_session_token") else keys.get("token", ""),
        "canonical": read("canonical-request"), "to_sign": read("string-to-sign"), "signature": read("signature")})
out = Path(__file__).with_name("sigv4.json")
out.write_text(json.dumps(vectors, indent=1, ensure_ascii=False) + "\n")
print(f"{len(vectors)} vectors")
