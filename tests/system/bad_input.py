#!/usr/bin/env python3
"""What people get wrong and what breaks around a run: each ends cleanly, with words that say what, where, and what to do."""
import time
from job_fixture import *

w = Jobs(lease_ms=1500)


def enqueue(spec, *overrides):
    return w.command("enqueue", w.write("spec.json", spec if isinstance(spec, str) else json.dumps(spec)), *overrides)


def says(text, *parts):
    for part in parts:
        assert part in text, f"no {part!r} in: {text}"


def agent():
    for p in w.procs:
        if p.poll() is None and p not in (w.redis, w.server):
            return p
    return w.agent()


def fails(spec, *parts, cause, state="failed"):
    """A run that ends for good at its first attempt and says why, in its state, its log, and by `runs show`."""
    agent()
    run = w.submit(spec)
    r = w.ended(run, 60)
    assert (r["state"], r["cause"], r["attempt"]) == (state, cause, 1), r
    says(r["msg"], *parts)
    assert "/runs/" not in r["msg"], f"names a folder that is gone: {r['msg']}"
    assert any(r["msg"] in line for line in r["log_tail"]), r["log_tail"]
    assert not r["outputs"]
    says(w.command("runs", "show", run, "--table").stdout, cause, parts[0])


# ---- specs

def unknown_keys():
    spec = make_job("x")
    spec["prioritty"] = "high"
    spec["config"]["model"]["p_tuning"]["encoder_typ"] = "mlp"
    before = w.api("GET", "/api/v1/runs")[1]["runs"]
    r = enqueue(spec)
    assert r.returncode == 1 and not r.stdout, r.stdout
    says(r.stderr, 'prioritty: unknown key; the nearest known key is "priority"',
         'config.model.p_tuning.encoder_typ: unknown key; the nearest known key is "encoder_type"',
         "2 errors", "nothing was enqueued")
    r = enqueue(make_job("x"), "model.optim.lrr=3")
    assert r.returncode == 1
    says(r.stderr, "config.model.optim.lrr", '"lr"')
    r = enqueue('{"api": "softlaunch/v1",\n "name": }')
    assert r.returncode == 1
    says(r.stderr, "spec.json", "not valid JSON", "line 2")
    r = w.command("enqueue", w.dir + "/nowhere.json")
    assert r.returncode == 1
    says(r.stderr, "nowhere.json", "no such file")
    assert w.api("GET", "/api/v1/runs")[1]["runs"] == before


# ---- inputs

def missing_artifact():
    fails(dict(make_job("x"), model="tinny:latest"), "there is no artifact tinny", "softlaunch artifact ls", w.url,
          cause="not_found")
    fails(dict(make_job("x"), model="tiny:v7"), "tiny", "no version v7", "softlaunch artifact ls tiny", cause="not_found")
    spec = make_job("x")
    spec["datasets"]["train"] = ["words:latest/trian.jsonl"]
    fails(spec, "words:latest/trian.jsonl", "there is no file trian.jsonl", cause="not_found")


def wrong_sha256():
    found = "".join(e["sha256"] for e in w.api("GET", "/api/v1/artifacts/tiny/latest")[1]["files"])
    fails(dict(make_job("x"), model={"ref": "tiny:latest", "sha256": "0" * 64}), "tiny:latest", "wrong sha256",
          "expected " + "0" * 64, "found " + found, cause="data")


def truncated_model():
    whole = open(MODEL, "rb").read()
    for n in (2, 100, len(whole) // 2, len(whole) - 1):
        w.artifact("cut", w.write("cut.gguf", whole[:n]))
        parts = ["GGUF"] if n < 4 else ["truncated", str(n)]
        if n > 1000:
            parts += [str(len(whole)), "copy it again"]
        fails(dict(make_job("x"), model="cut:latest"), "cut:latest", *parts, cause="data")


def bad_line_417():
    good = rows(500).splitlines(True)
    for line, cause, parts in (
            ('{"taskname": "colour", "context": "a\n', "data", ["not valid JSON"]),
            ('["colour"]\n', "data", ["a row is a JSON object"]),
            ('{"taskname": "shape", "context": "a"}\n', "spec", ['unknown task "shape"', '"colour", "first"']),
            (good[415].replace('"answer"', '"anwser"'), "spec", ['no "answer"', "answer_field"]),
            ('{"context": "a"}\n', "spec", ["taskname"])):
        w.artifact("bad", w.write("bad.jsonl", "".join(good[:416] + [line] + good[417:])))
        spec = make_job("x")
        spec["datasets"]["train"] = ["words:latest/train.jsonl", "bad:latest/bad.jsonl"]
        fails(spec, "bad:latest/bad.jsonl:417: ", *parts, cause=cause)


def template_with_a_field_no_row_has():
    spec = make_job("x")
    spec["config"]["model"]["task_templates"][0]["prompt_template"] = "<|VIRTUAL_PROMPT_0|>{quesiton}: {context} = {answer}"
    fails(spec, "words:latest/train.jsonl", "colour", "{quesiton}", "none of its 32 rows", "question", cause="spec")


def by_hand():
    """The same mistakes with `train` and `generate` on files: exit status 1, one message, no crash, no output."""
    agent()
    run = w.submit(make_job("a-table"))
    assert w.ended(run, 60)["state"] == "succeeded"
    table = w.result(run)
    damaged = bytearray(open(table + "/prompt_table.safetensors", "rb").read())
    damaged[-5] ^= 1
    os.mkdir(w.dir + "/damaged")
    w.write("damaged/prompt_table.safetensors", bytes(damaged))
    w.write("cut.gguf", open(MODEL, "rb").read()[:5000])
    lines = rows(500).splitlines(True)
    w.write("line-417.jsonl", "".join(lines[:416] + ["{]\n"] + lines[417:]))
    given = {"--model": MODEL, "--prompts": table, "--input": w.dir + "/test.jsonl", "--output": w.dir + "/never.jsonl"}
    for change, parts in (({"--model": w.dir + "/none.gguf"}, ["none.gguf", "no such file"]),
                          ({"--model": w.dir + "/cut.gguf"}, ["cut.gguf", "truncated"]),
                          ({"--prompts": w.dir + "/none"}, ["/none", "no such file"]),
                          ({"--prompts": w.dir + "/damaged"}, ["damaged/prompt_table.safetensors"]),
                          ({"--prompts": MODEL}, ["tiny_llama.gguf"]),
                          ({"--input": w.dir + "/none.jsonl"}, ["none.jsonl", "no such file"]),
                          ({"--input": w.dir + "/line-417.jsonl"}, ["line-417.jsonl:417", "JSON"]),
                          ({"--input": w.dir + "/line-417.jsonl", "--task": "colour"}, ["line-417.jsonl:417", "JSON"]),
                          ({"--task": "shape"}, ["no task 'shape'"]),
                          ({"--output": w.dir + "/none/out.jsonl"}, ["none/out.jsonl"])):
        args = [x for pair in {**given, **change}.items() for x in pair]
        r = subprocess.run([BIN, "generate", *args], capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS="1"))
        assert r.returncode == 1, (change, r)
        says(r.stderr.lower(), *(p.lower() for p in parts))
        assert len(r.stderr.splitlines()) <= 2 and not os.path.exists(w.dir + "/never.jsonl"), r.stderr
    spec = dict(make_job("x"), model=w.dir + "/cut.gguf", datasets={"train": [w.dir + "/line-417.jsonl"]})
    train = [BIN, "train", "--run-dir", w.dir + "/by-hand", "--spec"]
    for spec, parts in ((spec, ["cut.gguf", "truncated"]), (dict(spec, model=MODEL), ["line-417.jsonl:417", "JSON"]),
                        (dict(spec, model="tiny:latest"), ["tiny:latest", "no such file", "need an agent"]),
                        (dict(spec, modell=3), ["modell", 'nearest known key is "model"']),
                        (dict(make_job("x", trainer__precision="fp8"), model=MODEL, datasets={"train": [w.dir + "/train.jsonl"]}),
                         ["precision fp8 needs a GPU of compute capability 9.0 (H100, H200)", "bf16 and int8"])):
        r = subprocess.run([*train, w.write("by-hand.json", json.dumps(spec))], capture_output=True, text=True,
                           env=dict(os.environ, SOFTLAUNCH_DEVICE="cpu"))
        assert r.returncode == 1, r
        says(r.stderr, *parts)


# ---- disks

class SmallDisk:
    """A tmpfs of so many bytes, or None inside when this user may not mount one."""

    def __init__(self, name, size):
        self.path = f"{w.dir}/{name}"
        os.makedirs(self.path, exist_ok=True)
        r = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", self.path], capture_output=True)
        self.mounted = r.returncode == 0

    def close(self):
        if self.mounted:
            subprocess.run(["umount", "-l", self.path])
            self.mounted = False


def full_disk_of_an_agent():
    w.stop_agents()
    disk = SmallDisk("small", "400k")    # the model does not fit
    if not disk.mounted:
        raise Skip("mounting a small tmpfs is not allowed here")
    try:
        w.agent("on-small-disk", work="small")
        run = w.submit(make_job("x"), "retry.max_attempts=2")
        r = w.ended(run, 60)
        assert r["state"] == "dead" and r["cause"] == "io", r
        says(r["msg"], "tiny", "No space left on device", w.dir + "/small")
        assert os.listdir(disk.path + "/cache/sha256") == [], "a part of a file under its final name"
        assert os.listdir(disk.path + "/runs") == []
        w.stop_agents()
    finally:
        disk.close()
    agent()
    assert w.ended(w.submit(make_job("after-the-small-disk")), 60)["state"] == "succeeded"


def disk_of_an_agent_fills_up_while_training():
    w.stop_agents()
    disk = SmallDisk("filling", "4m")
    if not disk.mounted:
        raise Skip("mounting a small tmpfs is not allowed here")
    try:
        w.agent("on-filling-disk", work="filling")
        run = w.submit(make_job("x", trainer__max_steps=100000, trainer__val_check_interval=100), "retry.max_attempts=1")
        w.until(run, lambda r: r["checkpoint_step"], 60)
        with open(disk.path + "/ballast", "wb", buffering=0) as f:
            try:
                while f.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        r = w.ended(run, 60)
        assert r["state"] == "dead" and r["cause"] == "io", r
        says(r["msg"], "writing the checkpoint of step", "No space left on device")
        assert r["checkpoint_step"] >= 100, r    # what was stored stays
        w.stop_agents()
    finally:
        disk.close()


def full_disk_of_the_server():
    disk = SmallDisk("small-store", "600k")
    if not disk.mounted:
        raise Skip("mounting a small tmpfs is not allowed here")
    try:
        env = dict(os.environ)
        p = w.spawn("small-server", [BIN, "serve", "--listen", "127.0.0.1:0", "--data", disk.path + "/store", "--token-file",
                                     w.dir + "/token", "--port-file", w.dir + "/small-port"], env=env)
        wait(lambda: os.path.exists(w.dir + "/small-port") and open(w.dir + "/small-port").read().strip(), 10, "a server")
        url = "http://127.0.0.1:" + open(w.dir + "/small-port").read().strip()
        r = w.command("artifact", "put", "--server", url, "tiny", MODEL)
        assert r.returncode == 1, r.stdout
        says(r.stderr, "No space left on device", "tiny_llama.gguf")
        r = w.command("artifact", "ls", "--server", url)    # nothing half-visible, and it lives
        assert r.returncode == 0 and "tiny" not in r.stdout, r.stdout + r.stderr
        r = w.command("artifact", "put", "--server", url, "words", w.dir + "/train.jsonl")
        assert r.returncode == 0, r.stderr
        w.end(p)
    finally:
        disk.close()


# ---- neighbours that are away

def server_down():
    w.stop_agents()
    run = w.submit(make_job("server-down"), "priority=critical")
    w.end(w.server)
    r = enqueue(make_job("x"))
    assert r.returncode == 1 and not r.stdout, r.stdout
    says(r.stderr, w.url, "onnect")
    a = w.agent("no-server")
    wait(lambda: w.cli("HGET", "{softlaunch}:run:" + run, "state") == "delayed", 60, "the run is put off")
    says(open(a.log).read(), w.url)
    w.start_server(w.port)
    r = w.ended(run, 60)
    assert r["state"] == "succeeded" and r["failures"] == 0, r
    put_off = [e["data"] for e in w.events(run, "state") if e["data"]["state"] == "delayed"]
    assert put_off and put_off[0]["cause"] == "retry", put_off
    says(put_off[0]["msg"], w.url)
    w.end(a)


def redis_down_at_start():
    w.stop_agents()
    w.end(w.redis)
    a = w.agent("early")
    wait(lambda: "Redis is away" in open(a.log).read(), 10, "the agent says so")
    says(open(a.log).read(), "redis.sock")
    r = enqueue(make_job("x"))
    assert r.returncode == 1, r.stdout
    says(r.stderr, "Redis")
    assert a.poll() is None
    w.start_redis()
    assert w.ended(w.submit(make_job("after-redis")), 60)["state"] == "succeeded"
    w.end(a)


def redis_restarted_in_the_middle():
    w.stop_agents()
    a = w.agent("through")
    run = w.submit(make_job("through-a-restart", trainer__max_steps=1500, trainer__val_check_interval=100))
    w.until(run, lambda r: r["checkpoint_step"], 60)
    w.end(w.redis)
    time.sleep(w.lease_ms / 1000 * 1.5)    # longer than the lease
    says(open(a.log).read(), "Redis is away")
    w.start_redis()
    r = w.ended(run, 90)
    assert r["state"] == "succeeded" and r["attempt"] == 1 and r["failures"] == 0 and r["lost"] == 0, r
    train, validation = w.last_metrics(run)
    assert sorted(train) == list(range(1, 1501)) and sorted(validation) == list(range(0, 1501, 100))
    w.end(a)


tap(w, [unknown_keys, missing_artifact, wrong_sha256, truncated_model, bad_line_417, template_with_a_field_no_row_has,
        by_hand, full_disk_of_an_agent, disk_of_an_agent_fills_up_while_training, full_disk_of_the_server, server_down,
        redis_down_at_start, redis_restarted_in_the_middle])
