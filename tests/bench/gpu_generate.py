#!/usr/bin/env python3
"""Greedy continuations of the same prompts, ours and transformers' generate, both in bf16 on one GPU: new tokens a second.

    gpu_generate.py --worker PATH --keep FOLDER [--name smollm2-135m] [--rows 64] [--tokens 64] [--json FILE]

Random weights of a real shape (gpu_models.py; FOLDER is gpu_peft.py's --keep), prompts of 64 to 256 tokens, every row to its full
length. Ours is `softlaunch-worker generate` with the prompts that one step of training made: the time between two runs of
different length, so that start-up counts on neither side. That the texts are right is parity.py's to show.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from gpu_models import MODELS, ensure_model, spec, text_rows


def table(args, work, model):
    """The prompt table of one step of training: as good as any for the time."""
    made = spec("generate", model, {"train": [work + "/rows.jsonl"]}, "short",
                {"trainer": {"max_steps": 1, "precision": args.precision},
                 "model": {"global_batch_size": 4, "p_tuning": {"encoder_type": "mlp", "encoder_hidden": 64}}})
    with open(work + "/run.json", "w") as f:
        json.dump({k: made[k] for k in ("model", "datasets", "config")}, f)
    r = subprocess.run([args.worker, "train", "--run-dir", work, "--device", args.device], capture_output=True, text=True)
    if r.returncode:
        sys.exit(r.stderr[-500:])
    return work + "/out"


def ours(args, model, prompts, rows, tokens):
    """Seconds of the whole process."""
    begun = time.monotonic()
    r = subprocess.run([args.worker, "generate", "--model", model, "--prompts", prompts, "--input", rows, "--output",
                        rows + ".out", "--device", args.device, "--precision", args.precision,
                        f"inference.tokens_to_generate={tokens}", f"inference.min_tokens={tokens}"],
                       capture_output=True, text=True)
    if r.returncode:
        sys.exit(r.stderr[-500:])
    return time.monotonic() - begun


def theirs(args, folder, lengths, tokens):
    """New tokens a second, the model loaded and warm; prompts as long as ours, padded on the left."""
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").to(args.device)
    width = max(lengths)
    ids = torch.randint(0, 255, (len(lengths), width), device=args.device)
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths], device=args.device)
    with torch.no_grad():
        for _ in range(2):    # the first to warm up
            begun = time.monotonic()
            y = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                               pad_token_id=0).cpu()
            seconds = time.monotonic() - begun
    return (y.shape[1] - width) * len(lengths) / seconds


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--worker", required=True)
    args.add_argument("--keep", required=True)
    args.add_argument("--name", default="smollm2-135m")
    args.add_argument("--rows", type=int, default=64)
    args.add_argument("--tokens", type=int, default=64)
    args.add_argument("--device", default="cuda")
    args.add_argument("--precision", default="bf16")
    args.add_argument("--json")
    args = args.parse_args()
    work, model = tempfile.mkdtemp(), os.path.join(args.keep, args.name, "model")
    ensure_model(MODELS[args.name], model, args.device)
    lines = text_rows("short", args.rows)
    with open(work + "/rows.jsonl", "w") as f:
        f.write(lines)
    prompts = table(args, work, model)
    few = max(1, args.tokens // 8)
    spent = {n: min(ours(args, model, prompts, work + "/rows.jsonl", n) for _ in range(2)) for n in (few, args.tokens)}
    rate = args.rows * (args.tokens - few) / (spent[args.tokens] - spent[few])
    out = {"model": args.name, "rows": args.rows, "tokens": args.tokens, "ours_tok_s": rate, "ours_seconds": spent[args.tokens]}
    print(f"ours: {rate:.0f} new tokens/s ({args.rows} rows at a time, {args.tokens} tokens each; the whole process "
          f"{spent[args.tokens]:.2f} s)", flush=True)
    lengths = [len(json.loads(line)["question"]) for line in lines.splitlines()]
    out["peer_tok_s"] = theirs(args, model, lengths, args.tokens)
    out["ratio"] = rate / out["peer_tok_s"]
    print(f"transformers: {out['peer_tok_s']:.0f} new tokens/s; ratio {out['ratio']:.2f}")
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"generate": out}, f, indent=1)


if __name__ == "__main__":
    main()
