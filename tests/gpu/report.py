#!/usr/bin/env python3
"""One table and one gpu.json from what the steps of tests/gpu/run.sh have left in one or several folders.

    report.py [--gpu NAME] FOLDER...      writes gpu.json into the first folder

Later folders add to earlier ones; a row that is there twice counts as the later one says it. Goals: the ratios of useful
tokens/s over PEFT, of peak memory at equal tokens, and the seconds to the first step that this project set itself.
"""

import argparse
import datetime
import json
import os
import sys

SPEED = {("gpt-125m", "bf16"): (10, 12, 3.6), ("gpt-1.3b", "bf16"): (6, 6, 2.5), ("gpt-5b", "bf16"): (4.3, 4, 1.8),
         ("gpt-1.3b", "fp8"): (8.5, 8.8, 3.3), ("gpt-5b", "fp8"): (6.8, 6.4, 2.8)}
PROFILES = ("short", "squad", "long")
MEMORY = {"gpt-125m": 1 / 4, "gpt-1.3b": 1 / 4, "gpt-5b": 1 / 3}
FIRST_STEP = {"gpt-125m": 1.0, "gpt-1.3b": 1.5, "gpt-5b": 3.0}
TRIALS = {"gpt-125m": 30, "gpt-1.3b": 8, "gpt-5b": 5}


def read(folder, name, otherwise):
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return otherwise
    with open(path) as f:
        if name.endswith(".jsonl"):
            return [json.loads(line) for line in f]
        return json.load(f)


def speed_rows(r, out):
    best = max((x for x in r["ours"] if "useful_tok_s" in x), key=lambda x: x["useful_tok_s"], default=None)
    peer = max((p for p in r["peft"] if "useful_tok_s" in p), key=lambda p: p["useful_tok_s"], default=None)
    key = {k: r[k] for k in ("model", "profile", "precision", "encoder")}
    goal = None
    if r["encoder"] == "mlp" and (r["model"], r["precision"]) in SPEED:
        goal = SPEED[r["model"], r["precision"]][PROFILES.index(r["profile"])]
    row = dict(key, goal=goal, error=next((x["error"] for x in r["ours"] if "error" in x), None))
    if best:
        row.update(ours=round(best["useful_tok_s"]), ours_step_ms=best["step_ms"], packed_tokens=best["packed"],
                   encoder_ms=best.get("encoder_ms"), ceiling=r.get("ceiling", {}).get("tok_s"),
                   ceiling_ms=r.get("ceiling", {}).get("ms"), gradient_cosine=r.get("gradient_cosine"),
                   gradient_error=r.get("gradient_error"), gradient_error_torch=r.get("gradient_error_torch_bf16"))
        if row["ceiling"]:
            row["ratio_ceiling"] = round(row["ours"] / row["ceiling"], 3)
    if best and peer:
        row.update(peer=round(peer["useful_tok_s"]), peer_rows=peer["rows"], peer_step_ms=peer["step_ms"],
                   ratio_tok_s=round(best["useful_tok_s"] / peer["useful_tok_s"], 2))
    out["speed"].append(row)
    m = r.get("memory")
    if m and m.get("ours_gib"):
        out["memory"].append(dict(key, rows=m["rows"], ours_gib=round(m["ours_gib"], 2), peer_gib=round(m["peer_gib"], 2),
                                  peer_gib_driver=round(m["peer_gib_driver"], 2),
                                  ratio_memory=round(m["ours_gib"] / m["peer_gib"], 3), goal=MEMORY.get(r["model"])))
        less = m.get("recomputed")
        if less and less.get("gib"):
            out["memory"][-1]["recomputed"] = dict(less, ratio_memory=round(less["gib"] / m["peer_gib"], 3),
                                                   ratio_tok_s=round(less["useful_tok_s"] / peer["useful_tok_s"], 2))


def gather(folders):
    out = {"speed": [], "memory": [], "first_step": [], "trials": [], "parity": [], "checks": [], "generate": None, "demo": None}
    for folder in folders:
        for r in read(folder, "speed.json", {}).get("results", []):
            speed_rows(r, out)
        for r in read(folder, "first_step.json", {}).get("first_step", []):
            out["first_step"].append({"model": r["model"], "seconds": round(r["seconds"], 2), "all": r["all"],
                                      "goal": FIRST_STEP.get(r["model"])})
        for r in read(folder, "trials.json", {}).get("trials", []):
            out["trials"].append(dict({"precision": "bf16"}, **r, goal=TRIALS.get(r["model"])))
        out["parity"] += read(folder, "parity.json", {}).get("parity", []) + read(folder, "precision.json", {}).get("precision", [])
        out["checks"] += read(folder, "checks.jsonl", [])
        out["generate"] = read(folder, "generate.json", {}).get("generate") or out["generate"]
        demo = read(folder, "demo.json", None)
        if demo and demo.get("device") == "cuda":
            out["demo"] = dict(demo, cpu_seconds=read(os.path.dirname(os.path.abspath(__file__)), "cpu.json", {}).get("demo_seconds"))
    for name, key in (("speed", ("model", "profile", "precision", "encoder")), ("memory", ("model", "profile", "precision", "encoder")),
                      ("first_step", ("model",)), ("trials", ("model", "precision")), ("parity", ("name",)), ("checks", ("name",))):
        out[name] = list({tuple(r[k] for k in key): r for r in out[name]}.values())
    return out


def number(x, form="%.2f"):
    return "-" if x is None else form % x


def show(out):
    if out["speed"]:
        memory = {(r["model"], r["profile"], r["precision"], r["encoder"]): r for r in out["memory"]}
        print("%-13s%-7s%-6s%-6s%9s%9s%7s%6s%10s%7s%9s%9s%7s%7s%9s" % (
            "model", "prof", "prec", "enc", "ours t/s", "PEFT t/s", "ratio", "goal", "ceiling", "of it", "ours GiB", "PEFT GiB",
            "ratio", "goal", "cosine"))
        for r in out["speed"]:
            m = memory.get((r["model"], r["profile"], r["precision"], r["encoder"]), {})
            print("%-13s%-7s%-6s%-6s%9s%9s%7s%6s%10s%7s%9s%9s%7s%7s%9s" % (
                r["model"], r["profile"], r["precision"], r["encoder"], number(r.get("ours"), "%d"), number(r.get("peer"), "%d"),
                number(r.get("ratio_tok_s")), number(r["goal"], "%g"), number(r.get("ceiling"), "%d"), number(r.get("ratio_ceiling")),
                number(m.get("ours_gib"), "%.1f"), number(m.get("peer_gib"), "%.1f"), number(m.get("ratio_memory"), "%.3f"),
                number(m.get("goal"), "%.3f"), number(r.get("gradient_cosine"), "%.5f")))
            if r.get("error"):
                print("    " + r["error"])
    for r in out["first_step"]:
        print("first step    %-13s %.2f s (goal %s)" % (r["model"], r["seconds"], number(r["goal"], "%g s")))
    for r in out["trials"]:
        print("trials        %-13s %-5s %d trials x %d steps: ours %.1f s, PEFT %s s, ratio %s (goal %s); without start-up %s; alone "
              "and together differ by %s" % (r["model"], r.get("precision", "bf16"), r["trials"], r["full_steps"], r["ours_s"], number(r.get("peft_s"), "%.0f"),
                                         number(r.get("ratio"), "%.1f"), number(r["goal"], "%g"),
                                         number(r.get("ratio_without_start"), "%.1f"),
                                         number(max((c["difference"] for c in r.get("check", [])), default=None), "%.1e")))
    for r in out["parity"]:
        print("parity        %-7s%-16s %s" % ("ok" if r["ok"] else "FAILED", r["name"],
                                               r.get("text") or "%s (limit %s)" % (number(r.get("value"), "%+.4f"), r.get("limit"))))
    if out["generate"]:
        print("generate      " + json.dumps(out["generate"]))
    if out["demo"]:
        print("demo          %d s on the GPU, %s s on the CPU; %s" % (
            out["demo"]["seconds"], out["demo"]["cpu_seconds"],
            ", ".join("%s %.1f%%" % (t["name"], 100 * t["accuracy_tuned"]) for t in out["demo"]["tasks"])))
    for r in out["checks"]:
        word = {0: "ok", 77: "not run", 124: "time up"}.get(r["status"], "FAILED")
        print("%-8s%-18s %4d tests passed %4d s" % (word, r["name"], r["passed"], r["seconds"]))


def markdown(out):
    """The README's tables."""
    memory = {(r["model"], r["profile"], r["precision"], r["encoder"]): r for r in out["memory"]}
    print("| model | profile | precision, encoder | ours, tokens/s | PEFT | ratio (goal) | of the ceiling | GiB at equal rows, ours / PEFT "
          "(ratio, goal) |\n|---|---|---|---|---|---|---|---|")
    for r in out["speed"]:
        m = memory.get((r["model"], r["profile"], r["precision"], r["encoder"]))
        print("| %s | %s | %s, %s | %s | %s | %s (%s) | %s | %s |" % (
            r["model"], r["profile"], r["precision"], r["encoder"], "{:,}".format(r["ours"]) if r.get("ours") else "-",
            "{:,}".format(r["peer"]) if r.get("peer") else "-", number(r.get("ratio_tok_s"), "%.1f"), number(r["goal"], "%g"),
            number(r.get("ratio_ceiling")), "%.1f / %.1f (%.2f, %s)" % (m["ours_gib"], m["peer_gib"], m["ratio_memory"],
                                                                       number(m["goal"])) if m else "-"))
    print("\n| process start to first finished step | seconds (goal) |\n|---|---|")
    for r in out["first_step"]:
        print("| %s | %.2f (%s) |" % (r["model"], r["seconds"], number(r["goal"], "%g")))


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--gpu", default="")
    args.add_argument("--markdown", action="store_true", help="the tables of the README instead")
    args.add_argument("folders", nargs="+")
    args = args.parse_args()
    out = gather(args.folders)
    head = {"command": os.environ.get("GPU_COMMAND", "tests/gpu/report.py"), "commit": os.environ.get("GPU_COMMIT", "unknown"),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "gpu": args.gpu}
    for folder in args.folders:    # an earlier report of the folder knows its machine and commit
        old = read(folder, "gpu.json", {})
        for k in ("gpu", "commit", "command"):
            if head[k] in ("", "unknown", "tests/gpu/report.py") and old.get(k):
                head[k] = old[k]
    with open(os.path.join(args.folders[0], "gpu.json"), "w") as f:
        json.dump({**head, **out}, f, indent=1)
    print()
    (markdown if args.markdown else show)(out)


if __name__ == "__main__":
    sys.exit(main())
