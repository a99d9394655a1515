#!/bin/sh
# Prints a Python interpreter that has the reference implementations the tests compare with (PyPI: tokenizers,
# jsonschema), in a virtual environment made once. SL_PEER_PYTHON replaces it.
set -eu
[ -z "${SL_PEER_PYTHON:-}" ] || { echo "$SL_PEER_PYTHON"; exit; }
venv=${SOFTLAUNCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/softlaunch}/test-venv-1
if [ ! -f "$venv/ready" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'tokenizers>=0.20' 'jsonschema>=4.20' >&2
    touch "$venv/ready"
fi
echo "$venv/bin/python"
