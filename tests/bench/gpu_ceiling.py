"""What this GPU could do at best for a step of p-tuning on a frozen model, from rates measured on it in the same run.

The sum of: the matmuls of forward and input-gradient backward at the packed token count (the prompt's rows once, no padding,
logits for answer rows alone) as the vendor's library runs them one by one; attention by PyTorch's fused kernels, dense causal
batches of the mean length, scaled to the packed queries; 60 reads and writes of one hidden row a token and layer at the copy
rate; the prompt encoder with clipping and fused AdamW. No launch gaps, no overlap. FP8 takes the layers' matmuls in e4m3.
"""

import statistics

import torch
import torch.nn.functional as F

PASSES = 60    # hidden-wide bf16 reads and writes a layer, forward and backward together


def timed(fn, n=8):
    """Seconds, median; the device's own clock."""
    for _ in range(2):
        fn()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(n)]
    for a, b in marks:
        a.record()
        fn()
        b.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in marks) * 1e-3


def copy_rate():
    """Bytes a second, read and written."""
    x = torch.empty(1 << 30, device="cuda", dtype=torch.bfloat16)
    y = torch.empty_like(x)
    return 2 * x.numel() * 2 / timed(lambda: y.copy_(x))


def matmul(m, n, k, fp8=False):
    if not fp8:
        a, b = (torch.randn(r, k, device="cuda", dtype=torch.bfloat16) for r in (m, n))
        return timed(lambda: F.linear(a, b))
    m, n = ((r + 15) // 16 * 16 for r in (m, n))
    a, b = (torch.randn(r, k, device="cuda").to(torch.float8_e4m3fn) for r in (m, n))
    one = torch.ones((), device="cuda")
    return timed(lambda: torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True))


def attention(rows, heads, kv_heads, head_dim, length):
    q = torch.randn(rows, heads, length, head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    k, v = (torch.randn(rows, kv_heads, length, head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            for _ in range(2))
    run = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=kv_heads != heads)
    o = run()
    grad = torch.randn_like(o)
    return timed(run) + timed(lambda: torch.autograd.grad(o, (q, k, v), grad, retain_graph=True))


def encoder(kind, virtual, hidden):
    """Forward, backward, clipping and AdamW in fp32, as PEFT's prompt encoder: an embedding and an MLP or LSTM as wide as the model."""
    table = torch.nn.Embedding(virtual, hidden, device="cuda")
    linear = lambda i, o: torch.nn.Linear(i, o, device="cuda")
    parts = [table]
    if kind == "lstm":
        parts.append(torch.nn.LSTM(hidden, hidden, 2, bidirectional=True, batch_first=True, device="cuda"))
        parts.append(torch.nn.Sequential(linear(2 * hidden, 2 * hidden), torch.nn.ReLU(), linear(2 * hidden, hidden)))
    else:
        parts.append(torch.nn.Sequential(linear(hidden, hidden), torch.nn.ReLU(), linear(hidden, hidden), torch.nn.ReLU(),
                                         linear(hidden, hidden)))
    params = [p for part in parts for p in part.parameters()]
    opt = torch.optim.AdamW(params, lr=1e-4, fused=True)
    index = torch.arange(virtual, device="cuda")[None]
    grad = torch.randn(1, virtual, hidden, device="cuda")

    def step():
        y = table(index)
        for part in parts[1:]:
            y = part(y)
            y = y[0] if isinstance(y, tuple) else y
        y.backward(grad)
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        opt.zero_grad()
    return timed(step)


def shapes(config):
    """(out, in) of a layer's matrices, heads, key/value heads, hidden, layers, vocabulary."""
    if config.model_type == "gpt2":
        h = config.n_embd
        return [(3 * h, h), (h, h), (4 * h, h), (h, 4 * h)], config.n_head, config.n_head, h, config.n_layer, config.vocab_size
    h, f, heads, kv = config.hidden_size, config.intermediate_size, config.num_attention_heads, config.num_key_value_heads
    return ([(h + 2 * kv * (h // heads), h), (h, h), (2 * f, h), (h, f)], heads, kv, h, config.num_hidden_layers,
            config.vocab_size)


def ceiling(config, virtual, batch, rate, kinds=("bf16",), encoders=("mlp",)):
    """{(precision, encoder): useful tokens/s} and the milliseconds of the parts; batch as gpu_models.batch gives it."""
    matrices, heads, kv_heads, hidden, layers, vocab = shapes(config)
    rows = len(batch["ids"])
    text, answers = sum(map(len, batch["ids"])), sum(map(sum, batch["answer"]))
    packed, useful, mean = text + virtual, text + rows * virtual, text // rows + virtual
    ms, out = {}, {}
    head = matmul(answers, vocab, hidden) + matmul(answers, hidden, vocab)
    for kind in kinds:
        ms["matmul_" + kind] = layers * sum(matmul(packed, o, i, kind == "fp8") + matmul(packed, i, o, kind == "fp8")
                                            for o, i in matrices) + head
    ms["attention"] = layers * attention(rows, heads, kv_heads, hidden // heads, mean) * packed / (rows * mean)
    ms["elementwise"] = layers * packed * hidden * 2 * PASSES / rate
    for e in encoders:
        ms["encoder_" + e] = encoder(e, virtual, hidden)
        for kind in kinds:
            out[kind + " " + e] = round(useful / (ms["matmul_" + kind] + ms["attention"] + ms["elementwise"] + ms["encoder_" + e]))
    torch.cuda.empty_cache()
    return {"tok_s": out, "packed": packed, "useful": useful, "ms": {k: round(v * 1e3, 3) for k, v in ms.items()}}
