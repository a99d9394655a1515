"""Inputs from s3://, gs:// and hf://, fetched by `softlaunch transfer fetch` as an agent does.

S3 is moto with authentication enforced (it signs each request again, with botocore), GCS gcp-storage-emulator behind a
gate that wants the token, Hugging Face a stub of its published interface. Needs the packages of tests/peer-python.sh.
Environment: SL_BIN, the folder of `softlaunch`. Prints TAP."""
import base64
import hashlib
import http.server
import json
import logging
import os
import socketserver
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from transfer_fixture import BIN, check, failed, leave, work

CANARY = "canary-" + os.urandom(12).hex()  # part of every secret here; must be found nowhere
outputs = []  # all that our command wrote


class Server:
    """Answers with handle(method, path, headers, body) -> (status, headers, body); records what came."""

    def __init__(self, handle):
        self.seen = seen = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                seen.append((self.command, self.path, dict(self.headers.items()), body))
                status, headers, data = handle(self.command, self.path, dict(self.headers.items()), body)
                self.send_response(status)
                for k, v in headers.items():
                    if k.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                        self.send_header(k, v)
                self.send_header("Content-Length", headers.get("Content-Length", str(len(data)))
                                 if self.command == "HEAD" else str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

            def log_message(self, *a):
                pass

        class Threading(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self.http = Threading(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


def forward(upstream, change=lambda method, path, headers, body: (headers, body)):
    """A proxy in front of upstream that may change each request."""
    class NoRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *a):
            return None
    opener = urllib.request.build_opener(NoRedirect, urllib.request.ProxyHandler({}))

    def handle(method, path, headers, body):
        headers, body = change(method, path, dict(headers), body)
        headers = {k: v for k, v in headers.items() if k.lower() not in ("connection", "content-length")}
        request = urllib.request.Request(upstream + path, data=body if method in ("PUT", "POST") else None,
                                         headers=headers, method=method)
        try:
            r = opener.open(request, timeout=60)
        except urllib.error.HTTPError as e:
            r = e
        return r.status, dict(r.headers.items()), r.read()
    return Server(handle)


def fetch(ref, env, sha256=None, cache=None, unpack=None):
    """One input; returns (result event, path of what was fetched)."""
    run_dir = Path(tempfile.mkdtemp(dir=work))
    item = {"ref": ref, "dest": "inputs/x"}
    if sha256:
        item["sha256"] = sha256
    plan = run_dir / "plan.json"
    plan.write_text(json.dumps({"cache": str(cache or run_dir / "cache"), "run_dir": str(run_dir), "items": [item]}))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "HF_", "GOOGLE_", "GCE_", "STORAGE_"))}
    clean.update(HOME=str(run_dir), AWS_EC2_METADATA_DISABLED="true", GCE_METADATA_HOST="127.0.0.1:1")
    clean.update(env)
    p = subprocess.run([BIN, "transfer", "fetch", "--plan", str(plan)], env=clean, capture_output=True, text=True,
                       timeout=240)
    outputs.append(p.stdout + p.stderr)
    event = json.loads(p.stdout.strip().splitlines()[-1])
    assert event["ev"] == "result", p.stdout
    return event, run_dir / "inputs" / "x"


def good(ref, env, **kw):
    event, path = fetch(ref, env, **kw)
    assert event["state"] == "succeeded", event
    return event["resolved"][0], path


def bad(ref, env, cause, says, **kw):
    event, path = fetch(ref, env, **kw)
    assert event["state"] == "failed" and event["cause"] == cause and says in event["msg"], event
    assert not path.exists()
    return event["msg"]


def sha(data):
    return hashlib.sha256(data).hexdigest()


def same_folder(path, files):
    found = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert found == files, sorted(found)[:5]


# ---- S3 ---------------------------------------------------------------------------------------------------------

NAMES = {"model/config.json": b"{}", "model/weights.bin": os.urandom(300_000), "model/with space+plus.txt": b"x",
         "model/sub/dir/ünïcode & <xml> %41.txt": b"u", "model/empty": b"", "other": b"not below"}
s3_env = {}


def start_s3():
    try:
        import boto3
        from moto import settings
        from moto.core.responses import ActionAuthenticatorMixin
        from moto.s3.models import s3_backends
        from moto.server import ThreadedMotoServer
    except ImportError as e:
        print(f"not run: {e}; run it with tests/peer-python.sh's Python")
        leave(77)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://%s:%d" % server.get_host_and_port()
    options = dict(endpoint_url=url, region_name="eu-central-1", aws_access_key_id="x", aws_secret_access_key="x")
    s3, iam = boto3.client("s3", **options), boto3.client("iam", **options)
    s3.create_bucket(Bucket="models", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    for name, data in NAMES.items():
        s3.put_object(Bucket="models", Key=name, Body=data)
    for i in range(1005):  # more than one page
        s3_backends["123456789012"]["aws"].put_object("models", f"many/{i:04}", b"%d" % i)
    iam.create_user(UserName="u")
    policy = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]})
    iam.put_user_policy(UserName="u", PolicyName="p", PolicyDocument=policy)
    key = iam.create_access_key(UserName="u")["AccessKey"]
    trust = json.dumps({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "sts:AssumeRoleWithWebIdentity", "Principal": {"Federated": "*"}}]})
    role = iam.create_role(RoleName="r", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    iam.put_role_policy(RoleName="r", PolicyName="p", PolicyDocument=policy)
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0  # from here on each request must be signed, and allowed
    ActionAuthenticatorMixin.request_count = 0
    s3_env.update(AWS_ENDPOINT_URL=url, AWS_REGION="eu-central-1", AWS_ACCESS_KEY_ID=key["AccessKeyId"],
                  AWS_SECRET_ACCESS_KEY=key["SecretAccessKey"])
    return url, role


def s3_file_and_folder():
    got, path = good("s3://models/model/weights.bin", s3_env)
    assert path.read_bytes() == NAMES["model/weights.bin"] and got["sha256"] == sha(path.read_bytes())
    _, path = good("s3://models/model/", s3_env)
    same_folder(path, {k[6:]: v for k, v in NAMES.items() if k.startswith("model/")})
    got, path = good("s3://models/model/sub/dir/ünïcode & <xml> %41.txt", s3_env)
    assert path.read_bytes() == b"u"
    good("s3://models/other", s3_env, sha256=sha(b"not below"))
    bad("s3://models/other", s3_env, "data", "sha256", sha256=sha(b"something else"))
    bad("s3://models/none", s3_env, "not_found", "s3://models/none")
    bad("s3://models/none/", s3_env, "not_found", "nothing below")
    bad("s3://models/a/../b", s3_env, "spec", "..")
    bad("s3://m", s3_env, "spec", "bucket")
    portal = Server(lambda *a: (200, {}, b"<html><body>Sign in</body></html>"))
    bad("s3://models/model/", {**s3_env, "AWS_ENDPOINT_URL": portal.url}, "data", "ListBucketResult")


def s3_many_pages():
    _, path = good("s3://models/many/", s3_env)
    same_folder(path, {f"{i:04}": b"%d" % i for i in range(1005)})


def s3_large(url):
    """By ranges, which only an unchanging ETag holds together."""
    from moto.s3.models import s3_backends
    data = os.urandom(1 << 20) * 70
    s3_backends["123456789012"]["aws"].put_object("models", "large/weights", data)
    proxy = forward(url)
    _, path = good("s3://models/large/", {**s3_env, "AWS_ENDPOINT_URL": proxy.url})
    assert sha((path / "weights").read_bytes()) == sha(data)
    ranges = [h for _, p, h, _ in proxy.seen if "Range" in h]
    assert len(ranges) >= 5, len(ranges)


def s3_wrong_keys():
    secret = CANARY + "wrong"
    bad("s3://models/other", {**s3_env, "AWS_SECRET_ACCESS_KEY": secret}, "denied", "403")
    bad("s3://models/other", {**s3_env, "AWS_ACCESS_KEY_ID": "AKIAUNKNOWN00000000"}, "denied", "403")
    none = {k: v for k, v in s3_env.items() if "KEY" not in k}
    bad("s3://models/other", none, "denied", "403")
    door = Server(lambda *a: (403, {}, b"<?xml version='1.0'?><Error><Message>Access Denied</Message></Error>"))
    bad("s3://models/model/", {**none, "AWS_ENDPOINT_URL": door.url}, "denied", "AWS_ACCESS_KEY_ID")
    assert not any("authorization" in str(h).lower() for _, _, h, _ in door.seen)
    bad("s3://models/other", {**none, "AWS_ACCESS_KEY_ID": "A"}, "spec", "AWS_SECRET_ACCESS_KEY is not")


def s3_flipped_signature(url):
    def flip(method, path, headers, body):
        auth = headers["Authorization"]
        headers["Authorization"] = auth[:-1] + ("0" if auth[-1] != "0" else "1")
        return headers, body
    proxy = forward(url, flip)
    # The Host header, which is signed, goes through unchanged in both cases.
    bad("s3://models/other", {**s3_env, "AWS_ENDPOINT_URL": proxy.url}, "denied", "403")
    proxy = forward(url)
    good("s3://models/other", {**s3_env, "AWS_ENDPOINT_URL": proxy.url})


def s3_keys_from_files(url):
    none = {k: v for k, v in s3_env.items() if "KEY" not in k and "REGION" not in k}
    home = work / "aws"
    home.mkdir()
    (home / "credentials").write_text(
        f"[default]\naws_access_key_id=A\naws_secret_access_key={CANARY}\n\n# the one that is right\n[ train ]\n"
        f"aws_access_key_id = {s3_env['AWS_ACCESS_KEY_ID']}\r\naws_secret_access_key = "
        f"{s3_env['AWS_SECRET_ACCESS_KEY']}\n")
    (home / "config").write_text("[profile train]\nregion = eu-central-1\n[default]\nregion=us-west-2\n")
    files = {**none, "AWS_SHARED_CREDENTIALS_FILE": str(home / "credentials"), "AWS_CONFIG_FILE": str(home / "config")}
    proxy = forward(url)
    good("s3://models/other", {**files, "AWS_PROFILE": "train", "AWS_ENDPOINT_URL": proxy.url})
    assert "/eu-central-1/s3/aws4_request" in proxy.seen[-1][2]["Authorization"]
    bad("s3://models/other", files, "denied", "403")
    bad("s3://models/other", {**files, "AWS_PROFILE": "nobody"}, "spec", "nobody")


def s3_web_identity(url, role):
    from moto import settings

    def open_door(method, path, headers, body):
        """AWS lets this one request in unsigned; moto does not."""
        settings.INITIAL_NO_AUTH_ACTION_COUNT = float("inf")
        return headers, body
    none = {k: v for k, v in s3_env.items() if "KEY" not in k}
    token = work / "token"
    token.write_text("eyJ." + CANARY + "\n")
    sts = forward(url, open_door)
    s3 = forward(url)
    good("s3://models/other", {**none, "AWS_WEB_IDENTITY_TOKEN_FILE": str(token), "AWS_ROLE_ARN": role,
                               "AWS_ENDPOINT_URL_STS": sts.url, "AWS_ENDPOINT_URL_S3": s3.url})
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
    form = urllib.parse.parse_qs(sts.seen[0][3].decode())
    assert form["WebIdentityToken"] == ["eyJ." + CANARY] and form["RoleArn"] == [role], form
    headers = {k.lower(): v for k, v in s3.seen[-1][2].items()}
    assert headers["x-amz-security-token"] and "x-amz-security-token" in headers["authorization"]
    bad("s3://models/other", {**none, "AWS_WEB_IDENTITY_TOKEN_FILE": str(work / "none"), "AWS_ROLE_ARN": role},
        "not_found", "AWS_WEB_IDENTITY_TOKEN_FILE")


def s3_machine_keys():
    """IMDSv2: a token first, without which nothing answers."""
    def imds(method, path, headers, body):
        if method == "PUT" and path == "/latest/api/token" and "X-Aws-Ec2-Metadata-Token-Ttl-Seconds" in {
                k.title() for k in headers}:
            return 200, {}, b"the-token"
        if {k.title(): v for k, v in headers.items()}.get("X-Aws-Ec2-Metadata-Token") != "the-token":
            return 401, {}, b""
        if path == "/latest/meta-data/iam/security-credentials/":
            return 200, {}, b"role-1"
        if path == "/latest/meta-data/placement/region":
            return 200, {}, b"eu-central-1"
        assert path.endswith("/role-1")
        soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
        return 200, {}, json.dumps({"Code": "Success", "AccessKeyId": s3_env["AWS_ACCESS_KEY_ID"],
                                    "SecretAccessKey": s3_env["AWS_SECRET_ACCESS_KEY"], "Expiration": soon}).encode()
    server = Server(imds)
    none = {k: v for k, v in s3_env.items() if "KEY" not in k and "REGION" not in k}
    good("s3://models/other", {**none, "AWS_EC2_METADATA_DISABLED": "false",
                               "AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url})


def s3_redirect_is_not_followed():
    other = Server(lambda *a: (200, {}, b"x"))
    first = Server(lambda *a: (307, {"Location": other.url.replace("127.0.0.1", "localhost") + "/x"}, b""))
    bad("s3://models/other", {**s3_env, "AWS_ENDPOINT_URL": first.url, "AWS_SESSION_TOKEN": CANARY}, "spec", "307")
    assert first.seen and not other.seen


# ---- Google Cloud Storage ---------------------------------------------------------------------------------------

def gs_objects():
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding, rsa
    from gcp_storage_emulator.server import create_server
    emulator = create_server("127.0.0.1", 0, in_memory=True, default_bucket="models")
    emulator.start()
    upstream = "http://127.0.0.1:%d" % emulator._api._httpd.server_port if hasattr(emulator, "_api") else None
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    token = "ya29." + CANARY

    def tokens(method, path, headers, body):
        """The token service, which checks the assertion's signature and claims."""
        form = urllib.parse.parse_qs(body.decode())
        head, claims, signature = form["assertion"][0].split(".")
        pad = lambda s: base64.urlsafe_b64decode(s + "=" * (-len(s) % 4))
        key.public_key().verify(pad(signature), f"{head}.{claims}".encode(), padding.PKCS1v15(), hashes.SHA256())
        claims = json.loads(pad(claims))
        assert claims["iss"] == "me@project" and claims["exp"] > time.time() and claims["aud"].endswith("/token")
        assert "devstorage" in claims["scope"] and "jwt-bearer" in form["grant_type"][0]
        return 200, {}, json.dumps({"access_token": token, "expires_in": 3600}).encode()
    service = Server(tokens)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                            serialization.NoEncryption()).decode()
    key_file = work / "key.json"
    key_file.write_text(json.dumps({"type": "service_account", "client_email": "me@project", "private_key": pem,
                                    "token_uri": service.url + "/token"}))
    inner = forward(upstream)

    def gate(method, path, headers, body):
        if headers.get("Authorization") != "Bearer " + token:
            return 401, {}, b'{"error": {"message": "no token"}}'
        headers.pop("Authorization")
        r = urllib.request.Request(inner.url + path, data=body or None, headers=headers, method=method)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(r, timeout=60) as answer:
                return answer.status, dict(answer.headers.items()), answer.read()
        except urllib.error.HTTPError as e:
            return e.code, dict(e.headers.items()), e.read()
    front = Server(gate)
    names = {"model/a.txt": b"a", "model/sub/b c.bin": os.urandom(100_000), "top": b"t"}
    for name, data in names.items():
        urllib.request.urlopen(urllib.request.Request(
            f"{upstream}/upload/storage/v1/b/models/o?uploadType=media&name={urllib.parse.quote(name, safe='')}",
            data=data, method="POST", headers={"Content-Type": "application/octet-stream"})).read()
    env = {"STORAGE_EMULATOR_HOST": front.url, "GOOGLE_APPLICATION_CREDENTIALS": str(key_file)}
    try:
        got, path = good("gs://models/top", env)
        assert path.read_bytes() == b"t" and got["sha256"] == sha(b"t")
        _, path = good("gs://models/model/", env)
        same_folder(path, {k[6:]: v for k, v in names.items() if k.startswith("model/")})
        bad("gs://models/none", env, "not_found", "gs://models/none")
        bad("gs://models/top", {"STORAGE_EMULATOR_HOST": front.url}, "denied", "no token")
        # the machine's own account
        meta = Server(lambda m, p, h, b: (200, {}, json.dumps({"access_token": token, "expires_in": 3600}).encode())
                      if h.get("Metadata-Flavor") == "Google" else (403, {}, b""))
        good("gs://models/top", {"STORAGE_EMULATOR_HOST": front.url,
                                 "GCE_METADATA_HOST": meta.url.removeprefix("http://")})
        key_file.write_text("{}")
        bad("gs://models/top", env, "spec", "service account")
    finally:
        emulator.stop()


# ---- Hugging Face -----------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """As huggingface.co answers: the repository's listing, small files directly, large ones by way of another host."""

    def __init__(self, private=True):
        self.token = "hf_" + CANARY
        self.files = {"config.json": b'{"a": 1}', "model.safetensors": os.urandom(400_000), "sub/vocab.txt": b"v\n" * 99}
        self.lfs = {"model.safetensors"}
        self.lie = None
        self.cdn = Server(self.on_cdn)
        self.hub = Server(self.on_hub)
        self.private = private

    def on_cdn(self, method, path, headers, body):
        return self.ranged(self.files[urllib.parse.unquote(path[len("/cdn/"):]).split("?")[0]], headers)

    def ranged(self, data, headers):
        asked = headers.get("Range")
        if not asked:
            return 200, {"ETag": '"%s"' % sha(data), "Accept-Ranges": "bytes"}, data
        first, last = asked.removeprefix("bytes=").split("-")
        first, last = int(first), min(int(last or len(data) - 1), len(data) - 1)
        return 206, {"Content-Range": f"bytes {first}-{last}/{len(data)}", "ETag": '"%s"' % sha(data)}, \
            data[first:last + 1]

    def on_hub(self, method, path, headers, body):
        if self.private and headers.get("Authorization") != "Bearer " + self.token:
            return 401, {}, b'{"error": "Invalid username or password."}'
        path = path.split("?")[0]
        if path in ("/api/models/org/squad/revision/main", "/api/models/org/squad/revision/refs%2Fpr%2F1"):
            siblings = []
            for name, data in self.files.items():
                item = {"rfilename": name, "size": len(data),
                        "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
                if name in self.lfs:
                    item["lfs"] = {"sha256": sha(data), "size": len(data), "pointerSize": 134}
                siblings.append(item)
            return 200, {}, json.dumps({"id": "org/squad", "sha": COMMIT, "siblings": siblings}).encode()
        prefix = f"/org/squad/resolve/{COMMIT}/"
        if path.startswith(prefix):
            name = urllib.parse.unquote(path[len(prefix):])
            if name in self.lfs:
                to = self.cdn.url.replace("127.0.0.1", "localhost") + "/cdn/" + name + "?signed=1"
                return 302, {"Location": to, "X-Linked-Etag": '"%s"' % sha(self.files[name])}, b""
            data = self.files[name]
            return self.ranged(self.lie or data, headers)
        return 404, {"X-Error-Code": "RepoNotFound"}, b'{"error": "Repository not found"}'


def hf_repository():
    hub = Hub()
    env = {"HF_ENDPOINT": hub.hub.url, "HF_TOKEN": hub.token}
    _, path = good("hf://org/squad", env)
    same_folder(path, hub.files)
    _, path = good("hf://org/squad@refs%2Fpr%2F1/", env)
    got, path = good("hf://org/squad@main/model.safetensors", env)
    assert got["sha256"] == sha(hub.files["model.safetensors"]) == sha(path.read_bytes())
    _, path = good("hf://org/squad/sub/vocab.txt", env)
    assert path.read_bytes() == hub.files["sub/vocab.txt"]
    assert hub.cdn.seen and not any("Authorization" in h or CANARY in str((p, h, b)) for _, p, h, b in hub.cdn.seen)
    bad("hf://org/squad/none", env, "not_found", "none")
    bad("hf://org/nothing", env, "not_found", "hf://org/nothing")
    bad("hf://org", env, "spec", "hf://ORG/NAME")
    bad("hf://org/squad@../x", env, "spec", "hf://ORG/NAME")
    bad("hf://org/squad", {"HF_ENDPOINT": hub.hub.url}, "denied", "HF_TOKEN")
    token = work / "hf-token"
    token.write_text(hub.token + "\n")
    good("hf://org/squad/config.json", {"HF_ENDPOINT": hub.hub.url, "HF_TOKEN_PATH": str(token)})


def hf_changed_file():
    """A small file has no sha256 there, but the name of git's blob."""
    hub = Hub(private=False)
    hub.lie = b'{"a": 2}'
    bad("hf://org/squad/config.json", {"HF_ENDPOINT": hub.hub.url}, "data", "config.json")
    hub.lie = None
    good("hf://org/squad/config.json", {"HF_ENDPOINT": hub.hub.url})


def hf_second_time():
    hub = Hub()
    env = {"HF_ENDPOINT": hub.hub.url, "HF_TOKEN": hub.token}
    cache = work / "hf-cache"
    good("hf://org/squad", env, cache=cache)
    n = len(hub.cdn.seen)
    _, path = good("hf://org/squad", env, cache=cache)
    same_folder(path, hub.files)
    assert len(hub.cdn.seen) == n


# ---- secrets ----------------------------------------------------------------------------------------------------

def no_secret_is_anywhere():
    secrets = [CANARY, s3_env["AWS_SECRET_ACCESS_KEY"]]
    for text in outputs:
        assert not any(s in text for s in secrets)
    mine = {work / "aws" / "credentials", work / "token", work / "hf-token", work / "key.json"}
    for p in work.rglob("*"):
        if p.is_file() and not p.is_symlink() and p not in mine:
            data = p.read_bytes()
            assert not any(s.encode() in data for s in secrets), p


def main():
    url, role = start_s3()
    check("s3: files and folders, odd names, what is missing", s3_file_and_folder)
    check("s3: a listing of several pages", s3_many_pages)
    check("s3: a large file, by ranges", s3_large, url)
    check("s3: wrong keys and none are refused", s3_wrong_keys)
    check("s3: a flipped byte of the signature is refused", s3_flipped_signature, url)
    check("s3: keys and region from files, by profile", s3_keys_from_files, url)
    check("s3: keys by web identity, with a session token", s3_web_identity, url, role)
    check("s3: keys of the machine, by IMDSv2", s3_machine_keys)
    check("s3: a redirect to another host gets no keys", s3_redirect_is_not_followed)
    check("gs: files and folders, by service account and by the machine's", gs_objects)
    check("hf: a repository, one file, a revision; the token stays with the hub", hf_repository)
    check("hf: a file that is not git's blob is refused", hf_changed_file)
    check("hf: the second time nothing large is transferred", hf_second_time)
    check("secrets are found nowhere", no_secret_is_anywhere)
    return 1 if failed else 0


if __name__ == "__main__":
    leave(main())
