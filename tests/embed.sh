#!/bin/sh
# Turns a file into C source on standard output: the string sl_embed_NAME and its length, NUL-terminated.
# usage: tests/embed.sh FILE [NAME]   (default: the file's path)
set -eu
name=$(printf '%s' "${2:-$1}" | tr -c 'A-Za-z0-9' '_')
printf 'const unsigned char sl_embed_%s[] = {' "$name"
od -An -v -tx1 "$1" | sed 's/ \([0-9a-f][0-9a-f]\)/0x\1,/g'
printf '0};\nconst unsigned long sl_embed_%s_len = sizeof sl_embed_%s - 1;\n' "$name" "$name"
