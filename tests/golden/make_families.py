#!/usr/bin/env python3
"""Records tiny random models of each supported family, as Hugging Face directories, and what
transformers and PEFT do with them: the reference of tests/unit/test_golden_families.c.

    python make_families.py [--out DIR]      DIR: "families" where this script lies

Needs torch, transformers and peft. All arithmetic is fp32 on the CPU, on the weights as they
are read back from the files. Written per family, in DIR/FAMILY:
  config.json, model*.safetensors   as save_pretrained writes them; llama3 in several files and with
                                    rope_scaling in the spelling of transformers 4; qwen2 in BF16,
                                    mistral in F16
  train.safetensors                 one training run, as make_llama_peft.py describes it, and
    plain.ids, plain.length           I32, prompts without virtual tokens, packed
    plain.logits                      F32 [ids, vocab], the logits after each id
"""

import argparse
import json
import math
import os
import random
import shutil

import peft
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

import make_llama_peft as golden

HIDDEN, FFN, LAYERS, HEADS, POSITIONS = 32, 80, 3, 4, 64
COMMON = dict(
    vocab_size=golden.VOCAB,
    hidden_size=HIDDEN,
    intermediate_size=FFN,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=2,
    max_position_embeddings=POSITIONS,
    rms_norm_eps=1e-5,
)
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
# of wavelengths 6, 20, 63 and 199: one is kept, two are blended, one is divided by the factor
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def prompt(v):
    return peft.PromptTuningConfig(
        num_virtual_tokens=v, prompt_tuning_init="RANDOM", task_type="CAUSAL_LM"
    )


def encoder(kind, v, encoder_hidden):
    return peft.PromptEncoderConfig(
        num_virtual_tokens=v,
        encoder_hidden_size=encoder_hidden,
        encoder_reparameterization_type=kind,
        encoder_num_layers=2,
        encoder_dropout=0.0,
        task_type="CAUSAL_LM",
    )


def families():
    """Name -> class, config, type and largest size of the files, what is trained, its learning rate, the
    style, its description."""
    t = transformers
    gpt2 = t.GPT2Config(
        vocab_size=golden.VOCAB,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=POSITIONS,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=golden.EOS,
        eos_token_id=golden.EOS,
    )
    llama = t.LlamaConfig(
        **dict(COMMON, max_position_embeddings=2 * POSITIONS),
        rope_parameters=LLAMA3_ROPE,
        tie_word_embeddings=False,
    )
    qwen2 = t.Qwen2Config(**COMMON, rope_parameters=PLAIN_ROPE, tie_word_embeddings=True)
    qwen3 = t.Qwen3Config(
        **COMMON,
        head_dim=12,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
    )
    mistral = t.MistralConfig(
        **dict(COMMON, max_position_embeddings=4 * POSITIONS),
        sliding_window=POSITIONS,
        rope_parameters=PLAIN_ROPE,
        tie_word_embeddings=False,
    )
    f32, f16, bf16 = torch.float32, torch.float16, torch.bfloat16
    mlp = dict(encoder_type="mlp", virtual_tokens=6, encoder_hidden=48, num_layers=3)
    lstm = dict(encoder_type="lstm", virtual_tokens=5, encoder_hidden=16, num_layers=2)
    table = dict(encoder_type="none", virtual_tokens=5, encoder_hidden=0, num_layers=0)
    return {
        "gpt2": (t.GPT2LMHeadModel, gpt2, f32, "1GB", encoder("MLP", 6, 48), 0.01, "mlp", mlp),
        "llama3": (t.LlamaForCausalLM, llama, f32, "80KB", encoder("LSTM", 5, 16), 0.02, "lstm", lstm),
        "qwen2": (t.Qwen2ForCausalLM, qwen2, bf16, "1GB", prompt(5), 0.3, "prompt", table),
        "qwen3": (t.Qwen3ForCausalLM, qwen3, f32, "1GB", encoder("MLP", 6, 48), 0.01, "mlp", mlp),
        "mistral": (t.MistralForCausalLM, mistral, f16, "1GB", prompt(5), 0.3, "prompt", table),
    }


def make_model(cls, config, seed):
    """Random weights, scaled so that every layer moves the residual stream and logits differ."""
    torch.manual_seed(seed)
    model = cls(config).float().eval()
    for name, p in model.named_parameters():
        if "norm" in name or ".ln_" in name:
            nn.init.uniform_(p, 0.5, 1.5)
            if name.endswith("bias"):
                p.data -= 1
        elif name.endswith("bias"):
            nn.init.normal_(p, std=0.3)
        elif "embed" in name or "wte" in name or "wpe" in name:
            nn.init.normal_(p, std=0.5)
        elif "lm_head" in name:
            nn.init.normal_(p, std=2.0 / math.sqrt(HIDDEN))
        else:
            fan_in = p.shape[0 if cls is transformers.GPT2LMHeadModel else 1]
            nn.init.normal_(p, std=1.0 / math.sqrt(fan_in))
    return model


def write(model, folder, dtype, shard):
    shutil.rmtree(folder, ignore_errors=True)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    os.remove(os.path.join(folder, "generation_config.json"))
    for name in os.listdir(folder):
        os.chmod(os.path.join(folder, name), 0o644)


def old_spelling(folder):
    """rope_parameters as transformers 4 wrote them."""
    path = os.path.join(folder, "config.json")
    with open(path) as f:
        config = json.load(f)
    config["rope_scaling"] = config.pop("rope_parameters")
    config["rope_theta"] = config["rope_scaling"].pop("rope_theta")
    with open(path, "w") as f:
        json.dump(config, f, indent=2, sort_keys=True)
        f.write("\n")


def load(folder):
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    return model.requires_grad_(False)


def plain_logits(model):
    rng = random.Random(31)
    prompts = [[rng.randrange(golden.EOS) for _ in range(n)] for n in (1, 6, 30)]
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([p])).logits[0] for p in prompts]
    return {
        "plain.ids": torch.tensor(sum(prompts, []), dtype=torch.int32),
        "plain.length": torch.tensor([len(p) for p in prompts], dtype=torch.int32),
        "plain.logits": torch.cat(logits),
    }


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--out", default=os.path.join(here, "families"))
    out = args.parse_args().out
    torch.set_num_threads(1)
    for i, (name, (cls, config, dtype, shard, tuned, lr, style, about)) in enumerate(
        families().items()
    ):
        folder = os.path.join(out, name)
        write(make_model(cls, config, 40 + i), folder, dtype, shard)
        if name == "llama3":
            old_spelling(folder)

        def build():
            torch.manual_seed(60 + i)
            case = golden.PeftCase(load(folder), tuned)
            return case, golden.make_batches(70 + i, 1), lr, dict(about)

        _, rec, meta, last = golden.record(style, build)
        meta["made_with"] += f", transformers {transformers.__version__}"
        rec.update(plain_logits(load(folder)))
        golden.save(os.path.join(folder, "train.safetensors"), rec, meta, last)


if __name__ == "__main__":
    main()
