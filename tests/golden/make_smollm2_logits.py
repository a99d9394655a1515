#!/usr/bin/env python3
"""Records transformers' logits of the SmolLM2 GGUF, weights dequantised, fp32 on the CPU.

    python make_smollm2_logits.py MODEL.gguf [--out FILE]

FILE: smollm2_logits.safetensors beside this script. Needs torch, transformers, gguf and
tokenizers; the file it writes needs none of them. P prompts with N positions in all; L(n) is the
whole vector of logits after position n.

  metadata         texts (JSON list of the prompts), model_sha256, made_with
  prompt.ids       I32 [N], packed
  prompt.length    I32 [P]
  sample.ids       I32 [1024], the same ids for every position
  sample.logits    F32 [N,1024]  L(n) at sample.ids
  top.ids          I32 [N,64]    the largest of L(n), descending
  top.logits       F32 [N,64]
  mean, norm, logsumexp  F32 [N]  of L(n); norm is the Euclidean norm
  greedy.ids       I32 [P,32]    greedy continuation
  greedy.gap       F32 [P,32]    largest logit less the second at that step
  step.prompts     F32 [8,H]     a prompt table, put before the first 8 prompts, whose last 4 ids
                                 are targets
  step.loss        F32 [1]       mean loss of those 32 targets
  step.grad        F32 [8,H]     d loss / d step.prompts
"""

import argparse
import hashlib
import json
import os

import gguf
import tokenizers
import torch
import transformers
from tokenizers import pre_tokenizers

import gguf_llama
import golden_file

SAMPLE, TOP, NEW = 1024, 64, 32
STEP_V, STEP_ROWS, STEP_TARGETS = 8, 8, 4
TEXTS = [
    "The capital of France is the city of Paris, and the capital of Italy is",
    "Once upon a time there was a little girl who lived in a village near the forest.",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "for (int i = 0; i < 10; i++) {\n    printf(",
    "1, 2, 3, 5, 8, 13,",
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
    "Water boils at 100 degrees Celsius at sea level, but",
    "Der schnelle braune Fuchs springt über den",
    "日本の首都は東京です。",
    "Context: a large gray mammal with a trunk\n\nQuestion: What kind of thing is it?\n\nAnswer:",
    "SELECT name, COUNT(*) FROM orders GROUP BY",
    "😀 Emoji and naïve café: ünïcödé works",
    "In 1969, Neil Armstrong became the first person to walk",
    "Dear Sir or Madam,\n\nI am writing to complain about",
    "    \t\n\n  a   b    c\n\n\n",
    "Photosynthesis is the process by which plants convert",
    '{"name": "Ada", "age": 36, "languages": [',
    "To be, or not to be, that is the question:",
    "the the the the the the the the",
    "A prime number is a natural number greater than 1 that has no positive divisors other than",
]


def tokenizer(path):
    """The published pre-tokenizer of SmolLM2 around the file's own vocabulary and merges."""
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    vocab = {t: i for i, t in enumerate(tokens)}
    tok = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    control = [t for t, k in zip(tokens, kinds) if k == gguf.TokenType.CONTROL]
    tok.add_special_tokens(control)
    return tok


def training_step(model, prompts):
    """One step of prompt tuning: the table, its loss and its gradient."""
    embed = model.get_input_embeddings()
    table = embed(torch.arange(1000, 1000 + STEP_V)) + 0.02 * torch.randn(
        STEP_V, embed.embedding_dim
    )
    table = table.detach().requires_grad_()
    longest = max(map(len, prompts[:STEP_ROWS]))
    inputs, masks, labels = [], [], []
    for ids in prompts[:STEP_ROWS]:
        n, pad = len(ids), longest - len(ids)
        x = torch.cat([table, embed(torch.tensor(ids))])
        inputs.append(torch.nn.functional.pad(x, (0, 0, 0, pad)))
        masks.append(torch.tensor([1] * len(x) + [0] * pad))
        quiet = STEP_V + n - STEP_TARGETS
        labels.append(torch.tensor([-100] * quiet + ids[-STEP_TARGETS:] + [-100] * pad))
    logits = model(inputs_embeds=torch.stack(inputs), attention_mask=torch.stack(masks)).logits
    want = torch.stack(labels)[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), want)
    loss.backward()
    return {
        "step.prompts": table.detach(),
        "step.loss": loss.detach()[None],
        "step.grad": table.grad,
    }


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("model")
    args.add_argument("--out", default=os.path.join(here, "smollm2_logits.safetensors"))
    args = args.parse_args()
    torch.manual_seed(1)
    tok = tokenizer(args.model)
    model = gguf_llama.load(args.model)
    prompts = [tok.encode(t).ids for t in TEXTS]
    lengths = [len(p) for p in prompts]
    assert all(8 <= n <= 24 for n in lengths), lengths
    sample = torch.randperm(model.config.vocab_size)[:SAMPLE].sort().values
    rec = {k: [] for k in ("sample.logits", "top.ids", "top.logits", "mean", "norm", "logsumexp")}
    greedy, gaps = [], []
    with torch.no_grad():
        for ids in prompts:
            logits = model(input_ids=torch.tensor([ids])).logits[0]
            top = logits.topk(TOP)
            rec["sample.logits"].append(logits[:, sample])
            rec["top.ids"].append(top.indices.int())
            rec["top.logits"].append(top.values)
            rec["mean"].append(logits.mean(1))
            rec["norm"].append(logits.norm(dim=1))
            rec["logsumexp"].append(logits.logsumexp(1))
            run, gap = list(ids), []
            for _ in range(NEW):  # no cache: the plain forward is the reference
                best = model(input_ids=torch.tensor([run])).logits[0, -1].topk(2)
                run.append(int(best.indices[0]))
                gap.append(float(best.values[0] - best.values[1]))
            greedy.append(run[len(ids) :])
            gaps.append(gap)
            print(
                repr(tok.decode(ids)),
                "->",
                repr(tok.decode(greedy[-1])),
                f"least gap {min(gap):.2g}",
                flush=True,
            )
    rec = {k: torch.cat(v).contiguous() for k, v in rec.items()}
    rec.update(training_step(model, prompts))
    rec["prompt.ids"] = torch.tensor(sum(prompts, []), dtype=torch.int32)
    rec["prompt.length"] = torch.tensor(lengths, dtype=torch.int32)
    rec["sample.ids"] = sample.int()
    rec["greedy.ids"] = torch.tensor(greedy, dtype=torch.int32)
    rec["greedy.gap"] = torch.tensor(gaps)
    with open(args.model, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    meta = {
        "texts": json.dumps(TEXTS, ensure_ascii=False),
        "model_sha256": digest,
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__}",
    }
    golden_file.save(args.out, rec, meta)
    print(f"{sum(lengths)} positions, {os.path.getsize(args.out)} bytes")


if __name__ == "__main__":
    main()
