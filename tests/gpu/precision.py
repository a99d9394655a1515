#!/usr/bin/env python3
"""What fp8 and int8 cost a trained model: p-tuning runs that differ in precision and seed alone, by the shipped worker.

    precision.py --worker PATH --model FILE --data FOLDER [--spec SPEC.json] [--steps 200] [--seeds 1,2,3] [--device cuda]
                 [--json FILE]

FOLDER and SPEC as for parity.py. The final validation loss of fp8 and of int8, averaged over the seeds, must lie within
0.5 % of bf16's. Beside it stands how far the seeds of one precision lie apart. Prints "ok NAME: figures" or "not ok NAME".
"""

import argparse
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
    args.add_argument("--steps", type=int, default=200)
    args.add_argument("--lr", type=float, default=1e-3)
    args.add_argument("--seeds", default="1,2,3")
    args.add_argument("--device", default="cuda")
    args.add_argument("--json")
    args = args.parse_args()
    runs, losses = Runs(args), {}
    for precision in "bf16", "fp8", "int8":
        for seed in args.seeds.split(","):
            runs.config["model"]["seed"] = int(seed)
            try:
                seen, seconds = runs.finished(f"{precision}-{seed}", args.device, precision, args.steps)
            except RuntimeError as e:
                print(f"not ok {precision}: {e}")
                break
            losses.setdefault(precision, []).append(seen[args.steps]["val_loss"])
            print("# %s seed %s: %.4f after %d steps, %.4f before; %.1f s" % (
                precision, seed, losses[precision][-1], args.steps, seen[0]["val_loss"], seconds), flush=True)
    results = []
    for precision in "fp8", "int8":
        if precision not in losses or len(losses[precision]) != len(losses.get("bf16", [])):
            results.append({"name": "loss_" + precision, "ok": False})
            continue
        mine, exact = statistics.mean(losses[precision]), statistics.mean(losses["bf16"])
        value, apart = mine / exact - 1, max(losses["bf16"]) / min(losses["bf16"]) - 1
        results.append({"name": "loss_" + precision, "value": value, "limit": LIMIT, "ok": value <= LIMIT,
                        "losses": losses[precision], "losses_bf16": losses["bf16"]})
        print("%s loss_%s: %+.2f %%: %.4f, bf16 %.4f, whose seeds lie %.1f %% apart" % (
            "ok" if value <= LIMIT else "not ok", precision, 100 * value, mine, exact, 100 * apart), flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"model": os.path.basename(args.model), "precision": results}, f, indent=1)
    return int(not all(r["ok"] for r in results))


if __name__ == "__main__":
    sys.exit(main())
