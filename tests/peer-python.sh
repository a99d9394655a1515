#!/bin/sh
# Prints a Python interpreter that has the reference implementations, in a virtual environment made once.
# usage: tests/peer-python.sh [tests|peft]
#   tests  tokenizers, jsonschema: what `make test` compares with     SL_PEER_PYTHON replaces it
#   peft   torch, transformers, peft (some GB): for `make bench` and the golden files' scripts     SL_PEFT_PYTHON replaces it
set -eu
kind=${1:-tests}
case $kind in
tests) given=${SL_PEER_PYTHON:-} packages='tokenizers==0.23.3 jsonschema>=4.20' ;;
peft) given=${SL_PEFT_PYTHON:-} packages='torch transformers==5.* peft>=0.19 numpy safetensors gguf tokenizers jsonschema' ;;
*) echo "usage: tests/peer-python.sh [tests|peft]" >&2; exit 2 ;;
esac
[ -z "$given" ] || { echo "$given"; exit; }
venv=${SOFTLAUNCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/softlaunch}/venv-$kind-1
if [ ! -f "$venv/ready" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    # shellcheck disable=SC2086
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check $packages >&2
    touch "$venv/ready"
fi
echo "$venv/bin/python"
