#!/usr/bin/env python3
"""Judges job specs with PyPI's jsonschema and with our validator, and compares.

usage: SL_BUILD=build SL_PEER_PYTHON=python tests/system/schema_peer.py

Part one: every case of schema_cases.json (a change to examples/wordnet.json) is judged as the table says. Part two:
thousands of random changes to the example are judged alike by both. Our side is `test_schema --judge`: a spec a line
in, "valid" or "invalid" a line out. Prints TAP; exits 77 when jsonschema is not there.
"""
import copy
import json
import os
import random
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MUTATIONS = 3000
SEED = int(os.environ.get("SL_SEED", "20260101"))

if "SL_SCHEMA_PEER" not in os.environ and os.environ.get("SL_PEER_PYTHON"):
    os.environ["SL_SCHEMA_PEER"] = "1"
    os.execv(os.environ["SL_PEER_PYTHON"], [os.environ["SL_PEER_PYTHON"], __file__] + sys.argv[1:])
try:
    import jsonschema
except ImportError:
    print("not run: set SL_PEER_PYTHON to an interpreter that has jsonschema")
    sys.exit(77)


def parts_of(path):
    return [int(p) if p.isdigit() else p for p in re.findall(r"[^.\[\]]+", path)]


def changed(spec, case):
    spec = copy.deepcopy(spec)
    for path, value in case["set"]:
        parts = parts_of(path)
        if not parts:
            return value
        at = spec
        for p in parts[:-1]:
            at = at.setdefault(p, {}) if isinstance(at, dict) else at[p]
        at[parts[-1]] = value
    for path in case["remove"]:
        parts = parts_of(path)
        at = spec
        for p in parts[:-1]:
            at = at[p]
        del at[parts[-1]]
    return spec


def places(value, path=()):
    """Every place in a value, as a path."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for k, v in items:
        yield from places(v, path + (k,))


def mutate(rng, spec):
    """One to three random changes: another type, an edge value, a key lost, renamed, or moved here from elsewhere."""
    spec = copy.deepcopy(spec)
    values = [None, True, False, 0, 1, -1, 2.0, 0.5, 1e9, 16, "", "a", "fp32", "p-tuning", "P_TUNING", "é" * 129,
              "A", "0" * 64, [], [1], ["a", "a"], [0.9, 0.98], {}, {"ref": "m"}, {"a": 1}, [[]], 1e-9, 4097, 65537]
    for _ in range(rng.randint(1, 3)):
        where = rng.choice([p for p in places(spec) if p])
        at = spec
        for p in where[:-1]:
            at = at[p]
        kind = rng.random()
        if kind < 0.5:
            at[where[-1]] = copy.deepcopy(rng.choice(values))
        elif kind < 0.65:
            del at[where[-1]]
        elif kind < 0.8 and isinstance(at, dict):
            at[rng.choice(["x", "lr", "seed", where[-1] + "s", where[-1][:-1] or "y"])] = at.pop(where[-1])
        else:
            other = spec
            for p in rng.choice(list(places(spec))):
                other = other[p]
            at[where[-1]] = copy.deepcopy(other)
        if not spec:
            break
    return spec


def ours(specs):
    judge = os.path.join(os.environ.get("SL_BUILD", os.path.join(ROOT, "build")), "tests", "unit", "test_schema")
    text = "".join(json.dumps(s) + "\n" for s in specs)
    out = subprocess.run([judge, "--judge"], input=text.encode(), stdout=subprocess.PIPE, cwd=ROOT, check=True)
    return [line == "valid" for line in out.stdout.decode().split()]


def main():
    with open(os.path.join(ROOT, "base", "job.schema.json"), encoding="utf-8") as f:
        schema = json.load(f)
    with open(os.path.join(ROOT, "examples", "wordnet.json"), encoding="utf-8") as f:
        example = json.load(f)
    with open(os.path.join(ROOT, "tests", "system", "schema_cases.json"), encoding="utf-8") as f:
        cases = json.load(f)
    jsonschema.Draft202012Validator.check_schema(schema)
    peer = jsonschema.Draft202012Validator(schema)
    failed = 0

    specs = [changed(example, c) for c in cases]
    for case, spec, mine in zip(cases, specs, ours(specs)):
        expected = not case["errors"]
        theirs = peer.is_valid(spec)
        good = mine == theirs == expected
        failed += not good
        print("%s - %s" % ("ok" if good else "not ok", case["name"]))
        if not good:
            print("# expected %s, ours %s, jsonschema %s" % (expected, mine, theirs))

    rng = random.Random(SEED)
    specs = [mutate(rng, example) for _ in range(MUTATIONS)]
    theirs = [peer.is_valid(s) for s in specs]
    differ = [s for s, a, b in zip(specs, theirs, ours(specs)) if a != b]
    enough = min(theirs.count(True), theirs.count(False)) > MUTATIONS // 50
    print("# seed %d: %d changed specs, %d valid, %d judged differently"
          % (SEED, MUTATIONS, theirs.count(True), len(differ)))
    print("%s - random changes are judged alike" % ("ok" if not differ and enough else "not ok"))
    for s in differ[:3]:
        print("# " + json.dumps(s)[:2000])
    return 1 if failed or differ or not enough else 0


if __name__ == "__main__":
    sys.exit(main())
