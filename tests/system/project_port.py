#!/usr/bin/env python3
"""A project from one server to another by `softlaunch projects export` and `import`: the same digests, lineage, aliases, models, jobs and
runs; twice changes nothing; what is damaged or in the way is refused."""
import hashlib, io, tarfile
from job_fixture import *

w = Jobs(serve=("--keep-finished", "1"))
v = World(serve=("--keep-finished", "1"))  # the other one, empty
made = {}


def command(world, *args, fails=None):
    r = world.command(*args, timeout=120)
    assert (r.returncode == 0) if fails is None else (r.returncode == 1 and fails in r.stderr), (args, r.returncode, r.stdout, r.stderr)
    return r


def other(text):
    """A file for the other server."""
    with open(v.dir + "/file", "w") as f:
        f.write(text)
    return v.dir + "/file"


def archived(world):
    """{run: (record, events)} of the archive's runs."""
    out = {}
    for r in world.api("GET", "/api/v1/runs?limit=100")[1]["runs"]:
        status, events = world.api("GET", f"/api/v1/runs/{r['run']}/events?limit=1000")
        out[r["run"]] = (world.api("GET", f"/api/v1/runs/{r['run']}")[1], events["events"],
                         {k: r.get(k) for k in ("notes", "tags")})
    return out


def everything(world):
    """What a user can see of the project."""
    artifacts = {a["name"]: world.api("GET", f"/api/v1/artifacts/{a['name']}")[1]
                 for a in world.api("GET", "/api/v1/artifacts")[1]["artifacts"] if a.get("project") == "team"}
    records = {f"{n}:{r['version']}": world.api("GET", f"/api/v1/artifacts/{n}/versions/{r['version']}")[1]
               for n, a in artifacts.items() for r in a["versions"]}
    lineage = {}
    for ref in records:
        g = json.loads(command(world, "artifact", "lineage", "--json", ref).stdout)
        lineage[ref] = (sorted(json.dumps(n, sort_keys=True) for n in g["nodes"]),
                        sorted(json.dumps(e, sort_keys=True) for e in g["edges"]))
    jobs = {j["job"]: world.api("GET", f"/api/v1/jobs/{j['job']}")[1] for j in world.api("GET", "/api/v1/jobs")[1]["jobs"]}
    return {"artifacts": artifacts, "records": records, "lineage": lineage, "jobs": jobs, "runs": archived(world),
            "colours": world.api("GET", "/api/v1/registry/colours")}


def a_project_with_everything():
    job = make_job("first", trainer__max_steps=2, trainer__val_check_interval=2)
    job["project"] = "team"
    job["outputs"] = {"artifact": "first", "aliases": ["best"], "register": "colours"}
    command(w, "artifact", "put", "ours", w.write("a", "one"), "--project", "team", "--alias", "stable")
    command(w, "artifact", "put", "ours", w.write("a", "two"), "--project", "team")
    command(w, "artifact", "put", "ours", w.write("a", "three"), "--project", "team")
    command(w, "artifact", "rm", "ours:v1")
    command(w, "artifact", "put", "others", w.write("b", "not ours"), "--project", "elsewhere")
    agent = w.agent()
    r = w.ended(w.submit(job), 120)
    assert r["state"] == "succeeded", r
    w.until(r["run"], lambda r: "bytes" in r["outputs"][0], 60)
    made["run"] = r["run"]
    command(w, "job", "create", "letters", "--from", r["run"], "--param", "lr=model.optim.lr:number:1e-4..0.1")
    w.end(agent)
    command(w, "runs", "note", r["run"], "--tag", "kept", "--note", "the first of all")
    # until it is in the archive, the export says that it is not there
    wait(lambda: json.loads(command(w, "projects", "export", "team", w.dir + "/team.tar", "--json").stdout)["live_runs"] == 0, 60,
         "the run's archiving")
    names = tarfile.open(w.dir + "/team.tar").getnames()
    assert names[0] == "softlaunch-export.json" and names[-2:] == ["entries.ndjson", "SHA256SUMS"], names
    # as sha256sum has it, and no file of others
    os.makedirs(w.dir + "/x")
    subprocess.run(["tar", "-xf", w.dir + "/team.tar", "-C", w.dir + "/x"], check=True)
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=w.dir + "/x", check=True)
    assert hashlib.sha256(b"not ours").hexdigest() not in str(names), names
    assert hashlib.sha256(b"two").hexdigest() not in str(names), names  # of the deleted version
    assert not [n for n in os.listdir(w.dir) if ".tmp-" in n or n.endswith(".part")], os.listdir(w.dir)


def an_empty_server_gets_all_of_it():
    said = json.loads(command(v, "projects", "import", w.dir + "/team.tar", "--json").stdout)
    assert said["project"] == "team" and said["unchanged"] == 0 and said["changed"] > 8 and not said["kept"], said
    a, b = everything(w), everything(v)
    assert made["run"] in b["runs"] and len(b["runs"][made["run"]][1]) > 3 and b["jobs"] and b["colours"][0] == 200, b
    for key in a:
        assert a[key] == b[key], (key, a[key], b[key])
    assert b["runs"][made["run"]][2] == {"notes": "the first of all", "tags": ["kept"]}, b["runs"][made["run"]][2]
    command(v, "artifact", "verify", "--hash")
    # the inputs that are everybody's came along, and the files are those
    command(v, "artifact", "get", "words:v0", v.dir + "/words")
    assert open(v.dir + "/words/train.jsonl").read() == rows(64)
    # a deleted version's number is not used again
    assert "ours:v3" in command(v, "artifact", "put", "ours", other("four"), "--project", "team").stdout
    command(v, "artifact", "rm", "ours:v3")


def twice_changes_nothing():
    before = everything(v)
    said = json.loads(command(v, "projects", "import", w.dir + "/team.tar", "--json").stdout)
    assert said["changed"] == 0 and said["unchanged"] > 8 and not said["kept"], said
    assert everything(v) == before
    # Nor does what came back from there change anything where it was made.
    command(v, "projects", "export", "team", v.dir + "/back.tar")
    before = everything(w)
    said = json.loads(command(w, "projects", "import", v.dir + "/back.tar", "--json").stdout)
    assert said["changed"] == 1 and everything(w) == before, said  # the deletion of v3, which was never here


def what_is_here_stays():
    command(v, "artifact", "alias", "ours:v2", "stable")
    command(v, "registry", "unstage", "colours", "candidate")
    command(v, "runs", "note", made["run"], "--note", "ours now")
    r = command(v, "projects", "import", w.dir + "/team.tar", "--json")
    said = json.loads(r.stdout)
    assert said["kept"] == ["ours:stable stays at v2", f"the notes and tags of run {made['run'][:12]} stay as they are here"], said
    assert said["changed"] == 1, said  # the stage came back
    assert v.api("GET", "/api/v1/artifacts/ours/stable")[1]["version"] == "v2"
    command(w, "artifact", "put", "clash", w.write("d", "here"), "--project", "team")
    command(w, "projects", "export", "team", w.dir + "/more.tar")
    command(v, "artifact", "put", "clash", other("there"), "--project", "team")
    command(v, "projects", "import", w.dir + "/more.tar", fails="clash:v0 is here with other content")
    command(v, "artifact", "rm", "clash:v0")
    command(v, "artifact", "put", "owned", other("there"), "--project", "elsewhere")
    command(w, "artifact", "put", "owned", w.write("d", "here"), "--project", "team")
    command(w, "projects", "export", "team", w.dir + "/owned.tar")
    command(v, "projects", "import", w.dir + "/owned.tar", fails="artifact owned is here, and of project elsewhere")


def again(change, name="changed.tar"):
    """The export with its files changed by change(name, bytes) -> bytes, None (left out), or a list of (name, bytes)."""
    path = w.dir + "/" + name
    with tarfile.open(w.dir + "/team.tar") as old, tarfile.open(path, "w") as new:
        for member in old:
            data = change(member.name, old.extractfile(member).read())
            for n, d in data if isinstance(data, list) else [(member.name, data)] if data is not None else []:
                info = tarfile.TarInfo(n)
                info.size = len(d)
                new.addfile(info, io.BytesIO(d))
    return path


def what_is_damaged_is_refused():
    u = World()
    try:
        blob = next(n for n in tarfile.open(w.dir + "/team.tar").getnames() if n.startswith("blobs/"))
        sums = lambda n, d: n == "SHA256SUMS"
        cases = [(lambda n, d: d[:-1] + b"?" if n == blob else d, "wrong sha256"),
                 (lambda n, d: d.replace(b"first", b"third") if n == "entries.ndjson" else d, "wrong sha256"),
                 (lambda n, d: None if n == "SHA256SUMS" else d, "ends early"),
                 (lambda n, d: d + d[:100] if sums(n, d) else d, "differ"),
                 (lambda n, d: d[d.index(b"\n") + 1:] if sums(n, d) else d, "does not name all"),
                 (lambda n, d: [("../out", b"x"), (n, d)] if sums(n, d) else d, "cannot stand in it"),
                 (lambda n, d: [("other", b"x"), (n, d)] if sums(n, d) else d, "wrong sha256"),
                 (lambda n, d: None if n == "softlaunch-export.json" else d, "not an export"),
                 (lambda n, d: d.replace(b"export/v1", b"export/v9") if n == "softlaunch-export.json" else d, "export/v9")]
        for change, says in cases:
            command(u, "projects", "import", again(change), fails=says)
        with open(w.dir + "/team.tar", "rb") as f:
            data = f.read()
        with open(w.dir + "/short.tar", "wb") as f:
            f.write(data[:len(data) * 2 // 3])
        command(u, "projects", "import", w.dir + "/short.tar", fails="short.tar")
        command(u, "projects", "import", w.write("text.tar", "not a tarball\n" * 999), fails="text.tar")
        command(u, "projects", "import", w.dir + "/none.tar", fails="none.tar")
        command(u, "projects", "export", "../x", w.dir + "/y.tar", fails="not a project's name")
        command(u, "projects", "export", "nobody", w.dir + "/nobody.tar", fails="nothing that can be exported")
        assert not os.path.exists(w.dir + "/nobody.tar") and not os.path.exists(w.dir + "/nobody.tar.part")
        assert not u.api("GET", "/api/v1/artifacts")[1]["artifacts"]
        assert not os.path.exists(w.dir + "/y.tar") and not os.path.exists(w.dir + "/../out")
        # Records that lie: digests hold, and the server judges each line.
        for entry, status in (({"kind": "version", "record": {"name": "x", "version": "v0", "number": 0, "manifest": "0" * 64, "created": "",
                                                             "bytes": 1}}, 404),
                              ({"kind": "version", "record": {"name": "../x", "version": "v0", "number": 0}}, 422),
                              ({"kind": "marker", "run": "../../x", "output": "o", "marker": {"name": "x", "number": 0}}, 422),
                              ({"kind": "job", "job": {"job": "../x", "version": 0, "spec": {"project": "team"}}}, 422),
                              ({"kind": "run", "run": {"run": "../x", "state": "dead", "seq": 1, "project": "team"}}, 404),
                              ({"kind": "model", "model": {"model": "m", "created": "", "versions": [{"artifact": "x", "version": "v0"}]}}, 404),
                              ({"kind": "what"}, 422)):
            got = post(u, json.dumps(entry) + "\n")
            assert got == status, (entry, got)
        assert post(u, "{}") == 422 and post(u, "nonsense\n") == 422
    finally:
        u.close()


def post(world, text):
    import urllib.error, urllib.request
    r = urllib.request.Request(world.url + "/api/v1/projects/team/import", data=text.encode(), method="POST",
                               headers={"Authorization": "Bearer " + TOKEN, "Content-Type": "application/x-ndjson"})
    try:
        with urllib.request.urlopen(r, timeout=30) as a:
            return a.status
    except urllib.error.HTTPError as e:
        return e.code


def both_close():
    v.close()


tap(w, [a_project_with_everything, an_empty_server_gets_all_of_it, twice_changes_nothing, what_is_here_stays, what_is_damaged_is_refused,
     both_close])
