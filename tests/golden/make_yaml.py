#!/usr/bin/env python3
"""Writes yaml.json: what OmegaConf's loader makes of YAML texts, and what Hydra makes of values on a command line.

usage: make_yaml.py [--out DIR]        needs omegaconf 2.3 and hydra-core 1.3

{"documents": [[text, value or {"error": true}], ...], "values": [[text, value], ...]}. What JSON cannot say is left
out: infinities, not a number, integers beyond 64 bits. Keys that are no strings are written as Python's str has
them where the text has the same, else left out.
"""
import argparse
import json
import math
import os
import random

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

WORDS = (
    "a true True TRUE tRue false no NO No nO yes on off Off y n ~ null Null NULL nul none None 0 1 -1 +1 -0 007 010 08 0o17 0x1F "
    "0xg 0b101 0b2 1_000 1__0 _1 1_ 12:30 1:60 12:30:45 -1:30 1:30.5 1. .5 +.5 -.5 1.5 1.5e3 1.5e+3 1e5 1e-4 1E-4 1e 1e+ -1e-4 1_0.0_1 "
    "1_.5 1__0.5 1__0.5e3 1_0e5 .5e3 .5e-3 ._5 . .. ... e5 1.2.3 1-2 2020-01-02 2020-01-02T03:04:05 3e-4 0.0 -0.0 1e3_0 0_ 0_7 +0x1 "
    "'1' '' 'it''s' \"\" \"a\\tb\" \"\\u00e9\\U0001f642\" \"1\" 'true' \"\\x41\" é 東京 🙂 ${a.b} a:b a#b #x http://x/y C:\\x - -a ?a :a "
    "@a `a %a !a &a *a |a >a [ ] { } , a,b [a,b] [a,[b,1e-3]] '[a]' <|VIRTUAL_PROMPT_0|>"
).split(" ") + ["{a: b, c: 1}", "{c: [1e-3, yes, {d: null}]}", "[yes, no]", "[1, 2.5, x y, 'z, 1', \"q\"]", "a b", "1 2", "[ ]", "{}"]
DOCUMENTS = [
    "", "---\n", "# only a comment\n", "a: 1\nb: [x, y]\nc:\n  d: e\n", "- a\n- - b\n  - c\n- d: e\n  f: g\n", "a:\n- 1\n- 2\n",
    "a: |\n  line 1\n  line 2\n\nb: >-\n  folded\n  text\n\n  next\nc: |+\n  keep\n\n", "a: 'x\n  y'\n", 'a: "x\\\n  y\\n"\n',
    "a: &x {b: 1}\nc: *x\n", "a: &x [1, 2]\nb: [*x, *x]\n", "base: &b {x: 1, y: 2}\nd:\n  <<: *b\n  y: 3\n",
    "p: &p {x: 1}\nq: &q {x: 2, z: 3}\nr:\n  <<: [*p, *q]\n  w: 4\n", "a: 1\na: 2\n", "a: {b: 1, b: 2}\n", "a: *nope\n",
    "a: b: c\n", "a:\n\t- b\n", "a: [1, 2\n", "a: 'x\n", "{a: 1}\n{b: 2}\n", "--- a\n--- b\n", "a: !!str 1\n---\nb: 2\n", "? [a]\n: b\n",
    "a: 1 # comment\nb: '#no'\n", "a: -\n", "a:\nb:\n", "a: ~\nb: null\nc: ''\n", "template: \"<|VIRTUAL_PROMPT_0|> Context: {context}\\n\\nAnswer:{answer}\"\n",
    "lr: 1e-4\nbetas:\n- 0.9\n- 0.98\nprecision: 16\nval_check_interval: 1.0\nx: ${model.data.max_seq_length}\n", "a: {}\nb: []\n",
    "a: {x: {y: [{z: 1}]}}\n", "a: 0xFFFFFFFFF\nb: -9223372036854775808\nc: 9223372036854775807\n", "true: a\n2: b\n", "\ufeffa: 1\n",
    "%YAML 1.1\n---\na: 010\n", "%YAML 1.2\n---\na: 010\n", "a: b\n...\n", "a: \x00b\n", "'a\\\nb': 1\n", "a: \"\\0\"\n", "a: b\r\nc: d\r\n",
]


def plain(value):
    """value as JSON has it, or an exception."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not finite")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("too large")
    if isinstance(value, dict):
        out = {}
        for k, v in value.items():
            if not isinstance(k, str):
                k = "null" if k is None else str(k).lower()
            out[k] = plain(v)
        return out
    return [plain(v) for v in value] if isinstance(value, list) else value


def document(text):
    try:
        return plain(yaml.load(text, Loader=get_yaml_loader()))
    except yaml.YAMLError:
        return {"error": True}


def override(text):
    value = OverridesParser.create().parse_override("k=" + text).value()
    return plain(OmegaConf.to_container(OmegaConf.create({"k": value}))["k"])


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--out", default=here)
    out = args.parse_args().out
    rng = random.Random(4)
    texts = DOCUMENTS + ["k: %s\n" % w for w in WORDS] + ["- %s\n" % w for w in WORDS] + ["[%s]\n" % w for w in WORDS]
    for _ in range(1500):  # things like numbers
        texts.append("k: " + "".join(rng.choice("0012_:.eE+-x") for _ in range(rng.randint(1, 7))) + "\n")
    documents = []
    for text in texts:
        try:
            documents.append([text, document(text)])
        except (ValueError, OverflowError):
            pass
    values = []
    for word in WORDS:
        if word[:1] == '"':  # ours are JSON's, with escapes
            continue
        try:
            values.append([word, override(word)])
        except Exception:  # what Hydra refuses is ours to choose
            pass
    with open(os.path.join(out, "yaml.json"), "w") as f:
        f.write('{"documents": [\n' + ",\n".join(json.dumps(d) for d in documents) + '\n],\n"values": [\n'
                + ",\n".join(json.dumps(v) for v in values) + "\n]}\n")


if __name__ == "__main__":
    main()
