#!/bin/bash
# Every fuzz target over its corpus under ASan and UBSan, as TAP: one line a target. Needs SL_BUILD.
set -u
cd "$(dirname "$0")/../.."
export ASAN_OPTIONS=detect_leaks=1:max_allocation_size_mb=64 UBSAN_OPTIONS=print_stacktrace=1
failed=0
for source in tests/fuzz/fuzz_*.c; do
    name=${source#tests/fuzz/fuzz_} name=${name%.c}
    log=$SL_BUILD/fuzz/replay/$name.log
    if "$SL_BUILD/fuzz/replay/$name" "tests/fuzz/corpus/$name" >"$log" 2>&1; then
        echo "ok - $name: $(tail -n 1 "$log")"
    else
        tail -n 60 "$log" | sed 's/^/# /'
        echo "not ok - $name"
        failed=1
    fi
done
exit $failed
