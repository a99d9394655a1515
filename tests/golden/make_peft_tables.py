#!/usr/bin/env python3
"""Makes tests/golden/peft_tables/: adapters saved by PEFT itself, for the import of prompt tables.

  prompt/   PROMPT_TUNING, bf16       ptuning/  P_TUNING, fp32, saved after "training"
  bin/      PROMPT_TUNING, adapter_model.bin (safe_serialization off)
  lora/     LORA: to be refused
  expected.safetensors   the tables as fp32, by folder name

usage: make_peft_tables.py [FOLDER]        (needs torch, transformers, peft)
"""
import os
import shutil
import sys

import peft
import torch
import transformers

from golden_file import save

V, H = 4, 8


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    folder = os.path.join(sys.argv[1] if len(sys.argv) > 1 else here, "peft_tables")
    shutil.rmtree(folder, ignore_errors=True)
    expected = {}

    def write(name, config, dtype=torch.float32, **how):
        torch.manual_seed(5)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=16, n_positions=16, n_embd=H, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0))
        adapted = peft.get_peft_model(model, config).to(dtype)
        where = os.path.join(folder, name)
        if config.peft_type != peft.PeftType.LORA:
            expected[name] = adapted.get_prompt_embedding_to_save("default").float()
        adapted.save_pretrained(where, **how)
        os.remove(os.path.join(where, "README.md"))

    tuning = dict(task_type="CAUSAL_LM", num_virtual_tokens=V)
    write("prompt", peft.PromptTuningConfig(**tuning), torch.bfloat16)
    write("ptuning", peft.PromptEncoderConfig(encoder_hidden_size=6, **tuning))
    write("bin", peft.PromptTuningConfig(**tuning), safe_serialization=False)
    write("lora", peft.LoraConfig(task_type="CAUSAL_LM", r=1, target_modules=["c_attn"]))
    save(os.path.join(folder, "expected.safetensors"), expected, {"peft": peft.__version__})


main()
