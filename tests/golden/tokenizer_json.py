"""Compares our token ids with those of the PyPI packages tokenizers and sentencepiece.

usage: tokenizer_json.py TOK_DUMP [LINES]

Small vocabularies are trained here on generated text: byte-level BPE with each published pre-tokenizer, saved as
tokenizer.json, and SentencePiece models of both kinds, as files and as GGUF. Lines as in tokenizer.py. Then what few
files have (flags of added tokens, prefix spaces, unknown bytes, merges as strings, vocab.json with merges.txt), normal
forms and word characters at every code point, and files that are refused. Exit status 1 on any difference.
"""

import io
import itertools
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import sentencepiece
from tokenizer import ARRAY, CONTROL, SEED, STRING, Comparison, Lines, published_pre_tokenizer, write_keys
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 4000
ByteLevel = pre_tokenizers.ByteLevel


def control(text):
    return AddedToken(text, special=True, normalized=False)


# ---- tokenizer.json ----------------------------------------------------------------------------------------------


def train(pre, texts, normalizer=None, alphabet=True, **model):
    tok = Tokenizer(models.BPE(**model))
    tok.pre_tokenizer = pre
    if normalizer:
        tok.normalizer = normalizer
    letters = ByteLevel.alphabet() if alphabet else []
    first = [t for t in [model.get("unk_token")] if t]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=first, initial_alphabet=letters, show_progress=False
    )
    tok.train_from_iterator(texts, trainer)
    return tok


def save(folder, name, tok, config=None, change=None):
    """A model's directory; change edits the JSON."""
    path = os.path.join(folder, name)
    os.mkdir(path)
    tok.save(os.path.join(path, "tokenizer.json"))
    if change:
        with open(os.path.join(path, "tokenizer.json")) as f:
            data = json.load(f)
        change(data)
        with open(os.path.join(path, "tokenizer.json"), "w") as f:
            json.dump(data, f)
    if config:
        with open(os.path.join(path, "tokenizer_config.json"), "w") as f:
            json.dump(config, f)
    return path


def published(folder, c, texts, lines):
    """Each published configuration, as transformers saves it."""
    for name in ("gpt-2", "smollm", "llama-bpe", "qwen2"):
        llama = name == "llama-bpe"
        tok = train(
            published_pre_tokenizer(name), texts, normalizer=normalizers.NFC() if name == "qwen2" else None
        )
        if llama:  # pieces that are tokens as a whole, though no merges lead there
            data = json.loads(tok.to_str())
            data["model"]["ignore_merges"] = True
            for word in ("Ġantidisestablishment", "unbelievable", "Ġ{}", "的的"):
                data["model"]["vocab"].setdefault(word, len(data["model"]["vocab"]))
            tok = Tokenizer.from_str(json.dumps(data))
        tok.add_special_tokens([control(t) for t in SPECIALS])
        if llama:  # adds BOS there; ours leaves that to add_bos
            bos = tok.token_to_id(SPECIALS[0])
            tok.post_processor = processors.TemplateProcessing(
                single=f"{SPECIALS[0]} $A", special_tokens=[(SPECIALS[0], bos)]
            )
        c.run(f"tokenizer.json, {name}", save(folder, name, tok), tok, lines)
        if llama:
            path = os.path.join(folder, name)
            c.run(f"tokenizer.json, {name}, special tokens as text", path, tok, lines[: len(lines) // 10], False)


def rare(folder, c, texts, lines):
    """What few files have."""
    lines = lines[: len(lines) // 10]
    split = pre_tokenizers.Split
    for name, stages in {
        "prefix space": [ByteLevel(add_prefix_space=True)],
        "runs of digits": [pre_tokenizers.Digits(individual_digits=False), ByteLevel(add_prefix_space=False)],
        "literal text": [split("the", "isolated"), split(".", "isolated"), ByteLevel(False)],
        "three patterns": [
            split(Regex(r"\p{N}{1,3}"), "isolated"),
            split(Regex(r"(?<=[,;])\s|[^\r\n\s]++|\P{L}(?=\p{L})"), "isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ],
    }.items():
        tok = train(pre_tokenizers.Sequence(stages), texts)
        tok.add_special_tokens([control(t) for t in SPECIALS])
        c.run(f"tokenizer.json, {name}", save(folder, name, tok), tok, lines)
    for fuse in (False, True):
        english = [t for t in texts if t.isascii()]
        tok = train(ByteLevel(False), english, alphabet=False, unk_token="<unk>", fuse_unk=fuse)
        name = f"unknown bytes{', fused' if fuse else ''}"
        c.run(f"tokenizer.json, {name}", save(folder, name, tok), tok, lines)
    tok = train(ByteLevel(False), english, alphabet=False)
    c.run("tokenizer.json, bytes without a token", save(folder, "no bytes", tok), tok, lines)
    tok = train(ByteLevel(False), texts)

    def strings(data):
        data["model"]["merges"] = [" ".join(m) for m in data["model"]["merges"]]
        del data["model"]["type"]

    c.run("tokenizer.json, merges as strings", save(folder, "strings", tok, change=strings), tok, lines)


def flags(folder, c, texts, lines):
    """Added tokens that strip, are whole words, are normalised, overlap and hide one another."""
    tok = train(ByteLevel(False), texts, normalizer=normalizers.NFC())
    kinds = [dict(zip(("lstrip", "rstrip", "single_word"), k)) for k in itertools.product((False, True), repeat=3)]
    words = ["the", "<|x|>", " of", "caf\u0065\u0301", "é", "of the", "\u00a0", "in"]
    added = []
    for i, (word, kind) in enumerate(zip(words, kinds)):
        added.append(AddedToken(word, normalized=i % 2 == 0, special=i % 3 == 0, **kind))
    added += [AddedToken("in is", normalized=True), AddedToken("  ", normalized=False, rstrip=True)]
    tok.add_special_tokens([a for a in added if a.special])
    tok.add_tokens([a for a in added if not a.special])
    path = save(folder, "flags", tok)
    joints = ["", " ", "  ", "\n", "\u3000", "\u2009", "_", "x", "1", "-", "\u0301", "é", "的"]
    r = Lines(SEED, []).r
    more = [
        "".join(r.choice(words + ["in is", "cafe", "the of"]) + r.choice(joints) for _ in range(r.randint(1, 9))).encode()
        for _ in range(len(lines) // 4)
    ]
    c.run("added tokens' flags", path, tok, more)
    c.run("added tokens' flags, special tokens as text", path, tok, more, False)
    c.run("added tokens' flags, mixed lines", path, tok, lines[: len(lines) // 10])


def files(folder, c, texts, lines):
    """vocab.json with merges.txt; BOS and EOS by the configurations."""
    tok = train(ByteLevel(False), texts)
    tok.add_special_tokens([control(t) for t in SPECIALS[:1]])
    path = os.path.join(folder, "vocab and merges")
    os.mkdir(path)
    tok.model.save(path)
    with open(os.path.join(path, "vocab.json")) as f:
        vocab = json.load(f)
    vocab[SPECIALS[0]] = len(vocab)
    with open(os.path.join(path, "vocab.json"), "w") as f:
        json.dump(vocab, f)
    with open(os.path.join(path, "config.json"), "w") as f:
        json.dump({"bos_token_id": vocab[SPECIALS[0]], "eos_token_id": [vocab[SPECIALS[0]], 1]}, f)
    c.run("vocab.json with merges.txt", path, tok, lines[: len(lines) // 10])


def points():
    """The code points that any version of Unicode may have assigned, private use aside."""
    ranges = range(0xD800), range(0xE000, 0x33480), range(0xE0000, 0xE1000)
    return (p for r in ranges for p in r)


def every_code_point(folder, c):
    """Normal form C beside marks of classes 1, 230 and 240, alone, and after what may compose; word characters."""
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(sorted(ByteLevel.alphabet()))}, merges=[]))
    tok.pre_tokenizer = ByteLevel(False, use_regex=False)
    tok.normalizer = normalizers.NFC()
    lines, step = [], 64
    every = [chr(p) for p in points()]
    for i in range(0, len(every), step):
        some = every[i : i + step]
        lines.append("".join(f"a\u0345{p}\u0334\u0301 {p}" for p in some).encode())
        lines.append("".join(some).encode())
        lines.append("".join(reversed(some)).encode())
    for i in range(0xAC00, 0xD7A4, step):  # composed from letters
        lines.append(normalizers.NFD().normalize_str("".join(map(chr, range(i, min(i + step, 0xD7A4))))).encode())
    c.run("normal form, every code point", save(folder, "nfc", tok), tok, lines)
    tok.normalizer = None
    tok.add_tokens([AddedToken("qq", single_word=True), AddedToken("zz", lstrip=True, rstrip=True)])
    lines = ["".join(f".{p}qq.qq{p} {p}zz{p}." for p in every[i : i + step]).encode() for i in range(0, len(every), step)]
    c.run("word characters and spaces, every code point", save(folder, "words", tok), tok, lines)


# ---- SentencePiece -----------------------------------------------------------------------------------------------


class Pieces:
    """A SentencePiece model with the interface that Comparison wants; control tokens cut the text."""

    def __init__(self, model, controls=()):
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.ids = {t: self.processor.piece_to_id(t) for t in controls}
        self.encode_special_tokens = False

    def encode_batch_fast(self, texts, add_special_tokens):
        if not self.ids or self.encode_special_tokens:
            return [SimpleNamespace(ids=i) for i in self.processor.encode(texts, num_threads=2)]
        cut = re.compile("(" + "|".join(map(re.escape, sorted(self.ids, key=len, reverse=True))) + ")")
        out = []
        for text in texts:
            parts = [p for p in cut.split(text) if p]
            out.append([i for p in parts for i in ([self.ids[p]] if p in self.ids else self.processor.encode(p))])
        return [SimpleNamespace(ids=i) for i in out]


def train_pieces(texts, **how):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=2000, num_threads=2, minloglevel=2,
        character_coverage=0.999, control_symbols=SPECIALS[1:], **how,
    )  # fmt: skip
    return model.getvalue()


def fields(data):
    """Of a protobuf message: (number, value), bytes or an integer."""
    at = 0

    def varint():
        nonlocal at
        v = shift = 0
        while True:
            b = data[at]
            at, v, shift = at + 1, v | (b & 127) << shift, shift + 7
            if b < 128:
                return v

    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
            continue
        n = {1: 8, 5: 4}.get(tag & 7) or varint()
        yield tag >> 3, data[at : at + n]
        at += n


def gguf_of(model):
    """What llama.cpp writes for a SentencePiece model."""
    pieces = [dict(fields(v)) for k, v in fields(model) if k == 1]
    return {
        "general.architecture": (STRING, None, b"llama"),
        "tokenizer.ggml.model": (STRING, None, b"llama"),
        "tokenizer.ggml.tokens": (ARRAY, STRING, [p[1] for p in pieces]),
        "tokenizer.ggml.scores": (ARRAY, 6, [struct.unpack("<f", p[2])[0] for p in pieces]),
        "tokenizer.ggml.token_type": (ARRAY, 5, [p.get(3, 1) for p in pieces]),
        "tokenizer.ggml.bos_token_id": (4, None, 1),
    }


def compare_decoded(c, path, model, lines):
    with tempfile.TemporaryFile() as texts:
        texts.write(b"".join(struct.pack("<I", len(line)) + line for line in lines))
        texts.seek(0)
        out = subprocess.run([c.dump, path, "--decode"], stdin=texts, stdout=subprocess.PIPE, check=True).stdout
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    at = differing = 0
    for ids in processor.encode([line.decode("utf-8", "replace") for line in lines]):
        (n,) = struct.unpack_from("<I", out, at)
        theirs, ours = processor.decode(ids), out[at + 4 : at + 4 + n].decode("utf-8", "replace")
        at += 4 + n
        if theirs != ours:
            differing += 1
            if differing <= 3:
                print(f"# {theirs!r}\n# {ours!r}")
    c.failed += differing > 0
    print(f"{'not ok' if differing else 'ok'} - decoded by {os.path.basename(path)}: {len(lines)} lines, {differing} differing")


def sentencepieces(folder, c, texts, lines, plain):
    llama = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True}
    for kind, fallback, how in [
        ("bpe", True, llama),
        ("bpe", False, {"user_defined_symbols": ["the", "<x>", "  "]}),
        ("unigram", True, {"user_defined_symbols": ["\n", "é"]}),
        ("unigram", False, {"normalization_rule_name": "nfkc_cf", "add_dummy_prefix": False}),
    ]:
        model = train_pieces(texts, model_type=kind, byte_fallback=fallback, **how)
        name = f"{kind}{' with bytes' if fallback else ''}"
        path = os.path.join(folder, name + ".model")
        with open(path, "wb") as f:
            f.write(model)
        c.run(f"SentencePiece, {name}", path, Pieces(model), plain)
        few = lines[: len(lines) // 20]
        c.run(f"SentencePiece, {name}, control tokens", path, Pieces(model, ["<s>", "</s>"] + SPECIALS[1:]), few)
        compare_decoded(c, path, model, plain[: len(plain) // 20])
        if how is llama:
            path = os.path.join(folder, "pieces.gguf")
            write_keys(path, gguf_of(model))
            c.run("SentencePiece's BPE in GGUF", path, Pieces(model), plain)


def main():
    if len(sys.argv) < 2:
        raise SystemExit(__doc__.split("\n")[2])
    n = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    start = time.monotonic()
    lines = Lines(SEED, SPECIALS).make(n)
    plain = Lines(SEED + 1, []).make(n)
    texts = [line.decode("utf-8", "replace") for line in plain[:8000]]
    english = [t for t in (t.replace("\0", "") for t in texts) if t.isascii() or "é" in t]
    c = Comparison(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        published(folder, c, texts, lines)
        rare(folder, c, texts, lines)
        flags(folder, c, texts, lines)
        files(folder, c, texts, lines)
        every_code_point(folder, c)
        sentencepieces(folder, c, english, lines, plain)
    seconds = time.monotonic() - start
    print(f"tokenizers: {c.lines} lines, {c.differing} differing, {seconds:.0f} s")
    return 1 if c.failed else 0


if __name__ == "__main__":
    sys.exit(main())
