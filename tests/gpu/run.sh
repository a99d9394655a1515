#!/bin/bash
# Everything that needs an NVIDIA GPU, in one call: builds, compares operations and training with the CPU and the recorded
# runs, looks for bad accesses and races, and times steps beside PEFT.
# usage: tests/gpu/run.sh [BUILD]      Logs and speed.json go to $OUT, by default BUILD/reports; the table is printed last.
#
# GPU_PREBUILT=DIR takes programs built elsewhere instead (DIR/bin, DIR/tests, DIR/lib), for a machine without our libraries.
# GPU_STEPS="ops train sanitize speed" chooses. GPU_MODELS, GPU_PROFILES, GPU_TOKENS: see tests/bench/gpu_peft.py. SL_PEER_PYTHON: a Python with torch, transformers and peft (default python3).
set -u
cd "$(dirname "$0")/../.."
build=${1:-build}
out=${OUT:-$build/reports}
python=${SL_PEER_PYTHON:-python3}
steps=${GPU_STEPS:-ops train sanitize speed}
mkdir -p "$out"
failed=0 lines=()
note() { lines+=("$*"); echo "$*"; }

if [ -n "${GPU_PREBUILT:-}" ]; then
    bin=$GPU_PREBUILT/bin tests=$GPU_PREBUILT/tests
    export LD_LIBRARY_PATH=$GPU_PREBUILT/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
else
    make CUDA=1 BUILD="$build" -j"$(nproc)" worker "$build"/tests/{ops/test_ops_cuda,unit/test_golden_train,unit/test_golden_families,bench/bench_gpu} \
        >"$out/build.log" 2>&1 || { tail -n 20 "$out/build.log"; exit 1; }
    bin=$build/bin tests=$build/tests/gpu
    mkdir -p "$tests"
    for t in ops/test_ops_cuda unit/test_golden_train unit/test_golden_families bench/bench_gpu; do
        ln -sf "$(realpath "$build/tests/$t")" "$tests/"
    done
fi
bin=$(realpath "$bin") tests=$(realpath "$tests")
ln -sf "$bin/libsoftlaunch-cuda.so" "$tests/" # beside bench_gpu, as beside the worker
export SL_BIN=$bin SL_TEST_CUDA=$bin
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader | tee "$out/gpu.txt"

check() { # name command...: one line for its end
    local name=$1 start=$SECONDS status
    shift
    "$@" >"$out/$name.log" 2>&1
    status=$?
    if [ $status = 0 ]; then
        note "ok      $name ($(grep -cE '^(\[       OK|ok )' "$out/$name.log") tests, $((SECONDS - start)) s)"
    else
        note "FAILED  $name (exit status $status, $((SECONDS - start)) s)"
        grep -E 'rror|FAILED|not ok' "$out/$name.log" | head -n 10
        failed=1
    fi
}

races() { # program: passes under racecheck, without races in kernels of ours
    local found
    found=$(timeout 400 compute-sanitizer --tool racecheck "$@" | tee /dev/stderr)
    grep -q 'PASSED' <<<"$found" && ! grep -qE 'FAILED|Internal Sanitizer Error' <<<"$found" &&
        ! grep 'Race reported' <<<"$found" | grep -qv nvjet
}

for step in $steps; do
    case $step in
    ops) check ops "$tests/test_ops_cuda" ;;
    train)
        check golden_train "$tests/test_golden_train"
        check golden_families "$tests/test_golden_families"
        ;;
    sanitize)
        # A test provokes API errors. In cublasLt's own kernels (nvjet) racecheck knows the barriers not and sees races.
        export SL_OPS_BIT_RUNS=1
        sanitizer=(timeout 280 compute-sanitizer --error-exitcode 9)
        check memcheck "${sanitizer[@]}" "$tests/test_golden_train"
        check memcheck_ops "${sanitizer[@]}" --report-api-errors no "$tests/test_ops_cuda"
        check racecheck_ops races "$tests/test_ops_cuda"
        unset SL_OPS_BIT_RUNS
        ;;
    speed)
        check speed "$python" tests/bench/gpu_peft.py --bench "$tests/bench_gpu" --models "${GPU_MODELS:-gpt-125m,gpt-1.3b}" \
            --profiles "${GPU_PROFILES:-short,squad,long}" --tokens "${GPU_TOKENS:-16384}" --json "$out/speed.json"
        ;;
    *) echo "what is $step?" >&2; exit 2 ;;
    esac
done
echo
printf '%s\n' "${lines[@]}"
[ -f "$out/speed.log" ] && grep -A 20 '^model ' "$out/speed.log"
exit $failed
