#!/usr/bin/env python3
"""Writes text_metrics.json: what sacrebleu and rouge-score (PyPI) say of predictions and references.

usage: make_text_metrics.py [--out DIR]        needs sacrebleu 2.* and rouge-score 0.1.2

A case is [[[prediction, reference], ...], BLEU of these rows, mean rougeL F-measure]. Random texts mix words, numbers
with points, commas and dashes, entities, symbols, white space of every kind and scripts beyond ASCII; references are
the prediction changed a little, so that n-grams of every order are shared.
"""
import argparse
import json
import os
import random

import sacrebleu
from rouge_score import rouge_scorer

PIECES = (
    "the cat sat on a mat Mat dog's e.g. i.e. U.S.A. 3.14 1,000.5 2-3 x-y 1990- -5 5-, .5 5. a.b ,a a, ... -- «the» “the” "
    "‘a’ don't &amp; &quot; &lt;b&gt; &amp;lt; & < > <skipped> $5 50% #1 @x a/b a\\b [x] (y) {z} | ~ ` ^ _ a_b = + * ; : ! ? "
    "straße ÉTÉ été İstanbul 2\u212a K ſ 東京タワー 東京。 が \u0301 🙂 🙂. привет, мир! الكتاب ३.५ ٣٫١٤ ½ x\u00ad\u200b zero\u200bwidth"
).split(" ")
SPACES = [" "] * 14 + ["", "  ", "\t", "\n", "-\n", "\r\n", "\x0b", "\x1c", "\x1f", "\x85", "\xa0", "\u2003", "\u2028", "\u3000"]
HARD = [
    [("", "")], [("", "a")], [("a", "")], [("a", "a")], [("a b c d", "a b c d")], [("a b c", "a b c")], [(" ", "\n")],
    [("the the the the the the the", "the cat is on the mat")], [("a b c d e", "e d c b a")],
    [("Hello, world. 3.5,7 - 2-3", "Hello, world. 3.5,7 - 2-3")], [("x\n", "x")], [("well-\nknown", "wellknown")],
    [("a b c d", "a b c d e f g h"), ("", "x")], [("a b c d e f g h", "a b c d")], [(".", ".")], [("1.", "1 .")],
]


def text(rng):
    return "".join(rng.choice(PIECES) + rng.choice(SPACES) for _ in range(rng.randint(0, 14)))


def change(rng, s):
    words = s.split(" ")
    for _ in range(rng.randint(0, 3)):
        i = rng.randrange(len(words))
        act = rng.random()
        if act < 0.4:
            words[i] = rng.choice(PIECES)
        elif act < 0.7:
            words.insert(i, rng.choice(PIECES))
        elif len(words) > 1:
            del words[i]
    return " ".join(words)


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--out", default=here)
    out = args.parse_args().out
    rng = random.Random(13)
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    cases = []
    for n in range(len(HARD) + 320):
        rows = HARD[n] if n < len(HARD) else []
        while n >= len(HARD) and len(rows) < 1 + n % 4:
            prediction = text(rng)
            rows.append((prediction, change(rng, prediction) if rng.random() < 0.8 else text(rng)))
        predictions, references = [r[0] for r in rows], [r[1] for r in rows]
        bleu = sacrebleu.corpus_bleu(predictions, [references]).score
        rouge = sum(scorer.score(r, p)["rougeL"].fmeasure for p, r in rows) / len(rows)
        cases.append([rows, bleu, rouge])
    assert sum(0 < c[1] < 100 for c in cases) > 150 and sum(0 < c[2] < 1 for c in cases) > 150
    with open(os.path.join(out, "text_metrics.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


if __name__ == "__main__":
    main()
