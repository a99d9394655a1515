#!/bin/bash
# make bench: a training step beside sgemm alone and beside PEFT on the same batches, in one run, on two threads.
# Writes BUILD/reports/bench.json. usage: tests/bench/run.sh BUILD
set -euo pipefail
build=$(realpath "$1")
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
work=$build/bench
rm -rf "$work"
mkdir -p "$work" "$build/reports"
model=$(deploy/fetch-model.sh)
"$build/bin/softlaunch" data wordnet --wordnet /usr/share/wordnet --out "$work/data" >/dev/null
# One task, PEFT's MLP encoder (three layers) against ours, equal widths.
python3 - examples/wordnet.json "$model" "$work" <<'E2'
import json, sys
spec, model, work = json.load(open(sys.argv[1])), sys.argv[2], sys.argv[3]
config = spec["config"]
config["model"]["task_templates"] = config["model"]["task_templates"][:1]
config["model"]["virtual_prompt_style"] = "p-tuning"
config["model"].pop("prompt_tuning", None)
config["model"]["p_tuning"] = {"encoder_type": "mlp", "num_layers": 3, "encoder_hidden": 2048}
config["inference"]["choices"].pop("part_of_speech")
rows = [r for r in open(work + "/data/train.jsonl") if '"category"' in r]
open(work + "/train.jsonl", "w").writelines(rows)
json.dump({"model": model, "datasets": {"train": [work + "/train.jsonl"]}, "config": config},
          open(work + "/run.json", "w"))
E2
echo "a training step and sgemm alone, in turn:"
"$build/tests/bench/bench_step" "$work" "${STEPS:-30}" "$work/batches.json" | tee "$work/step.json"
echo "PEFT on the same batches:"
peft=$(tests/peer-python.sh peft) || peft=
if [ -n "$peft" ]; then
    # OPENBLAS_CORETYPE is for our worker; torch brings its own kernels.
    env -u OPENBLAS_CORETYPE "$peft" tests/bench/peft_cpu.py "$work/batches.json" --model "$model" | tee "$work/peft.json"
else
    echo "not run: torch and peft could not be installed"
fi
echo "the queue on loopback:"
SL_BIN=$build/bin SL_BUILD=$build python3 tests/system/queue_latency.py | tee "$work/queue.log"
python3 - "$work" "$build/reports/bench.json" "$(git describe --always --dirty 2>/dev/null || echo unknown)" <<'E2'
import json, os, sys
work, out, commit = sys.argv[1:]
read = lambda n: json.load(open(f"{work}/{n}.json")) if os.path.exists(f"{work}/{n}.json") and os.path.getsize(f"{work}/{n}.json") else None
step, peft = read("step"), read("peft")
queue = [line[2:].strip() for line in open(f"{work}/queue.log") if line.startswith("# ")]
if peft:
    peft.pop("losses", None)
report = dict(command="make bench", commit=commit, step=step, peft=peft, queue=queue)
print(f'step over sgemm alone: {step["ratio_median"]:.2f} (goal: at most 1.35)')
if peft:
    report["speedup_over_peft"] = round(peft["step_s_median"] / step["step_s_median"], 2)
    print(f'over PEFT, same batches and threads: {report["speedup_over_peft"]:.2f}x (goal: at least 2)')
json.dump(report, open(out, "w"), indent=1)
E2
