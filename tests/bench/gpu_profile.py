#!/usr/bin/env python3
"""Where the time of a training step goes on a GPU, by kind of kernel, from ncu's times of each kernel.

    gpu_profile.py --bench PATH/bench_gpu [--rows MODEL:PROFILE:PRECISION,...] [--json FILE]

Rows as gpu_peft.py's, 16,384 packed tokens a step. ncu runs kernels one by one, so the shares are right where they
do not overlap, and the sum leaves out what launching costs. Kinds go by the kernels' names. Needs ncu and torch.
"""

import argparse
import collections
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import torch

from gpu_models import MODELS, VIRTUAL, batch, ensure_model, rows_for

KINDS = [("products in fp8", r"nvjet\w*qqtst|e4m3"), ("encoder and optimizer", r"sgemm|gemm_f32|adamw|sumsq|bias_act"),
         ("products in bf16", r"nvjet|cutlass|gemm|xmma"), ("attention", r"\b(forward|backward_\w+)<|prefix"),
         ("norms", r"norm|back_rows"), ("rounding rows to fp8", r"rows_to_fp8"), ("activation", r"act_"), ("loss", r"loss")]
MICROS = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}


def profile(bench, folder, model, kind, precision):
    config, g = MODELS[model], torch.Generator().manual_seed(1)
    v, path = VIRTUAL[kind], lambda name: os.path.join(folder, name)
    with open(path("profiled.json"), "w") as f:
        json.dump({"virtual_tokens": v, "batches": [batch(kind, rows_for(kind, 16384), config.vocab_size, g)]}, f)
    (torch.randn(v, config.hidden_size, generator=g) * 0.1).numpy().tofile(path("profiled.f32"))
    run = subprocess.run(["ncu", "--clock-control", "none", "--metrics", "gpu__time_duration.sum", "--csv", bench, "cuda", precision,
                          path("model"), path("profiled.json"), path("profiled.f32"), path("profiled.grad"), "mlp",
                          str(config.hidden_size), "1"], capture_output=True, text=True)
    lines = [x for x in run.stdout.splitlines() if x.startswith('"')]
    if run.returncode or not lines:
        return {"error": (run.stderr or run.stdout)[-300:]}
    names, kinds = collections.Counter(), collections.Counter()
    for r in csv.DictReader(lines):
        us, name = float(r["Metric Value"].replace(",", "")) * MICROS[r["Metric Unit"]], r["Kernel Name"].split("(")[0]
        names[name[:90]] += us
        kinds[next((k for k, pattern in KINDS if re.search(pattern, name, re.I)), "others")] += us
    total = sum(names.values())
    return {"milliseconds": total / 1e3, "kinds": {k: x / total for k, x in kinds.most_common()},
            "kernels": {k: x / total for k, x in names.most_common(25)}}


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--bench", required=True)
    args.add_argument("--rows", default="gpt-1.3b:short:fp8,gpt-5b:short:fp8")
    args.add_argument("--keep", help="folder for the models, as gpu_peft.py's")
    args.add_argument("--json")
    args = args.parse_args()
    if not shutil.which("ncu"):
        print("no ncu")
        return 77
    results = []
    for row in args.rows.split(","):
        model, kind, precision = row.split(":")
        folder = os.path.join(args.keep or tempfile.mkdtemp(), model)
        ensure_model(MODELS[model], folder + "/model")
        r = {"model": model, "profile": kind, "precision": precision, **profile(args.bench, folder, model, kind, precision)}
        results.append(r)
        print(row + ": " + (r.get("error") or ", ".join("%s %.1f %%" % (k, 100 * x) for k, x in r["kinds"].items())), flush=True)
        for name, share in r.get("kernels", {}).items():
            print("    %5.1f %%  %s" % (100 * share, name))
        if args.json:
            with open(args.json, "w") as f:
                json.dump({"profiles": results}, f, indent=1)
    return int(any("error" in r for r in results))


if __name__ == "__main__":
    sys.exit(main())
