#!/usr/bin/env python3
"""What a token of one project sees of jobs, the registry, lineage, agents and /metrics, with real runs of two projects.
Environment: SL_BIN. Prints TAP. Runs, artifacts and accounts: auth.py."""
import os, sys, urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from job_fixture import Jobs, make_job, tap, wait

w = Jobs()
token, made = {}, {}


def ask(who, method, path, body=None):
    """Status and answer; who: a user, or None for the administrator."""
    return w.api(method, path, body, **({"Authorization": "Bearer " + token[who]} if who else {}))


def must(answer, *statuses):
    assert answer[0] in statuses, f"expected {statuses}: {answer[0]} {answer[1]}"
    return answer[1]


def spec(project, name, **config):
    s = make_job(name, **config)
    s["project"] = project
    s["outputs"]["register"] = "model-of-" + project
    return s


def two_projects():
    for user, projects in (("ann", ["alpha"]), ("ben", ["beta"]), ("cleo", ["alpha", "beta"])):
        must(ask(None, "POST", "/api/v1/users", {"user": user, "role": "member", "projects": projects}), 201)
        token[user] = must(ask(None, "POST", "/api/v1/tokens", {"user": user}), 201)["token"]
    made["agent"] = w.agent(more=("--slots", "1"))
    for user, project in (("ann", "alpha"), ("ben", "beta")):
        made[project] = must(ask(user, "POST", "/api/v1/runs", spec(project, "of-" + project, trainer__max_steps=4, trainer__val_check_interval=2)), 201)["run"]
    for project in ("alpha", "beta"):
        assert w.ended(made[project], 60)["state"] == "succeeded"


def jobs():
    must(ask("ann", "PUT", "/api/v1/jobs/anns", {"from": made["alpha"]}), 200)
    must(ask("ben", "PUT", "/api/v1/jobs/bens", {"from": made["beta"]}), 200)
    must(ask("ann", "PUT", "/api/v1/jobs/stolen", {"from": made["beta"]}), 404)
    must(ask("ann", "PUT", "/api/v1/jobs/bens", {"from": made["alpha"]}), 403)
    for user, names in (("ann", ["anns"]), ("ben", ["bens"]), ("cleo", ["anns", "bens"]), (None, ["anns", "bens"])):
        listed = must(ask(user, "GET", "/api/v1/jobs"), 200)["jobs"]
        assert [j["job"] for j in listed] == names, (user, listed)
    assert [j["project"] for j in listed] == ["alpha", "beta"], listed
    must(ask("ann", "GET", "/api/v1/jobs/bens"), 404)
    must(ask("ann", "GET", "/api/v1/jobs/bens?version=0"), 404)
    must(ask("ann", "POST", "/api/v1/jobs/bens/runs", {}), 404)
    run = must(ask("ann", "POST", "/api/v1/jobs/anns/runs", {"parameters": {"seed": 5}}), 201)["run"]
    r = w.ended(run, 60)
    assert (r["project"], r["created_by"], r["state"]) == ("alpha", "ann", "succeeded"), r


def the_registry():
    for user, names in (("ann", ["model-of-alpha"]), ("ben", ["model-of-beta"]), (None, ["model-of-alpha", "model-of-beta"])):
        listed = must(ask(user, "GET", "/api/v1/registry"), 200)["models"]
        assert [m["model"] for m in listed] == names, (user, listed)
    assert [m["project"] for m in listed] == ["alpha", "beta"], listed
    model = must(ask("ann", "GET", "/api/v1/registry/model-of-alpha"), 200)
    assert model["versions"][0]["by"] == "ann" and model["stages"]["candidate"]["by"] == "ann", model
    must(ask("ann", "GET", "/api/v1/registry/model-of-beta"), 404)
    of_ann, of_ben = {"artifact": "of-alpha", "version": "v0"}, {"artifact": "of-beta", "version": "v0"}
    must(ask("ben", "PUT", "/api/v1/registry/model-of-alpha/stages/production", of_ben), 403)
    must(ask("ben", "PUT", "/api/v1/registry/model-of-beta/stages/production", of_ann), 404)
    must(ask("ben", "POST", "/api/v1/registry/new/versions", of_ann), 404)
    must(ask("ben", "DELETE", "/api/v1/registry/model-of-alpha/stages/candidate"), 404)
    must(ask("ann", "PUT", "/api/v1/registry/model-of-alpha/stages/production", of_ann), 200)
    model = must(ask("ann", "DELETE", "/api/v1/registry/model-of-alpha/stages/production"), 200)
    assert [(h["stage"], h["by"], h["version"]) for h in model["history"][-2:]] == [("production", "ann", "v0"), ("production", "ann", None)], model
    assert must(ask("ben", "POST", "/api/v1/registry/bens/versions", of_ben), 200)["project"] == "beta"
    # What everybody has is everybody's to read, and a model of it belongs to who makes it, unless that is not one project.
    words = {"artifact": "words", "version": "v0"}
    assert must(ask("ann", "POST", "/api/v1/registry/anns/versions", words), 200)["project"] == "alpha"
    must(ask("cleo", "POST", "/api/v1/registry/cleos/versions", words), 403)
    assert "project" not in must(ask(None, "POST", "/api/v1/registry/shared/versions", words), 200)
    must(ask("ben", "GET", "/api/v1/registry/shared"), 200)
    must(ask("ben", "PUT", "/api/v1/registry/shared/stages/production", of_ben), 403)
    # A run is no way around that.
    bad = spec("beta", "evil")
    bad["outputs"]["register"] = "model-of-alpha"
    assert "outputs.register" in must(ask("ben", "POST", "/api/v1/runs", bad), 403)["detail"]


def lineage():
    def labels(user, ref):
        graph = must(ask(user, "GET", f"/api/v1/lineage/{ref}"), 200)
        ids = {n["id"] for n in graph["nodes"]}
        assert graph["root"] in ids and {e[k] for e in graph["edges"] for k in ("from", "to")} <= ids, graph
        return {n["label"] for n in graph["nodes"]}, graph.get("hidden", False)
    whole, hidden = labels(None, "words/v0")
    assert {"words:v0", "of-alpha:v0", "of-beta:v0"} <= whole and not hidden, whole
    ann, hidden = labels("ann", "words/v0")
    assert {"words:v0", "of-alpha", "of-alpha:v0"} <= ann and hidden, ann
    assert not any("beta" in label for label in ann), ann
    assert labels("cleo", "words/v0") == (whole, False)
    must(ask("ann", "GET", "/api/v1/lineage/of-beta/v0"), 404)
    must(ask("ann", "GET", "/api/v1/lineage/of-beta/candidate"), 404)
    nowhere = must(ask("ann", "GET", "/api/v1/lineage/nowhere/v0"), 404)
    assert "alpha" not in nowhere["detail"], nowhere


def agents():
    run = must(ask("ben", "POST", "/api/v1/runs", spec("beta", "long", trainer__max_steps=1_000_000, trainer__val_check_interval=100_000)), 201)["run"]

    def seen(user):
        return must(ask(user, "GET", "/api/v1/agents"), 200)["agents"][0]
    wait(lambda: seen(None)["runs"], 60, "the agent tells of its run")
    assert [r["run"] for r in seen("ben")["runs"]] == [run] and seen("ben")["other_runs"] == 0
    anns = seen("ann")
    assert anns["runs"] == [] and anns["other_runs"] == 1 and "long" not in str(anns), anns
    must(ask("ben", "POST", f"/api/v1/runs/{run}/cancel"), 200, 202)
    w.ended(run, 60)


def metrics():
    def text(user):
        r = urllib.request.Request(w.url + "/metrics", headers={"Authorization": "Bearer " + token[user]})
        with urllib.request.urlopen(r, timeout=60) as answer:
            return answer.read().decode()
    anns = text("ann")
    assert 'project="alpha"' in anns and 'project="beta"' not in anns and "softlaunch_redis_up 1" in anns, anns
    assert 'project="alpha"' in text("cleo") and 'project="beta"' in text("cleo")


def an_administrator_of_one_project():
    must(ask(None, "POST", "/api/v1/users", {"user": "ada", "role": "admin", "projects": ["alpha"]}), 201)
    token["ada"] = must(ask(None, "POST", "/api/v1/tokens", {"user": "ada"}), 201)["token"]
    must(ask("ada", "POST", "/api/v1/projects/alpha", {"max_running": 3}), 200)
    must(ask("ada", "POST", "/api/v1/projects/beta", {"max_running": 3}), 403, 404)
    for method, path, body in (("POST", "/api/v1/queues/default", {"state": "paused"}), ("GET", "/api/v1/users", None), ("GET", "/api/v1/audit", None),
                               ("POST", "/api/v1/users", {"user": "x", "role": "admin"}), ("PUT", "/api/v1/webhooks/x", {"url": "http://example.com/", "events": ["failed"]}),
                               ("POST", "/api/v1/reindex", None)):
        said = must(ask("ada", method, path, body), 403)["detail"]
        assert "ada" in said and "alpha" in said and "all projects" in said, (path, said)


tap(w, [two_projects, jobs, the_registry, lineage, agents, metrics, an_administrator_of_one_project])
