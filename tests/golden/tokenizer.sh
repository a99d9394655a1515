#!/bin/sh
# Ids of our tokenizer against the PyPI package tokenizers, on generated text; see tokenizer.py.
# Environment: SL_PEER_PYTHON (an interpreter that has the package), SL_MODEL (a GGUF file), SL_BUILD.
set -eu
cd "$(dirname "$0")/../.."
for need in SL_PEER_PYTHON SL_MODEL; do
    eval "value=\${$need:-}"
    [ -n "$value" ] || { echo "not run: $need is not set"; exit 77; }
done
exec "$SL_PEER_PYTHON" tests/golden/tokenizer.py "${SL_BUILD:-build}/tests/golden/tok_dump" "$SL_MODEL"
