#!/usr/bin/env python3
"""Writes first inputs for the fuzz targets: DIR/NAME/*. The corpora in corpus/ grew from these.
usage: make_seeds.py DIR"""
import glob, gzip, io, json, os, shutil, struct, subprocess, sys, tarfile
import formats as f

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..")
out_dir = sys.argv[1]


def seed(target, *inputs):
    os.makedirs(f"{out_dir}/{target}", exist_ok=True)
    for data in inputs:
        n = len(os.listdir(f"{out_dir}/{target}"))
        with open(f"{out_dir}/{target}/seed-{n:03}", "wb") as file:
            file.write(data if isinstance(data, bytes) else data.encode())


def seed_files(target, pattern, limit=32768):
    for path in sorted(glob.glob(os.path.join(ROOT, pattern))):
        if os.path.getsize(path) <= limit:
            seed(target, open(path, "rb").read())


seed("wire", '\x05{"ev":"start","step":0}\n{"cmd":"deadline","boot_us":12}\n[1]\n{"a":\n', '\xff{"ev":"log","msg":"\\u00e9"}\n\n')

row_a, row_b = {"taskname": "a", "q": "do", "c": "dog dog", "answer": "dog"}, {"taskname": "b", "t": "::aaaa", "x": 1}
seed("jsonl", json.dumps(row_a) + "\n" + json.dumps(row_b) + "\n", json.dumps([row_a, row_b]),
     json.dumps(dict(row_a, c="dog " * 30)) + "\r\n\n" + json.dumps(dict(row_b, t=3.5)) + "\n", '{"taskname":"a"}\n',
     '{"taskname":"a","q":true,"c":null,"answer":"<|im_start|>\\ud83d\\ude00"}\n')

seed("template", "<|VIRTUAL_PROMPT_0|> Context: {c}\n\n\n" + json.dumps({"c": "dog {c}"}),
     "<|VIRTUAL_PROMPT_0|>Q: {q}<|VIRTUAL_PROMPT_1|>{c} A: {answer}\nc\nanswer\n" + json.dumps({"q": "do", "c": "dog " * 20, "answer": " dog"}),
     "<|VIRTUAL_PROMPT_1|>{a.b-c}<|im_start|>{x}<|VIRTUAL_PROMPT_0|>{answer}\nx\n\n" + json.dumps({"a.b-c": 1.5, "x": True, "answer": "aaaa"}))

seed("yaml", "model:\n  optim: {lr: 3e-4, sched: {name: CosineAnnealing}}\n  a: &x [1, 0x1f, 1_000, 1:30, ~, yes]\n  b: *x\n",
     "a: |\n  text\n  more\nb: >-\n  folded\n\n  lines\n<<: {c: .inf}\n", '"\\u00e9": \'it\'\'s\'\n? k\n: [a, {b: c}]\n', "[a, b, 'c d', 1e3, null]",
     "x: ${y.0}\ny: ['${.1}', 2, \"${z}${z}\"]\nz: \\${a}\n", "%YAML 1.1\n---\na: 1\n...\n", "!!str a\n", "- - - 1\n  - 2\n")
seed_files("yaml", "examples/*.y*ml")

seed_files("spec", "examples/*.json")
example = open(os.path.join(ROOT, "examples/wordnet.json")).read()
seed("spec", "model.optim.lr=3e-4\ndatasets.train.0=\"x\"\nmodel.task_templates[0].taskname=b\n" + example)
cases = json.load(open(os.path.join(ROOT, "tests/system/schema_cases.json")))
for case in (cases if isinstance(cases, list) else list(cases.values())):
    if isinstance(case, dict) and len(json.dumps(case)) < 4000:
        seed("spec", json.dumps(case.get("spec", case)))

llama, gpt2 = f.hf_llama(), f.hf_gpt2()
seed("safetensors", f.safetensors_of({"a": [2, 3], "b": [4]}, metadata={"k": "v"}), f.safetensors_of({"x": []}, "BF16"),
     f.safetensors_of({"x": [0, 4], "y": [2]}, "I64"), f.safetensors_of(llama[1], "F16"),
     f.safetensors({"t": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}, "__metadata__": {
         "format": "softlaunch-prompt-table/1", "model": "0" * 64, "tokenizer": "1" * 64, "softlaunch": "1", "data": "{}",
         "task.t": json.dumps({"taskname": "t", "prompt_template": "<|VIRTUAL_PROMPT_0|>{a}"}), "seal": "0" * 64}}, bytes(8)))

for arch in ("llama", "gpt2"):
    seed("gguf", f.tiny_gguf(arch), f.tiny_gguf(arch, 1))
seed("gguf", f.tiny_gguf("llama", 8), f.tiny_gguf("llama", 2), f.gguf([("a", f.GGUF_U64, 1), ("general.alignment", f.GGUF_U32, 64)], []))

for kind in ("llama", "qwen2", "qwen3", "mistral"):
    config, shapes = f.hf_llama(kind)
    seed("hf", json.dumps(config).encode() + b"\0" + f.safetensors_of(shapes, "BF16"))
config = dict(llama[0], rope_parameters={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                         "original_max_position_embeddings": 8, "rope_theta": 500000.0})
seed("hf", json.dumps(config).encode() + b"\0" + f.safetensors_of(llama[1]),
     json.dumps(gpt2[0]).encode() + b"\0" + f.safetensors_of(gpt2[1], "F16"),
     b"\0" + json.dumps({"weight_map": {n: "a.safetensors" for n in llama[1]}}).encode() + b"\0" + json.dumps(llama[0]).encode() +
     b"\0" + f.safetensors_of(llama[1], "BF16"))

value = {"w": f.Tensor([2, 3], 0), "n": 3, "f": 1.5, "l": [1, -2, 1 << 40, None, True], "t": ("a", b"b", ()), "d": {"x": {"y": f.Tensor([4], 1, "HalfStorage")}}}
for protocol in (2, 3, 4, 5):
    seed("pickle", f.torch_pickle(value, protocol))
import collections
seed("pickle", f.torch_pickle(collections.OrderedDict(a=f.Tensor([1], 0, "LongStorage"))), f.torch_pickle([1] * 300), f.torch_pickle(os.getcwd))
storages = {"0": bytes(24), "1": bytes(8)}
seed("torch_zip", f.torch_zip(value, storages), f.torch_zip(value, storages, 4),
     f.torch_zip({"w": f.Tensor([3, 2], 0, stride=(1, 3), elements=6)}, {"0": bytes(24)}))

seed("nemo", f.nemo(), f.nemo(dot=""), gzip.compress(f.nemo(), mtime=0), f.nemo(f.NEMO_CONFIG + "normalization: layernorm1p\nmegatron_legacy: true\n"))

byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
         "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
         "vocab": {"a": 0, "b": 1, "ab": 2, "\u0120": 3, "\u0120a": 4, "<e>": 5}, "merges": ["a b", ["\u0120", "a"]]}
token = {"id": 5, "content": "<e>", "single_word": False, "lstrip": False, "rstrip": True, "normalized": False, "special": True}
whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [token], "normalizer": None,
         "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level, "model": model}
llama3 = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
          "\\s+(?!\\S)|\\s+")
split = {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": llama3}, "behavior": "Isolated", "invert": False},
                                               dict(byte_level, use_regex=False)]}
digits = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]}
for tokenizer in (whole, dict(whole, pre_tokenizer=split, normalizer={"type": "NFC"}), dict(whole, pre_tokenizer=digits),
                  dict(whole, added_tokens=[dict(token, content="<x>", id=6, lstrip=True, single_word=True, normalized=True)])):
    seed("tokenizer_json", json.dumps(tokenizer), json.dumps(tokenizer) + " ")
seed("tokenizer_json", json.dumps(model["vocab"]).encode() + b"\0#version: 0.2\na b\n\xc4\xa0 a\n")


def proto(*fields):
    out = b""
    for number, v in fields:
        if isinstance(v, int):
            out += bytes([number << 3]) + (bytes([v]) if v < 128 else bytes([v & 127 | 128, v >> 7]))
        elif isinstance(v, float):
            out += bytes([number << 3 | 5]) + struct.pack("<f", v)
        else:
            n = len(v)
            out += bytes([number << 3 | 2]) + (bytes([n]) if n < 128 else bytes([n & 127 | 128, n >> 7])) + v
    return out


def spm(model_type, byte_fallback=False):
    pieces = [(b"<unk>", 0.0, 2), (b"<s>", 0.0, 3), (b"</s>", 0.0, 3), ("\u2581".encode(), -1.0, 1), (b"a", -2.0, 1), (b"b", -3.0, 1),
              (b"ab", -1.5, 1), ("\u2581a".encode(), -1.2, 1), (b"<x>", 0.0, 4)]
    if byte_fallback:
        pieces += [(b"<0x%02X>" % i, 0.0, 6) for i in range(256)]
    return b"".join(proto((1, proto((1, p), (2, score), (3, kind)))) for p, score, kind in pieces) + proto(
        (2, proto((3, model_type), (4, len(pieces)), (35 - 32, model_type))),
        (3, proto((1, b"identity"), (3, 1), (4, 1), (5, 1))))


seed("spm", spm(1), spm(2), spm(2, True))

npy = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2, 3), }\n"
seed("npy", b"\x01\0" + struct.pack("<H", len(npy)) + npy + struct.pack("<12f", *range(6), 1, 2, 3, 0, 0, 0),
     b"\x02\0" + struct.pack("<I", len(npy)) + npy + bytes(48))

adapter = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 2, "token_dim": 3,
           "num_transformer_submodules": 1}
table = {"prompt_table": {"prompt_table.t.prompt_embeddings.weight": f.Tensor([2, 3], 0), "prompt_table.t.indices": f.Tensor([2], 1, "LongStorage")}}
seed("tables", json.dumps(adapter).encode() + b"\0" + f.safetensors_of({"prompt_embeddings": [2, 3]}, "F16"),
     json.dumps(dict(adapter, peft_type="P_TUNING")).encode() + b"\0" + f.torch_zip({"prompt_embeddings": f.Tensor([2, 3], 0)}, {"0": bytes(24)}),
     f.tar([("model_config.yaml", b"task_templates:\n- {taskname: t, prompt_template: '<|VIRTUAL_PROMPT_0|>{a}'}\nsoftlaunch: {model: '%s'}\n" % (b"0" * 64)),
            ("model_weights.ckpt", f.torch_zip(table, {"0": bytes(24), "1": bytes(16)}))]))


def squad_article(title):
    return {"title": title, "paragraphs": [{"context": "dog " + title, "qas": [
        {"id": "1", "question": "who?", "answers": [{"text": "dog", "answer_start": 0}, {"text": title, "answer_start": 4}]},
        {"id": "2", "question": "", "is_impossible": True, "answers": []}]}]}


for choice in b"\0\1\6\7":
    seed("squad", bytes([choice]) + json.dumps({"version": "v2.0", "data": [squad_article(t) for t in ("a", "b", "\u00e9")]}).encode())

sha = "0" * 64
seed("manifest", json.dumps({"files": [{"path": "a/b.txt", "sha256": sha, "bytes": 3}, {"path": "c.tar.zst", "sha256": sha, "bytes": 9,
     "entries": [{"path": "x", "sha256": sha, "bytes": 1}]}]}), "name:v0/a/b", "name:candidate", "name")

plain = f.tar([("a/b.txt", b"hello"), ("./c", b""), ("d/e/f", b"x" * 600)])
buf = io.BytesIO()
with tarfile.open(fileobj=buf, mode="w", format=tarfile.PAX_FORMAT) as t:
    for name in ("x" * 120 + "/\u00e9", "dir/"):
        info = tarfile.TarInfo(name)
        info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
        t.addfile(info)
seed("unpack", plain, gzip.compress(plain, mtime=0), buf.getvalue(), f.tar_header("l", 0, b"2", link=b"/etc/passwd") + bytes(1024),
     f.tar_header("../up", 0) + bytes(1024))
if shutil.which("zstd"):
    seed("unpack", subprocess.run(["zstd", "-q", "-c"], input=plain, stdout=subprocess.PIPE, check=True).stdout)
