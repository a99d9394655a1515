#!/usr/bin/env python3
"""What fp8 and int8 cost a trained model: p-tuning runs that differ in precision and seed alone, by the shipped worker.

    precision.py --worker PATH --model FILE --data FOLDER [--spec SPEC.json] [--steps 600] [--seeds 1,2,3] [--device cuda]
                 [--json FILE]

FOLDER and SPEC as for parity.py. The final validation loss of fp8 and of int8, averaged over the seeds, must lie within
0.5 % of bf16's. Any rounding sends a run another way, so beside it stand the standard error of that difference and how
far bf16's own seeds lie apart. The runs of a seed go side by side. Prints "ok NAME: figures" or "not ok NAME: figures".
"""

import argparse
import concurrent.futures
import json
import os
import statistics
import sys

from parity import HERE, Runs

LIMIT = 0.005


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--worker", required=True)
    args.add_argument("--model", required=True)
    args.add_argument("--data", required=True)
    args.add_argument("--spec", default=os.path.join(HERE, "../../examples/wordnet.json"))
    args.add_argument("--steps", type=int, default=600)
    args.add_argument("--lr", type=float, default=1e-3)
    args.add_argument("--seeds", default="1,2,3")
    args.add_argument("--device", default="cuda")
    args.add_argument("--json")
    args = args.parse_args()
    runs, losses = Runs(args), {p: [] for p in ("bf16", "fp8", "int8")}

    def run(precision, seed):
        seen, seconds = runs.finished(f"{precision}-{seed}", args.device, precision, args.steps)
        print("# %s seed %s: %.4f after %d steps, %.4f before; %.1f s" % (
            precision, seed, seen[args.steps]["val_loss"], args.steps, seen[0]["val_loss"], seconds), flush=True)
        return seen[args.steps]["val_loss"]

    for seed in args.seeds.split(","):
        runs.config["model"]["seed"] = int(seed)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for precision, done in [(p, pool.submit(run, p, seed)) for p in ("bf16", "fp8", "int8")]:
                try:
                    losses[precision].append(done.result())
                except RuntimeError as e:
                    print(f"# {precision} seed {seed}: {e}")
    results = []
    for precision in "fp8", "int8":
        if len({len(losses[p]) for p in ("bf16", precision)} | {len(args.seeds.split(","))}) > 1:
            results.append({"name": "loss_" + precision, "ok": False})
            print("not ok loss_%s: runs failed" % precision)
            continue
        mine, exact = statistics.mean(losses[precision]), statistics.mean(losses["bf16"])
        value, apart = mine / exact - 1, max(losses["bf16"]) / min(losses["bf16"]) - 1
        pairs = [a / b - 1 for a, b in zip(losses[precision], losses["bf16"])]
        error = statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else float("nan")
        results.append({"name": "loss_" + precision, "value": value, "standard_error": error, "limit": LIMIT,
                        "ok": value <= LIMIT, "losses": losses[precision], "losses_bf16": losses["bf16"]})
        print("%s loss_%s: %+.2f %% (standard error %.2f %%): %.4f, bf16 %.4f, whose seeds lie %.1f %% apart" % (
            "ok" if value <= LIMIT else "not ok", precision, 100 * value, 100 * error, mine, exact, 100 * apart), flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"model": os.path.basename(args.model), "precision": results}, f, indent=1)
    return int(not all(r["ok"] for r in results))


if __name__ == "__main__":
    sys.exit(main())
