"""A llama GGUF file as a transformers LlamaForCausalLM in fp32, dequantised by the gguf package.

This is the independent side of the golden tests: nothing here shares code with the engine.
"""

import gguf
import torch
from transformers import LlamaConfig, LlamaForCausalLM

# transformers name of each per-layer tensor, by its GGUF name
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def permute(w, heads):
    """Half-split rotary rows (transformers) to adjacent pairs (GGUF), as llama.cpp converts."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def unpermute(w, heads):
    """The inverse of permute."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def load(path, attention="eager"):
    """Reads the file; attention is one of transformers' implementations; dropout is off."""
    reader = gguf.GGUFReader(path)

    def key(name, otherwise=None):
        field = reader.fields.get(name)
        if field is None and otherwise is None:
            raise KeyError(f"{path}: no {name}")
        return otherwise if field is None else field.contents()

    if key("general.architecture") != "llama":
        raise ValueError(f"{path}: a {key('general.architecture')} model, not llama")
    tensors = {
        t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy()).float()
        for t in reader.tensors
    }
    heads = key("llama.attention.head_count")
    kv_heads = key("llama.attention.head_count_kv", heads)
    config = LlamaConfig(
        vocab_size=tensors["token_embd.weight"].shape[0],
        hidden_size=key("llama.embedding_length"),
        intermediate_size=key("llama.feed_forward_length"),
        num_hidden_layers=key("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=key("llama.context_length"),
        rms_norm_eps=key("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": float(key("llama.rope.freq_base", 10000.0)),
        },
        tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=key("tokenizer.ggml.bos_token_id"),
        eos_token_id=key("tokenizer.ggml.eos_token_id"),
        attn_implementation=attention,
    )
    state = {
        "model.embed_tokens.weight": tensors["token_embd.weight"],
        "model.norm.weight": tensors["output_norm.weight"],
        "lm_head.weight": tensors.get("output.weight", tensors["token_embd.weight"]),
    }
    for layer in range(config.num_hidden_layers):
        for ours, theirs in LAYER_NAMES.items():
            w = tensors[f"blk.{layer}.{ours}.weight"]
            if ours == "attn_q":
                w = unpermute(w, heads)
            elif ours == "attn_k":
                w = unpermute(w, kv_heads)
            state[f"model.layers.{layer}.{theirs}.weight"] = w
    model = LlamaForCausalLM(config).float().eval()
    model.load_state_dict(state)
    model.requires_grad_(False)
    return model
