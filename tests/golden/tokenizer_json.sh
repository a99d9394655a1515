#!/bin/sh
# Ids of our tokenizers against the PyPI packages tokenizers and sentencepiece; see tokenizer_json.py.
# Environment: SL_PEER_PYTHON (an interpreter that has the packages), SL_BUILD.
set -eu
cd "$(dirname "$0")/../.."
[ -n "${SL_PEER_PYTHON:-}" ] || { echo "not run: SL_PEER_PYTHON is not set"; exit 77; }
exec "$SL_PEER_PYTHON" tests/golden/tokenizer_json.py "${SL_BUILD:-build}/tests/golden/tok_dump" "$@"
