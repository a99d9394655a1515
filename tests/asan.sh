#!/bin/bash
# Every unit and operation test under ASan and UBSan, then the suites of queue and agent with server, agents and
# commands built so, as TAP: one line a program. Needs SL_BUILD.
set -u
cd "$(dirname "$0")/.."
make --no-print-directory asan BUILD="$SL_BUILD" >"$SL_BUILD-asan.log" 2>&1 || { tail -n 20 "$SL_BUILD-asan.log"; echo "not ok - build"; exit 1; }
failed=0
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 SL_BIN=$SL_BUILD-asan/bin SL_BUILD=$SL_BUILD-asan
for program in "$SL_BUILD"/tests/unit/test_* "$SL_BUILD"/tests/ops/test_*; do
    case $program in *.o | *.d | *.c) continue ;; esac
    if "$program" >"$program.log" 2>&1; then
        echo "ok - $(basename "$program")"
    elif [ $? = 77 ]; then
        echo "ok - $(basename "$program") # SKIP $(tail -n 1 "$program.log")"
    else
        tail -n 30 "$program.log" | sed 's/^/# /'
        echo "not ok - $(basename "$program")"
        failed=1
    fi
done
# A process that is killed reports nothing, one that finds something may be asked nothing: the reports are files.
found=$SL_BUILD/asan-found
rm -rf "$found"
mkdir -p "$found"
# verify_asan_link_order: what is preloaded to put a clock forward comes before ASan's runtime.
export ASAN_OPTIONS=detect_leaks=1:verify_asan_link_order=0:log_path=$found/report UBSAN_OPTIONS=print_stacktrace=1:log_path=$found/report
for suite in system/queue_agent system/queue_admin system/queue_faults system/queue_chaos system/redis_tls \
    system/redis_sentinel system/redis_cluster faults/boundaries faults/power_loss \
    "faults/matrix --runs 300 --hits 1 --seconds 600 --report faults_asan"; do
    # shellcheck disable=SC2086  # a suite and its arguments
    set -- $suite
    script=tests/$1.py
    shift
    if python3 "$script" "$@" >"$found.log" 2>&1 && [ -z "$(ls -A "$found")" ]; then
        echo "ok - $suite"
    else
        cat "$found.log" "$found"/* 2>/dev/null | grep -v '^ok' | head -n 60 | sed 's/^/# /'
        echo "not ok - $suite"
        failed=1
        rm -f "$found"/*
    fi
done
exit $failed
