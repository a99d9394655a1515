#!/usr/bin/env python3
"""p-tuning steps on one GPU, ours beside Hugging Face PEFT and beside the device's own limit: the same random weights and
token ids, in one run.

    gpu_peft.py --bench PATH/bench_gpu [--rows MODEL:PROFILE[:PRECISION[:ENCODER]],...] [--json FILE]

For each row: useful tokens/s (virtual and text tokens, padding left out) of ours at --tokens packed tokens a step and of
PEFT at each of its batch sizes, on both sides the median of --steps steps after three untimed ones; what the
device could do at best (gpu_ceiling.py); peak memory of both at PEFT's best batch, the same rows a step on both sides; and
the gradient of a batch's loss by a given prompt table, ours and PyTorch's in bf16, against PyTorch's in fp32.
Both sides train PEFT's MLP encoder (three linear layers) or its LSTM (two), as wide as the model, with clipping and AdamW.

Memory: ours is what the driver reports in use on the device minus what was there before; PEFT's is the most that PyTorch's
tensors held, plus its CUDA context (its cache's slack is not counted), or what the driver reports if that is less. The
encoder's parameters, gradients and moments, equal on both sides, are left out of both. Needs torch, transformers, peft.
"""

import argparse
import gc
import json
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
from transformers import AutoModelForCausalLM

import gpu_ceiling
from gpu_models import MODELS, VIRTUAL, batch, ensure_model, rows_for

PEFT_ROWS = {  # batch sizes that were best for PEFT on an H200
    "gpt-125m": {"short": [64], "squad": [64], "long": [64]},
    "gpt-1.3b": {"short": [32], "squad": [16], "long": [8]},
    "gpt-5b": {"short": [16], "squad": [16], "long": [4]},
    "smollm2-135m": {"short": [64], "squad": [64], "long": [16]},
}
MEMORY_GOAL = {"gpt-5b": 1 / 3}    # of PEFT's at the same rows a step; others 1/4
PRECISIONS = ("bf16", "fp8", "int8")
CHECK_ROWS = 4  # of the gradient comparison
UNTIMED = 3
ALL = ",".join([f"{m}:{p}:{k}" for m, kinds in (("gpt-125m", ["bf16"]), ("gpt-1.3b", ["bf16", "fp8"]), ("gpt-5b", ["bf16", "fp8"]))
                for k in kinds for p in VIRTUAL] + ["gpt-125m:short:bf16:lstm", "smollm2-135m:short"])


def padded(b, to):
    width = (max(map(len, b["ids"])) + to - 1) // to * to
    pad = lambda rows: torch.tensor([r + [0] * (width - len(r)) for r in rows])
    ids, answer = pad(b["ids"]), pad(b["answer"])
    mask = pad([[1] * len(r) for r in b["ids"]])
    return ids.cuda(), mask.cuda(), torch.where(answer == 1, ids, -100).cuda()


def driver_mib():
    out = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
                         capture_output=True, text=True, check=True).stdout
    return int(out.split()[0])


class Memory:
    """Most memory in use on the device while it lives, in GiB above what was there before."""

    def __enter__(self):
        self.most, self.stop, self.before = 0, False, driver_mib()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.stop:
            self.most = max(self.most, driver_mib())
            time.sleep(0.03)

    def __exit__(self, *_):
        self.stop = True
        self.thread.join()
        self.gib = (self.most - self.before) / 1024


def clean():
    gc.collect()
    torch.cuda.empty_cache()


def table_gradient(model, table, b):
    """Of one row after the other, so that the width of the batch costs no memory in fp32."""
    total = sum(map(sum, b["answer"]))
    embed, grad = model.get_input_embeddings(), torch.zeros_like(table)
    for ids, answer in zip(b["ids"], b["answer"]):
        ids = torch.tensor(ids, device="cuda")
        t = table.clone().requires_grad_(True)
        x = torch.cat([t.to(embed.weight.dtype), embed(ids)])[None]
        logits = model(inputs_embeds=x).logits[0, len(table) - 1:-1].float()
        loss = torch.nn.functional.cross_entropy(logits, ids, reduction="none")
        (loss * torch.tensor(answer, device="cuda")).sum().div(total).backward()
        grad += t.grad
    return grad.float().cpu().numpy()


def peft_model(base, profile, hidden, encoder):
    model = get_peft_model(base, PromptEncoderConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=VIRTUAL[profile], encoder_reparameterization_type=encoder.upper(),
        encoder_num_layers=2, encoder_hidden_size=hidden)).to("cuda")
    model.prompt_encoder.float()
    return model, [p for p in model.parameters() if p.requires_grad]


def peft_speed(base, profile, rows, steps, hidden, vocab, encoder):
    g = torch.Generator().manual_seed(0)
    model, params = peft_model(base, profile, hidden, encoder)
    opt = torch.optim.AdamW(params, lr=1e-4, fused=True)
    torch.cuda.reset_peak_memory_stats()
    times, rates = [], []
    for _ in range(UNTIMED + steps):
        b = batch(profile, rows, vocab, g)
        ids, mask, labels = padded(b, 1 if profile == "long" else 64)
        torch.cuda.synchronize()
        t = time.time()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        opt.zero_grad()
        torch.cuda.synchronize()
        times.append(time.time() - t)
        rates.append((sum(map(len, b["ids"])) + rows * VIRTUAL[profile]) / times[-1])
        del loss
    return {"rows": rows, "step_ms": statistics.median(times[UNTIMED:]) * 1e3,
            "useful_tok_s": statistics.median(rates[UNTIMED:]), "encoder_gib": 16 * sum(p.numel() for p in params) / 2**30,
            "allocated_gib": torch.cuda.max_memory_allocated() / 2**30}


class Ours:
    """bench_gpu on one model's folder."""

    def __init__(self, bench, work, hidden, steps):
        self.bench, self.work, self.hidden, self.steps = bench, work, hidden, steps

    def run(self, data, table, precision, encoder, steps=None, recompute=0):
        path = lambda name: os.path.join(self.work, name)
        with open(path("batches.json"), "w") as f:
            json.dump(data, f)
        table.tofile(path("table.f32"))
        with Memory() as memory:
            run = subprocess.run([self.bench, "cuda", precision, path("model"), path("batches.json"), path("table.f32"),
                                  path("gradient.f32"), encoder, str(self.hidden), str(steps or self.steps), str(recompute)],
                                 capture_output=True, text=True)
        if run.returncode:
            return {"error": run.stderr.strip()[-300:]}, None
        out = json.loads(run.stdout)
        out["gib"] = memory.gib - out["encoder_mib"] / 1024
        return out, np.fromfile(path("gradient.f32"), np.float32)


def measure(row, config, base, grads, peft, ours, args, rate, context):
    name, profile, precision, encoder = row
    hidden, vocab, v = config.hidden_size, config.vocab_size, VIRTUAL[profile]
    g = torch.Generator().manual_seed(1)
    table, check = grads[profile]["table"], grads[profile]["check"]
    r = {"model": name, "profile": profile, "precision": precision, "encoder": encoder, "ours": [], "peft": []}
    for tokens in map(int, args.tokens.split(",")):
        rows = rows_for(profile, tokens)
        data = {"virtual_tokens": v, "check": check, "batches": [batch(profile, rows, vocab, g) for _ in range(4)]}
        mine, gradient = ours.run(data, table, precision, encoder)
        r["ours"].append(dict(mine, rows=rows))
        if "ceiling" not in r and not args.no_ceiling:
            kind = precision if precision == "fp8" else "bf16"
            c = gpu_ceiling.ceiling(config, v, data["batches"][0], rate, (kind,), (encoder,))
            r["ceiling"] = dict(c, tok_s=c["tok_s"][f"{kind} {encoder}"])
        if gradient is not None and "gradient_cosine" not in r:
            exact, theirs = grads[profile]["exact"].ravel(), grads[profile]["bf16"].ravel()
            far = lambda x: float(np.linalg.norm(x - exact) / np.linalg.norm(exact))
            r["gradient_error"], r["gradient_error_torch_bf16"] = far(gradient), far(theirs)
            r["gradient_cosine"] = float(gradient @ exact / np.linalg.norm(gradient) / np.linalg.norm(exact))
    if (profile, encoder) in peft:    # the same whatever we compute in
        r["peft"] = peft[profile, encoder]
    for rows in [] if args.no_peft or r["peft"] else PEFT_ROWS[name][profile]:
        try:
            with Memory() as memory:
                p = peft_speed(base, profile, rows, args.steps, hidden, vocab, encoder)
            held = torch.cuda.memory_reserved() / 2**30
            p["gib_driver"] = memory.before / 1024 + memory.gib - args.idle_mib / 1024 - p["encoder_gib"]
            p["gib"] = min(p["allocated_gib"] + context - p["encoder_gib"], p["gib_driver"])
            p["held_gib"] = held
        except torch.OutOfMemoryError:
            p = {"rows": rows, "error": "out of memory"}
        r["peft"].append(p)
        clean()
    peft[profile, encoder] = r["peft"]
    best = max((p for p in r["peft"] if "gib" in p), key=lambda p: p["useful_tok_s"], default=None)
    if best:    # the same rows a step, for memory
        g = torch.Generator().manual_seed(0)
        data = {"virtual_tokens": v, "check": check,
                "batches": [batch(profile, best["rows"], vocab, g) for _ in range(UNTIMED + args.steps)]}
        mine, _ = ours.run(data, table, precision, encoder, 3)
        r["memory"] = {"rows": best["rows"], "ours_gib": mine.get("gib"), "peer_gib": best["gib"],
                       "peer_gib_driver": best["gib_driver"], "ours_useful_tok_s": mine.get("useful_tok_s")}
        over, layers = mine.get("gib", 0) - MEMORY_GOAL.get(name, 0.25) * best["gib"], config.num_hidden_layers
        if over > 0:    # as little computed again as reaches the goal: MLPs first, then whole layers (sl_recompute_at)
            a_layer = mine["activations_mib"] / 1024 / layers
            mlps, whole = 2 + int(over / (0.38 * a_layer)), 0
            if mlps > layers - 1:
                mlps, whole = layers - 1, 2 + int((over - 0.38 * a_layer * (layers - 2)) / (0.5 * a_layer))
            n = min(mlps + max(0, whole - 1), 2 * layers - 3)
            less, _ = ours.run(data, table, precision, encoder, 3, n)
            r["memory"]["recomputed"] = {"mlps": mlps, "layers": whole, "of": layers, "gib": less.get("gib"),
                                         "useful_tok_s": less.get("useful_tok_s")}
    return r


def gradients(base, config, profiles):
    """By profile: a table, a batch, and PyTorch's gradients in fp32 and bf16."""
    out = {}
    for profile in profiles:
        g = torch.Generator().manual_seed(2)
        table = (torch.randn(VIRTUAL[profile], config.hidden_size, generator=g) * 0.02).numpy()
        out[profile] = {"table": table, "check": batch(profile, CHECK_ROWS, config.vocab_size, g)}
    for kind, dtype in (("bf16", torch.bfloat16), ("exact", torch.float32)):
        base.to(dtype)
        for r in out.values():
            r[kind] = table_gradient(base, torch.from_numpy(r["table"]).cuda(), r["check"])
    base.to(torch.bfloat16)    # to fp32 and back changes no bit
    clean()
    return out


def show(results):
    print("%-12s %-6s %-5s %-4s %9s %9s %6s %9s %6s %8s %8s %6s %8s %8s %8s" % (
        "model", "prof", "prec", "enc", "ours t/s", "PEFT t/s", "ratio", "ceiling", "of it", "ours GiB", "PEFT GiB", "ratio",
        "grad err", "torch's", "cosine"))
    nan = float("nan")
    for r in results:
        best = max(r["ours"], key=lambda x: x.get("useful_tok_s", 0))
        mine = best.get("useful_tok_s", nan)
        peer = max((p.get("useful_tok_s", nan) for p in r["peft"]), default=nan)
        top, memory = r.get("ceiling", {}).get("tok_s", nan), r.get("memory", {})
        a, b = memory.get("ours_gib") or nan, memory.get("peer_gib") or nan
        print("%-12s %-6s %-5s %-4s %9.0f %9.0f %6.2f %9.0f %6.2f %8.1f %8.1f %6.3f %8.4f %8.4f %8.5f" % (
            r["model"], r["profile"], r["precision"], r["encoder"], mine, peer, mine / peer, top, mine / top, a, b, a / b,
            r.get("gradient_error", nan), r.get("gradient_error_torch_bf16", nan), r.get("gradient_cosine", nan)))
        less = memory.get("recomputed")
        if less and less["gib"]:
            print("    memory with %d MLPs and %d of %d layers computed again: %.1f GiB, ratio %.3f, %.0f t/s; with none %.0f t/s" % (
                less["mlps"], less["layers"], less["of"], less["gib"], less["gib"] / b, less["useful_tok_s"],
                memory["ours_useful_tok_s"]))
        for x in r["ours"]:
            if "error" in x:
                print("    " + x["error"])


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--bench", required=True)
    args.add_argument("--rows", default=ALL, help="MODEL:PROFILE[:PRECISION[:ENCODER]],...")
    args.add_argument("--tokens", default="16384", help="packed tokens of our steps, about; several with commas")
    args.add_argument("--steps", type=int, default=7)
    args.add_argument("--json")
    args.add_argument("--no-peft", action="store_true")
    args.add_argument("--no-ceiling", action="store_true")
    args.add_argument("--keep", help="folder for the models; they are made when they are not there, and left")
    args = args.parse_args()
    rows = [(part.split(":") + ["bf16", "mlp"][len(part.split(":")) - 2:])[:4] for part in args.rows.split(",")]
    args.idle_mib = driver_mib()
    torch.zeros(1, device="cuda") @ torch.zeros(1, device="cuda")
    context = (driver_mib() - args.idle_mib) / 1024
    results, spent = [], []
    rate = 0 if args.no_ceiling else gpu_ceiling.copy_rate()
    clean()
    for name in dict.fromkeys(r[0] for r in rows):
        start = time.time()
        config, work = MODELS[name], os.path.join(args.keep, name) if args.keep else tempfile.mkdtemp()
        mine = [r for r in rows if r[0] == name]
        os.makedirs(work, exist_ok=True)
        if ensure_model(config, work + "/model"):
            clean()
        base = AutoModelForCausalLM.from_pretrained(work + "/model", dtype=torch.bfloat16, attn_implementation="sdpa")
        base = base.cuda().requires_grad_(False)
        spent.append((name + " made and loaded", time.time() - start))
        start = time.time()
        grads = gradients(base, config, dict.fromkeys(r[1] for r in mine))
        spent.append((name + " gradients", time.time() - start))
        peft = {}
        for row in mine:
            start = time.time()
            try:
                r = measure(row, config, base, grads, peft, Ours(args.bench, work, config.hidden_size, args.steps), args, rate,
                            context)
            except Exception as e:    # one row's failure leaves the others
                r = {"model": name, "profile": row[1], "precision": row[2], "encoder": row[3], "ours": [{"error": repr(e)[:300]}],
                     "peft": []}
            spent.append((" ".join(row), time.time() - start))
            results.append(r)
            print(json.dumps(r), flush=True)
            if args.json:
                with open(args.json, "w") as f:
                    json.dump({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "copy_tb_s": rate / 1e12,
                               "context_gib": context, "results": results}, f, indent=1)
        del base, grads
        clean()
        if not args.keep:
            shutil.rmtree(work)
    show(results)
    print("seconds: " + ", ".join("%s %.1f" % s for s in spent))
    return int(any("error" in x for r in results for x in r["ours"]))


if __name__ == "__main__":
    sys.exit(main())
