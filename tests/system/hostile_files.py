#!/usr/bin/env python3
"""Files made to hurt, of every format that the worker reads: each ends in one clear message, within a second of
processor time and 64 MiB of memory beyond what the worker takes for a file that is not there, and leaves no file behind.
Of each format the same file unharmed is read first, so that what is refused is the harm."""
import gzip, io, json, os, resource, shutil, signal, struct, subprocess, sys, tempfile, zipfile
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "fuzz"))
import formats as f
from hostile_reasons import REASON

WORKER = os.path.join(os.environ["SL_BIN"], "softlaunch-worker")
CPU_S, WALL_S, MEMORY_MIB, LINES = 1.0, 20.0, 64, 110
G = 10 ** 9
top = tempfile.mkdtemp(prefix="sl-hostile-")
os.mkdir(top + "/tmp")
bad = 0


def write(name, data):
    path = f"{top}/{name}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())
    return path


# A process of its own starts the worker: what it tells of memory would else begin with the peak of this one.
MEASURE = """import os, sys
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(pid, 0)
print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""


def run(*args):
    """(exit status, what it said, CPU seconds, peak MiB)"""
    env = dict(os.environ, TMPDIR=top + "/tmp", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    with open(top + "/said", "w+b") as said:
        p = subprocess.Popen([sys.executable, "-ISc", MEASURE, WORKER, *args], stdout=subprocess.PIPE, stderr=said, env=env, cwd=top,
                             start_new_session=True)
        try:
            out, _ = p.communicate(timeout=WALL_S)
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            p.communicate()
            out = b"-9 %f 0" % WALL_S
        said.seek(0)
        status, cpu_s, mib = out.split()[-3:]
        return int(status), said.read().decode(errors="replace"), float(cpu_s), float(mib)


CONFIG = {"model": {"virtual_prompt_style": "prompt-tuning", "data": {"max_seq_length": 4, "add_eos": False}, "task_templates": [
    {"taskname": "t", "prompt_template": "<|VIRTUAL_PROMPT_0|>{a}", "total_virtual_tokens": 2}]}}
config = write("config.json", json.dumps(CONFIG))
rows = write("rows.jsonl", '{"taskname": "t", "a": "b"}\n')


def check_model(path):
    return run("data", "check", "--config", config, "--model", path, "--data", rows)


def check_config(path):
    return run("data", "check", "--config", path, "--model", whole_model, "--data", rows)


def check_data(path):
    return run("data", "check", "--config", config, "--model", whole_model, "--data", path)


def check_tables(path):
    return run("convert", path, top + "/converted.npy")


def check_squad(path):
    return run("data", "squad", "--train", path, "--articles", "1,1", "--out", top + "/squad")


def say(ok, name, why=""):
    global bad
    bad += not ok
    print(f"{'ok' if ok else 'not ok'} - {name}" + (f"\n# {why}" if why else ""), flush=True)


worst = [0.0, 0.0]


def refused(name, how, path):
    status, said, cpu_s, mib = how(path)
    over = max(0.0, mib - empty_mib)
    worst[0], worst[1] = max(worst[0], cpu_s), max(worst[1], over)
    faults = []
    if status != 1:
        faults.append(f"exit status {status}")
    if cpu_s > CPU_S:
        faults.append(f"{cpu_s:.2f} s of processor time")
    if over > MEMORY_MIB:
        faults.append(f"{over:.0f} MiB of memory")
    if not any(part in said for part in (path, os.path.basename(path))):
        faults.append("the file is not named")
    words = REASON[name]
    if words not in said:
        faults.append(f"no {words!r}")
    if len(said.splitlines()) > LINES or "Sanitizer" in said:
        faults.append("not one message")
    left = os.listdir(top + "/tmp")
    if left:
        faults.append(f"left behind: {left}")
        shutil.rmtree(top + "/tmp")
        os.mkdir(top + "/tmp")
    if os.environ.get("SL_SHOW"):
        print("#", said.replace(top, "")[:300])
    say(not faults, name, ", ".join(faults) + f"; it said: {said[:400]}" if faults else "")


def read(name, how, path):
    status, said, _, _ = how(path)
    say(status == 0, f"{name}: whole", f"exit status {status}; it said: {said[:400]}" if status else "")


def deep(n, text=b"["):
    return text * n


def shape(model, name, dims, type_=0, data=b"", offset=None):
    return f.tiny_gguf(model, change={name: (dims, type_, data, offset)})


# ---- GGUF

def gguf():
    s = f.GGUF_STRING
    refused("GGUF: 10^18 keys", check_model, write("m.gguf", f.gguf([], [], n_keys=10 ** 18)))
    refused("GGUF: 2^64-1 tensors", check_model, write("m.gguf", f.gguf([], [], n_tensors=2 ** 64 - 1)))
    refused("GGUF: name of 2^63 bytes", check_model,
            write("m.gguf", b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2 ** 63) + bytes(64)))
    refused("GGUF: string of 2^64-8 bytes", check_model,
            write("m.gguf", f.gguf([("a", s, struct.pack("<Q", 2 ** 64 - 8) + b"x")], [])))
    for element, n in ((s, 2 ** 61), (f.GGUF_U32, 2 ** 62), (s, 10 ** 7), (f.GGUF_ARRAY, 1)):
        refused(f"GGUF: array of {n} of type {element}", check_model,
                write("m.gguf", f.gguf([("a", f.GGUF_ARRAY, struct.pack("<IQ", element, n) + bytes(64))], [])))
    refused("GGUF: arrays in arrays, 100,000 deep", check_model,
            write("m.gguf", f.gguf([("a", f.GGUF_ARRAY, struct.pack("<IQ", 9, 1) * 100000)], [])))
    refused("GGUF: dimensions that overflow", check_model,
            write("m.gguf", shape("llama", "output_norm.weight", [2 ** 33, 2 ** 33])))
    refused("GGUF: 10^9 dimensions", check_model, write("m.gguf", shape("llama", "output_norm.weight", [G, G])))
    refused("GGUF: 60 dimensions", check_model, write("m.gguf", shape("llama", "output_norm.weight", [1] * 60)))
    refused("GGUF: dimension 0", check_model, write("m.gguf", shape("llama", "output_norm.weight", [0])))
    for offset in (2 ** 64 - 32, 2 ** 40, 7):
        refused(f"GGUF: offset {offset}", check_model,
                write("m.gguf", shape("llama", "output_norm.weight", [8], 0, bytes(32), offset)))
    refused("GGUF: unknown tensor type", check_model, write("m.gguf", shape("llama", "output_norm.weight", [8], 4000, bytes(32))))
    refused("GGUF: tensor twice", check_model,
            write("m.gguf", f.tiny_gguf(more_tensors=[("output_norm.weight", [8], 0, bytes(32), None)])))
    refused("GGUF: key twice", check_model, write("m.gguf", f.tiny_gguf(more_keys=[("llama.block_count", f.GGUF_U32, 1)])))
    for key, v in (("block_count", G), ("embedding_length", 2 ** 31), ("attention.head_count", 0), ("context_length", 0),
                   ("feed_forward_length", 4 * G)):
        refused(f"GGUF: {key} {v}", check_model, write("m.gguf", f.tiny_gguf(change={f"llama.{key}": (f.GGUF_U32, v)})))
    refused("GGUF: alignment 3", check_model, write("m.gguf", f.tiny_gguf(more_keys=[("general.alignment", f.GGUF_U32, 3)])))
    refused("GGUF: 60,000 tensors over each other", check_model,
            write("m.gguf", f.tiny_gguf(more_tensors=[(f"t{i}", [1], 0, b"", 0) for i in range(60000)])))
    n = 100000
    refused("GGUF: 100,000 tokens, all the same", check_model, write("m.gguf", f.tiny_gguf(change={
        "tokenizer.ggml.tokens": (f.GGUF_ARRAY, (s, ["a"] * n)), "tokenizer.ggml.token_type": (f.GGUF_ARRAY, (f.GGUF_I32, [1] * n)),
        "tokenizer.ggml.merges": (f.GGUF_ARRAY, (s, []))})))


# ---- safetensors and Hugging Face directories

def hf(name, config=None, weights=None, index=None, more=()):
    shutil.rmtree(f"{top}/{name}", ignore_errors=True)
    good, shapes = f.hf_llama()
    write(f"{name}/config.json", config if isinstance(config, (bytes, str)) else json.dumps(dict(good, **(config or {}))))
    if index is None:
        write(f"{name}/model.safetensors", weights if weights is not None else f.safetensors_of(shapes, "BF16"))
    else:
        write(f"{name}/model.safetensors.index.json", index)
    write(f"{name}/vocab.json", json.dumps({c: i for i, c in enumerate(["a", "b", "ab", "\u0120", "\u0120a", "c", "d", "e"])}))
    write(f"{name}/merges.txt", "#version: 0.2\na b\n\u0120 a\n")
    for file, data in more:
        write(f"{name}/{file}", data)
    return f"{top}/{name}"


def tensor(shape_, at, dtype="F32"):
    return {"dtype": dtype, "shape": shape_, "data_offsets": at}


def huggingface():
    read("Hugging Face", check_model, hf("hf"))
    for name, weights in (
            ("header of 2^63 bytes", f.safetensors({}, b"", 2 ** 63)),
            ("header of 2^64-1 bytes", f.safetensors({}, b"", 2 ** 64 - 1)),
            ("header of 10 MB, which the file has", f.safetensors(b"{" + b" " * (10 << 20) + b"}", b"")),
            ("a header of empty objects", f.safetensors(b'{"a":[' + b"{}," * 150000 + b"{}]}", b"")),
            ("nesting 100,000 deep", f.safetensors(b'{"a":' + deep(100000), b"")),
            ("10^9 dimensions", f.safetensors({"a": tensor([G, G, G], [0, 8])}, bytes(8))),
            ("60,000 dimensions", f.safetensors({"a": tensor([1] * 60000, [0, 4])}, bytes(4))),
            ("shape that overflows to 4", f.safetensors({"a": tensor([2 ** 62 + 1, 4], [0, 16])}, bytes(16))),
            ("negative dimension", f.safetensors({"a": tensor([-1, -1], [0, 4])}, bytes(4))),
            ("number beyond 64 bits", f.safetensors(b'{"a":{"dtype":"F32","shape":[99999999999999999999999],"data_offsets":[0,4]}}', bytes(4))),
            ("offsets outside", f.safetensors({"a": tensor([2], [2 ** 40, 2 ** 40 + 8])}, bytes(8))),
            ("offsets backwards", f.safetensors({"a": tensor([2], [8, 0])}, bytes(8))),
            ("tensors over each other", f.safetensors({"a": tensor([2], [0, 8]), "b": tensor([2], [4, 12])}, bytes(12))),
            ("tensor twice", f.safetensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                                           b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4))),
            ("unknown dtype", f.safetensors({"a": tensor([1], [0, 4], "Q9")}, bytes(4)))):
        refused("safetensors: " + name, check_model, hf("hf", weights=weights))
    for name, config in (("nesting 100,000 deep", deep(100000, b'{"a":')), ("arrays 100,000 deep", deep(100000)),
                         ("10^9 layers", {"num_hidden_layers": G}), ("hidden size 2^40", {"hidden_size": 2 ** 40}),
                         ("no heads", {"num_attention_heads": 0}), ("vocabulary 10^9", {"vocab_size": G}),
                         ("head size 10^9", {"head_dim": G}), ("numbers as text", {"hidden_size": "8"}),
                         ("512 layers that are not there", {"num_hidden_layers": 512})):
        refused("config.json: " + name, check_model, hf("hf", config=config))
    many = json.dumps({"weight_map": {f"t{i}": f"{i}.safetensors" for i in range(100000)}})
    for name, index in (("100,000 shards", many), ("a shard outside", json.dumps({"weight_map": {"a": "../../etc/passwd"}})),
                        ("an absolute shard", json.dumps({"weight_map": {"a": "/etc/passwd"}})),
                        ("nesting 100,000 deep", deep(100000, b'{"weight_map":')), ("no map", "[]")):
        refused("index.json: " + name, check_model, hf("hf", index=index))


# ---- tokenizers

def tokenizers():
    model = {"type": "BPE", "vocab": {c: i for i, c in enumerate(["a", "b", "ab", "\u0120", "\u0120a", "c", "d", "e"])}, "merges": ["a b"]}
    whole = {"version": "1.0", "added_tokens": [], "normalizer": None,
             "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, "model": model}

    def tokenizer(data):
        return hf("hf", more=[("tokenizer.json", data if isinstance(data, (bytes, str)) else json.dumps(data))])
    read("tokenizer.json", check_model, tokenizer(whole))

    def split(pattern):
        return dict(whole, pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]})
    nested = whole["pre_tokenizer"]
    for _ in range(100):
        nested = {"type": "Sequence", "pretokenizers": [nested]}
    for name, data in (
            ("nesting 100,000 deep", deep(100000, b'{"model":')), ("arrays 100,000 deep", deep(100000)),
            ("sequences of sequences", dict(whole, pre_tokenizer=nested)),
            ("ids of 10^9", dict(whole, model=dict(model, vocab={"a": 0, "b": G}))),
            ("ids that are negative", dict(whole, model=dict(model, vocab={"a": 0, "b": -5}))),
            ("one id for all", dict(whole, model=dict(model, vocab={"a": 0, "b": 0}))),
            ("merges of nothing", dict(whole, model=dict(model, merges=["x y"]))),
            ("merges that are numbers", dict(whole, model=dict(model, merges=[1, 2]))),
            ("an added token of id 10^9", dict(whole, added_tokens=[{"id": G, "content": "<x>", "special": True, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}])),
            ("a pattern that takes for ever", split("(a+)+$")), ("a pattern of great count", split("(((a{1000}){1000}){1000})")),
            ("a pattern 10,000 deep", split("(" * 10000 + ")" * 10000)),
            ("a token of 1 MB", dict(whole, model=dict(model, vocab={"a" * (1 << 20): 0}))),
            ("bytes that are no UTF-8", json.dumps(whole).encode().replace(b'"ab"', b'"a\xff"')),
            ("a vocabulary that is a list", dict(whole, model=dict(model, vocab=["a"] * 50000)))):
        refused("tokenizer.json: " + name, check_model, tokenizer(data))
    for name, data in (("a piece of 2^40 bytes", b"\x0a\xff\xff\xff\xff\xff\x1f"), ("groups 100,000 deep", b"\x0b" * 100000),
                       ("messages 50,000 deep", b"\x0a\x7f" * 50000), ("a varint without end", b"\xff" * 1000),
                       ("100,000 empty pieces", b"\x0a\x00" * 100000)):
        path = hf("hf", more=[("tokenizer.model", data)])
        os.unlink(path + "/vocab.json")
        refused("tokenizer.model: " + name, check_model, path)


# ---- NeMo: tar, YAML, zip, pickle

def checkpoint(pkl=None, entries=None, raw=None):
    return f.nemo(weights=raw if raw is not None else f.zip_of(entries) if entries else
                  f.zip_of([("archive/data.pkl", pkl), ("archive/data/0", bytes(64)), ("archive/version", b"3\n")]))


def patched(data, at_signature, offset, new):
    at = data.rindex(at_signature) + offset
    return data[:at] + new + data[at + len(new):]


def nemo():
    read("NeMo", check_model, write("m.nemo", f.nemo()))
    read("NeMo, gzip'd", check_model, write("m.nemo", gzip.compress(f.nemo(), mtime=0)))
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb", mtime=0) as z:
        z.write(f.tar_header("model_config.yaml", 2 << 30))
        for _ in range(256):
            z.write(bytes(1 << 20))
    refused("NeMo: gzip bomb", check_model, write("m.nemo", bomb.getvalue()))
    for name, data in (
            ("member of 8 GB that is not there", f.tar_header("model_config.yaml", 8 ** 11 - 1) + bytes(512)),
            ("member of 2^62 bytes", f.tar_header("model_config.yaml", 0, size_field=b"\x80" + bytes(3) + struct.pack(">Q", 2 ** 62)) + bytes(1024)),
            ("member of negative size", f.tar_header("model_config.yaml", 0, size_field=b"\xff" * 12) + bytes(1024)),
            ("long name of 1 GB", f.tar_header("././@LongLink", 1 << 30, b"L", b"ustar  \0") + bytes(1024)),
            ("pax header of nines", f.tar_header("x", 40, b"x") + b"9" * 40 + bytes(512 - 40 + 1024)),
            ("links alone", f.tar_header("model_config.yaml", 0, b"2", link=b"/etc/passwd") + bytes(1024)),
            ("members twice", f.tar([("model_config.yaml", b"a: 1\n"), ("./model_config.yaml", b"a: 2\n")])),
            ("20,000 members", b"".join(f.tar_header(f"m{i}", 0) for i in range(20000)) + bytes(1024)),
            ("half of it", f.nemo()[:5000])):
        refused("NeMo: " + name, check_model, write("m.nemo", data))
    laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{c}: &{c} [*{p},*{p},*{p},*{p},*{p},*{p},*{p},*{p},*{p}]\n"
                                                     for p, c in zip("abcdefghij", "bcdefghijk"))
    for name, text in (("a billion laughs", laughs), ("nesting 100,000 deep", "[" * 100000), ("10^9 layers", f.NEMO_CONFIG.replace("num_layers: 1", f"num_layers: {G}")),
                       ("no heads", f.NEMO_CONFIG.replace("heads: 2", "heads: 0")), ("hidden size 2^62", f.NEMO_CONFIG.replace("hidden_size: 8", f"hidden_size: {2**62}")),
                       ("10^9 ranks", f.NEMO_CONFIG.replace("tensor_model_parallel_size: 1", f"tensor_model_parallel_size: {G}"))):
        refused("model_config.yaml: " + name, check_model, write("m.nemo", f.nemo(text)))

    deflated = io.BytesIO()
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as z:
        with z.open("archive/data.pkl", "w") as file:
            for _ in range(200):
                file.write(bytes(1 << 20))
    state, storages = f.torch_state(f.nemo_shapes(), "model.language_model.")
    zipped = f.torch_zip(state, storages)
    central = b"PK\x01\x02"
    entry = [("archive/data.pkl", f.torch_pickle({}))]
    for name, raw in (
            ("deflate bomb", deflated.getvalue()), ("no end", zipped[:-22]), ("65,535 entries that are not there", patched(zipped, b"PK\x05\x06", 8, b"\xff\xff\xff\xff")),
            ("directory outside", patched(zipped, b"PK\x05\x06", 16, struct.pack("<I", 2 ** 31))), ("entry of 4 GB", patched(zipped, central, 20, struct.pack("<II", 2 ** 32 - 2, 2 ** 32 - 2))),
            ("entry outside", patched(zipped, central, 42, struct.pack("<I", 2 ** 31))), ("entries over each other", patched(zipped, central, 42, struct.pack("<I", 0))),
            ("encrypted", patched(zipped, central, 8, b"\x01\x00")), ("entry twice", f.zip_of(entry + [("archive/data.pkl", b"x")])),
            ("a tar for a zip", f.tar([("data.pkl", b"x")]))):
        refused("torch zip: " + name, check_model, write("m.nemo", checkpoint(raw=raw)))

    def tensor_pickle(*args, **more):
        return f.torch_pickle({"model.language_model.embedding.word_embeddings.weight": f.Tensor(*args, **more)})
    import_of = [(b"cos\nsystem\n", "os.system"), (b"cbuiltins\neval\n", "builtins.eval"), (b"\x80\x04\x8c\x02os\x8c\x06system\x93", "os.system"),
                 (b"ctorch\nload\n", "torch.load")]
    for op, named in import_of:
        ran = top + "/ran"
        refused(f"pickle: import of {named}", check_model,
                write("m.nemo", checkpoint(op + b"X" + struct.pack("<I", len(ran) + 6) + b"touch " + ran.encode() + b"\x85R.")))
        say(not os.path.exists(ran), f"pickle: nothing ran of {named}")
    for name, pkl in (
            ("10^9 dimensions", tensor_pickle([G, G], 0, elements=16)), ("elements that overflow", tensor_pickle([2 ** 32, 2 ** 32], 0, elements=16)),
            ("offset outside", tensor_pickle([4, 4], 0, offset=2 ** 40, elements=16)), ("negative offset", tensor_pickle([4, 4], 0, offset=-4, elements=16)),
            ("negative stride", tensor_pickle([4, 4], 0, stride=(-4, 1), elements=16)), ("strides of 2^62", tensor_pickle([4, 4], 0, stride=(2 ** 62, 2 ** 62), elements=16)),
            ("a storage of 2^60 elements", tensor_pickle([4, 4], 0, elements=2 ** 60)), ("a storage that is not there", tensor_pickle([4, 4], 77)),
            ("all from one element", tensor_pickle([2 ** 20, 2 ** 10], 0, stride=(0, 0), elements=16)),
            ("lists 1,000,000 deep", b"\x80\x02" + b"]" * 1000000 + b"a" * 999999 + b"."), ("tuples 500,000 deep", b"\x80\x02N" + b"\x85" * 500000 + b"."),
            ("marks 1,000,000 deep", b"\x80\x02" + b"(" * 1000000 + b"."), ("string of 2^64-1 bytes", b"\x80\x04\x8d" + b"\xff" * 8 + b"x."),
            ("string of 4 GB", b"\x80\x02X\xff\xff\xff\xffx."), ("frame of 2^62 bytes", b"\x80\x04\x95" + struct.pack("<Q", 2 ** 62) + b"."),
            ("memo of 2^32-1", b"\x80\x02Nr\xff\xff\xff\xff."), ("a long of 2^31-1 bytes", b"\x80\x02\x8b\xff\xff\xff\x7f."),
            ("doubling lists", b"\x80\x02]q\x00" + b"".join(b"]q" + bytes([i + 1]) + (b"h" + bytes([i])) * 1 + b"ah" + bytes([i]) + b"a" for i in range(60)) + b"."),
            ("pops of nothing", b"\x80\x02" + b"0" * 1000 + b"."), ("no end", b"\x80\x02N"), ("nothing", b""),
            ("a dict in itself", b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."), ("8 MB of nulls", b"\x80\x02" + b"N" * (8 << 20))):
        refused("pickle: " + name, check_model, write("m.nemo", checkpoint(pkl)))


# ---- prompt tables

def npy(header, data=bytes(48), version=1, length=None):
    n = len(header) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", n) + header + data


def tables():
    good = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2, 3), }\n"
    read(".npy", check_tables, write("t.npy", npy(good)))
    for name, data in (
            ("header of 4 GB", npy(good, version=2, length=2 ** 32 - 1)), ("shape of 10^9", npy(good.replace(b"2, 2, 3", b"1, 1000000000, 1000000000"))),
            ("shape that overflows", npy(good.replace(b"2, 2, 3", b"4294967296, 4294967296, 3"))), ("negative shape", npy(good.replace(b"2, 2, 3", b"-2, -2, 3"))),
            ("shape beyond 64 bits", npy(good.replace(b"2, 2, 3", b"9" * 40 + b", 2, 3"))), ("10,000 dimensions", npy(good.replace(b"2, 2, 3", b"1, " * 10000 + b"1"))),
            ("objects (a pickle)", npy(good.replace(b"<f4", b"|O"))), ("version 9", npy(good, version=9)), ("half of it", npy(good)[:40])):
        refused(".npy: " + name, check_tables, write("t.npy", data))

    adapter = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 2, "token_dim": 3}

    def peft(config=adapter, weights=None, binary=None):
        shutil.rmtree(top + "/adapter", ignore_errors=True)
        write("adapter/adapter_config.json", config if isinstance(config, bytes) else json.dumps(config))
        write("adapter/adapter_model.bin" if binary else "adapter/adapter_model.safetensors",
              binary or weights or f.safetensors_of({"prompt_embeddings": [2, 3]}))
        return top + "/adapter"
    read("PEFT", check_tables, peft())
    size = {"num_virtual_tokens": 8192, "token_dim": 65536}
    everything = f.torch_zip({"prompt_embeddings": f.Tensor([8192, 65536], 0, stride=(0, 0), elements=1)}, {"0": bytes(4)})
    refused("PEFT: config 100,000 deep", check_tables, peft(deep(100000)))
    refused("PEFT: 10^9 virtual tokens", check_tables, peft(weights=f.safetensors({"prompt_embeddings": tensor([G, 3], [0, 8])}, bytes(8))))
    refused("PEFT: another shape", check_tables, peft(weights=f.safetensors_of({"prompt_embeddings": [4, 5]})))
    refused("PEFT: 2 GiB from one element", check_tables, peft(dict(adapter, **size), binary=everything))

    def nemo_tables(tensor_, storage=bytes(64)):
        weights = f.torch_zip({"prompt_table": {"prompt_table.t.prompt_embeddings.weight": tensor_}}, {"0": storage})
        return write("t.nemo", f.tar([("model_config.yaml", b"a: 1\n"), ("model_weights.ckpt", weights)]))
    read("NeMo tables", check_tables, nemo_tables(f.Tensor([2, 8], 0)))
    refused("NeMo tables: 2 GiB from one element", check_tables, nemo_tables(f.Tensor([8192, 65536], 0, stride=(0, 0), elements=16)))
    refused("NeMo tables: 10^9 rows", check_tables, nemo_tables(f.Tensor([G, 8], 0, elements=16)))
    refused("our table: without its seal", check_tables, write("t.safetensors", f.safetensors_of({"t": [2, 3]}, metadata={
        "format": "softlaunch-prompt-table/1"})))


# ---- configurations and rows

def texts():
    read("config", check_config, config)
    template = CONFIG["model"]["task_templates"][0]
    laughs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{c}: &{c} [*{p},*{p},*{p},*{p},*{p},*{p},*{p},*{p},*{p}]\n" for p, c in zip("abcdefghij", "bcdefghijk"))
    doubling = "model:\n" + "".join(f"  a{i}: ${{.a{i + 1}}}${{.a{i + 1}}}\n" for i in range(40)) + "  a40: xxxxxxxx\n"
    for name, text in (("a billion laughs", laughs), ("flow nesting 100,000 deep", "[" * 100000), ("block nesting 20,000 deep", "- " * 20000 + "a\n"),
                       ("references that double 40 times", doubling), ("a reference to itself", "model: {a: '${.a}'}\n"), ("an alias in itself", "a: &a [*a]\n"),
                       ("2 MB", "a: 1\n" * 400000), ("a tag", "a: !!python/object:os.system x\n"), ("an integer of 10,000 digits", "model: {seed: " + "9" * 10000 + "}\n")):
        refused("YAML: " + name, check_config, write("c.yaml", text))
    for name, data in (("nesting 100,000 deep", deep(100000, b'{"a":')), ("1,000 wrong keys", json.dumps({"model": {f"k{i}": i for i in range(1000)}})),
                       ("10^9 virtual tokens", json.dumps({"model": dict(CONFIG["model"], task_templates=[dict(template, total_virtual_tokens=G)])})),
                       ("a template of 1 MB", json.dumps({"model": dict(CONFIG["model"], task_templates=[dict(template, prompt_template="<|VIRTUAL_PROMPT_0|>" + "{a}" * 300000)])})),
                       ("key twice", '{"model": {}, "model": {}}'), ("numbers beyond doubles", '{"model": {"optim": {"lr": 1e999999}}}')):
        refused("JSON: " + name, check_config, write("c.json", data))
    for name, data in (("a row 100,000 deep", b'{"taskname": "t", "a": ' + deep(100000) + b"\n"), ("a list 100,000 deep", deep(100000)),
                       ("a line of 5 MB", b'{"taskname": "t", "a": "' + b"x" * (5 << 20) + b'"}\n'), ("a value that is a tree", b'{"taskname": "t", "a": {"b": [1]}}\n'),
                       ("a key twice", b'{"taskname": "t", "taskname": "t"}\n'), ("bytes that are no UTF-8", b'{"taskname": "t", "a": "\xff"}\n'),
                       ("16 MB of newlines", b"\n" * (16 << 20)), ("nulls", bytes(1 << 20))):
        refused("JSONL: " + name, check_data, write("r.jsonl", data))
    for name, data in (("nesting 100,000 deep", deep(100000, b'{"data":')), ("a list of numbers", b'{"data": [1, 2, 3]}'), ("no paragraphs", b'{"data": [{"title": "x"}, {}, {}]}')):
        refused("SQuAD: " + name, check_squad, write("s.json", data))


try:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    whole_model = write("whole.gguf", f.tiny_gguf())
    status, said, cpu_s, empty_mib = check_model(top + "/none.gguf")
    say(status == 1 and "no such file" in said, "a file that is not there", f"{status}: {said}" if status != 1 else "")
    read("GGUF", check_model, whole_model)
    for part in (gguf, huggingface, tokenizers, nemo, tables, texts):
        if os.environ.get("SL_ONLY", "") in part.__name__:
            part()
    print(f"# without a file {cpu_s:.2f} s and {empty_mib:.0f} MiB; at most {worst[0]:.2f} s, and {worst[1]:.1f} MiB more")
finally:
    shutil.rmtree(top)
sys.exit(1 if bad else 0)
