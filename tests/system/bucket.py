#!/usr/bin/env python3
"""A store whose blobs lie in a bucket (`serve --blobs`): what is put is there, comes back when the disk's copies are gone, is believed by
its digest only; collections delete objects; what the bucket refuses makes no version. Then store_runs.py on such a store.

S3 is moto with authentication enforced behind targets.py's gate. Environment: SL_BIN. Prints TAP."""
import json
import os
import signal
import subprocess
import sys

import sources
import targets
from queue_fixture import HERE, TOKEN, World, wait

gate = targets.s3_here()
BIG = os.urandom(1 << 20) * 40  # several parts, and ranges
w = World(serve=("--blobs", "s3://models/blobs/", "--blobs-local", "1", "--collect-every", "0"))


def env():
    return {**os.environ, "SOFTLAUNCH_SERVER": w.url, "SOFTLAUNCH_TOKEN": TOKEN}


def command(*args, fails=None):
    r = w.command(*args, timeout=200)
    assert (r.returncode == 0) if fails is None else (r.returncode == 1 and fails in r.stderr), (args, r.returncode, r.stdout, r.stderr)
    return r


def file(name, data):
    with open(f"{w.dir}/{name}", "wb") as f:
        f.write(data)
    return f"{w.dir}/{name}"


def objects():
    found, open_uploads = targets.s3_objects("blobs/")
    for name, o in found.items():
        assert sources.sha(o.value) == name, name
    assert not open_uploads, open_uploads
    return set(found)


def copies():
    return [os.path.join(d, n) for d, _, names in os.walk(w.dir + "/store/blobs/sha256") for n in names]


def got(ref, name, data):
    to = f"{w.dir}/got-{len(os.listdir(w.dir))}"
    command("artifact", "get", ref, to)
    with open(f"{to}/{name}", "rb") as f:
        assert f.read() == data, ref


def what_is_put_is_in_the_bucket():
    command("artifact", "put", "big", file("big", BIG), file("small", b"small"))
    manifest = w.api("GET", "/api/v1/artifacts/big/v0")[1]["manifest"]
    assert objects() == {manifest, sources.sha(BIG), sources.sha(b"small")}, objects()
    command("artifact", "put", "again", file("big", BIG))  # equal bytes are one object
    assert len(objects()) == 4
    command("artifact", "verify", "--hash")


def it_comes_back_without_the_disks_copies():
    w.end(w.server, signal.SIGKILL)
    for path in copies():
        os.unlink(path)
    w.start_server(w.port)
    got("big", "big", BIG)
    got("big", "small", b"small")
    for path in copies():
        os.unlink(path)
    command("artifact", "verify", "--hash")
    assert len(copies()) == 4


def damaged_objects_are_not_believed():
    """As are lines that break while it is fetched: that goes on."""
    from moto.s3.models import s3_backends
    bucket = s3_backends["123456789012"]["aws"]
    digest = sources.sha(b"small")
    for path in copies():
        os.unlink(path)
    bucket.put_object("models", "blobs/" + digest, b"smell")
    to = w.dir + "/damaged"
    r = w.command("artifact", "get", "big/small", to, timeout=200)
    assert r.returncode == 1 and not os.path.exists(to + "/small"), (r.stdout, r.stderr)
    r = w.command("artifact", "verify", "--hash", "--json", timeout=200)
    assert r.returncode == 1 and digest in r.stdout, r.stdout
    bucket.put_object("models", "blobs/" + digest, b"small")
    got("big/small", "small", b"small")


def what_the_bucket_refuses_makes_no_version():
    gate.spoil = lambda *a: (403, {}, b"<Error><Code>AccessDenied</Code><Message>not now</Message></Error>")
    for data in (b"refused", BIG + b"refused"):
        command("artifact", "put", "refused", file("refused", data), fails="bucket")
    assert w.api("GET", "/api/v1/artifacts/refused")[0] == 404
    gate.spoil = lambda *a: None
    command("artifact", "put", "refused", file("refused", b"refused"))
    got("refused", "refused", b"refused")


def collections_delete_objects():
    before = objects()
    command("artifact", "put", "gone", file("gone", b"gone"))
    assert sources.sha(b"gone") in objects()
    command("artifact", "rm", "gone:v0")
    report = json.loads(command("artifact", "gc", "--grace", "0", "--json").stdout)
    assert report["removed_blobs"] == 2 and objects() == before, (report, objects() ^ before)
    command("artifact", "put", "gone", file("gone", b"gone"))  # the same bytes again
    got("gone", "gone", b"gone")
    command("artifact", "verify", "--hash")


def copies_keep_to_their_limit():
    """None are kept: each reading fetches anew, several at once too."""
    w.end(w.server)
    w.serve = tuple("0" if w.serve[i - 1] == "--blobs-local" else a for i, a in enumerate(w.serve))
    w.start_server(w.port)
    got("big", "big", BIG)
    wait(lambda: not copies(), 30, "the copies go")
    ps = [subprocess.Popen([targets.BIN, "artifact", "get", "big", f"{w.dir}/at-once-{i}"], stdout=subprocess.DEVNULL,
                           env=env()) for i in range(4)]
    assert [p.wait(120) for p in ps] == [0] * 4
    for i in range(4):
        with open(f"{w.dir}/at-once-{i}/big", "rb") as f:
            assert f.read() == BIG
    command("artifact", "put", "few", file("few", b"few"))
    got("few", "few", b"few")
    wait(lambda: not copies(), 30, "the copies go")
    w.end(w.server)
    w.serve = tuple("1" if a == "0" and w.serve[i - 1] == "--blobs-local" else a for i, a in enumerate(w.serve))
    w.start_server(w.port)


def killed_while_it_puts():
    """Whenever the server is killed, a version is whole or not there."""
    for i in range(6):
        data = os.urandom(20 << 20)
        path = file("killed", data)
        seen = len(gate.seen)
        p = subprocess.Popen([targets.BIN, "artifact", "put", f"killed{i}", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                             env=env())
        wait(lambda: len(gate.seen) >= seen + i or p.poll() is not None, 60, "a request")
        w.end(w.server, signal.SIGKILL)
        p.kill()
        p.wait()
        w.start_server(w.port)
        command("artifact", "verify", "--hash")
        command("artifact", "put", f"killed{i}", path)
        for c in copies():
            os.unlink(c)
        got(f"killed{i}", "killed", data)


def runs_on_such_a_store():
    p = subprocess.run([sys.executable, HERE + "/store_runs.py"], capture_output=True, text=True, timeout=400,
                       env={**os.environ, "SL_SERVE": "--blobs s3://models/runs/"})
    sys.stdout.write("".join("# " + line + "\n" for line in p.stdout.splitlines()))
    assert p.returncode == 0, p.stdout + p.stderr
    assert targets.s3_objects("runs/")[0], "nothing came to the bucket"


tests = [what_is_put_is_in_the_bucket, it_comes_back_without_the_disks_copies, damaged_objects_are_not_believed,
         what_the_bucket_refuses_makes_no_version, collections_delete_objects, copies_keep_to_their_limit, killed_while_it_puts, runs_on_such_a_store]
targets.tap_and_leave(w, tests)
