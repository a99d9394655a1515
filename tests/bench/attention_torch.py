#!/usr/bin/env python3
"""torch's fused causal attention at bench_attention's long rows, for comparison. usage: attention_torch.py"""
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

ROWS, LENGTH, TURNS = 10, 1556, 10  # 20 virtual and 1536 text tokens


def milliseconds(work):
    work()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(TURNS):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / TURNS


for name, heads, dim in [("gpt-125m", 12, 64), ("gpt-1.3b", 16, 128), ("gpt-5b", 32, 128)]:
    q, k, v, grad = (torch.randn(ROWS, LENGTH, heads, dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_(True)
    flops = 4 * ROWS * heads * dim * LENGTH * (LENGTH + 1) / 2
    for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        try:
            with sdpa_kernel(kernel):
                attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
                forward = milliseconds(attend)
                o = attend()
                back = milliseconds(lambda: torch.autograd.grad(o, (q, k, v), grad, retain_graph=True))
        except RuntimeError as e:
            print(f"{name:13s} long   {kernel.name}: not run: {str(e).splitlines()[0]}")
            continue
        print(f"{name:13s} long   {heads:3d} heads of {dim:3d}  forward {forward:7.3f} ms {flops / forward / 1e9:6.1f} TFLOP/s  "
              f"backward {back:7.3f} ms {2.5 * flops / back / 1e9:6.1f} TFLOP/s  {kernel.name}")
