"""Real runs on a tiny model: the fixture of queue_fixture.py with the real worker, data, specs and results."""
import json, os, re, struct, subprocess, sys
from queue_fixture import BIN, FINAL, HERE, TOKEN, Skip, World, in_time, tap, wait

MODEL = os.path.join(HERE, "..", "golden", "tiny_llama.gguf")
COLOURS = {"grass": "green", "snow": "white", "coal": "black", "blood": "red", "sky": "blue", "leaf": "green",
           "milk": "white", "night": "black", "rose": "red", "sea": "blue"}


def rows(n, seed=0):
    """JSONL of two tasks: a thing's colour, and a word's first letter."""
    things, out = sorted(COLOURS), []
    for i in range(n):
        thing = things[(i * 7 + seed) % len(things)]
        pad = "ab cd ef gh"[:(i * 5 + seed) % 11]
        if i % 2:
            row = {"taskname": "colour", "context": f"{pad} {thing}", "question": "which colour", "answer": COLOURS[thing]}
        else:
            row = {"taskname": "first", "context": f"{pad} {thing}", "question": "first letter", "answer": thing[0]}
        out.append(json.dumps(row) + "\n")
    return "".join(out)


class Jobs(World):
    """Everything on one thread, so that a busy machine disturbs little and bits are comparable."""

    def __init__(self, lease_ms=2000, serve=()):
        super().__init__(lease_ms, serve=serve)
        self.write("train.jsonl", rows(64))
        self.write("validation.jsonl", rows(8, 3))
        self.write("test.jsonl", rows(10, 5))
        self.artifact("tiny", MODEL)
        self.artifact("words", *(f"{self.dir}/{s}.jsonl" for s in ("train", "validation", "test")))

    def agent(self, name="agent", work=None, more=(), env=None, **kw):
        env = {**os.environ, "SOFTLAUNCH_TOKEN": TOKEN, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **(env or {})}
        return self.spawn(name, [BIN, "agent", "--redis", self.redis_url, "--server", self.url, "--work-dir",
                                 f"{self.dir}/{work or name}", "--lease-ms", str(self.lease_ms), "--verbose", *more],
                          env=env, **kw)

    def write(self, name, text):
        path = f"{self.dir}/{name}"
        with open(path, "wb" if isinstance(text, bytes) else "w") as f:
            f.write(text)
        return path

    def artifact(self, name, *paths):
        r = self.command("artifact", "put", name, *paths)
        assert r.returncode == 0, r.stderr
        return r.stdout

    def submit(self, spec, *overrides):
        """By the command, as a person does; the run's id."""
        r = self.command("enqueue", self.write("spec.json", json.dumps(spec)), *overrides)
        assert r.returncode == 0, r.stderr
        return r.stdout.split()[0]

    def last_metrics(self, run):
        """{step: numbers} and {step: val_loss}: what the last event about a step said."""
        train, validation = {}, {}
        for e in self.events(run, "metric"):
            d = e["data"]
            if "val_loss" in d:
                validation[d["step"]] = d["val_loss"]
            elif "loss" in d:
                train[d["step"]] = (d["epoch"], d["loss"], d["lr"], d["grad_norm"], d["tokens"])
        return train, validation

    def result(self, run):
        """The unpacked artifact of a run: its folder."""
        out = self.run(run)["outputs"][0]
        dest = f"{self.dir}/result-{run}"
        if not os.path.exists(dest):
            ref = f"{out['artifact']}:v{str(out['version']).lstrip('v')}"
            r = self.command("artifact", "get", "--unpack", ref, dest)
            assert r.returncode == 0, r.stderr
        return f"{dest}/{out['artifact']}"


def tensors(path):
    """A safetensors file as {name: (shape, bytes)}, and its metadata."""
    with open(path, "rb") as f:
        data = f.read()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + n])
    meta = header.pop("__metadata__", {})
    at = 8 + n
    return {k: (v["shape"], data[at + v["data_offsets"][0]:at + v["data_offsets"][1]]) for k, v in header.items()}, meta


def make_job(name, **config):
    """A spec of both tasks on the tiny model; config: dotted keys of `config` with __ for the dots."""
    template = "<|VIRTUAL_PROMPT_0|>{question}: {context} = {answer}"
    spec = {"api": "softlaunch/v1", "name": name, "project": "test", "model": "tiny:latest",
            "datasets": {s: [f"words:latest/{s}.jsonl"] for s in ("train", "validation", "test")},
            "config": {"trainer": {"max_epochs": -1, "max_steps": 40, "val_check_interval": 10},
                       "exp_manager": {"create_early_stopping_callback": False},
                       "model": {"virtual_prompt_style": "p-tuning", "global_batch_size": 8, "micro_batch_size": 4,
                                 "task_templates": [{"taskname": t, "prompt_template": template,
                                                     "total_virtual_tokens": 6, "answer_only_loss": True,
                                                     "answer_field": "answer", "truncate_field": "context"}
                                                    for t in ("colour", "first")],
                                 "p_tuning": {"encoder_type": "mlp", "encoder_hidden": 48},
                                 "optim": {"lr": 0.02, "sched": {"warmup_steps": 5}}},
                       "inference": {"tokens_to_generate": 6,
                                     "choices": {"colour": sorted(set(COLOURS.values()))}}},
            "outputs": {"artifact": name, "aliases": ["candidate"]}}
    for key, value in config.items():
        at = spec["config"]
        *path, last = key.split("__")
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return spec
