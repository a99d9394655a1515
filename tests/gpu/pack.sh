#!/bin/bash
# Puts what tests/gpu/run.sh needs on a machine with a GPU and without our libraries into one folder: its GPU_PREBUILT.
# usage: tests/gpu/pack.sh BUILD FOLDER      after `make BUILD=BUILD all unit test-programs` with nvcc
#
#   bin/      both programs, the CUDA library, redis-server and redis-cli
#   tests/    the test programs that use a GPU; faults/ the device that fails on request
#   lib/      the shared libraries of all of them, without the C library's own
#   wordnet/  the demo's rows as JSONL
# The model (98 MB) goes by itself, in parts if need be: see run.sh.
set -euo pipefail
build=$(realpath "$1")
mkdir -p "$2"/{bin,tests,faults,lib,wordnet}
to=$(realpath "$2")
cd "$(dirname "$0")/../.."
tests=(ops/test_ops_cuda ops/test_capture_cuda unit/test_golden_train unit/test_golden_families unit/test_golden_precision unit/test_plan bench/bench_gpu)

# Linked again, to need only the libraries that are used.
rm -f "${tests[@]/#/$build/tests/}"
make --no-print-directory CUDA="${CUDA:-auto}" BUILD="$build" EXTRA_CFLAGS=-Wl,--as-needed "${tests[@]/#/$build/tests/}" >/dev/null
cp "$build"/bin/{softlaunch,softlaunch-worker,libsoftlaunch-cuda.so} "$(command -v redis-server)" "$(command -v redis-cli)" "$to/bin/"
for t in "${tests[@]}"; do cp "$build/tests/$t" "$to/tests/"; done
for t in bench_ops bench_matmul bench_attention bench_encoder; do [ ! -x "$build/tests/bench/$t" ] || cp "$build/tests/bench/$t" "$to/tests/"; done
cp "$build/faults/device/libsoftlaunch-cuda.so" "$to/faults/"
strip -g "$to"/{bin,tests,faults}/*
ldd "$to"/{bin,tests,faults}/* 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u |
    grep -vE '/(libc|libm|libdl|libpthread|librt|libresolv|libstdc\+\+|libgcc_s|libcublas[A-Za-z]*|ld-linux[^/]*)\.so' |
    xargs -I{} cp -L {} "$to/lib/"
# Two thirds of all libraries' bytes are ICU's tables, behind libxml2, which libarchive wants for a format that is not ours.
for icu in "$to"/lib/libicudata.so.*; do
    [ -f "$icu" ] || continue
    n=${icu##*.}
    echo "const char icudt${n}_dat[64] = {0};" | gcc -x c -shared -fPIC -Wl,-soname,"libicudata.so.$n" -o "$icu" -
done
"$build/bin/softlaunch" data wordnet --wordnet /usr/share/wordnet --out "$to/wordnet" >/dev/null
git describe --always --dirty >"$to/COMMIT"
du -sh "$to"
