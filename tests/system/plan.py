#!/usr/bin/env python3
"""`softlaunch train --plan` and a run that does not fit, through the shipped programs: no GPU, no weights read."""
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

here = os.path.dirname(os.path.abspath(__file__))
programs = os.environ.get("SL_BIN", os.path.join(here, "../../build/bin"))
model = os.path.abspath(os.path.join(here, "../golden/tiny_llama.gguf"))
n = failed = 0


def ok(right, what):
    global n, failed
    n += 1
    failed += not right
    print(f"{'ok' if right else 'not ok'} {n} - {what}", flush=True)


def plan(*more):
    p = subprocess.run([programs + "/softlaunch", "train", "--plan", "spec.json", *more], capture_output=True, text=True)
    return p.returncode, p.stdout, p.stderr


folder = tempfile.mkdtemp()
os.chdir(folder)
random.seed(1)
with open("train.jsonl", "w") as f:
    for i in range(40):
        f.write(json.dumps({"taskname": "one", "text": "ab " * random.randint(2, 9), "answer": "aye"}) + "\n")
with open("spec.json", "w") as f:
    json.dump({"api": "softlaunch/v1", "name": "p", "model": model, "datasets": {"train": ["train.jsonl"]}, "outputs": {"artifact": "p"},
               "config": {"trainer": {"max_epochs": -1, "max_steps": 4},
                          "model": {"virtual_prompt_style": "p-tuning", "global_batch_size": 8, "micro_batch_size": 8,
                                    "task_templates": [{"taskname": "one", "total_virtual_tokens": 5,
                                                        "prompt_template": "<|VIRTUAL_PROMPT_0|>{text}= {answer}"}],
                                    "p_tuning": {"encoder_type": "tpmlp", "encoder_hidden": 24}}}}, f)

status, out, _ = plan("--device", "cpu")
ok(status == 0 and "weights" in out and "kept for backward" in out and "fits in" in out, "a table, and whether it fits")
status, out, _ = plan("--device", "cuda", "--memory", "80GiB", "--json", "trainer.precision=bf16")
p = json.loads(out)
b = p["bytes"]
ok(status == 0 and p["device"] == "cuda" and p["fits"] and p["recomputed_layers"] == 0, "a GPU that is not here")
ok(b["total"] == b["persistent"] + b["arena"] + b["workspace"] + b["outside"] and p["micro_batch"]["rows"] == 8 and
   b["encoder_moments"] == 2 * b["encoder_gradients"] == 2 * b["encoder_parameters"] > 0,
   "its numbers add up")
status, out, _ = plan("--device", "cuda", "--memory", "80GiB", "--json", "trainer.precision=fp32")
ok(json.loads(out)["bytes"]["kept"] > 1.5 * b["kept"], "fp32 keeps twice as much")
status, out, err = plan("--device", "cuda", "--memory", "1MiB", "trainer.precision=bf16")
ok(status == 1 and "does not fit" in out and "out of memory before the first step" in err, "one that is too small")
status, out, err = plan("--device", "cpu", "--memory", "80 gigabytes")
ok(status == 2 and "80GiB" in err, "a size that is none")
read, write = os.pipe()
p = subprocess.run([programs + "/softlaunch-worker", "train", "--run-dir", "run", "--spec", "spec.json", "--device", "cpu",
                    "--memory", "1MiB", "--events-fd", str(write)], pass_fds=[write], capture_output=True)
os.close(write)
events = [json.loads(line) for line in os.fdopen(read)]
end = events[-1]
ok(p.returncode == 1 and end["ev"] == "result" and end["cause"] == "out_of_memory" and "micro" in end["msg"] and
   not any(e["ev"] == "start" for e in events), "a run that cannot fit fails at once, with its cause")
print(f"1..{n}")
os.chdir("/")
shutil.rmtree(folder)
sys.exit(failed > 0)
