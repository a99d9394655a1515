#!/usr/bin/env python3
"""Records SQuAD's scores of hard pairs: metrics.json, a list of [prediction, [references], normalised, em, f1].

The functions are the definitions of SQuAD v1.1's evaluation in Python's own string operations; for answers that are
empty after normalisation F1 follows v2.0 (1 if both are, else 0). Random texts mix words, articles, punctuation of
several scripts, white space of every kind, combining marks and cased letters beyond ASCII.
"""
import argparse
import collections
import json
import os
import random
import re
import string

PIECES = (
    "a an the A An THE cat cats dog Dog U.S. it's the-end a1 a_b a² an½ ½the teh thea athe Θ ÀÉÎ straße İstanbul "
    "ΣΟΦΟΣ ΣΑΣ Σ ДА Ⅷ ǅ 東京 が a\u0301 \u0301a a\u093f ①a a\u20dd «the» \u2018a\u2019 … — - -- . , ! ? ; : ' \" ( ) [ ] "
    "{ } @ # $ % ^ & * + = ~ ` | \\ / < > _ __the__ 3.14 1,000 $5 🙂 🙂a \u200bthe the\u200b \u00adan"
).split(" ")
SPACES = [" "] * 12 + ["", "", "  ", "\t", "\n", "\r\n", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u2003",
                       "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u200b", "\ufeff"]


def normalise(s):
    s = "".join(c for c in s.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())


def f1(prediction, reference):
    p, r = normalise(prediction).split(), normalise(reference).split()
    if not p or not r:
        return float(p == r)
    same = sum((collections.Counter(p) & collections.Counter(r)).values())
    if not same:
        return 0.0
    precision, recall = same / len(p), same / len(r)
    return 2 * precision * recall / (precision + recall)


def case(prediction, references):
    return [prediction, references, normalise(prediction),
            any(normalise(prediction) == normalise(r) for r in references),
            max(f1(prediction, r) for r in references)]


def text(rng):
    out = rng.choice(SPACES)
    for _ in range(rng.randint(0, 8)):
        out += rng.choice(PIECES) + rng.choice(SPACES)
    return out


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--out", default=here)
    out = args.parse_args().out
    rng = random.Random(8)
    rows = []
    for _ in range(400):
        prediction = text(rng)
        references = [text(rng) for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.5:  # a reference that shares words, or differs only in what is normalised away
            words = prediction.split() or ["x"]
            rng.shuffle(words)
            references.append(" ".join(words[: rng.randint(1, len(words))]).upper())
        if rng.random() < 0.3:
            references.append("The " + prediction + " !")
        rows.append(case(prediction, references))
    hit = [r for r in rows if r[3]]
    part = [r for r in rows if 0 < r[4] < 1]
    assert len(hit) > 50 and len(part) > 50, (len(hit), len(part))
    with open(os.path.join(out, "metrics.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")


if __name__ == "__main__":
    main()
