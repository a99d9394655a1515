#!/bin/sh
# Prints a Python interpreter that has the reference implementations, in a virtual environment made once.
# usage: tests/peer-python.sh [tests|peft|queues|web|around|api|mlflow]
#   tests  tokenizers, sentencepiece, jsonschema, moto, a GCS emulator: what `make test` compares with     SL_PEER_PYTHON replaces it
#   peft   torch, transformers, peft (some GB): for `make bench` and the golden files' scripts     SL_PEFT_PYTHON replaces it
#   web    axe-core: what tests/web/screenshots.py asks about accessibility     SL_WEB_PYTHON replaces it
#   queues rq and celery: for tests/bench/queue_peers.py     SL_QUEUES_PYTHON replaces it
#   api    schemathesis: sends what server/openapi.c describes, and what it does not     SL_API_PYTHON replaces it
#   around prometheus-client, standardwebhooks, tensorboard: readers of what server and worker give out    SL_AROUND_PYTHON replaces it
#   mlflow its tracking server (850 MB): for `make test-long SUITE=mlflow`     SL_MLFLOW_PYTHON replaces it
set -eu
kind=${1:-tests}
case $kind in
# sentencepiece 0.2.3 breaks ties of unigram models otherwise than 0.1.97 (Debian's library) to 0.2.1.
tests) given=${SL_PEER_PYTHON:-} packages='tokenizers==0.23.3 sentencepiece==0.2.1 jsonschema>=4.20 moto[s3,server]==5.2.5 gcp-storage-emulator==2026.7.19' edition=3 ;;
peft) given=${SL_PEFT_PYTHON:-} packages='torch transformers==5.* peft>=0.19 numpy safetensors gguf tokenizers jsonschema' edition=1 ;;
web) given=${SL_WEB_PYTHON:-} packages='axe-core-python==0.1.0' edition=1 ;;
queues) given=${SL_QUEUES_PYTHON:-} packages='rq==3.0.0 celery[redis]==5.7.0' edition=1 ;;
around) given=${SL_AROUND_PYTHON:-} packages='prometheus-client==0.* standardwebhooks==1.* tensorboard==2.*' edition=1 ;;
api) given=${SL_API_PYTHON:-} packages='schemathesis==4.32.5' edition=1 ;;
mlflow) given=${SL_MLFLOW_PYTHON:-} packages='mlflow==3.*' edition=1 ;;
*) echo "usage: tests/peer-python.sh [tests|peft|queues|web|around|api|mlflow]" >&2; exit 2 ;;
esac
[ -z "$given" ] || { echo "$given"; exit; }
venv=${SOFTLAUNCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/softlaunch}/venv-$kind-$edition
if [ ! -f "$venv/ready" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    # shellcheck disable=SC2086
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check $packages >&2
    touch "$venv/ready"
fi
echo "$venv/bin/python"
