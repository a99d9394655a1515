"""Writers of the file formats that the engine reads, for seeds and for hostile files: they write what they are told."""
import io, json, pickle, struct, sys, types, zipfile

# ---- GGUF

GGUF_U32, GGUF_I32, GGUF_F32, GGUF_STRING, GGUF_ARRAY, GGUF_U64 = 4, 5, 6, 8, 9, 10


def gguf_text(s):
    s = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(s)) + s


def gguf_value(type_, v):
    if type_ == GGUF_STRING:
        return gguf_text(v)
    if type_ == GGUF_ARRAY:
        return struct.pack("<IQ", v[0], len(v[1])) + b"".join(gguf_value(v[0], x) for x in v[1])
    return struct.pack({GGUF_U32: "<I", GGUF_I32: "<i", GGUF_F32: "<f", GGUF_U64: "<Q"}[type_], v)


def gguf(keys, tensors, version=3, n_keys=None, n_tensors=None):
    """keys: [(name, type, value or bytes)], tensors: [(name, dims fastest first, type, bytes, offset or None)]."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors) if n_tensors is None else n_tensors,
                                 len(keys) if n_keys is None else n_keys)
    data = b""
    for name, type_, v in keys:
        head += gguf_text(name) + struct.pack("<I", type_) + (v if isinstance(v, bytes) else gguf_value(type_, v))
    for name, dims, type_, values, offset in tensors:
        head += gguf_text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        head += struct.pack("<IQ", type_, len(data) if offset is None else offset)
        data += values + bytes(-len(values) % 32)
    return head + bytes(-len(head) % 32) + data


def tiny_gguf(arch="llama", tensor_type=0, more_keys=(), more_tensors=(), change=()):
    """A whole model, hidden 8; change: {tensor: (dims, type, bytes, offset)} or {key: (type, value)}."""
    change, h, f, v, p = dict(change), 8, 8, 8, 4
    if tensor_type:    # quantised types have blocks of 32
        h = f = 32
    k = [("general.architecture", GGUF_STRING, arch), (f"{arch}.block_count", GGUF_U32, 1),
         (f"{arch}.embedding_length", GGUF_U32, h), (f"{arch}.feed_forward_length", GGUF_U32, f),
         (f"{arch}.attention.head_count", GGUF_U32, 2), (f"{arch}.context_length", GGUF_U32, p)]
    if arch == "llama":
        k += [("llama.attention.head_count_kv", GGUF_U32, 1), ("llama.attention.layer_norm_rms_epsilon", GGUF_F32, 1e-5),
              ("llama.rope.freq_base", GGUF_F32, 10000.0)]
        t = {"token_embd.weight": [h, v], "blk.0.attn_q.weight": [h, h], "blk.0.attn_k.weight": [h, h // 2],
             "blk.0.attn_v.weight": [h, h // 2], "blk.0.attn_output.weight": [h, h], "blk.0.ffn_gate.weight": [h, f],
             "blk.0.ffn_up.weight": [h, f], "blk.0.ffn_down.weight": [f, h], "blk.0.attn_norm.weight": [h],
             "blk.0.ffn_norm.weight": [h], "output_norm.weight": [h]}
    else:
        k += [("gpt2.attention.layer_norm_epsilon", GGUF_F32, 1e-5)]
        t = {"token_embd.weight": [h, v], "position_embd.weight": [h, p], "blk.0.attn_qkv.weight": [h, 3 * h],
             "blk.0.attn_qkv.bias": [3 * h], "blk.0.attn_output.weight": [h, h], "blk.0.attn_output.bias": [h],
             "blk.0.ffn_up.weight": [h, f], "blk.0.ffn_up.bias": [f], "blk.0.ffn_down.weight": [f, h],
             "blk.0.ffn_down.bias": [h], "blk.0.attn_norm.weight": [h], "blk.0.attn_norm.bias": [h],
             "blk.0.ffn_norm.weight": [h], "blk.0.ffn_norm.bias": [h], "output_norm.weight": [h], "output_norm.bias": [h]}
    k += [("tokenizer.ggml.model", GGUF_STRING, "gpt2"), ("tokenizer.ggml.pre", GGUF_STRING, "smollm"),
          ("tokenizer.ggml.tokens", GGUF_ARRAY, (GGUF_STRING, ["<s>", "a", "b", "ab", "\u0120", "\u0120a", "c", "<e>"])),
          ("tokenizer.ggml.token_type", GGUF_ARRAY, (GGUF_I32, [3, 1, 1, 1, 1, 1, 1, 3])),
          ("tokenizer.ggml.merges", GGUF_ARRAY, (GGUF_STRING, ["a b", "\u0120 a"])),
          ("tokenizer.ggml.eos_token_id", GGUF_U32, 7)]
    k = [(name, *change.get(name, (type_, value))) for name, type_, value in k]
    blocks = {0: (1, 4), 1: (1, 2), 30: (1, 2), 8: (32, 34), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24)}
    tensors = []
    for name, dims in t.items():
        type_ = tensor_type if len(dims) > 1 else 0
        n = 1
        for d in dims:
            n *= d
        values = bytes(n // blocks[type_][0] * blocks[type_][1])
        tensors.append((name, *change.get(name, (dims, type_, values, None))))
    return gguf(k + list(more_keys), tensors + list(more_tensors))


# ---- safetensors and Hugging Face directories

def safetensors(header, data, length=None):
    """header: an object, or its bytes as they stand."""
    if not isinstance(header, bytes):
        header = json.dumps(header, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def safetensors_of(shapes, dtype="F32", metadata=None):
    size, at, header = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "BOOL": 1}[dtype], 0, {}
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, shape in shapes.items():
        n = size
        for d in shape:
            n *= d
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n]}
        at += n
    return safetensors(header, bytes(at))


def hf_llama(kind="llama", h=8, f=8, v=8):
    config = {"model_type": kind, "hidden_size": h, "intermediate_size": f, "num_hidden_layers": 1,
              "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": v, "max_position_embeddings": 16,
              "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": True,
              "head_dim": h // 2}
    l, d = "model.layers.0.", h // 2
    shapes = {"model.embed_tokens.weight": [v, h], l + "input_layernorm.weight": [h],
              l + "post_attention_layernorm.weight": [h], l + "self_attn.q_proj.weight": [h, h],
              l + "self_attn.k_proj.weight": [d, h], l + "self_attn.v_proj.weight": [d, h],
              l + "self_attn.o_proj.weight": [h, h], l + "mlp.gate_proj.weight": [f, h], l + "mlp.up_proj.weight": [f, h],
              l + "mlp.down_proj.weight": [h, f], "model.norm.weight": [h]}
    if kind == "qwen2":
        shapes |= {l + f"self_attn.{x}_proj.bias": [h if x == "q" else d] for x in "qkv"}
    if kind == "qwen3":
        shapes |= {l + f"self_attn.{x}_norm.weight": [d] for x in "qk"}
    return config, shapes


def hf_gpt2(h=8, v=8, p=4):
    config = {"model_type": "gpt2", "n_embd": h, "n_layer": 1, "n_head": 2, "n_positions": p, "vocab_size": v,
              "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"}
    l = "transformer.h.0."
    shapes = {"transformer.wte.weight": [v, h], "transformer.wpe.weight": [p, h], "transformer.ln_f.weight": [h],
              "transformer.ln_f.bias": [h]}
    for name, shape in {"ln_1.weight": [h], "ln_1.bias": [h], "ln_2.weight": [h], "ln_2.bias": [h],
                        "attn.c_attn.weight": [h, 3 * h], "attn.c_attn.bias": [3 * h], "attn.c_proj.weight": [h, h],
                        "attn.c_proj.bias": [h], "mlp.c_fc.weight": [h, 4 * h], "mlp.c_fc.bias": [4 * h],
                        "mlp.c_proj.weight": [4 * h, h], "mlp.c_proj.bias": [h]}.items():
        shapes[l + name] = shape
    return config, shapes


# ---- torch's zip and pickle

class Tensor:
    def __init__(self, shape, key, storage="FloatStorage", offset=0, stride=None, elements=None):
        self.shape, self.key, self.storage, self.offset = tuple(shape), str(key), storage, offset
        strides, n = [], 1
        for d in reversed(self.shape):
            strides.insert(0, n)
            n *= d
        self.stride = tuple(stride) if stride is not None else tuple(strides)
        self.elements = elements if elements is not None else n


def _fake_torch():
    """Stands in for torch under its names, so that pickles name them."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def rebuild(*args):
        return args
    rebuild.__module__, rebuild.__qualname__, rebuild.__name__ = "torch._utils", "_rebuild_tensor_v2", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = rebuild
    for name in ("FloatStorage", "HalfStorage", "BFloat16Storage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    sys.modules["torch"], sys.modules["torch._utils"] = torch, utils
    return torch, utils


class _Storage:
    def __init__(self, t):
        self.t = t


class _Pickler(pickle.Pickler):
    def __init__(self, out, torch, utils, protocol):
        super().__init__(out, protocol=protocol)
        self.torch, self.utils = torch, utils

    def persistent_id(self, x):
        if isinstance(x, _Storage):
            return ("storage", getattr(self.torch, x.t.storage), x.t.key, "cpu", x.t.elements)
        return None

    def reducer_override(self, x):
        if isinstance(x, Tensor):
            return self.utils._rebuild_tensor_v2, (_Storage(x), x.offset, x.shape, x.stride, False, {})
        return NotImplemented


def torch_pickle(value, protocol=2):
    out, (torch, utils) = io.BytesIO(), _fake_torch()
    _Pickler(out, torch, utils, protocol).dump(value)
    for name in ("torch", "torch._utils"):
        del sys.modules[name]
    return out.getvalue()


def zip_of(entries, compression=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as z:
        for name, data in entries:
            z.writestr(zipfile.ZipInfo(name), data, compression)
    return out.getvalue()


def torch_zip(value, storages, protocol=2, pkl=None, more=()):
    """storages: {key: bytes}"""
    return zip_of([("archive/data.pkl", torch_pickle(value, protocol) if pkl is None else pkl), ("archive/byteorder", b"little"),
                   *((f"archive/data/{k}", v) for k, v in storages.items()), ("archive/version", b"3\n"), *more])


def torch_state(shapes, prefix="", width=4):
    """({name: Tensor}, {key: bytes}): a state_dict of zeros."""
    state, storages = {}, {}
    for i, (name, shape) in enumerate(shapes.items()):
        state[prefix + name] = t = Tensor(shape, i)
        storages[str(i)] = bytes(t.elements * width)
    return state, storages


# ---- tar and NeMo

def tar_header(name, size, type_=b"0", magic=b"ustar\x0000", size_field=None, link=b""):
    h = bytearray(512)
    name = name if isinstance(name, bytes) else name.encode()
    h[0:len(name)] = name
    h[100:108], h[108:116], h[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    h[124:136] = b"%011o\0" % size if size_field is None else size_field.ljust(12, b"\0")[:12]
    h[136:148], h[148:156] = b"00000000000\0", b" " * 8
    h[156:157] = type_
    h[157:157 + len(link)] = link
    h[257:265] = magic
    h[148:156] = b"%06o\0 " % sum(h)
    return bytes(h)


def tar(members):
    return b"".join(tar_header(n, len(d)) + d + bytes(-len(d) % 512) for n, d in members) + bytes(1024)


NEMO_CONFIG = """num_layers: 1
hidden_size: 8
ffn_hidden_size: 8
num_attention_heads: 2
max_position_embeddings: 4
encoder_seq_length: ${.max_position_embeddings}
layernorm_epsilon: 1e-5
tensor_model_parallel_size: 1
pipeline_model_parallel_size: 1
tokenizer: {library: megatron, type: GPT2BPETokenizer, vocab_file: 'nemo:aa_vocab.json', merge_file: 'nemo:bb_merges.txt'}
"""


def nemo_shapes(h=8, f=8, v=8, p=4):
    l = "encoder.layers.0."
    return {"embedding.word_embeddings.weight": [v, h], "embedding.position_embeddings.weight": [p, h],
            l + "input_layernorm.weight": [h], l + "input_layernorm.bias": [h],
            l + "self_attention.query_key_value.weight": [3 * h, h], l + "self_attention.query_key_value.bias": [3 * h],
            l + "self_attention.dense.weight": [h, h], l + "self_attention.dense.bias": [h],
            l + "post_attention_layernorm.weight": [h], l + "post_attention_layernorm.bias": [h],
            l + "mlp.dense_h_to_4h.weight": [f, h], l + "mlp.dense_h_to_4h.bias": [f], l + "mlp.dense_4h_to_h.weight": [h, f],
            l + "mlp.dense_4h_to_h.bias": [h], "encoder.final_layernorm.weight": [h], "encoder.final_layernorm.bias": [h]}


def nemo(config=NEMO_CONFIG, shapes=None, dot="./", weights=None, more=()):
    if weights is None:
        state, storages = torch_state(shapes or nemo_shapes(), "model.language_model.")
        weights = torch_zip(state, storages)
    vocab = {c: i for i, c in enumerate(["a", "b", "ab", "\u0120", "\u0120a", "c", "<|endoftext|>", "d"])}
    return tar([(dot + "model_config.yaml", config.encode()), (dot + "model_weights.ckpt", weights),
                (dot + "aa_vocab.json", json.dumps(vocab).encode()), (dot + "bb_merges.txt", "#version: 0.2\na b\n\u0120 a\n".encode()),
                *more])
