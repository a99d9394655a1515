#!/bin/bash
# Runs the suites of a list and ends with the line "N passed, N failed". Exit status 1 when anything failed.
# usage: tests/run.sh BUILD-DIR [NAME-PATTERN [LIST]]     LIST: tests/BUDGET, or tests/LONG for make test-long
#
# What could not run is listed as "not run", never counted as passed. Logs: BUILD-DIR/test-logs/SUITE.log.
# Environment for suites: SL_BIN (folder of both programs), SL_BUILD, SL_MODEL (the real model), SL_PEER_PYTHON, and TMPDIR: a folder
# of the suite's own, which goes with it. What a suite leaves there when it passes is a fault of the suite, or of what it
# tests. SL_KEEP: the folders stay.
set -u
build=$(realpath "$1")
pattern=${2:-.} list=${3:-tests/BUDGET}
cd "$(dirname "$0")/.."
logs=$build/test-logs
rm -rf "$logs"
mkdir -p "$logs"
export SL_BUILD=$build SL_BIN=$build/bin CMOCKA_MESSAGE_OUTPUT=TAP OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
# What the worker sets for itself (engine/cpu/coretype.h), for the test programs that link the engine.
if [ -z "${OPENBLAS_CORETYPE:-}" ]; then
    if grep -qw avx512bw /proc/cpuinfo; then export OPENBLAS_CORETYPE=SkylakeX
    elif grep -qw avx2 /proc/cpuinfo; then export OPENBLAS_CORETYPE=Haswell; fi
fi
export OPENBLAS_NUM_THREADS=$OMP_NUM_THREADS OMP_WAIT_POLICY=PASSIVE
SL_MODEL=${SL_MODEL:-$(deploy/fetch-model.sh)} || { echo "the model could not be fetched" >&2; exit 1; }
SL_PEER_PYTHON=$(tests/peer-python.sh) || { echo "the reference packages could not be installed" >&2; exit 1; }
export SL_MODEL SL_PEER_PYTHON

folders=$(mktemp -d "${TMPDIR:-/tmp}/sl-suites-XXXXXX")
[ -n "${SL_KEEP:-}" ] || trap 'rm -rf "$folders"' EXIT
export folders

run_suite() { # name seconds command...
    local name=$1 seconds=$2 start end status own left
    shift 2
    own=$(mktemp -d "$folders/XXXXXX")
    start=$(date +%s.%N)
    TMPDIR=$own timeout -k 10 "$seconds" bash -c "$*" >"$logs/$name.log" 2>&1 </dev/null
    status=$?
    end=$(date +%s.%N)
    if [ -z "${SL_KEEP:-}" ]; then
        left=$(find "$own" -mindepth 1 -maxdepth 1 -printf '%f ')
        [ -z "$left" ] || [ $status != 0 ] || echo "not ok - it leaves nothing behind: $left" >>"$logs/$name.log"
        rm -rf "$own"
    fi
    echo "$status $(echo "$start $end" | awk '{printf "%.1f", $2 - $1}')" >"$logs/$name.status"
    printf '%-28s %6ss  exit %d\n' "$name" "$(cut -d' ' -f2 "$logs/$name.status")" "$status"
}
export -f run_suite
export logs

suites() { # lane
    grep -v '^#' "$list" | while read -r name seconds lane command; do
        [ -n "$name" ] && [ "$lane" = "$1" ] || continue
        if [ "$name" = @units ]; then
            for f in tests/unit/test_*.c tests/ops/test_*.c; do
                [ -f "$f" ] || continue
                printf '%s\t%s\t%s\n' "$(basename "$f" .c)" "$seconds" "$build/${f%.c}"
            done
        else
            printf '%s\t%s\t%s\n' "$name" "$seconds" "$command"
        fi
    done | grep -E "^[^	]*($pattern)"
}
each() { xargs -r -d '\n' -P "$1" -I{} bash -c 'IFS=$'"'\t'"' read -r n s c <<<"$1"; run_suite "$n" "$s" "$c"' _ {}; }

suites p | each 2
suites s | each 1

passed=0 failed=0
for f in "$logs"/*.status; do
    [ -f "$f" ] || continue
    name=$(basename "$f" .status) log=${f%.status}.log
    read -r status _ <"$f"
    # cmocka calls a skipped test "not ok N # SKIP NAME".
    skip=$(grep -cE '^(not )?ok .*# SKIP' "$log")
    ok=$(grep -E '^ok( |$)' "$log" | grep -vc '# SKIP')
    bad=$(grep -E '^not ok( |$)' "$log" | grep -vc '# SKIP')
    if [ "$status" = 77 ]; then
        echo "not run: $name ($(tail -n 1 "$log" | cut -c1-160))"
        continue
    fi
    grep -E '^(not )?ok .*# SKIP' "$log" | sed -E "s/^(not )?ok[ 0-9]*-* */not run: $name: /"
    [ "$status" = 0 ] || [ "$bad" -gt 0 ] || bad=1    # crashed, timed out
    [ "$ok" -gt 0 ] || [ "$bad" -gt 0 ] || [ "$skip" -gt 0 ] || bad=1 # said nothing
    passed=$((passed + ok)) failed=$((failed + bad))
    if [ "$bad" -gt 0 ]; then
        echo "---- $name failed (exit status $status); the end of $log:"
        tail -n 25 "$log"
    fi
done
[ $((passed + failed)) -gt 0 ] || { echo "no test ran" >&2; failed=1; }
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
