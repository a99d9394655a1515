#!/usr/bin/env python3
"""Records torch's AdamW with clipping by global norm: adamw.safetensors.

Three parameters, ten steps, learning rates of the cosine schedule, gradients of very different sizes (the first
steps are clipped, the last ones are not), weight decay large enough to see. Tensors: param.I (start), grad.S.I,
after.S.I, norm [steps], lr [steps].
"""
import argparse
import math
import os

import safetensors.torch
import torch

STEPS, SHAPES = 10, [(7, 5), (1, 13), (3, 130)]
PEAK, WARMUP, MIN_LR, CLIP = 0.05, 3, 0.001, 1.0
BETAS, EPS, DECAY = (0.9, 0.98), 1e-8, 0.1


def rate(step):
    if step <= WARMUP:
        return PEAK * (step + 1) / (WARMUP + 1)
    return MIN_LR + (PEAK - MIN_LR) / 2 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--out", default=here)
    out = args.parse_args().out
    torch.manual_seed(6)
    params = [torch.nn.Parameter(torch.randn(s)) for s in SHAPES]
    rec = {f"param.{i}": p.detach().clone() for i, p in enumerate(params)}
    opt = torch.optim.AdamW(params, lr=PEAK, betas=BETAS, eps=EPS, weight_decay=DECAY)
    norms, rates = [], []
    for step in range(STEPS):
        for group in opt.param_groups:
            group["lr"] = rate(step)
        for i, p in enumerate(params):
            p.grad = torch.randn_like(p) * 10.0 ** (1 - step / 2) * (i + 1)
            rec[f"grad.{step}.{i}"] = p.grad.clone()
        norms.append(float(torch.nn.utils.clip_grad_norm_(params, CLIP)))
        opt.step()
        rates.append(rate(step))
        rec.update({f"after.{step}.{i}": p.detach().clone() for i, p in enumerate(params)})
    assert norms[0] > 10 * CLIP and norms[-1] < CLIP / 10
    rec["norm"], rec["lr"] = torch.tensor(norms), torch.tensor(rates)
    meta = dict(steps=STEPS, lr=PEAK, warmup_steps=WARMUP, min_lr=MIN_LR, gradient_clip_val=CLIP, beta1=BETAS[0],
                beta2=BETAS[1], eps=EPS, weight_decay=DECAY, made_with=f"torch {torch.__version__.split('+')[0]}")
    safetensors.torch.save_file(rec, os.path.join(out, "adamw.safetensors"), {k: str(v) for k, v in meta.items()})


if __name__ == "__main__":
    main()
