#!/usr/bin/env python3
"""Makes tests/golden/nemo_*.nemo and nemo.safetensors: one tiny GPT-2 in every layout of NeMo 1.x.

The same random GPT-2 (transformers, fp32) is written as NeMo would save it with tensor and pipeline
parallelism, old QKV rows, layernorm1p, gzip, half-precision types; its logits for one sequence are
recorded. Weights are multiples of 1/128, small enough to be exact in fp32, fp16 and bf16 alike.

  nemo_tp1    fp32, members begin with ./                    nemo_tp2      bf16, mp_rank_XX/
  nemo_pp2    fp16, tp_rank_00_pp_rank_XXX/                  nemo_tp2_pp2  bf16
  nemo_legacy fp16, megatron_legacy: QKV [3, heads, head_dim], two tensor ranks
  nemo_ln1p   fp16, normalization layernorm1p: weights less 1
  nemo_gz     fp16, gzip'd
  nemo_erf    fp32, exact GELU, an output layer of its own, names with model.module., transposed
              storage, Parameters
  nemo_spm    fp16, a SentencePiece model with as many pieces as the others have tokens
  nemo_prompts  two prompt tables as NeMo 1.16 saves them

  ids [N]  logits [N, vocab] of all but nemo_erf  logits_erf [N, vocab]  prompts.a, prompts.b
  spm_ids: of the text "ab abc b" by SentencePiece

usage: make_nemo.py [FOLDER]        (needs torch, transformers, numpy, sentencepiece)
"""
import collections
import gzip
import hashlib
import io
import json
import os
import sys
import tarfile

import sentencepiece
import torch
import transformers

from golden_file import save

LAYERS, H, HEADS, FFN, POSITIONS = 2, 16, 4, 64, 32
MERGES = ["t h", "th e", "Ġ the", "i n", "Ġ a", "e r", "o n", "a n", "Ġ w", "Ġ o"]
D = H // HEADS
CONFIG = """\
# as NeMo writes it: every key, in its order
micro_batch_size: 4
global_batch_size: 8
tensor_model_parallel_size: {tp}
pipeline_model_parallel_size: {pp}
virtual_pipeline_model_parallel_size: null
encoder_seq_length: 32
max_position_embeddings: ${{.encoder_seq_length}}
num_layers: 2
hidden_size: 16
ffn_hidden_size: 64
num_attention_heads: 4
init_method_std: 0.02
use_scaled_init_method: true
hidden_dropout: 0.1
attention_dropout: 0.1
kv_channels: null
apply_query_key_layer_scaling: true
normalization: {norm}
layernorm_epsilon: 1e-5
do_layer_norm_weight_decay: false
make_vocab_size_divisible_by: 128
pre_process: true
post_process: true
persist_layer_norm: true
bias: true
activation: gelu
headscale: false
transformer_block_type: pre_ln
openai_gelu: false
normalize_attention_scores: true
position_embedding_type: learned_absolute
rotary_percentage: 1.0
attention_type: multihead
share_embeddings_and_output_weights: {tied}
tokenizer:
  library: {library}
  type: {type}
  model: {model}
  vocab_file: {vocab}
  merge_file: {merges}
  delimiter: null
  sentencepiece_legacy: false
megatron_legacy: {legacy}
megatron_amp_O2: false
bias_activation_fusion: {fused}
onnx_safe: false
precision: bf16
target: nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel
nemo_version: 1.20.0
"""


def byte_tokens():
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    return [chr(b) for b in keep] + [chr(256 + i) for i in range(len(rest))]


def tokenizer_files():
    tokens = byte_tokens() + [m.replace(" ", "") for m in MERGES] + ["<|endoftext|>"]
    vocab = json.dumps({t: i for i, t in enumerate(tokens)}).encode()
    merges = ("#version: 0.2\n" + "\n".join(MERGES) + "\n").encode()
    name = lambda data, tail: hashlib.md5(data).hexdigest() + "_" + tail
    return len(tokens), {name(vocab, "vocab.json"): vocab, name(merges, "merges.txt"): merges}


def sentencepiece_files(vocab):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ab abc b ab", "abc ab b"] * 20), model_writer=model, vocab_size=vocab,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity", minloglevel=2)
    return {hashlib.md5(model.getvalue()).hexdigest() + "_mt.model": model.getvalue()}


def on_grid(shape, scale, generator):
    return torch.randint(-scale, scale + 1, shape, generator=generator).float() / 128


def make_model(vocab, activation, seed):
    g = torch.Generator().manual_seed(seed)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=vocab, n_positions=POSITIONS, n_embd=H, n_layer=LAYERS, n_head=HEADS,
        activation_function=activation, layer_norm_epsilon=1e-5,
        tie_word_embeddings=activation != "gelu")).eval()
    for name, p in model.named_parameters():
        if ".ln_" in name and name.endswith("weight"):
            p.data = 1 + on_grid(p.shape, 64, g)
        else:
            p.data = on_grid(p.shape, 120, g)
    return model


def padded(w, tp):
    rows = -(-w.shape[0] // (128 * tp)) * 128 * tp
    return torch.cat([w, torch.full((rows - w.shape[0], w.shape[1]), 0.5)])


def fused_rows(w, tp, legacy):
    """GPT-2's rows [3, heads, d] in NeMo's order; each rank's own is contiguous."""
    w = w.reshape(3, tp, HEADS // tp, D, -1)
    w = w.permute(1, 0, 2, 3, 4) if legacy else w.permute(1, 2, 0, 3, 4)
    return w.reshape(3 * H, -1)


def rank_states(model, tp, pp, legacy, ln1p, prefix, untied):
    """state[pp][tp]: name -> tensor."""
    gpt = model.transformer
    states = [[collections.OrderedDict() for _ in range(tp)] for _ in range(pp)]

    def put(stage, name, w, how):
        for t in range(tp):
            piece = w if how == "same" else w.chunk(tp, 0 if how == "rows" else 1)[t]
            states[stage][t][prefix + name] = piece.detach().clone()

    def norm(stage, name, n):
        put(stage, name + ".weight", n.weight - 1 if ln1p else n.weight, "same")
        put(stage, name + ".bias", n.bias, "same")

    embedding = padded(gpt.wte.weight, tp)
    put(0, "embedding.word_embeddings.weight", embedding, "rows")
    put(0, "embedding.position_embeddings.weight", gpt.wpe.weight, "same")
    for i, block in enumerate(gpt.h):
        stage, local = i // (LAYERS // pp), i % (LAYERS // pp)
        at = f"encoder.layers.{local}."
        norm(stage, at + "input_layernorm", block.ln_1)
        qkv, bias = block.attn.c_attn.weight.T, block.attn.c_attn.bias[:, None]
        put(stage, at + "self_attention.query_key_value.weight", fused_rows(qkv, tp, legacy), "rows")
        put(stage, at + "self_attention.query_key_value.bias", fused_rows(bias, tp, legacy)[:, 0], "rows")
        put(stage, at + "self_attention.dense.weight", block.attn.c_proj.weight.T, "cols")
        put(stage, at + "self_attention.dense.bias", block.attn.c_proj.bias, "same")
        norm(stage, at + "post_attention_layernorm", block.ln_2)
        put(stage, at + "mlp.dense_h_to_4h.weight", block.mlp.c_fc.weight.T, "rows")
        put(stage, at + "mlp.dense_h_to_4h.bias", block.mlp.c_fc.bias, "rows")
        put(stage, at + "mlp.dense_4h_to_h.weight", block.mlp.c_proj.weight.T, "cols")
        put(stage, at + "mlp.dense_4h_to_h.bias", block.mlp.c_proj.bias, "same")
    norm(pp - 1, "encoder.final_layernorm", gpt.ln_f)
    if pp > 1:
        for t in range(tp):
            states[-1][t]["model.word_embeddings.weight"] = embedding.chunk(tp, 0)[t].clone()
    if untied:
        put(pp - 1, "output_layer.weight", padded(model.lm_head.weight, tp), "rows")
    return states


def torch_bytes(obj):
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    return buffer.getvalue()


def write_tar(path, members, dot=False, gz=False):
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        if dot:
            folder = tarfile.TarInfo(".")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
        for name, data in members.items():
            info = tarfile.TarInfo(("./" if dot else "") + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = plain.getvalue()
    with open(path, "wb") as f:
        f.write(gzip.compress(data, mtime=0) if gz else data)


def write_nemo(folder, name, model, files, dtype=torch.float32, tp=1, pp=1, legacy=False, ln1p=False,
               erf=False, dot=False, gz=False):
    names = ["nemo:" + name for name in files]
    if len(files) == 1:
        tokenizer = dict(library="sentencepiece", type="null", model=names[0], vocab="null", merges="null")
    else:
        tokenizer = dict(library="megatron", type="GPT2BPETokenizer", model="null", vocab=names[0],
                         merges=names[1])
    prefix = "model.module.language_model." if erf else "model.language_model."
    config = CONFIG.format(tp=tp, pp=pp, norm="layernorm1p" if ln1p else "layernorm", **tokenizer,
                           legacy=str(legacy).lower(), fused=str(not erf).lower(),
                           tied=str(not erf).lower())
    members = {"model_config.yaml": config.encode(), **files}
    states = rank_states(model, tp, pp, legacy, ln1p, prefix, erf)
    for p in range(pp):
        for t in range(tp):
            where = "" if tp == pp == 1 else f"mp_rank_{t:02d}/" if pp == 1 else f"tp_rank_{t:02d}_pp_rank_{p:03d}/"
            state = states[p][t]
            for key in state:
                state[key] = state[key].to(dtype)
                if erf and "dense" in key and state[key].dim() == 2:
                    state[key] = state[key].T.contiguous().T  # the same numbers, column by column
                if erf and key.endswith("bias"):
                    state[key] = torch.nn.Parameter(state[key])
            members[where + "model_weights.ckpt"] = torch_bytes(state)
    write_tar(os.path.join(folder, name), members, dot, gz)


def logits_of(model, ids):
    with torch.no_grad():
        return model(ids[None].long()).logits[0]


def write_prompts(folder, tensors):
    table = collections.OrderedDict()
    for task, rows in tensors.items():
        table[f"prompt_table.{task}.indices"] = torch.arange(rows.shape[0])
        table[f"prompt_table.{task}.prompt_embeddings.weight"] = rows
    config = """\
virtual_prompt_style: p-tuning
language_model_path: models/megatron_125M_gpt.nemo
existing_tasks: [a, b]
new_tasks: []
task_templates:
- taskname: a
  prompt_template: <|VIRTUAL_PROMPT_0|> {context} answer{answer}
  total_virtual_tokens: 3
  virtual_token_splits: [3]
  truncate_field: context
  answer_only_loss: true
  answer_field: answer
- taskname: b
  prompt_template: <|VIRTUAL_PROMPT_0|> {x} <|VIRTUAL_PROMPT_1|>{y}
  total_virtual_tokens: 5
  virtual_token_splits: [2, 3]
  truncate_field: null
  answer_only_loss: false
target: nemo.collections.nlp.models.language_modeling.megatron_gpt_prompt_learning_model.MegatronGPTPromptLearningModel
"""
    write_tar(os.path.join(folder, "nemo_prompts.nemo"), {
        "model_config.yaml": config.encode(),
        "model_weights.ckpt": torch_bytes({"prompt_table": table})}, dot=True)


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    vocab, files = tokenizer_files()
    model, erf = make_model(vocab, "gelu_new", 1), make_model(vocab, "gelu", 2)
    half, brain = torch.float16, torch.bfloat16
    write_nemo(folder, "nemo_tp1.nemo", model, files, dot=True)
    write_nemo(folder, "nemo_tp2.nemo", model, files, brain, tp=2)
    write_nemo(folder, "nemo_pp2.nemo", model, files, half, pp=2)
    write_nemo(folder, "nemo_tp2_pp2.nemo", model, files, brain, tp=2, pp=2, dot=True)
    write_nemo(folder, "nemo_legacy.nemo", model, files, half, tp=2, legacy=True)
    write_nemo(folder, "nemo_ln1p.nemo", model, files, half, ln1p=True)
    write_nemo(folder, "nemo_gz.nemo", model, files, half, gz=True)
    write_nemo(folder, "nemo_erf.nemo", erf, files, erf=True)
    spm = sentencepiece_files(vocab)
    write_nemo(folder, "nemo_spm.nemo", model, spm, half)
    spm_ids = sentencepiece.SentencePieceProcessor(model_proto=[*spm.values()][0]).encode("ab abc b")
    g = torch.Generator().manual_seed(3)
    ids = torch.randint(0, vocab, (24,), generator=g).int()
    prompts = {"a": torch.randn((3, H), generator=g), "b": torch.randn((5, H), generator=g)}
    write_prompts(folder, prompts)
    save(os.path.join(folder, "nemo.safetensors"), {
        "ids": ids, "logits": logits_of(model, ids), "logits_erf": logits_of(erf, ids),
        "spm_ids": torch.tensor(spm_ids).int(), "prompts.a": prompts["a"], "prompts.b": prompts["b"]}, {
        "torch": torch.__version__, "transformers": transformers.__version__})


main()
