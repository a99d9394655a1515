#!/bin/sh
# The live side of the golden tests: the engine against transformers over the whole vocabulary, and PEFT loading
# exported adapters. Prints TAP. Needs SL_BUILD (the build folder), SL_MODEL (the SmolLM2 GGUF) and SL_PEER_PYTHON, a
# Python with torch, transformers, peft, gguf and safetensors; exit status 77 without them.
set -u
cd "$(dirname "$0")"
python=${SL_PEER_PYTHON:-python3}
if ! "$python" -c 'import torch, transformers, peft, gguf, safetensors' 2>/dev/null; then
    echo "not run: $python lacks torch, transformers, peft, gguf or safetensors"
    exit 77
fi
out=$(mktemp -d) || exit 1
trap 'rm -rf "$out"' EXIT
export PYTHONWARNINGS=ignore PYTHONDONTWRITEBYTECODE=1 SL_GOLDEN_DIR="$PWD"
failed=0
check() { # name command
    if sh -c "$2" >"$out/log" 2>&1; then
        echo "ok - $1: $(tail -n 1 "$out/log")"
    else
        sed 's/^/# /' "$out/log"
        echo "not ok - $1"
        failed=1
    fi
}
export out python
check "logits over the whole vocabulary" 'SL_DUMP_LOGITS="$out/logits.f32" "$SL_BUILD/tests/unit/test_golden_model" &&
    "$python" check_logits.py "$SL_MODEL" "$out/logits.f32"'
check "exported adapters in PEFT" 'SL_ADAPTER_OUT="$out/adapter" "$SL_BUILD/tests/unit/test_golden_adapter" &&
    "$python" check_adapter.py "$out/adapter"'
check "prompt tables as torch, NumPy and PEFT read them" '"$python" check_table_forms.py "$SL_BUILD"'
exit $failed
