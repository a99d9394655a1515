#!/bin/bash
# Every fuzz target over its corpus under ASan and UBSan, as TAP: one line a target. Needs SL_BUILD.
set -u
cd "$(dirname "$0")/../.."
export UBSAN_OPTIONS=print_stacktrace=1
failed=0
for source in tests/fuzz/fuzz_*.c; do
    name=${source#tests/fuzz/fuzz_} name=${name%.c}
    log=$SL_BUILD/fuzz/replay/$name.log
    memory=64
    [ "$name" != unpack ] || memory=160 # zstd's frames name a window of up to 128 MiB
    export ASAN_OPTIONS=detect_leaks=1:max_allocation_size_mb=$memory
    if "$SL_BUILD/fuzz/replay/$name" "tests/fuzz/corpus/$name" >"$log" 2>&1; then
        echo "ok - $name: $(tail -n 1 "$log")"
    else
        tail -n 60 "$log" | sed 's/^/# /'
        echo "not ok - $name"
        failed=1
    fi
done
exit $failed
