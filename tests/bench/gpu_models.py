"""The models, data and token batches of the GPU comparisons: random weights in real shapes, lengths as in real data.

Profiles: short is 100 virtual tokens and 64 to 256 of text, squad 15 and about 160 with a long tail, long 20 and 1536.
The answer is a row's last tenth, at least 3 tokens. save() also writes a tokenizer, so that the shipped programs read the folder.
"""

import json
import math
import os

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

MODELS = {
    "gpt-125m": GPT2Config(n_embd=768, n_layer=12, n_head=12, n_positions=2048),
    "gpt-1.3b": GPT2Config(n_embd=2048, n_layer=24, n_head=16, n_positions=2048),
    "gpt-5b": GPT2Config(n_embd=4096, n_layer=24, n_head=32, n_positions=2048),
    "smollm2-135m": LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                                num_key_value_heads=3, vocab_size=49152, max_position_embeddings=2048,
                                tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e5}),
}
VIRTUAL = {"short": 100, "squad": 15, "long": 20}
MEAN = {"short": 160, "squad": 175, "long": 1536}


def lengths(profile, n, g):
    if profile == "short":
        return torch.randint(64, 257, (n,), generator=g)
    if profile == "squad":
        return torch.exp(torch.randn(n, generator=g) * 0.42 + math.log(160)).clamp(40, 800).long()
    return torch.full((n,), 1536, dtype=torch.long)


def batch(profile, rows, vocab, g):
    """Ids and answer marks as lists."""
    ids, answer = [], []
    for n in lengths(profile, rows, g).tolist():
        ids.append(torch.randint(0, vocab, (n,), generator=g).tolist())
        answer.append([int(i >= n - max(3, n // 10)) for i in range(n)])
    return {"ids": ids, "answer": answer}


def rows_for(profile, tokens):
    """Rows that make about so many packed tokens: the prompt lies there once."""
    return max(1, round((tokens - VIRTUAL[profile]) / MEAN[profile]))


def byte_tokenizer(folder, vocab):
    """A byte-level tokenizer.json whose every byte is a token, and its configuration; ids stay below vocab."""
    letters = {}
    seen = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))    # GPT-2's byte alphabet
    spare = 256
    for b in range(256):
        if b in seen:
            letters[b] = chr(b)
        else:
            letters[b] = chr(spare)
            spare += 1
    end = vocab - 1
    words = {letters[b]: b for b in range(256)}
    words["<|endoftext|>"] = end
    special = {"id": end, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False,
               "normalized": False, "special": True}
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    with open(os.path.join(folder, "tokenizer.json"), "w") as f:
        json.dump({"version": "1.0", "truncation": None, "padding": None, "added_tokens": [special], "normalizer": None,
                   "pre_tokenizer": by_bytes, "post_processor": None, "decoder": by_bytes,
                   "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                             "end_of_word_suffix": "", "fuse_unk": False, "vocab": words, "merges": []}}, f)
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
        json.dump({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}, f)


def save(config, folder, device="cuda"):
    """Random bf16 weights, made on the device, as a Hugging Face folder."""
    torch.manual_seed(0)
    with torch.device(device):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    byte_tokenizer(folder, config.vocab_size)


def ensure_model(config, folder, device="cuda"):
    """save(), unless the folder has a model already. Whether it had to be made."""
    if os.path.exists(folder + "/config.json"):
        return False
    os.makedirs(folder, exist_ok=True)
    save(config, folder, device)
    return True


def text_rows(profile, n, seed=0):
    """JSONL rows of letters for the shipped programs, in the profile's lengths: one letter a token, about."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for size in lengths(profile, n, g).tolist():
        answer = max(2, size // 10 - 1)    # and the end of text
        letters = torch.randint(97, 123, (size,), generator=g).tolist()
        text = "".join(map(chr, letters))
        out.append(json.dumps({"taskname": "task", "question": text[:size - answer - 2], "answer": text[-answer:]}) + "\n")
    return "".join(out)


def spec(name, model, files, profile, config):
    """A job spec for `softlaunch-worker train --spec`; config is merged over its model section."""
    template = {"taskname": "task", "prompt_template": "<|VIRTUAL_PROMPT_0|>{question} {answer}",
                "total_virtual_tokens": VIRTUAL[profile], "answer_only_loss": True, "answer_field": "answer"}
    return {"api": "softlaunch/v1", "name": name, "model": model, "datasets": files, "outputs": {"artifact": name},
            "config": {"trainer": {"max_epochs": -1, "precision": "bf16", **config.get("trainer", {})},
                       "exp_manager": {"create_early_stopping_callback": False},
                       "model": {"virtual_prompt_style": "p-tuning", "task_templates": [template],
                                 **config.get("model", {})}}}
