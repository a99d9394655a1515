#!/usr/bin/env python3
"""Compares the engine's logits with transformers', live and over the whole vocabulary.

    SL_MODEL=MODEL.gguf SL_DUMP_LOGITS=FILE build/tests/unit/test_golden_model
    python check_logits.py MODEL.gguf FILE

FILE: fp32, [positions of smollm2_logits.safetensors, vocab], as test_golden_model writes it. Prints
the least cosine, plain and with the means taken off, and the largest difference; exit status 1
where a cosine is not over 0.9999.
"""

import argparse
import os

import numpy
import safetensors.torch
import torch

import gguf_llama

LEAST_COSINE = 0.9999


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("model")
    args.add_argument("dump")
    args = args.parse_args()
    golden = safetensors.torch.load_file(os.path.join(here, "smollm2_logits.safetensors"))
    lengths = golden["prompt.length"].tolist()
    prompts = golden["prompt.ids"].long().split(lengths)
    model = gguf_llama.load(args.model)
    ours = numpy.fromfile(args.dump, dtype="<f4").reshape(sum(lengths), model.config.vocab_size)
    ours = torch.from_numpy(ours).double().split(lengths)
    plain, centred, apart = [], [], []
    with torch.no_grad():
        for ids, a in zip(prompts, ours):
            b = model(input_ids=ids[None]).logits[0].double()
            plain.append(torch.cosine_similarity(a, b))
            centred.append(torch.cosine_similarity(a - a.mean(1, True), b - b.mean(1, True)))
            apart.append((a - b).abs().amax(1))
    plain, centred, apart = map(torch.cat, (plain, centred, apart))
    print(
        f"{len(plain)} positions, whole vocabulary: least cosine {plain.min():.9f}, "
        f"centred {centred.min():.9f}, largest difference {apart.max():.3g}"
    )
    good = plain.min() > LEAST_COSINE and centred.min() > LEAST_COSINE  # NaN is not good
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
