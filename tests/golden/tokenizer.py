"""Compares our token ids with those of the PyPI package tokenizers.

usage: tokenizer.py TOK_DUMP MODEL.gguf [LINES]

The reference tokenizer is built from the model's own vocabulary and merges and the published pre-tokenizer. Lines
are generated from a fixed seed: text, code, many scripts, emoji, combining marks, whitespace, special tokens, random
UTF-8 and random bytes. Then the other pre-tokenizers on the same vocabulary, and the character classes at every
code point. Exit status 1 on any difference.
"""

import os
import random
import struct
import subprocess
import sys
import tempfile

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

SEED = 20240612
CONTROL, USER = 3, 4
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


# ---- GGUF keys ---------------------------------------------------------------------------------------------------


def read_keys(path):
    """The keys of a GGUF file as {name: (type, element type, value)}; strings as bytes."""
    with open(path, "rb") as f:

        def number(fmt):
            return struct.unpack("<" + fmt, f.read(struct.calcsize(fmt)))[0]

        def value(kind):
            return f.read(number("Q")) if kind == STRING else number(NUMBERS[kind])

        magic, version, _, n_keys = f.read(4), number("I"), number("Q"), number("Q")
        if magic != b"GGUF" or version not in (2, 3):
            raise SystemExit(f"{path}: not a GGUF file of version 2 or 3")
        keys = {}
        for _ in range(n_keys):
            name, kind, element = value(STRING).decode(), number("I"), None
            if kind == ARRAY:
                element, n = number("I"), number("Q")
                keys[name] = (kind, element, [value(element) for _ in range(n)])
            else:
                keys[name] = (kind, element, value(kind))
        return keys


def write_keys(path, keys):
    """A GGUF file of these keys and no tensors."""

    def value(kind, v):
        if kind == STRING:
            return struct.pack("<Q", len(v)) + v
        return struct.pack("<" + NUMBERS[kind], v)

    with open(path, "wb") as f:
        f.write(b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)))
        for name, (kind, element, v) in keys.items():
            f.write(value(STRING, name.encode()) + struct.pack("<I", kind))
            if kind == ARRAY:
                f.write(struct.pack("<IQ", element, len(v)))
                f.write(b"".join(value(element, x) for x in v))
            else:
                f.write(value(kind, v))


# ---- the reference -----------------------------------------------------------------------------------------------

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")


def published_pre_tokenizer(name):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if name == "gpt-2":
        return byte_level
    pattern = {"llama-bpe": LLAMA3, "qwen2": QWEN2}[name]
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_only])


def reference(keys, pre):
    tokens = [t.decode() for t in keys["tokenizer.ggml.tokens"][2]]
    kinds = keys["tokenizer.ggml.token_type"][2]
    merges = [tuple(m.decode().split(" ")) for m in keys["tokenizer.ggml.merges"][2]]
    vocab = {t: i for i, t in enumerate(tokens)}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    tok.pre_tokenizer = published_pre_tokenizer(pre)
    added = [(t, k) for t, k in zip(tokens, kinds) if k in (CONTROL, USER)]
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in added if k == CONTROL])
    tok.add_tokens([AddedToken(t, special=False, normalized=False) for t, k in added if k == USER])
    for t, _ in added:
        assert tok.token_to_id(t) == vocab[t]
    return tok


# ---- text --------------------------------------------------------------------------------------------------------

WORDS = """the of and to in is that it was for on are with as his they be at one have this from by hot word but what
some we can out other were all there when up use your how said an each she which do their time if will way about many
then them write would like so these her long make thing see him two has look more day could go come did number sound
no most people my over know water than call first who may down side been now find I'm don't it's we'll they've he'd
you're O'Brien rock'n'roll 'tis language tokenizer pretraining unbelievable internationalization antidisestablishment
München naïve café Straße Ærøskøbing""".split()
CODE = """def f(x): | return x**2 + 1 | for (int i = 0; i < n; i++) { | } | if (!p) | #include <stdio.h> | \tgoto out;
 | SELECT * FROM t WHERE id = 42; | <div class="a">&nbsp;</div> | a->b.c[i] | /* comment */ | // TODO(me): fix
 | x = {"k": [1, 2.5e-3, null]} | $HOME/.config | git commit -m 'x' | λx. x | 0xDEADBEEF | std::vector<int>&& v
 | \\frac{1}{2} | @property | r"\\d+\\s*" | && || != <= >>= ::= ... --- === | #!/bin/sh | ::1""".split(" | ")
SCRIPTS = [
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x3040, 0x30FF), (0xAC00, 0xD7A3), (0x0600, 0x06FF), (0x0590, 0x05FF),
    (0x0400, 0x04FF), (0x0370, 0x03FF), (0x0900, 0x097F), (0x0E00, 0x0E7F), (0x0980, 0x09FF), (0x1200, 0x137F),
    (0x10A0, 0x10FF), (0x0530, 0x058F), (0x13A0, 0x13FF), (0x20000, 0x2A6DF), (0x0100, 0x024F), (0x1E00, 0x1EFF),
    (0xFF00, 0xFFEF), (0x2000, 0x206F), (0x2070, 0x209F), (0x2150, 0x218F), (0x2460, 0x24FF), (0x1D400, 0x1D7FF),
]
EMOJI = [(0x1F300, 0x1F5FF), (0x1F600, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF), (0x2600, 0x27BF)]
MARKS = [(0x0300, 0x036F), (0x1AB0, 0x1AFF), (0x20D0, 0x20FF), (0x064B, 0x065F), (0x093C, 0x094D)]
SPACES = [" ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\n\n", "\u00a0", "\u3000", "\u2003", "\u2028", "\u0085", "\v",
          "\f", "\u1680", "\u180e", "\u200b", "\u202f", "\ufeff", " " * 17, "\t\t\t", " \n ", "\n \n"]
SUFFIXES = ["'s", "'S", "'t", "'re", "'VE", "'m", "'ll", "'LL", "'d", "'\u017f", "’s", "'", "''", "'sx"]


class Lines:
    """Generates lines, as bytes."""

    def __init__(self, seed, specials):
        self.r = random.Random(seed)
        self.specials = specials
        self.makers = [
            (self.prose, 30), (self.code, 14), (self.script, 14), (self.emoji, 6), (self.marks, 6),
            (self.whitespace, 8), (self.numbers, 5), (self.special, 6), (self.utf8, 8), (self.ascii, 6),
            (self.random_bytes, 5), (self.broken, 5), (self.runs, 2), (self.mix, 12),
        ]

    def char(self, ranges):
        low, high = self.r.choice(ranges)
        return chr(self.r.randint(low, high))

    def prose(self):
        out = []
        for _ in range(self.r.randint(1, 24)):
            w = self.r.choice(WORDS)
            w = self.r.choice([w, w, w, w, w.upper(), w.capitalize(), w + self.r.choice(SUFFIXES)])
            out.append(w + self.r.choice(["", "", "", "", ",", ".", "!", "?", ";", ":", "...", " -", ")", '"']))
        return self.r.choice([" ", " ", " ", " ", "  ", "\n"]).join(out)

    def code(self):
        indent = self.r.choice(["", "    ", "\t", "        ", "  "])
        return "\n".join(indent + self.r.choice(CODE) for _ in range(self.r.randint(1, 5)))

    def script(self):
        low, high = self.r.choice(SCRIPTS)
        out = ""
        for _ in range(self.r.randint(1, 40)):
            out += chr(self.r.randint(low, high)) + self.r.choice(["", "", "", "", " ", self.r.choice("，。、؟!1a ")])
        return out

    def emoji(self):
        return "".join(
            self.char(EMOJI) + self.r.choice(["", "", "\ufe0f", "\u200d", "\U0001f3fb", " ", "a", "\U0001f1e9\U0001f1ea"])
            for _ in range(self.r.randint(1, 12))
        )

    def marks(self):
        base = self.r.choice(["e", "a", "o", "n", "K", "1", " ", "ש", "ا", "क", "-"])
        return "".join(base + self.char(MARKS) * self.r.randint(0, 3) for _ in range(self.r.randint(1, 15)))

    def whitespace(self):
        return "".join(
            self.r.choice(SPACES) * self.r.randint(1, 3) + self.r.choice(["", "", "x", "the", "1", ".", "é", "中"])
            for _ in range(self.r.randint(1, 12))
        )

    def numbers(self):
        digits = self.r.choice(["0123456789", "٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "½²³¹Ⅷ①㊿", "𝟘𝟙𝟚"])
        return "".join(
            "".join(self.r.choice(digits) for _ in range(self.r.randint(1, 9))) + self.r.choice(["", " ", ".", ",", "e"])
            for _ in range(self.r.randint(1, 8))
        )

    def special(self):
        out = ""
        for _ in range(self.r.randint(1, 8)):
            s = self.r.choice(self.specials) if self.specials else "<|x|>"
            cut = self.r.randint(0, len(s))
            out += self.r.choice([s, s, s, s + s, s[:cut], s[cut:], "<" + s, s.upper()])
            out += self.r.choice(["", "", " ", "\n", "user", "  ", "é"])
        return out

    def any_char(self):
        top = self.r.choice([0x80, 0x800, 0x3000, 0x10000, 0x20000, 0x110000])
        while True:
            c = self.r.randrange(top)
            if not 0xD800 <= c < 0xE000:
                return chr(c)

    def utf8(self):
        return "".join(self.any_char() for _ in range(self.r.randint(1, 40)))

    def ascii(self):
        return "".join(chr(self.r.randrange(128)) for _ in range(self.r.randint(1, 60)))

    def random_bytes(self):
        return self.r.randbytes(self.r.randint(1, 60))

    def broken(self):
        """UTF-8 with bytes cut out, changed or put in."""
        b = bytearray(self.r.choice([self.utf8, self.script, self.emoji])().encode())
        for _ in range(self.r.randint(1, 4)):
            i = self.r.randrange(len(b) + 1)
            what = self.r.randrange(3)
            if what == 0:
                del b[i : i + 1]
            elif what == 1:
                b[i:i] = bytes([self.r.choice([0x80, 0xBF, 0xC0, 0xC2, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF])])
            elif b:
                b[i % len(b)] = self.r.randrange(256)
        return bytes(b)

    def runs(self):
        return self.r.choice(["a", "ab", "=", "-", "\n", " ", "é", "の", "haha", "\t"]) * self.r.randint(20, 400)

    def mix(self):
        parts = [self.prose, self.code, self.script, self.emoji, self.marks, self.whitespace, self.numbers, self.special]
        return "".join(self.r.choice(parts)() for _ in range(self.r.randint(2, 3)))[:400]

    def make(self, n):
        makers, weights = zip(*self.makers)
        lines = [b"", b" ", b"\0", b"\xff", "\ud7ff\ue000\U0010ffff".encode()]
        for maker in self.r.choices(makers, weights, k=n - len(lines)):
            line = maker()
            lines.append(line if isinstance(line, bytes) else line.encode())
        return lines


def class_lines():
    """Every code point behind a letter, a digit and a mark, so that classes show in what may merge."""
    points = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    step = 64
    for i in range(0, len(points), step):
        yield "".join(f"a{chr(c)}.1{chr(c)}.!{chr(c)}." for c in points[i : i + step]).encode()


def class_keys(keys):
    """A vocabulary in which a letter, a digit or a mark merges with the first byte of whatever follows."""
    alphabet = {}
    extra = 256
    for b in range(256):
        printable = 33 <= b <= 126 or 161 <= b <= 172 or b >= 174
        alphabet[b] = chr(b if printable else extra)
        extra += not printable
    tokens, merges = list(alphabet.values()), []
    for left in "a1!":
        for b in range(256):
            merges.append(f"{left} {alphabet[b]}")
            tokens.append(left + alphabet[b])
    keys = dict(keys)
    keys["tokenizer.ggml.tokens"] = (ARRAY, STRING, [t.encode() for t in tokens])
    keys["tokenizer.ggml.token_type"] = (ARRAY, 5, [1] * len(tokens))
    keys["tokenizer.ggml.merges"] = (ARRAY, STRING, [m.encode() for m in merges])
    for name in list(keys):
        if name.endswith("_token_id"):
            del keys[name]
    return keys


# ---- comparison --------------------------------------------------------------------------------------------------


class Comparison:
    def __init__(self, dump):
        self.dump = dump
        self.lines = self.differing = self.failed = 0

    def run(self, what, gguf, tok, lines, specials=True):
        args = [self.dump, gguf] + ([] if specials else ["--no-specials"])
        with tempfile.TemporaryFile() as texts:
            for line in lines:
                texts.write(struct.pack("<I", len(line)) + line)
            texts.seek(0)
            ours = subprocess.run(args, stdin=texts, stdout=subprocess.PIPE, check=True).stdout.split(b"\n")
        assert len(ours) == len(lines) + 1, f"{len(ours) - 1} lines of ids for {len(lines)} texts"
        tok.encode_special_tokens = not specials
        differing, step = 0, 4000
        for i in range(0, len(lines), step):
            texts = [line.decode("utf-8", "replace") for line in lines[i : i + step]]
            for k, e in enumerate(tok.encode_batch_fast(texts, add_special_tokens=False)):
                theirs = " ".join(map(str, e.ids)).encode()
                if ours[i + k] != theirs:
                    differing += 1
                    if differing <= 3:
                        print(f"# {lines[i + k]!r}\n#   ours      {ours[i + k].decode()}\n#   reference {theirs.decode()}")
        self.lines += len(lines)
        self.differing += differing
        self.failed += differing > 0
        print(f"{'not ok' if differing else 'ok'} - {what}: {len(lines)} lines, {differing} differing", flush=True)


def main():
    if len(sys.argv) < 3:
        raise SystemExit(__doc__.split("\n")[2])
    dump, model = sys.argv[1:3]
    n = int(sys.argv[3]) if len(sys.argv) > 3 else 100_000
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    keys = read_keys(model)
    pre = keys["tokenizer.ggml.pre"][2].decode()
    tokens, kinds = keys["tokenizer.ggml.tokens"][2], keys["tokenizer.ggml.token_type"][2]
    specials = [t.decode() for t, k in zip(tokens, kinds) if k == CONTROL]
    lines = Lines(SEED, specials).make(n)
    comparison = Comparison(dump)
    comparison.run(pre, model, reference(keys, pre), lines)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "keys.gguf")
        # Every second special token made user-defined: those always count, the others are text when so asked.
        mixed = [USER if k == CONTROL and i % 2 else k for i, k in enumerate(kinds)]
        changed = {**keys, "tokenizer.ggml.token_type": (ARRAY, 5, mixed)}
        write_keys(path, changed)
        what = f"{pre}, control tokens as text, user-defined ones not"
        comparison.run(what, path, reference(changed, pre), lines[: n // 10], specials=False)
        classes = list(class_lines())
        for other in ("smollm", "gpt-2", "llama-bpe", "qwen2"):
            named = {**keys, "tokenizer.ggml.pre": (STRING, None, other.encode())}
            if other != pre:
                write_keys(path, named)
                comparison.run(other, path, reference(named, other), lines[: n // 10])
            if other in ("gpt-2", "qwen2"):
                continue  # the same classes as in the other two
            named = class_keys(named)
            write_keys(path, named)
            comparison.run(f"{other}, every code point", path, reference(named, other), classes)
    print(f"tokenizer: {comparison.lines} lines, {comparison.differing} differing")
    return 1 if comparison.failed else 0


if __name__ == "__main__":
    sys.exit(main())
