#!/usr/bin/env python3
"""Greedy continuations of the same prompts, ours on the GPU and transformers' generate in bf16: new tokens a second.

    gpu_generate.py --worker PATH --model FILE.gguf --data FOLDER [--rows 64] [--tokens 64] [--json FILE]

transformers takes the weights from the same file. Ours is `softlaunch-worker generate` with the prompts that one step of training made:
the time between two runs of different length, so that start-up counts on neither side. Texts: both sides in fp32 by parity.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time


def table(args, work, spec):
    """The prompt table of one step of training: as good as any for the time."""
    config = json.loads(json.dumps(spec["config"]))
    config["trainer"].update(max_steps=1, val_check_interval=1, precision=args.precision)
    with open(work + "/run.json", "w") as f:
        json.dump({"model": os.path.abspath(args.model), "config": config,
                   "datasets": {"train": [os.path.abspath(args.data + "/test.jsonl")]}}, f)
    r = subprocess.run([args.worker, "train", "--run-dir", work, "--device", args.device], capture_output=True, text=True)
    if r.returncode:
        sys.exit(r.stderr[-500:])
    return work + "/out"


def ours(args, prompts, rows, tokens):
    """Seconds of the whole process."""
    begun = time.monotonic()
    r = subprocess.run([args.worker, "generate", "--model", args.model, "--prompts", prompts, "--input", rows, "--output",
                        rows + ".out", "--device", args.device, "--precision", args.precision,
                        f"inference.tokens_to_generate={tokens}", f"inference.min_tokens={tokens}"],
                       capture_output=True, text=True)
    if r.returncode:
        sys.exit(r.stderr[-500:])
    return time.monotonic() - begun


def theirs(args, texts, tokens):
    """New tokens a second, the model loaded and warm."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    folder, name = os.path.split(os.path.abspath(args.model))
    tok = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16).to(args.device)
    tok.padding_side, tok.pad_token = "left", tok.eos_token
    x = tok(texts, return_tensors="pt", padding=True).to(args.device)
    with torch.no_grad():
        for timed in (False, True):
            if args.device == "cuda":
                torch.cuda.synchronize()
            begun = time.monotonic()
            y = model.generate(**x, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
            if args.device == "cuda":
                torch.cuda.synchronize()
            seconds = time.monotonic() - begun
    return (y.shape[1] - x["input_ids"].shape[1]) * len(texts) / seconds


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--worker", required=True)
    args.add_argument("--model", required=True)
    args.add_argument("--data", required=True)
    args.add_argument("--spec", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../examples/wordnet.json"))
    args.add_argument("--rows", type=int, default=64)
    args.add_argument("--tokens", type=int, default=64)
    args.add_argument("--device", default="cuda")
    args.add_argument("--precision", default="bf16")
    args.add_argument("--no-peer", action="store_true")
    args.add_argument("--json")
    args = args.parse_args()
    work = tempfile.mkdtemp()
    with open(args.spec) as f:
        spec = json.load(f)
    with open(args.data + "/test.jsonl") as f:
        lines = [line for line in f if '"category"' in line][:args.rows]
    with open(work + "/rows.jsonl", "w") as f:
        f.writelines(lines)
    prompts = table(args, work, spec)
    few = max(1, args.tokens // 8)
    spent = {n: min(ours(args, prompts, work + "/rows.jsonl", n) for _ in range(2)) for n in (few, args.tokens)}
    rate = len(lines) * (args.tokens - few) / (spent[args.tokens] - spent[few])
    out = {"rows": len(lines), "tokens": args.tokens, "ours_tok_s": rate, "ours_seconds": spent[args.tokens]}
    print(f"ours: {rate:.0f} new tokens/s ({len(lines)} rows at a time, {args.tokens} tokens each; the whole process "
          f"{spent[args.tokens]:.2f} s)", flush=True)
    if not args.no_peer:
        rows = [json.loads(line) for line in lines]
        try:
            out["peer_tok_s"] = theirs(args, [f"{r['question']}\n{r['context']}\nAnswer:" for r in rows], args.tokens)
            out["ratio"] = rate / out["peer_tok_s"]
            print(f"transformers: {out['peer_tok_s']:.0f} new tokens/s; ratio {out['ratio']:.2f}")
        except Exception as e:    # a reader of GGUF it may not have
            out["peer_error"] = repr(e)[:300]
            print("transformers did not run: " + out["peer_error"])
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"generate": out}, f, indent=1)


if __name__ == "__main__":
    main()
