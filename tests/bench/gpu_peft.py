#!/usr/bin/env python3
"""p-tuning steps on one GPU, ours beside Hugging Face PEFT: the same random weights and token ids, in one run.

    gpu_peft.py --bench PATH/bench_gpu [--models gpt-125m,gpt-1.3b] [--profiles short,squad,long] [--json FILE]

For each model and profile: PEFT's useful tokens/s (virtual and text tokens, padding left out) and memory at each of
its batch sizes, ours at --tokens packed tokens a step; and the gradient of the first batch's loss by a given prompt
table, ours in bf16 and PyTorch's in bf16, against PyTorch's in fp32: relative L2 error and cosine. Both sides train an
MLP encoder of three linear layers, as wide as the model, with clipping and AdamW. Memory is what the driver
reports in use on the device, minus what it was before, read twenty times a second. Needs torch, transformers, peft.
"""

import argparse
import gc
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import torch
from peft import PromptEncoderConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config

MODELS = {
    "gpt-125m": GPT2Config(n_embd=768, n_layer=12, n_head=12, n_positions=2048),
    "gpt-1.3b": GPT2Config(n_embd=2048, n_layer=24, n_head=16, n_positions=2048),
    "gpt-5b": GPT2Config(n_embd=4096, n_layer=24, n_head=32, n_positions=2048),
}
VIRTUAL = {"short": 100, "squad": 15, "long": 20}
PEFT_ROWS = {  # batch sizes that were best for PEFT on an H200
    "gpt-125m": {"short": [64], "squad": [64], "long": [16, 64]},
    "gpt-1.3b": {"short": [32], "squad": [16, 32], "long": [8]},
    "gpt-5b": {"short": [16], "squad": [16], "long": [4]},
}
CHECK_ROWS = 8  # of the gradient comparison


def lengths(profile, n, g):
    if profile == "short":
        return torch.randint(64, 257, (n,), generator=g)
    if profile == "squad":
        return torch.exp(torch.randn(n, generator=g) * 0.42 + math.log(160)).clamp(40, 800).long()
    return torch.full((n,), 1536, dtype=torch.long)


def batch(profile, rows, vocab, g):
    """Ids and answer marks (the last tenth of a row, at least 3) as lists."""
    ids, answer = [], []
    for n in lengths(profile, rows, g).tolist():
        ids.append(torch.randint(0, vocab, (n,), generator=g).tolist())
        answer.append([int(i >= n - max(3, n // 10)) for i in range(n)])
    return {"ids": ids, "answer": answer}


def padded(b, to):
    width = (max(map(len, b["ids"])) + to - 1) // to * to
    pad = lambda rows: torch.tensor([r + [0] * (width - len(r)) for r in rows])
    ids, answer = pad(b["ids"]), pad(b["answer"])
    mask = pad([[1] * len(r) for r in b["ids"]])
    return ids.cuda(), mask.cuda(), torch.where(answer == 1, ids, -100).cuda()


class Memory:
    """Most memory in use on the device while it lives, in GiB above what was there before."""

    def __init__(self):
        self.most, self.stop = 0, False
        self.before = self.read()
        self.thread = threading.Thread(target=self.watch)

    def read(self):
        out = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
                             capture_output=True, text=True, check=True).stdout
        return int(out.split()[0])

    def watch(self):
        while not self.stop:
            self.most = max(self.most, self.read())
            time.sleep(0.05)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop = True
        self.thread.join()
        self.gib = (self.most - self.before) / 1024


def load(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").cuda().requires_grad_(False)


def table_gradient(model, table, b):
    ids, mask, labels = padded(b, 1)
    dtype = model.get_input_embeddings().weight.dtype
    t = table.clone().requires_grad_(True)
    x = torch.cat([t.to(dtype)[None].expand(len(ids), -1, -1), model.get_input_embeddings()(ids)], 1)
    front = torch.ones(len(ids), len(table), device="cuda", dtype=mask.dtype)
    labels = torch.cat([torch.full_like(front, -100), labels], 1)
    loss = model(inputs_embeds=x, attention_mask=torch.cat([front, mask], 1), labels=labels).loss
    loss.backward()
    return loss.item(), t.grad.float().cpu().numpy()


def peft_speed(folder, profile, rows, steps, hidden, vocab):
    g = torch.Generator().manual_seed(0)
    base = load(folder, torch.bfloat16)
    model = get_peft_model(base, PromptEncoderConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=VIRTUAL[profile], encoder_reparameterization_type="MLP",
        encoder_num_layers=2, encoder_hidden_size=hidden)).to("cuda")
    model.prompt_encoder.float()
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    torch.cuda.reset_peak_memory_stats()
    times, rates = [], []
    for _ in range(steps):
        b = batch(profile, rows, vocab, g)
        ids, mask, labels = padded(b, 1 if profile == "long" else 64)
        torch.cuda.synchronize()
        t = time.time()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.prompt_encoder.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
        torch.cuda.synchronize()
        times.append(time.time() - t)
        rates.append((sum(map(len, b["ids"])) + rows * VIRTUAL[profile]) / times[-1])
        del loss
    skip = max(3, steps // 4)
    return {"rows": rows, "step_ms": statistics.median(times[skip:]) * 1e3,
            "useful_tok_s": statistics.median(rates[skip:]), "allocated_gib": torch.cuda.max_memory_allocated() / 2**30}


def clean():
    gc.collect()
    torch.cuda.empty_cache()


def ours(bench, folder, data, table, work, hidden, steps, precision="bf16"):
    with open(work + "/batches.json", "w") as f:
        json.dump(data, f)
    table.tofile(work + "/table.f32")
    with Memory() as memory:
        run = subprocess.run([bench, "cuda", precision, folder, work + "/batches.json", work + "/table.f32",
                              work + "/gradient.f32", "3", str(hidden), str(steps)], capture_output=True, text=True)
    if run.returncode:
        sys.exit("bench_gpu: " + run.stderr)
    out = json.loads(run.stdout)
    out["gib"] = memory.gib
    return out, np.fromfile(work + "/gradient.f32", np.float32).reshape(table.shape)


def rows_for(profile, tokens):
    mean = {"short": 160, "squad": 175, "long": 1536}[profile]
    return max(1, round((tokens - VIRTUAL[profile]) / mean))


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--bench", required=True)
    args.add_argument("--models", default="gpt-125m,gpt-1.3b")
    args.add_argument("--profiles", default="short,squad,long")
    args.add_argument("--tokens", default="16384", help="packed tokens of our steps, about; several with commas")
    args.add_argument("--steps", type=int, default=14)
    args.add_argument("--json")
    args.add_argument("--no-peft", action="store_true")
    args.add_argument("--keep", help="folder for the models and the last batches; removed otherwise")
    args = args.parse_args()
    results = []
    for name in args.models.split(","):
        config, work = MODELS[name], os.path.join(args.keep, name) if args.keep else tempfile.mkdtemp()
        os.makedirs(work, exist_ok=True)
        folder = work + "/model"
        torch.manual_seed(0)
        with torch.device("cuda"):
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        clean()
        for profile in args.profiles.split(","):
            v, g = VIRTUAL[profile], torch.Generator().manual_seed(1)
            table = (torch.randn(v, config.n_embd, generator=g) * 0.02).cuda()
            check = batch(profile, CHECK_ROWS, config.vocab_size, g)
            r = {"model": name, "profile": profile, "ours": [], "peft": []}
            _, mine = ours(args.bench, folder, {"virtual_tokens": v, "batches": [check]}, table.cpu().numpy(), work,
                           config.n_embd, 1)
            grads = {}
            for kind in (torch.float32, torch.bfloat16):
                model = load(folder, kind)
                grads[kind] = table_gradient(model, table, check)[1].ravel()
                del model
                clean()
            exact = grads[torch.float32]
            far = lambda x: float(np.linalg.norm(x - exact) / np.linalg.norm(exact))
            r["gradient_error"], r["gradient_error_torch_bf16"] = far(mine.ravel()), far(grads[torch.bfloat16])
            r["gradient_cosine"] = float(mine.ravel() @ exact / np.linalg.norm(mine) / np.linalg.norm(exact))
            for tokens in map(int, args.tokens.split(",")):
                rows = rows_for(profile, tokens)
                data = {"virtual_tokens": v, "batches": [batch(profile, rows, config.vocab_size, g) for _ in range(6)]}
                r["ours"].append(ours(args.bench, folder, data, table.cpu().numpy(), work, config.n_embd, args.steps)[0])
            for rows in [] if args.no_peft else PEFT_ROWS[name][profile]:
                try:
                    with Memory() as memory:
                        p = peft_speed(folder, profile, rows, args.steps, config.n_embd, config.vocab_size)
                    r["peft"].append(dict(p, gib=memory.gib))
                except torch.OutOfMemoryError:
                    r["peft"].append({"rows": rows, "error": "out of memory"})
                clean()
            results.append(r)
            print(json.dumps(r), flush=True)
        if not args.keep:
            shutil.rmtree(work)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "results": results}, f, indent=1)
    print("%-9s %-6s %10s %10s %6s %8s %8s %9s %9s %8s" % ("model", "profile", "ours tok/s", "PEFT tok/s", "ratio",
                                                         "ours GiB", "PEFT GiB", "grad err", "torch err", "cosine"))
    for r in results:
        best = max(r["ours"], key=lambda x: x["useful_tok_s"])
        peer = max(r["peft"], key=lambda x: x.get("useful_tok_s", 0), default={})
        rate = peer.get("useful_tok_s", float("nan"))
        print("%-9s %-6s %10.0f %10.0f %6.2f %8.1f %8.1f %9.4f %9.4f %8.5f" %
              (r["model"], r["profile"], best["useful_tok_s"], rate, best["useful_tok_s"] / rate, best["gib"],
               peer.get("gib", float("nan")), r["gradient_error"], r["gradient_error_torch_bf16"], r["gradient_cosine"]))


if __name__ == "__main__":
    main()
