#!/usr/bin/env python3
"""Seconds from the start of `softlaunch-worker train` to its first finished step, the files in the page cache.

    gpu_first_step.py --worker PATH --keep FOLDER [--models gpt-125m,...] [--device cuda] [--json FILE]

FOLDER is gpu_peft.py's --keep: models that are not there yet are made. Profile squad, 16 rows a step, mlp encoder as wide as
the model, bf16. The time is taken by the parent when the step's metric event arrives on its pipe; the median of --times.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from gpu_models import MODELS, ensure_model, spec, text_rows


def run(worker, folder, device):
    """Seconds after the start of the process: its start event, the first step, the end."""
    read, write = os.pipe()
    begun = time.monotonic()
    p = subprocess.Popen([worker, "train", "--run-dir", folder, "--device", device, "--events-fd", str(write)],
                         pass_fds=[write], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    os.close(write)
    times, cause = {}, ""
    with os.fdopen(read) as events:
        for line in events:
            e, now = json.loads(line), time.monotonic() - begun
            if e["ev"] == "start":
                times["start"], times["kernel"] = now, e["kernel"]
            elif e["ev"] == "metric" and e.get("step") == 1 and "loss" in e:
                times["first_step"] = now
            elif e["ev"] == "log" and e["msg"].startswith("memory: "):
                times["memory"] = e["msg"]
            elif e["ev"] == "result" and e["state"] != "succeeded":
                cause = f"{e.get('cause')}: {e.get('msg')}"
    p.wait()
    times["end"] = time.monotonic() - begun
    if p.returncode or "first_step" not in times:
        sys.exit(f"{folder}: {cause or p.stderr.read()[-500:]}")
    return times


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--worker", required=True)
    args.add_argument("--keep", required=True)
    args.add_argument("--models", default="gpt-125m,gpt-1.3b,gpt-5b")
    args.add_argument("--device", default="cuda")
    args.add_argument("--times", type=int, default=3)
    args.add_argument("--json")
    args = args.parse_args()
    results = []
    for name in args.models.split(","):
        model, config = os.path.join(args.keep, name, "model"), MODELS[name]
        ensure_model(config, model, args.device)
        work = tempfile.mkdtemp()
        with open(work + "/train.jsonl", "w") as f:
            f.write(text_rows("squad", 64))
        made = spec("first-step", model, {"train": [work + "/train.jsonl"]}, "squad",
                    {"trainer": {"max_steps": 3},
                     "model": {"global_batch_size": 16, "micro_batch_size": 16,
                               "p_tuning": {"encoder_type": "mlp", "encoder_hidden": config.hidden_size}}})
        for f in os.listdir(model):    # into the page cache
            with open(os.path.join(model, f), "rb") as data:
                while data.read(1 << 24):
                    pass
        runs = []
        for i in range(args.times):
            folder = f"{work}/{i}"
            os.makedirs(folder)
            with open(folder + "/run.json", "w") as f:
                json.dump({k: made[k] for k in ("model", "datasets", "config")}, f)
            runs.append(run(args.worker, folder, args.device))
        times = [r["first_step"] for r in runs]
        results.append({"model": name, "seconds": statistics.median(times), "all": times, "runs": runs})
        print("%-12s first step after %.2f s (%s); model ready after %.2f s; three steps and the digest after %.1f s; %s" % (
            name, statistics.median(times), ", ".join("%.2f" % t for t in times),
            statistics.median(r["start"] for r in runs), statistics.median(r["end"] for r in runs), runs[0]["kernel"]), flush=True)
        print("             " + runs[0].get("memory", ""), flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"first_step": results}, f, indent=1)


if __name__ == "__main__":
    main()
