#!/usr/bin/env python3
"""Training on the GPU beside the CPU, by the shipped programs: the same run description on both.

    parity.py --worker PATH --bench PATH/bench_gpu --model FILE --data FOLDER [--spec SPEC.json] [--steps 200]
              [--cpu FILE.json] [--json FILE]
    parity.py --worker PATH --model FILE --data FOLDER --make-cpu FILE.json     the CPU's side, to be carried to a GPU machine

FOLDER holds train.jsonl, validation.jsonl and test.jsonl; of SPEC the config counts (examples/wordnet.json), with loss on every
token: with loss on answers alone any rounding sends such a run another way (on one GPU in fp32, micro-batches of 8 or 16 rows
ended at 0.335 and 0.367), and two right machines differ by as much. Checks:
  loss_fp32      loss of a batch by a given prompt table in fp32: within 1e-4 of the CPU's
  gradient_fp32  the table's gradient: relative L2 error at most 1e-4
  val_loss_fp32  validation loss after the last step in fp32: within 1 % of the CPU's
  val_loss_bf16  the same in bf16; beside it how far the same run in micro-batches of half the rows ends from it
  same_bits      two bf16 runs with one seed: tables and every number equal
  resumed_bits   preempted in the middle and gone on: equal to those
  generate_fp32  continuations of the first test rows by the trained table: the CPU's text
Prints "ok NAME: figures" or "not ok NAME: figures".
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
ROWS = 24          # rows that are generated
BENCH_ROWS = 3     # of the gradient comparison: on this batch the CPU's own BLAS kernels are 2e-5 apart; on longer ones up to 9e-4
BENCH_IDS = 2000   # common tokens
VIRTUAL = 12
NUMBERS = ("loss", "val_loss", "grad_norm", "lr")


def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while data := f.read(1 << 20):
            h.update(data)
    return h.hexdigest()


class Runs:
    def __init__(self, args):
        self.args, self.dir = args, tempfile.mkdtemp()
        with open(args.spec) as f:
            self.config = json.load(f)["config"]
        for task in self.config["model"]["task_templates"]:
            task["answer_only_loss"] = False

    def train(self, name, device, precision, steps, preempt_at=None, parts=1):
        """({step: numbers}, seconds) of a run in the folder `name`, which goes on when it is there already. parts: micro-batches
        in one of the spec's."""
        folder = f"{self.dir}/{name}"
        os.makedirs(folder, exist_ok=True)
        config = json.loads(json.dumps(self.config))
        config["trainer"].update(max_steps=steps, val_check_interval=steps // 4, precision=precision)
        config.setdefault("exp_manager", {})["create_early_stopping_callback"] = False
        config["model"]["optim"]["lr"] = self.args.lr
        config["model"]["micro_batch_size"] //= parts
        with open(folder + "/run.json", "w") as f:
            json.dump({"model": os.path.abspath(self.args.model), "config": config, "datasets": {
                s: [os.path.abspath(f"{self.args.data}/{s}.jsonl")] for s in ("train", "validation")}}, f)
        read, write = os.pipe()
        begun, seen, cause = time.monotonic(), {}, ""
        p = subprocess.Popen([self.args.worker, "train", "--run-dir", folder, "--device", device, "--events-fd", str(write)],
                             pass_fds=[write], stdout=subprocess.DEVNULL, stderr=open(folder + "/log", "a"))
        os.close(write)
        with os.fdopen(read) as events:
            for line in events:
                e = json.loads(line)
                if e["ev"] == "metric" and "step" in e:
                    seen.setdefault(e["step"], {}).update({k: e[k] for k in NUMBERS if k in e})
                    if e["step"] == preempt_at and p.poll() is None:
                        p.send_signal(signal.SIGTERM)
                        preempt_at = None
                elif e["ev"] == "result":
                    cause = f"{e['state']} {e.get('cause', '')} {e.get('msg', '')}"
        return seen, p.wait(), cause, time.monotonic() - begun

    def finished(self, *args, **kw):
        seen, status, cause, seconds = self.train(*args, **kw)
        if status:
            raise RuntimeError(f"training ended with {status}: {cause}")
        return seen, seconds

    def table(self, name):
        return sha256(f"{self.dir}/{name}/out/prompt_table.safetensors")

    def generate(self, name, device):
        """(texts, seconds) for the first test rows."""
        with open(self.args.data + "/test.jsonl") as f:
            rows = [line for _, line in zip(range(ROWS), f)]
        path = f"{self.dir}/rows.jsonl"
        with open(path, "w") as f:
            f.writelines(rows)
        begun = time.monotonic()
        r = subprocess.run([self.args.worker, "generate", "--model", self.args.model, "--prompts", f"{self.dir}/{name}/out",
                            "--input", path, "--output", path + ".out", "--device", device, "inference.tokens_to_generate=24"],
                           capture_output=True, text=True)
        if r.returncode:
            raise RuntimeError(r.stderr[-500:])
        with open(path + ".out") as f:
            return [json.loads(line)["prediction"] for line in f], time.monotonic() - begun

    def gradient(self, device, hidden):
        """(loss, gradient) of random rows by a random table, in fp32."""
        rng = np.random.default_rng(7)
        ids = [rng.integers(0, BENCH_IDS, int(n)).tolist() for n in rng.integers(20, 40, BENCH_ROWS)]
        batches = [{"ids": ids, "answer": [[int(i >= len(r) - 5) for i in range(len(r))] for r in ids]}]
        path = lambda name: f"{self.dir}/{name}"
        with open(path("batches.json"), "w") as f:
            json.dump({"virtual_tokens": VIRTUAL, "batches": batches}, f)
        (rng.standard_normal((VIRTUAL, hidden)) * 0.1).astype(np.float32).tofile(path("table.f32"))
        r = subprocess.run([self.args.bench, device, "fp32", self.args.model, path("batches.json"), path("table.f32"),
                            path("gradient.f32"), "mlp", "64", "1"], capture_output=True, text=True)
        if r.returncode:
            raise RuntimeError(r.stderr[-500:])
        return json.loads(r.stdout)["loss_of_table"], np.fromfile(path("gradient.f32"), np.float32)


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--worker", required=True)
    args.add_argument("--bench")
    args.add_argument("--model", required=True)
    args.add_argument("--data", required=True)
    args.add_argument("--spec", default=os.path.join(HERE, "../../examples/wordnet.json"))
    args.add_argument("--steps", type=int, default=200)
    args.add_argument("--lr", type=float, default=1e-3)
    args.add_argument("--hidden", type=int, default=576)
    args.add_argument("--device", default="cuda")
    args.add_argument("--cpu")
    args.add_argument("--make-cpu")
    args.add_argument("--json")
    args = args.parse_args()
    runs, results = Runs(args), []
    last = lambda seen: seen[args.steps]["val_loss"]
    key = {"model_sha256": sha256(args.model), "train_sha256": sha256(args.data + "/train.jsonl"), "steps": args.steps, "lr": args.lr,
           "loss": "every token"}

    def of_cpu():
        seen, _ = runs.finished("cpu", "cpu", "fp32", args.steps)
        return dict(key, val_loss=last(seen), val_loss_step_0=seen[0]["val_loss"])

    if args.make_cpu:
        with open(args.make_cpu, "w") as f:
            json.dump(of_cpu(), f, indent=1)
        return 0
    done = {}

    def check(name, limit, run):
        begun = time.monotonic()
        try:
            value, text = run()
            ok = value <= limit
        except Exception as e:    # the others still say something
            value, ok, text = None, False, str(e) or repr(e)
        results.append({"name": name, "value": value, "limit": limit, "ok": ok, "text": text,
                        "seconds": round(time.monotonic() - begun, 1)})
        print("%s %s: %s (%.1f s)" % ("ok" if ok else "not ok", name, text, results[-1]["seconds"]), flush=True)

    def gradient(part):
        if "gradient" not in done:
            done["gradient"] = [runs.gradient(d, args.hidden) for d in ("cpu", args.device)]
        (loss0, g0), (loss1, g1) = done["gradient"]
        far = abs(loss1 / loss0 - 1) if part == "loss" else float(np.linalg.norm(g1 - g0) / np.linalg.norm(g0))
        return far, f"relative error {far:.2e}; loss {loss0:.6f}"

    def cpu_side():
        cpu = None
        if args.cpu and os.path.exists(args.cpu):
            with open(args.cpu) as f:
                cpu = json.load(f)
            if any(cpu.get(k) != v for k, v in key.items()):
                cpu = None
        return cpu or of_cpu()

    def val_loss(name, precision):
        cpu = done.setdefault("cpu", None) or cpu_side()
        done["cpu"] = cpu
        done[name], seconds = runs.finished(name, args.device, precision, args.steps)
        value = abs(last(done[name]) / cpu["val_loss"] - 1)
        text = "%.2f %%: %.4f in %s, %.4f on the CPU in fp32, %.4f before training; %.1f s" % (
            100 * value, last(done[name]), precision, cpu["val_loss"], cpu["val_loss_step_0"], seconds)
        if precision == "bf16":
            halves, _ = runs.finished(name + "-halves", args.device, precision, args.steps, parts=2)
            text += "; in micro-batches of half the rows %.4f" % last(halves)
        return value, text

    def compare(name, seen):
        first = done["first"]
        other = [s for s in first if seen.get(s) != first[s]]
        other += [] if runs.table(name) == runs.table("first") else ["the table"]
        return len(other), f"{len(first)} steps and the prompt table: " + (f"others at {other[:5]}" if other else "equal")

    def same_bits():
        return compare("second", runs.finished("second", args.device, "bf16", args.steps)[0])

    def resumed_bits():
        seen, status, cause, _ = runs.train("resumed", args.device, "bf16", args.steps, preempt_at=args.steps // 3)
        if status != 75:
            raise RuntimeError(f"preempted with exit status {status}: {cause}")
        more, _ = runs.finished("resumed", args.device, "bf16", args.steps)
        at = min(s for s in more if "loss" in more[s])
        for s in more:
            seen.setdefault(s, {}).update(more[s])
        n, text = compare("resumed", seen)
        return n, f"went on at step {at}; {text}"

    def generate():
        (cpu, slow), (gpu, fast) = runs.generate("first", "cpu"), runs.generate("first", args.device)
        other = sum(a != b for a, b in zip(cpu, gpu)) + abs(len(cpu) - len(gpu))
        return other, f"{other} of {len(cpu)} texts differ ({sum(map(len, cpu))} characters); {fast:.1f} s, the CPU's {slow:.1f} s"

    if args.bench:
        check("loss_fp32", 1e-4, lambda: gradient("loss"))
        check("gradient_fp32", 1e-4, lambda: gradient("table"))
    check("val_loss_fp32", 0.01, lambda: val_loss("exact", "fp32"))
    check("val_loss_bf16", 0.01, lambda: val_loss("first", "bf16"))
    check("same_bits", 0, same_bits)
    check("resumed_bits", 0, resumed_bits)
    check("generate_fp32", 0, generate)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"model": os.path.basename(args.model), "parity": results}, f, indent=1)
    return int(not all(r["ok"] for r in results))


if __name__ == "__main__":
    sys.exit(main())
