#!/usr/bin/env python3
"""/metrics of server and agent, read by prometheus_client's parser."""
import json, os, subprocess, sys, urllib.error, urllib.request
from queue_fixture import HERE, TOKEN, World, tap, wait

PYTHON = subprocess.run([HERE + "/../peer-python.sh", "around"], capture_output=True, text=True)
if PYTHON.returncode:
    print("not run: no prometheus_client:", PYTHON.stderr[-300:])
    sys.exit(77)
PARSE = ("import sys, json; from prometheus_client.parser import text_string_to_metric_families as f; "
         "print(json.dumps({m.name: [m.type, [[s.name, s.labels, s.value] for s in m.samples]] for m in f(sys.stdin.read())}))")
w = World(serve=["--keep-finished", "1"])
w.put("model", "m\n")
w.put("data", '{"a": "b"}\n')


def read(url, token=None):
    """{(sample, label values...): number} and {family: type}."""
    req = urllib.request.Request(url, headers={"Authorization": "Bearer " + token} if token else {})
    with urllib.request.urlopen(req, timeout=30) as r:
        assert r.headers["Content-Type"].startswith("text/plain; version=0.0.4"), r.headers
        text = r.read().decode()
    r = subprocess.run([PYTHON.stdout.strip(), "-c", PARSE], input=text, capture_output=True, text=True)
    assert r.returncode == 0, (r.stderr[-500:], text)
    families = json.loads(r.stdout)
    return ({(name, *(labels[k] for k in sorted(labels))): value for f in families.values() for name, labels, value in f[1]},
            {name: f[0] for name, f in families.items()})


def server():
    return read(w.url + "/metrics", TOKEN)[0]


def the_server_tells_of_queues_projects_and_agents():
    odd = 'odd "name" \\ and more'
    status, _ = w.api("POST", "/api/v1/queues/default", {"state": "paused"})
    assert status == 200
    w.enqueue("fake.2.10.ok")
    w.enqueue("fake.2.10.ok", resources={"labels": ["zone=moon"]})
    samples = wait(lambda: (lambda s: s if s.get(("softlaunch_queue_runs", "cpu+zone=moon", "default", "held")) == 1 else None)(server()),
                   60, "both runs are held")
    assert samples[("softlaunch_queue_state", "default", "paused")] == 1
    assert samples[("softlaunch_queue_runs", "cpu", "default", "held")] == 1, samples
    assert samples[("softlaunch_redis_up",)] == 1
    a = w.agent(more=["--label", "note=" + "x", "--metrics", "127.0.0.1:0"])
    name = wait(lambda: w.api("GET", "/api/v1/agents")[1]["agents"], 60, "the agent is there")[0]["agent"]
    samples = server()
    assert samples[("softlaunch_agent_state", name, "idle")] == 1, samples
    assert samples[("softlaunch_agent_seen_seconds", name)] < 600
    w.api("POST", "/api/v1/queues/default", {"state": "active"})
    wait(lambda: server().get(("softlaunch_queue_served", "cpu+zone=moon", "default")) == 0, 120, "nobody serves the moon")
    wait(lambda: server().get(("softlaunch_queue_runs", "cpu", "default", "ready"), 0) == 0, 60, "the other run has gone")
    w.end(a)


def requests_are_counted_by_route():
    before, types = read(w.url + "/metrics", TOKEN)
    for i in range(5):
        w.api("GET", "/api/v1/runs/" + "0" * 32)
    after = wait(lambda: (lambda s: s if s.get(("softlaunch_http_requests_total", "4xx", "GET", "/api/v1/runs/{run}"), 0)
                          - before.get(("softlaunch_http_requests_total", "4xx", "GET", "/api/v1/runs/{run}"), 0) == 5 else None)(server()),
                 60, "five requests counted")
    assert types["softlaunch_http_request_seconds"] == "histogram" and types["process_open_fds"] == "gauge", types
    route = ("GET", "/api/v1/runs/{run}")
    buckets = [v for k, v in sorted(((float(k[1]), v) for k, v in after.items()
                                     if k[0] == "softlaunch_http_request_seconds_bucket" and k[2:] == route))]
    assert len(buckets) == 11 and buckets == sorted(buckets), buckets
    assert buckets[-1] == after[("softlaunch_http_request_seconds_count", *route)], buckets
    assert after[("process_resident_memory_bytes",)] > 1 << 20 and 1.6e9 < after[("process_start_time_seconds",)] < 4e9


def without_the_token_nothing_is_told():
    for path in ("/metrics",):
        try:
            urllib.request.urlopen(w.url + path, timeout=30)
            raise AssertionError("answered without a token")
        except urllib.error.HTTPError as e:
            assert e.code == 401, e


def the_agent_tells_of_itself_and_goes_on():
    a = w.agent("told", more=["--metrics", "127.0.0.1:0"])
    line = wait(lambda: next((json.loads(l) for l in open(a.log) if "metrics on port" in l), None), 60, "the agent answers")
    url = "http://127.0.0.1:" + line["msg"].split()[-1]
    wait(lambda: read(url + "/metrics")[0][("softlaunch_redis_up",)] == 1, 60, "Redis is up")
    run = w.enqueue("fake.2.10.ok")
    bad = w.enqueue("fake.2.10.spec")
    assert w.ended(run, 120)["state"] == "succeeded"
    assert w.ended(bad, 120)["state"] == "failed"
    samples = wait(lambda: (lambda s: s if s[("softlaunch_agent_runs_total", "failed")] == 1 else None)(read(url + "/metrics")[0]),
                   60, "the agent has counted")
    assert samples[("softlaunch_agent_runs_total", "published")] == 1, samples
    assert samples[("softlaunch_agent_quarantined",)] == 0
    assert samples[("softlaunch_agent_slots", "idle")] + samples[("softlaunch_agent_slots", "claiming")] == 1, samples
    try:
        urllib.request.urlopen(url + "/other", timeout=30)
        raise AssertionError("there is more than /metrics")
    except urllib.error.HTTPError as e:
        assert e.code == 404
    assert w.end(a, timeout=60) == 0


def with_redis_away_the_server_says_so():
    w.redis.kill()
    w.redis.wait()
    samples = wait(lambda: (lambda s: s if s[("softlaunch_redis_up",)] == 0 else None)(server()), 60, "Redis is missed")
    assert not any(k[0] == "softlaunch_queue_running" for k in samples)


tap(w, [the_server_tells_of_queues_projects_and_agents, requests_are_counted_by_route, without_the_token_nothing_is_told,
        the_agent_tells_of_itself_and_goes_on, with_redis_away_the_server_says_so])
