#!/usr/bin/env python3
"""A file too large to stay in the page cache comes right, also after a kill in the middle, and leaves the memory to
others. Digests are Python's, residency is fincore's (util-linux). Environment: SL_BIN. Prints TAP."""
import hashlib, os, shutil, subprocess, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from queue_fixture import *

BYTES = (1 << 30) + (200 << 20) + 12345
w = World()
env = dict(os.environ, SOFTLAUNCH_TOKEN=TOKEN, SOFTLAUNCH_SERVER=f"http://127.0.0.1:{w.port}")
source, sha, block = w.dir + "/large", hashlib.sha256(), os.urandom(1 << 24)
with open(source, "wb") as f:
    for i in range(0, BYTES, 1 << 24):
        data = (i.to_bytes(8, "big") + block[8:])[:BYTES - i]
        f.write(data)
        sha.update(data)
put = w.command("artifact", "put", "large", source)
assert put.returncode == 0, put.stderr
os.unlink(source)


def digest(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def comes_right_and_leaves_memory():
    out = w.dir + "/out"
    r = subprocess.run([BIN, "artifact", "get", "large", out], env=env, capture_output=True, text=True, timeout=300)
    assert r.returncode == 0, r.stderr
    if shutil.which("fincore"):
        held = int(subprocess.run(["fincore", "-b", "-n", "-o", "RES", out + "/large"], capture_output=True, text=True).stdout)
        assert held < BYTES // 2, held
    assert digest(out + "/large") == sha.hexdigest()
    shutil.rmtree(out)


def goes_on_after_a_kill():
    out = w.dir + "/again"
    p = subprocess.Popen([BIN, "artifact", "get", "large", out], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    part = f"{out}/.softlaunch-part/partial/{sha.hexdigest()}"
    wait(lambda: p.poll() is not None or os.path.exists(part) and os.path.getsize(part) > BYTES // 3, 120, "a third has come")
    p.kill()
    p.wait()
    r = subprocess.run([BIN, "artifact", "get", "large", out], env=env, capture_output=True, text=True, timeout=300)
    assert r.returncode == 0, r.stderr
    assert digest(out + "/large") == sha.hexdigest()


tap(w, [comes_right_and_leaves_memory, goes_on_after_a_kill])
