#!/usr/bin/env python3
"""Loads PEFT adapters that softlaunch exported, with PEFT, and compares next-token logits.

    SL_ADAPTER_OUT=DIR build/tests/unit/test_golden_adapter
    python check_adapter.py DIR [CASE ...]           CASE: mlp, lstm, prompt; all without one

DIR/CASE is the adapter directory over the recorded table of train_CASE.safetensors, and
DIR/CASE.f32 the engine's fp32 logits [prompts, vocab] behind the recorded prompts. Exit status 1
where one differs by more than 1e-3.
"""

import argparse
import os

import numpy
import peft
import safetensors.torch
import torch

import gguf_llama

LARGEST_DIFFERENCE = 1e-3


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("dir")
    args.add_argument("case", nargs="*", default=["mlp", "lstm", "prompt"])
    args = args.parse_args()
    bad = 0
    for case in args.case:
        golden = safetensors.torch.load_file(os.path.join(here, f"train_{case}.safetensors"))
        prompts = golden["probe.ids"].long().split(golden["probe.length"].tolist())
        base = gguf_llama.load(os.path.join(here, "tiny_llama.gguf"))
        model = peft.PeftModel.from_pretrained(base, os.path.join(args.dir, case)).eval()
        with torch.no_grad():
            theirs = torch.stack([model(input_ids=p[None]).logits[0, -1] for p in prompts])
        ours = numpy.fromfile(os.path.join(args.dir, f"{case}.f32"), dtype="<f4")
        apart = (torch.from_numpy(ours).reshape(theirs.shape) - theirs).abs().max().item()
        good = apart <= LARGEST_DIFFERENCE  # NaN is not good
        bad += not good
        verdict = "ok" if good else "BAD"
        print(f"{case}: peft {peft.__version__}, largest difference {apart:.3g}: {verdict}")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
