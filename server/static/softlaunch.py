"""softlaunch from Python: enqueue runs, wait for them, read their history, move artifacts.

One file, standard library only (Python 3.8 or later), served by every softlaunch server:

    curl -O http://HOST:PORT/softlaunch.py

    import softlaunch
    sl = softlaunch.Client()                      # SOFTLAUNCH_SERVER, SOFTLAUNCH_TOKEN
    run = sl.enqueue("spec.json", {"model.optim.lr": 3e-4})
    record = sl.wait(run)                         # raises RunFailed unless it succeeded
    print(sl.metrics(run)["val_loss"])            # [(step, value), ...]
    sl.download(record["outputs"][0], "result")   # every file's sha256 is checked

Every call may be repeated by the client after a lost connection: enqueueing has an idempotency key, and
uploads and downloads are checked by digest. Errors are Error (the server's own words), RunFailed, TimeoutError.
"""
import hashlib
import http.client
import json
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid

__all__ = ["Client", "Error", "RunFailed", "FINAL"]

FINAL = ("succeeded", "failed", "dead", "cancelled")
CHUNK = 1 << 20
WAIT_MS = 1000  # what the server waits at most for an event
RETRIED = (429, 502, 503, 504)


class Error(Exception):
    """The server refused. status: HTTP's; errors: [{"path", "detail"}, ...] of what is wrong with a spec."""

    def __init__(self, status, title, detail="", errors=()):
        self.status, self.title, self.detail, self.errors = status, title, detail, list(errors)
        lines = ["%s: %s" % (e.get("path", ""), e.get("detail", "")) for e in self.errors]
        super().__init__("\n  ".join(["%d %s: %s" % (status, title, detail)] + lines))


class RunFailed(Exception):
    """A run that was waited for has not succeeded. record: the run, with state, cause and msg."""

    def __init__(self, record):
        self.record = record
        tail = "".join("\n  " + str(line) for line in (record.get("log_tail") or [])[-5:])
        super().__init__("run %s is %s: %s %s%s" % (record.get("run"), record.get("state"), record.get("cause") or "",
                                                    record.get("msg") or "", tail))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The token must not follow a redirect to another place."""

    def redirect_request(self, *args, **kw):
        return None


class Client:
    """One server. Threads may share it."""

    def __init__(self, server=None, token=None, timeout=60, patience=120, context=None):
        """server, token: else SOFTLAUNCH_SERVER and SOFTLAUNCH_TOKEN; timeout: seconds for one answer; patience:
        seconds that a server which is away is waited for; context: an ssl.SSLContext for a private CA."""
        self.server = (server or os.environ.get("SOFTLAUNCH_SERVER") or "http://127.0.0.1:8080").rstrip("/")
        self.token = token if token is not None else os.environ.get("SOFTLAUNCH_TOKEN", "")
        self.timeout, self.patience = timeout, patience
        handlers = [_NoRedirect()] + ([urllib.request.HTTPSHandler(context=context)] if context else [])
        self._opener = urllib.request.build_opener(*handlers)

    # ---- runs

    def enqueue(self, spec, overrides=None, key=None):
        """spec: a dict, or the path of a JSON file; overrides: {"model.optim.lr": 1e-3, "priority": "high"}, as the
        command's KEY=VALUE: "trainer.", "exp_manager.", "model." and "inference." are the config's. key: the idempotency key, when the same
        enqueue may come from elsewhere, too. Gives the run's id."""
        if not isinstance(spec, dict):
            with open(spec, encoding="utf-8") as f:
                spec = json.load(f)
        spec = json.loads(json.dumps(spec))
        for name, value in (overrides or {}).items():
            _override(spec, name, value)
        reply = self.request("POST", "/runs", spec, headers={"Idempotency-Key": key or uuid.uuid4().hex})
        return reply["run"]

    def run(self, run):
        """The run as the API gives it: {"run", "state", "cause", "metrics", "outputs", "spec", ...}."""
        return self.request("GET", "/runs/" + _part(run))

    def runs(self, limit=None, **filters):
        """Runs, newest first, page by page. filters: state, queue, project and what else the API knows."""
        cursor, given = None, 0
        while limit is None or given < limit:
            query = dict(filters, limit=min(200, (limit - given) if limit else 200))
            if cursor:
                query.update(cursor)
            page = self.request("GET", "/runs", query=query)
            for record in page["runs"]:
                given += 1
                yield record
            if page.get("next_cursor"):
                cursor = {"cursor": page["next_cursor"]}
            elif page.get("next"):
                cursor = {"below": page["next"]}
            else:
                return

    def wait(self, run, timeout=None, check=True):
        """Waits for the run's end and gives its record. check: raises RunFailed unless it succeeded. TimeoutError."""
        end = None if timeout is None else time.monotonic() + timeout
        for event in self.events(run, timeout=timeout):
            if event["type"] == "state" and event["data"].get("state") in FINAL:
                break
        record = self.run(run)
        while record["state"] not in FINAL:  # the end was not among the events that are kept
            if end is not None and time.monotonic() > end:
                raise TimeoutError("run %s is still %s after %s s" % (run, record["state"], timeout))
            time.sleep(0.5)
            record = self.run(run)
        if check and record["state"] != "succeeded":
            raise RunFailed(record)
        return record

    def events(self, run, after="0", follow=True, timeout=None):
        """The run's events {"id", "time_ms", "type", "attempt", "data"}, oldest first; until its end with follow,
        else those there are. Go on behind one with after=its id. TimeoutError."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            page = self.request("GET", "/runs/%s/events" % _part(run),
                                query={"after": after, "wait_ms": WAIT_MS if follow else 0})
            for event in page["events"]:
                after = event["id"]
                yield event
                if follow and event["type"] == "state" and event["data"].get("state") in FINAL:
                    return
            if not page["events"]:
                if not follow or self.run(run)["state"] in FINAL:
                    return
                if end is not None and time.monotonic() > end:
                    raise TimeoutError("run %s has not ended after %s s" % (run, timeout))

    def history(self, run):
        """What was measured, oldest first: [{"step", "loss", "lr", ..., "time_ms"}, ...]. Of a step that was done
        again after a failure the last word counts."""
        rows = {}
        for event in self.events(run, follow=False):
            if event["type"] == "metric" and "step" in event["data"]:
                data = event["data"]
                kind = (data["step"], data.get("trial"), tuple(sorted(k for k in data if k != "step")))
                rows.pop(kind, None)
                rows[kind] = dict(data, time_ms=event["time_ms"])
        return sorted(rows.values(), key=lambda row: row["step"])

    def metrics(self, run, trial=None):
        """{name: [(step, value), ...]} of a run, or of one trial of it."""
        series = {}
        for row in self.history(run):
            if trial is not None and row.get("trial") != trial:
                continue
            for name, value in row.items():
                if name not in ("step", "time_ms") and isinstance(value, (int, float)) and not isinstance(value, bool):
                    series.setdefault(name, {})[row["step"]] = value
        return {name: sorted(points.items()) for name, points in series.items()}

    def log(self, run):
        """The run's log so far, as text lines."""
        return [str(e["data"].get("msg", "")) for e in self.events(run, follow=False) if e["type"] == "log"]

    def cancel(self, run):
        return self.request("POST", "/runs/%s/cancel" % _part(run))["state"]

    def requeue(self, run, key=None):
        """A failed, dead or cancelled run anew, from its checkpoint. Gives the new run's id."""
        return self.request("POST", "/runs/%s/requeue" % _part(run), headers={"Idempotency-Key": key or uuid.uuid4().hex})["run"]

    def move(self, run, priority=None, queue=None):
        body = {k: v for k, v in (("priority", priority), ("queue", queue)) if v}
        self.request("POST", "/runs/%s/move" % _part(run), body)

    def queues(self):
        return self.request("GET", "/queues")["queues"]

    def agents(self):
        return self.request("GET", "/agents")["agents"]

    def projects(self):
        return self.request("GET", "/projects")["projects"]

    # ---- artifacts

    def artifacts(self):
        """[{"name", "latest", "versions", "aliases"}, ...]"""
        return self.request("GET", "/artifacts")["artifacts"]

    def artifact(self, ref):
        """The record of "NAME", "NAME:v3" or "NAME:alias": {"name", "version", "files": [...], ...}."""
        name, version = _ref(ref)
        return self.request("GET", "/artifacts/%s/%s" % (_part(name), _part(version)))

    def download(self, ref, dest, unpack=True):
        """The files of an artifact into the folder dest; ref as in artifact(), or an element of a run's outputs. Each
        file is there whole and with the digest of its record, or not at all. unpack: a tarball x.tar.zst also becomes
        the folder x; for zstd this needs Python 3.14 or the program zstd, else it stays packed. Gives the paths."""
        paths = []
        for entry in self.artifact(ref)["files"]:
            path = os.path.join(dest, *_safe(entry["path"]))
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            self._fetch(entry, path)
            paths.append(path)
            if unpack:
                _unpack(path)
        return paths

    def upload(self, name, paths, aliases=()):
        """Files, and folders with what is below them, as a new version of an artifact. Gives its record."""
        files = []
        for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
            path = os.fspath(path)
            if os.path.isdir(path):
                for folder, folders, names in os.walk(path):
                    folders.sort()
                    for one in sorted(names):
                        full = os.path.join(folder, one)
                        files.append(self._put(full, os.path.relpath(full, path).replace(os.sep, "/")))
            else:
                files.append(self._put(path, os.path.basename(path)))
        text = json.dumps({"files": files}, sort_keys=True, separators=(",", ":")).encode()
        digest = hashlib.sha256(text).hexdigest()
        self._put_blob(digest, lambda: text, len(text))
        return self.request("POST", "/artifacts/%s/versions" % _part(name), {"manifest": digest, "aliases": list(aliases)})

    def alias(self, name, alias, version):
        """Points an alias at a version: alias("prompts", "production", "v3")."""
        return self.request("PUT", "/artifacts/%s/aliases/%s" % (_part(name), _part(alias)), {"version": version})

    # ---- below

    def request(self, method, path, body=None, query=None, headers=None):
        """One call of the API: path behind /api/v1. Gives the answer's JSON."""
        if query:
            path += "?" + urllib.parse.urlencode({k: v for k, v in query.items() if v is not None})
        more = dict(headers or {})
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            more["Content-Type"] = "application/json"
        with self._send(method, path, lambda: data, more) as reply:
            text = reply.read()
        return json.loads(text) if text else None

    def _send(self, method, path, body, headers):
        """Sends until there is an answer or patience is over. body: gives bytes or an open file, each time anew."""
        end, pause = time.monotonic() + self.patience, 0.2
        while True:
            try:
                return self._once(method, path, body(), headers)
            except Error as e:
                if e.status not in RETRIED or time.monotonic() > end:
                    raise
            except (OSError, http.client.HTTPException) as e:
                if time.monotonic() > end:
                    raise ConnectionError("%s does not answer: %s" % (self.server, e)) from e
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, 5)

    def _once(self, method, path, data, headers):
        req = urllib.request.Request(self.server + "/api/v1" + path, data=data, method=method, headers=headers)
        if self.token:
            req.add_unredirected_header("Authorization", "Bearer " + self.token)
        try:
            return self._opener.open(req, timeout=self.timeout)
        except urllib.error.HTTPError as e:
            with e:
                text = e.read(CHUNK)
            try:
                said = json.loads(text)
                raise Error(e.code, said.get("title", ""), said.get("detail", ""), said.get("errors") or ()) from None
            except (ValueError, AttributeError):
                raise Error(e.code, e.reason or "", text[:200].decode("utf-8", "replace")) from None
        except urllib.error.URLError as e:
            raise e.reason if isinstance(e.reason, OSError) else e

    def _fetch(self, entry, path):
        """A file by its digest, by way of a file beside it that a second try goes on with."""
        if os.path.exists(path) and _sha256(path) == entry["sha256"]:
            return
        part, end = "%s.%s.part" % (path, entry["sha256"][:16]), time.monotonic() + self.patience
        while True:
            have = os.path.getsize(part) if os.path.exists(part) else 0
            try:
                if have < entry["bytes"] or not have:
                    self._fetch_more(entry, part, have)
                break
            except (OSError, http.client.HTTPException):
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)
        found = _sha256(part)
        if found != entry["sha256"]:
            os.unlink(part)
            raise Error(502, "wrong content", "%s arrived with the sha256 %s, its record says %s"
                        % (entry["path"], found, entry["sha256"]))
        os.replace(part, path)

    def _fetch_more(self, entry, part, have):
        headers = {"Range": "bytes=%d-" % have} if have else {}
        with self._send("GET", "/blobs/" + entry["sha256"], lambda: None, headers) as reply:
            with open(part, "ab" if have and reply.status == 206 else "wb") as f:
                shutil.copyfileobj(reply, f, CHUNK)
                f.flush()
                os.fsync(f.fileno())
        if os.path.getsize(part) < entry["bytes"]:
            raise ConnectionError("%s was cut off" % entry["path"])

    def _put(self, full, path):
        digest, size = _sha256(full), os.path.getsize(full)
        self._put_blob(digest, lambda: open(full, "rb"), size)
        return {"path": path, "sha256": digest, "bytes": size}

    def _put_blob(self, digest, body, size):
        try:  # a blob that is there is not sent again
            self._send("HEAD", "/blobs/" + digest, lambda: None, {}).close()
        except Error as e:
            if e.status != 404:
                raise
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
            self._send("PUT", "/blobs/" + digest, body, headers).close()


SECTIONS = ("trainer", "exp_manager", "model", "inference")  # of the spec's config


def _override(spec, name, value):
    parts = name.split(".")
    if len(parts) > 1 and parts[0] in SECTIONS:
        parts = ["config"] + parts
    at = spec
    for part in parts[:-1]:
        at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
        if not isinstance(at, (dict, list)):
            raise ValueError("%s: %s is a value, it has no keys" % (name, part))
    at[int(parts[-1]) if isinstance(at, list) else parts[-1]] = value


def _part(text):
    return urllib.parse.quote(str(text), safe="")


def _ref(ref):
    if isinstance(ref, dict):
        return ref.get("artifact") or ref["name"], "v" + str(ref["version"]).lstrip("v")
    name, _, version = ref.partition(":")
    return name, version or "latest"


def _safe(path):
    parts = path.split("/")
    if any(p in ("", ".", "..") or "\\" in p or "\0" in p or (os.name == "nt" and ":" in p) for p in parts):
        raise ValueError("the path %r leads elsewhere" % path)
    return parts


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for chunk in iter(lambda: f.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _unpack(path):
    """Files and folders only, below a folder which appears whole."""
    end = next((e for e in (".tar", ".tar.gz", ".tar.zst") if path.endswith(e)), None)
    dest = path[:-len(end)] if end else None
    if not end or os.path.exists(dest):
        return
    work = tempfile.mkdtemp(dir=os.path.dirname(path) or ".", prefix=".unpack-")
    try:
        if end == ".tar.zst" and "zst" not in tarfile.TarFile.OPEN_METH:
            if not shutil.which("zstd"):
                os.rmdir(work)
                return
            with subprocess.Popen(["zstd", "-dcq", "--", path], stdout=subprocess.PIPE) as zstd:
                with tarfile.open(fileobj=zstd.stdout, mode="r|") as tar:
                    _extract(tar, work, path)
                zstd.stdout.read()
            if zstd.returncode:
                raise ValueError("%s is no whole zstd file" % path)
        else:
            with tarfile.open(path) as tar:
                _extract(tar, work, path)
        os.chmod(work, 0o755)
        os.rename(work, dest)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _extract(tar, work, path):
    for member in tar:
        inside = os.path.join(work, *_safe(member.name.rstrip("/")))
        if member.isdir():
            os.makedirs(inside, exist_ok=True)
        elif member.isfile():
            os.makedirs(os.path.dirname(inside), exist_ok=True)
            with tar.extractfile(member) as source, open(inside, "wb") as f:
                shutil.copyfileobj(source, f, CHUNK)
        else:
            raise ValueError("%s: %s is neither a file nor a folder" % (path, member.name))
