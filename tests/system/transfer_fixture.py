"""What the suites of transfers share: a folder, a server, a TAP line for each check, an end without ceremony."""
import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

BIN = os.path.join(os.environ.get("SL_BIN", "build/bin"), "softlaunch")
TOKEN = "transfer-test-token-0123456789"
work = Path(tempfile.mkdtemp(prefix="sl-transfer-"))    # gone at the end
atexit.register(shutil.rmtree, work, ignore_errors=True)
failed = []    # names of checks


def check(name, function, *args):
    try:
        function(*args)
        print("ok -", name, flush=True)
    except BaseException:
        failed.append(name)
        print("not ok -", name, flush=True)
        print("# " + traceback.format_exc().replace("\n", "\n# "), flush=True)


def leave(status):
    """Ends the suite; threads of servers that stand in for a service are not waited for."""
    shutil.rmtree(work, ignore_errors=True)
    sys.stdout.flush()
    os._exit(status)


class StoreServer:
    """A softlaunch server on a port of its own, with its data in folder."""

    def __init__(self, folder, token=TOKEN):
        folder.mkdir(exist_ok=True)
        (folder / "token").write_text(token)
        with open(folder / "serve.log", "wb") as log:
            self.p = subprocess.Popen([BIN, "serve", "--data", str(folder / "data"), "--token-file", str(folder / "token"), "--listen",
                                       "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=log, text=True)
        line = self.p.stdout.readline()
        assert line.startswith("serving http://"), (line, (folder / "serve.log").read_text())
        self.url = line.split()[1]
        self.env = {"SOFTLAUNCH_SERVER": self.url, "SOFTLAUNCH_TOKEN": token}

    def call(self, args, fails=None):
        p = subprocess.run([BIN, *args], env={**os.environ, **self.env}, capture_output=True, text=True, timeout=200)
        assert (p.returncode == 0) if fails is None else (p.returncode == 1 and fails in p.stderr), (args, p.returncode, p.stderr)

    def end(self):
        self.p.kill()
        self.p.wait()
