#!/bin/bash
# Everything that needs an NVIDIA GPU: operations and training beside the CPU and the recorded runs, bad accesses and races,
# faults of the device, the demo, and times and memory beside PEFT's.
# usage: tests/gpu/run.sh [STEP...]     one line a check, then one table; logs and gpu.json go to $OUT, by default build/reports
#
#   ops        each operation against the CPU backend                     train      the recorded training runs, in fp32
#   parity     the real model, CPU and GPU: losses, gradients, equal bits, a resumed run, generated text
#   precision  what fp8 and int8 cost the real model: final losses over three seeds
#   sanitize   memcheck and racecheck over operations and training steps  faults     the device fails under an agent
#   demo       make demo DEVICE=cuda                                      generate   tokens/s beside transformers
#   speed      steps and memory beside PEFT and the device's limit        first_step  seconds from the start to the first step
#   trials     sixteen trials at once beside sixteen runs of PEFT
#   profile    where a step's time goes, by ncu (not among all)
#   model      only keeps a part of the model's file for later calls on this machine
# Without STEP: all of them. Environment:
#   GPU_PREBUILT=DIR   programs packed elsewhere (tests/gpu/pack.sh), for a machine without our libraries; else it builds here
#   GPU_ROWS, GPU_TOKENS    what `speed` measures: see tests/bench/gpu_peft.py    GPU_MODELS, GPU_TRIALS: the other two
#   GPU_KEEP           a folder for the models that are made, kept for later calls; else they go at the end
#   SL_MODEL           the real model's file; else its parts that `model` has kept, all of GPU_PREBUILT/model.part-*
#   SL_PEER_PYTHON     a Python with torch, transformers and peft (default python3)
set -u
cd "$(dirname "$0")/../.."
build=${BUILD:-build}
out=${OUT:-$build/reports}
mkdir -p "$out"
out=$(realpath "$out")
python=${SL_PEER_PYTHON:-python3}
kept=/var/tmp/softlaunch-gpu # what later calls find
steps=${*:-ops train parity precision sanitize faults demo generate speed first_step trials}
failed=0 lines=()
note() { lines+=("$*"); echo "$*"; }

if [ -n "${GPU_PREBUILT:-}" ]; then
    pre=$(realpath "$GPU_PREBUILT")
    bin=$pre/bin tests=$pre/tests faults=$pre/faults
    export LD_LIBRARY_PATH=$pre/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} PATH=$bin:$PATH WORDNET_ROWS=$pre/wordnet
    GPU_COMMIT=$(cat "$pre/COMMIT")
else
    pre=
    programs=(tests/ops/test_{ops,capture}_cuda tests/unit/test_{golden_train,golden_families,golden_precision,plan} tests/bench/bench_gpu
        faults/device/libsoftlaunch-cuda.so)
    make CUDA=1 BUILD="$build" -j"$(nproc)" all "${programs[@]/#/$build/}" >"$out/build.log" 2>&1 ||
        { tail -n 20 "$out/build.log"; exit 1; }
    bin=$build/bin tests=$build/tests/gpu faults=$build/faults/device
    mkdir -p "$tests"
    for t in "${programs[@]:0:7}"; do ln -sf "$(realpath "$build/$t")" "$tests/"; done
    GPU_COMMIT=$(git describe --always --dirty 2>/dev/null || echo unknown)
fi
export GPU_COMMIT
bin=$(realpath "$bin") tests=$(realpath "$tests") faults=$(realpath "$faults")
ln -sf "$bin/libsoftlaunch-cuda.so" "$tests/" # beside bench_gpu, as beside the worker
export SL_BIN=$bin SL_TEST_CUDA=$bin SL_BUILD=$build PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader | tee "$out/gpu.txt"

check() { # name seconds command...: one line for its end
    local name=$1 limit=$2 start=$SECONDS status ok
    shift 2
    timeout -k 5 "$limit" bash -c '"$@"' _ "$@" >"$out/$name.log" 2>&1 </dev/null &
    running=$!
    wait $running
    status=$?
    running=
    ok=$(grep -cE '^(\[       OK|ok )' "$out/$name.log")
    if [ $status = 0 ]; then
        note "ok      $name ($ok tests, $((SECONDS - start)) s)"
    elif [ $status = 77 ]; then
        note "not run $name ($(tail -n 1 "$out/$name.log"))"
    elif [ $status = 124 ]; then
        note "TIME UP $name (after $limit s, $ok tests passed)"
        failed=1
    else
        note "FAILED  $name (exit status $status, $ok tests passed, $((SECONDS - start)) s)"
        grep -E 'rror|FAILED|not ok' "$out/$name.log" | head -n 10
        failed=1
    fi
    printf '{"name": "%s", "status": %d, "passed": %d, "seconds": %d}\n' "$name" "$status" "$ok" $((SECONDS - start)) >>"$out/checks.jsonl"
}

# A program under racecheck. In cublasLt's own kernels (nvjet, cutlass) it does not know the barriers and sees races: they
# are left out by name, and nothing else is. (Its own --kernel-name-exclude ends in an internal error on them.)
races() {
    local found
    found=$(compute-sanitizer --tool racecheck "$@" 2>&1 | tee /dev/stderr)
    grep -q 'RACECHECK SUMMARY' <<<"$found" && ! grep -qE 'Internal Sanitizer Error|\[  FAILED  \]|bench_gpu: ' <<<"$found" &&
        ! grep 'Race reported' <<<"$found" | grep -qvE 'nvjet|cutlass'
}

# A few steps on the tiny model, as the trainer makes them.
few_steps() { # precision command... : run before bench_gpu
    local precision=$1 encoder
    shift
    "$python" - "$out" <<'PY' || return 1
import json, random, struct, sys
random.seed(1)
ids = [[random.randrange(60) for _ in range(random.randrange(9, 40))] for _ in range(6)]
json.dump({"virtual_tokens": 5, "batches": [{"ids": ids, "answer": [[int(i > len(r) - 4) for i in range(len(r))] for r in ids]}]},
          open(sys.argv[1] + "/few.json", "w"))
open(sys.argv[1] + "/few.f32", "wb").write(struct.pack("320f", *(random.gauss(0, 0.1) for _ in range(320))))
PY
    for encoder in mlp lstm; do
        "$@" "$tests/bench_gpu" cuda "$precision" tests/golden/tiny_llama.gguf "$out/few.json" "$out/few.f32" "$out/few.grad" \
            $encoder 64 1 || return 1
    done
}

export -f races few_steps
export out tests python

the_model() { # sets SL_MODEL, or says why not
    [ -z "${SL_MODEL:-}" ] || return 0
    keep_parts
    SL_MODEL=$kept/SmolLM2-135M-Instruct.Q4_1.gguf
    [ -f "$SL_MODEL" ] || cat "$kept"/model.part-* >"$SL_MODEL" 2>/dev/null
    if echo "$(cat tests/gpu/model.sha256)  $SL_MODEL" | sha256sum --quiet -c - >/dev/null 2>&1; then
        export SL_MODEL
    else
        rm -f "$SL_MODEL"
        unset SL_MODEL
        note "not run $1 (no SL_MODEL, and the parts of the model that are here do not make it)"
        return 1
    fi
}
keep_parts() {
    mkdir -p "$kept"
    [ -z "$pre" ] || cp -n "$pre"/model.part-* "$kept/" 2>/dev/null
    true
}

models=${GPU_KEEP:-$(mktemp -d)}
running=
trap '[ -n "${GPU_KEEP:-}" ] || rm -rf "$models"' EXIT
trap '[ -z "$running" ] || kill $running; wait; exit 143' TERM INT # who ends us ends what we measure
for step in $steps; do
    begun=$SECONDS
    case $step in
    ops)
        check ops 150 "$tests/test_ops_cuda"
        check selftest 30 "$bin/softlaunch-worker" selftest --device cuda --json
        ;;
    train)
        check golden_train 60 "$tests/test_golden_train"
        check golden_families 60 "$tests/test_golden_families"
        check golden_precision 60 "$tests/test_golden_precision"
        SL_TEST_DEVICE=cuda check plan 60 "$tests/test_plan"
        ;;
    model)
        keep_parts
        ls -la "$kept"
        ;;
    parity)
        the_model parity && check parity 200 "$python" tests/gpu/parity.py --worker "$bin/softlaunch-worker" --bench "$tests/bench_gpu" \
            --model "$SL_MODEL" --data "${WORDNET_ROWS:-$build/demo/wordnet}" --cpu tests/gpu/cpu.json --json "$out/parity.json"
        ;;
    precision)
        the_model precision && check precision 150 "$python" tests/gpu/precision.py --worker "$bin/softlaunch-worker" \
            --model "$SL_MODEL" --data "${WORDNET_ROWS:-$build/demo/wordnet}" --json "$out/precision.json"
        ;;
    sanitize)
        export SL_OPS_BIT_RUNS=1 # a test provokes API errors
        sanitizer=(compute-sanitizer --error-exitcode 9)
        check memcheck_steps 60 few_steps bf16 "${sanitizer[@]}"
        check racecheck_steps_fp32 100 few_steps fp32 races
        check memcheck_train 300 "${sanitizer[@]}" "$tests/test_golden_train"
        check memcheck_ops 200 "${sanitizer[@]}" --report-api-errors no "$tests/test_ops_cuda"
        check racecheck_ops 250 races "$tests/test_ops_cuda"
        check racecheck_steps_bf16 150 few_steps bf16 races # slow: the checker steps through cublasLt's kernels
        unset SL_OPS_BIT_RUNS
        ;;
    faults)
        check device_faults 90 env SL_FAULT_LIBRARY="$bin/libsoftlaunch-cuda.so" SL_FAULT_DEVICE="$faults" \
            "$python" tests/system/device_faults.py
        ;;
    demo)
        the_model demo && check demo 150 env DEVICE=cuda SOFTLAUNCH_MODEL="$SL_MODEL" DEMO_BIN="$bin" deploy/demo.sh "$build" &&
            cp "$build/reports/demo.json" "$out/demo.json" 2>/dev/null
        ;;
    generate)
        check generate 120 "$python" tests/bench/gpu_generate.py --worker "$bin/softlaunch-worker" --keep "$models" \
            --json "$out/generate.json"
        ;;
    speed)
        check speed 500 "$python" tests/bench/gpu_peft.py --bench "$tests/bench_gpu" --keep "$models" --json "$out/speed.json" \
            --tokens "${GPU_TOKENS:-16384}" ${GPU_ROWS:+--rows "$GPU_ROWS"}
        ;;
    first_step)
        check first_step 250 "$python" tests/bench/gpu_first_step.py --worker "$bin/softlaunch-worker" --keep "$models" \
            --models "${GPU_MODELS:-gpt-125m,gpt-1.3b,gpt-5b}" --json "$out/first_step.json"
        ;;
    profile)
        check profile 300 "$python" tests/bench/gpu_profile.py --bench "$tests/bench_gpu" --keep "$models" --json "$out/profile.json"
        ;;
    trials)
        check trials 400 "$python" tests/bench/gpu_trials.py --worker "$bin/softlaunch-worker" --keep "$models" \
            --models "${GPU_TRIALS:-gpt-125m:500,gpt-1.3b:60,gpt-5b:100:fp8}" --json "$out/trials.json" --check 2
        ;;
    *) echo "what is $step?" >&2; exit 2 ;;
    esac
    printf '{"step": "%s", "seconds": %d}\n' "$step" $((SECONDS - begun)) >>"$out/steps.jsonl"
done
GPU_COMMAND="tests/gpu/run.sh $steps" "$python" tests/gpu/report.py --gpu "$(head -n 1 "$out/gpu.txt")" "$out"
exit $failed
