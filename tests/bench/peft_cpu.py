#!/usr/bin/env python3
"""Step time of p-tuning with PEFT in fp32 on the CPU: the peer of softlaunch's training step.

    OMP_NUM_THREADS=2 python peft_cpu.py BATCHES.json [--model MODEL.gguf] [--encoder-hidden N]

BATCHES.json: {"virtual_tokens": V, "batches": [{"ids": [[...], ...], "answer": [[...], ...]}]}: the
text ids of each row, and 1 for those that are targets, else 0; the virtual tokens come in front.
Without a model: random weights in the shape of SmolLM2-135M, which cost the same. The first step is
not timed. A step is forward, backward, clipping and AdamW, as a user of PEFT would write it, with
transformers' default attention. Prints one JSON object: step_s_median, tokens_per_s (virtual and
text tokens, without padding), threads, steps, losses.
"""

import argparse
import json
import os
import statistics
import sys
import time

import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))
import gguf_llama  # noqa: E402


def random_model():
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).float()


def padded(batch):
    longest = max(map(len, batch["ids"]))
    pad = lambda rows, value: torch.tensor([r + [value] * (longest - len(r)) for r in rows])
    ids, answer = pad(batch["ids"], 0), pad(batch["answer"], 0)
    mask = pad([[1] * len(r) for r in batch["ids"]], 0)
    return dict(input_ids=ids, attention_mask=mask, labels=torch.where(answer == 1, ids, -100))


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("batches")
    args.add_argument("--model")
    args.add_argument("--encoder-hidden", type=int, default=2048)
    args = args.parse_args()
    with open(args.batches) as f:
        data = json.load(f)
    base = gguf_llama.load(args.model, "sdpa") if args.model else random_model()
    config = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=data["virtual_tokens"],
        encoder_hidden_size=args.encoder_hidden,
        encoder_reparameterization_type="MLP",
    )
    model = peft.get_peft_model(base, config).train()
    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    times, losses = [], []
    for step, batch in enumerate(data["batches"][:1] + data["batches"]):
        inputs = padded(batch)
        start = time.perf_counter()
        opt.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        losses.append(loss.item())
        if step > 0:
            times.append(time.perf_counter() - start)
    tokens = sum(data["virtual_tokens"] + len(r) for b in data["batches"] for r in b["ids"])
    print(
        json.dumps(
            dict(
                step_s_median=statistics.median(times),
                tokens_per_s=tokens / sum(times),
                threads=torch.get_num_threads(),
                steps=len(times),
                losses=losses,
            )
        )
    )


if __name__ == "__main__":
    main()
