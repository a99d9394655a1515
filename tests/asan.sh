#!/bin/bash
# Every unit and operation test under ASan and UBSan, as TAP: one line a program. Needs SL_BUILD.
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
exit $failed
