#!/usr/bin/env python3
"""Records what PEFT does with a tiny random Llama: the reference of tests/unit/test_golden_*.

    python make_llama_peft.py [--out DIR]      DIR: where this script lies

Needs torch, transformers, peft and gguf; the files it writes need none of them. All
arithmetic is fp32 on the CPU. Each case is also run from parameters that differ by about one unit
in the last place, and the distance between the two runs is kept as noise_*: a tolerance far above
it measures the implementation, not rounding.

Written:
  tiny_llama.gguf       the frozen base model, F32, with a trivial gpt2 vocabulary
  train_CASE.safetensors  for mlp, lstm and prompt (PEFT's classes), tpmlp, two_tables and
                        two_tasks (plain torch):
    metadata            case, encoder_type, virtual_tokens (a number a task, "5,9"), encoder_hidden,
                        num_layers, steps, batches, lr, warmup_steps, min_lr, beta1, beta2, eps,
                        weight_decay, gradient_clip_val, shared_encoder (1: one serves all tasks),
                        noise_loss, noise_grad, noise_table, made_with; for PEFT's own classes
                        adapter_config and adapter_header: JSON text of the two files that
                        save_pretrained wrote
    batch.B.ids         I32, text ids of all rows, packed; a row's virtual tokens come before them
    batch.B.answer      I32, 1 where the id at this place counts as a target
    batch.B.length      I32 [rows], ids of each row
    batch.B.slot        I32 [rows], task of each row
    fixed.T             F32 [n,H], shared encoder: frozen first rows of task T's encoder input
    init.NAME           F32, each trained parameter before step 0
    grad.NAME           F32, its gradient in step 0, before clipping
    grad.prompt.T       F32 [V,H], d loss / d prompt embeddings of task T in step 0
    loss, lr, grad_norm F32 [steps]; step s uses batch s mod batches; the norm is before clipping
    table.T             F32 [V,H], the prompt table of task T after the last step
    probe.ids, probe.length   I32, prompts, packed
    probe.logits        F32 [prompts, vocab], next-token logits behind table.0 and each prompt
"""

import argparse
import json
import math
import os
import random
import tempfile

import gguf
import peft
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import gguf_llama
import golden_file

VOCAB, HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, POSITIONS = 320, 64, 160, 3, 4, 2, 256
STEPS, N_BATCHES, WARMUP, CLIP = 20, 4, 5, 1.0
BETA1, BETA2, EPS, DECAY, MIN_LR = 0.9, 0.98, 1e-8, 0.01, 0.0
JITTER = 2.0**-23
EOS = VOCAB - 3
CLASSES = [[40, 41], [77], [120, 121, 122], [200, 7]]  # the answers


# ---- the base model ----------------------------------------------------------
def make_model():
    """Random weights, scaled so that every layer moves the residual stream and logits differ."""
    torch.manual_seed(20)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=POSITIONS,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).float().eval()
    for name, p in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(p, 0.7, 1.3)
        elif "embed" in name:
            nn.init.normal_(p, std=0.5)
        elif "lm_head" in name:
            nn.init.normal_(p, std=2.0 / math.sqrt(HIDDEN))
        else:
            nn.init.normal_(p, std=1.0 / math.sqrt(p.shape[1]))
    model.requires_grad_(False)
    return model


def byte_alphabet():
    """GPT-2's printable stand-ins for the 256 bytes, in its order."""
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    rest = [b for b in range(256) if b not in keep]
    return [chr(b) for b in keep] + [chr(256 + i) for i in range(len(rest))]


def write_gguf(model, path):
    tokens = byte_alphabet()
    merges = []
    while len(tokens) < EOS:  # "aa", "ab", ...: any pairs make a vocabulary
        a, b = divmod(len(merges), 26)
        merges.append(f"{chr(97 + a)} {chr(97 + b)}")
        tokens.append(chr(97 + a) + chr(97 + b))
    kinds = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * 3
    tokens += ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    w = gguf.GGUFWriter(path, "llama")
    w.add_name("softlaunch tiny llama")
    w.add_block_count(LAYERS)
    w.add_context_length(POSITIONS)
    w.add_embedding_length(HIDDEN)
    w.add_feed_forward_length(FFN)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(HIDDEN // HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(VOCAB)
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(tokens)
    w.add_token_types(kinds)
    w.add_token_merges(merges)
    w.add_bos_token_id(EOS)
    w.add_eos_token_id(EOS)
    w.add_unk_token_id(EOS)
    w.add_pad_token_id(EOS)
    w.add_add_bos_token(False)
    state = model.state_dict()
    w.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    for i in range(LAYERS):
        for ours, theirs in gguf_llama.LAYER_NAMES.items():
            p = state[f"model.layers.{i}.{theirs}.weight"].numpy()
            if ours in ("attn_q", "attn_k"):
                p = gguf_llama.permute(p, HEADS if ours == "attn_q" else KV_HEADS)
            w.add_tensor(f"blk.{i}.{ours}.weight", p.copy())
    w.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    w.add_tensor("output.weight", state["lm_head.weight"].numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    again = gguf_llama.load(path).state_dict()
    for name, p in state.items():
        assert torch.equal(p, again[name]), f"{name} did not survive the file"


# ---- batches -----------------------------------------------------------------
def make_batches(seed, tasks):
    """Rows of 8 to 40 ids: random text, an answer, EOS; only the answer and EOS count."""
    rng = random.Random(seed)
    batches = []
    for rows in [6, 8, 7, 8][:N_BATCHES]:
        batch = []
        for r in range(rows):
            answer = rng.choice(CLASSES) + [EOS]
            n_text = rng.randint(8, 40) - len(answer)
            text = [rng.randrange(EOS) for _ in range(n_text)]
            batch.append((text + answer, [0] * n_text + [1] * len(answer), r % tasks))
        batches.append(batch)
    return batches


def padded(batch):
    """ids, attention mask and labels, padded at the right; transformers shifts the labels."""
    longest = max(len(ids) for ids, _, _ in batch)
    ids = torch.full((len(batch), longest), EOS)
    mask = torch.zeros((len(batch), longest), dtype=torch.long)
    labels = torch.full((len(batch), longest), -100)
    for r, (row, answer, _) in enumerate(batch):
        n = len(row)
        ids[r, :n] = torch.tensor(row)
        mask[r, :n] = 1
        labels[r, :n] = torch.where(torch.tensor(answer) == 1, ids[r, :n], -100)
    return ids, mask, labels


# ---- what is trained ---------------------------------------------------------
class PeftCase:
    """One of PEFT's own prompt encoders around the frozen model."""

    def __init__(self, model, config):
        self.extra = {}
        self.net = peft.get_peft_model(model, config).train()
        self.encoder = self.net.prompt_encoder["default"]
        self.encoder.register_forward_hook(self._keep)
        self.params = {n: p for n, p in self.encoder.named_parameters() if p.requires_grad}

    def _keep(self, _module, _inputs, out):
        if out.requires_grad:
            out.retain_grad()
        self.out = out  # [batch, V, H]: each row has its own copy of the prompt

    def loss(self, batch):
        ids, mask, labels = padded(batch)
        return self.net(input_ids=ids, attention_mask=mask, labels=labels).loss

    def prompt_grads(self):
        return [self.out.grad.sum(0)]

    def tables(self):
        return [self.net.get_prompt_embedding_to_save("default").detach()]


class Tpmlp(nn.Module):
    """NeMo's TPMLP: Linear H->E, GELU (tanh), Linear E->H on an embedding ~ N(0,1)."""

    def __init__(self, virtual_tokens, encoder_hidden, init_std):
        super().__init__()
        self.embedding = nn.Embedding(virtual_tokens, HIDDEN)
        self.first = nn.Linear(HIDDEN, encoder_hidden)
        self.second = nn.Linear(encoder_hidden, HIDDEN)
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=init_std)
            nn.init.zeros_(layer.bias)

    def forward(self):
        x = self.first(self.embedding.weight)
        return self.second(nn.functional.gelu(x, approximate="tanh"))


class SharedMlp(nn.Module):
    """NeMo's MLP with two layers for several tasks: the first rows of each task's input are frozen."""

    def __init__(self, fixed, virtual_tokens, encoder_hidden):
        super().__init__()
        self.fixed = fixed
        self.embedding = nn.Embedding(virtual_tokens, HIDDEN)
        self.mlp_head = nn.Sequential(
            nn.Linear(HIDDEN, encoder_hidden), nn.ReLU(), nn.Linear(encoder_hidden, HIDDEN)
        )

    def forward(self):
        own = self.embedding.weight
        return [self.mlp_head(torch.cat([rows, own[len(rows) :]])) for rows in self.fixed]


class TorchCase:
    """Prompt tables by plain torch: each row gets the table of its task in front."""

    def __init__(self, model, module, forward):
        self.extra = {}
        self.model = model
        self.forward = forward
        self.params = dict(module.named_parameters())

    def loss(self, batch):
        self.out = self.forward()
        for t in self.out:
            t.retain_grad()
        embed = self.model.get_input_embeddings()
        longest = max(len(ids) + self.out[slot].shape[0] for ids, _, slot in batch)
        inputs, masks, labels = [], [], []
        for ids, answer, slot in batch:
            table = self.out[slot]
            pad = longest - table.shape[0] - len(ids)
            ids = torch.tensor(ids)
            x = torch.cat([table, embed(ids)])
            inputs.append(nn.functional.pad(x, (0, 0, 0, pad)))
            masks.append(torch.tensor([1] * len(x) + [0] * pad))
            y = torch.where(torch.tensor(answer) == 1, ids, -100)
            labels.append(nn.functional.pad(y, (table.shape[0], pad), value=-100))
        logits = self.model(
            inputs_embeds=torch.stack(inputs), attention_mask=torch.stack(masks)
        ).logits
        y = torch.stack(labels)
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), y[:, 1:].flatten())

    def prompt_grads(self):
        return [t.grad for t in self.out]

    def tables(self):
        return [t.detach() for t in self.forward()]


def make_case(name, model):
    """The case, its batches, its peak learning rate and its description."""
    torch.manual_seed(
        {"mlp": 1, "lstm": 2, "prompt": 3, "tpmlp": 4, "two_tables": 5, "two_tasks": 6}[name]
    )
    common = dict(task_type="CAUSAL_LM")
    if name == "mlp":
        config = peft.PromptEncoderConfig(
            num_virtual_tokens=8,
            encoder_hidden_size=96,
            encoder_reparameterization_type="MLP",
            **common,
        )
        about = dict(encoder_type="mlp", virtual_tokens=8, encoder_hidden=96, num_layers=3)
        return PeftCase(model, config), make_batches(11, 1), 0.01, about
    if name == "lstm":
        config = peft.PromptEncoderConfig(
            num_virtual_tokens=6,
            encoder_hidden_size=16,
            encoder_reparameterization_type="LSTM",
            encoder_num_layers=2,
            encoder_dropout=0.0,
            **common,
        )
        about = dict(encoder_type="lstm", virtual_tokens=6, encoder_hidden=16, num_layers=2)
        return PeftCase(model, config), make_batches(12, 1), 0.02, about
    if name == "prompt":
        config = peft.PromptTuningConfig(
            num_virtual_tokens=5, prompt_tuning_init="RANDOM", **common
        )
        about = dict(encoder_type="none", virtual_tokens=5, encoder_hidden=0, num_layers=0)
        return PeftCase(model, config), make_batches(13, 1), 0.3, about
    if name == "tpmlp":
        net = Tpmlp(10, 80, 0.05)
        about = dict(encoder_type="tpmlp", virtual_tokens=10, encoder_hidden=80, num_layers=2)
        return TorchCase(model, net, lambda: [net()]), make_batches(14, 1), 0.01, about
    if name == "two_tasks":
        embed = model.get_input_embeddings().weight
        fixed = [embed[[50, 60]].clone(), embed[[70, 80, 90]].clone()]  # as if tasks' names
        net = SharedMlp(fixed, 6, 72)
        case = TorchCase(model, net, net)
        case.extra = {f"fixed.{t}": rows for t, rows in enumerate(fixed)}
        about = dict(encoder_type="mlp", virtual_tokens="6,6", encoder_hidden=72, num_layers=2)
        return case, make_batches(16, 2), 0.01, dict(about, shared_encoder=1)
    net = nn.ParameterList([nn.Parameter(torch.randn(v, HIDDEN) * 0.5) for v in (5, 9)])
    about = dict(encoder_type="none", virtual_tokens="5,9", encoder_hidden=0, num_layers=0)
    return TorchCase(model, net, lambda: [p * 1.0 for p in net]), make_batches(15, 2), 0.2, about


# ---- training ----------------------------------------------------------------
def rate(step, peak):
    """Cosine annealing with warm-up, NeMo's counting from step 0."""
    if step <= WARMUP:
        return peak * (step + 1) / (WARMUP + 1)
    if step > STEPS:
        return MIN_LR
    return MIN_LR + (peak - MIN_LR) / 2 * (
        1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))
    )


def train(case, batches, peak):
    """Trains in place; returns the tensors to record."""
    rec = {f"init.{n}": p.detach().clone() for n, p in case.params.items()}
    opt = torch.optim.AdamW(
        case.params.values(), lr=peak, betas=(BETA1, BETA2), eps=EPS, weight_decay=DECAY
    )
    losses, rates, norms = [], [], []
    for step in range(STEPS):
        lr = rate(step, peak)
        for group in opt.param_groups:
            group["lr"] = lr
        opt.zero_grad()
        loss = case.loss(batches[step % len(batches)])
        loss.backward()
        if step == 0:
            rec.update({f"grad.{n}": p.grad.clone() for n, p in case.params.items()})
            rec.update({f"grad.prompt.{i}": g.clone() for i, g in enumerate(case.prompt_grads())})
        norms.append(float(nn.utils.clip_grad_norm_(case.params.values(), CLIP)))
        opt.step()
        losses.append(loss.item())
        rates.append(lr)
    rec.update({f"table.{i}": t.clone() for i, t in enumerate(case.tables())})
    rec["loss"], rec["lr"], rec["grad_norm"] = map(torch.tensor, (losses, rates, norms))
    return rec, case.loss(batches[0]).item()


def record_adapter(case, rec, meta, path):
    """PEFT's own export, and what PEFT computes after loading it again."""
    with tempfile.TemporaryDirectory() as folder:
        case.net.save_pretrained(folder)
        with open(os.path.join(folder, "adapter_config.json")) as f:
            meta["adapter_config"] = f.read()
        with open(os.path.join(folder, "adapter_model.safetensors"), "rb") as f:
            blob = f.read()
        n = int.from_bytes(blob[:8], "little")
        meta["adapter_header"] = blob[8 : 8 + n].decode().strip()
        loaded = peft.PeftModel.from_pretrained(gguf_llama.load(path), folder).eval()
    rng = random.Random(30)
    prompts = [[rng.randrange(EOS) for _ in range(n)] for n in (1, 7, 19, 33)]
    with torch.no_grad():
        logits = [loaded(input_ids=torch.tensor([p])).logits[0, -1] for p in prompts]
    rec["probe.ids"] = torch.tensor(sum(prompts, []), dtype=torch.int32)
    rec["probe.length"] = torch.tensor([len(p) for p in prompts], dtype=torch.int32)
    rec["probe.logits"] = torch.stack(logits)


def distance(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def record(name, build):
    """Trains the case that build() makes, twice; the tensors and metadata to keep, and the case."""
    case, batches, peak, about = build()
    start = {n: p.detach().clone() for n, p in case.params.items()}
    rec, last = train(case, batches, peak)
    rec.update(case.extra)
    about.setdefault("shared_encoder", 0)
    first = float(rec["loss"][0])
    assert last <= 0.8 * first, f"{name}: loss {first} -> {last}: not down by 20 %"

    again, _, _, _ = build()  # the same once more, from a hair beside
    for n, p in again.params.items():
        p.data = start[n] * (1 + JITTER * torch.randn_like(p))
    beside, _ = train(again, batches, peak)

    meta = dict(
        about,
        case=name,
        steps=STEPS,
        batches=len(batches),
        lr=peak,
        warmup_steps=WARMUP,
        min_lr=MIN_LR,
        beta1=BETA1,
        beta2=BETA2,
        eps=EPS,
        weight_decay=DECAY,
        gradient_clip_val=CLIP,
        noise_loss=float((rec["loss"] - beside["loss"]).abs().max()),
        noise_grad=max(distance(rec[n], beside[n]) for n in rec if n.startswith("grad.")),
        noise_table=max(distance(rec[n], beside[n]) for n in rec if n.startswith("table.")),
        made_with=f"peft {peft.__version__}, torch {torch.__version__.split('+')[0]}",
    )
    for b, batch in enumerate(batches):
        flat = lambda i: torch.tensor(sum((list(r[i]) for r in batch), []), dtype=torch.int32)
        rec[f"batch.{b}.ids"], rec[f"batch.{b}.answer"] = flat(0), flat(1)
        rec[f"batch.{b}.length"] = torch.tensor([len(r[0]) for r in batch], dtype=torch.int32)
        rec[f"batch.{b}.slot"] = torch.tensor([r[2] for r in batch], dtype=torch.int32)
    return case, rec, meta, last


def save(target, rec, meta, last):
    rec = {
        n: t if t.dtype == torch.int32 else t.detach().float().contiguous() for n, t in rec.items()
    }
    golden_file.save(target, rec, meta)
    print(
        json.dumps(
            dict(
                case=meta["case"],
                first_loss=float(rec["loss"][0]),
                last_loss=last,
                grad_norm=float(rec["grad_norm"][0]),
                **{k: v for k, v in meta.items() if k.startswith("noise")},
                bytes=os.path.getsize(target),
            )
        )
    )


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--out", default=here)
    out = args.parse_args().out
    torch.set_num_threads(1)
    path = os.path.join(out, "tiny_llama.gguf")
    write_gguf(make_model(), path)
    for name in ("mlp", "lstm", "prompt", "tpmlp", "two_tables", "two_tasks"):
        case, rec, meta, last = record(name, lambda: make_case(name, make_model()))
        if isinstance(case, PeftCase):
            record_adapter(case, rec, meta, path)
        save(os.path.join(out, f"train_{name}.safetensors"), rec, meta, last)


if __name__ == "__main__":
    main()
