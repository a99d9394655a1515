#!/bin/sh
# The object of a script changed on purpose. usage: mutate.sh MUTANT.sed DIR CC     writes DIR/mutant.o
set -e
script=$(sed -n '1s/^# script: //p' "$1")
mkdir -p "$2/queue/scripts"
sed -f "$1" "queue/scripts/$script" >"$2/queue/scripts/$script"
! cmp -s "queue/scripts/$script" "$2/queue/scripts/$script" || { echo "$1 changes nothing in $script" >&2; exit 1; }
embed=$(pwd)/tests/embed.sh
(cd "$2" && sh "$embed" "queue/scripts/$script" >mutant.c)
$3 -std=c11 -c "$2/mutant.c" -o "$2/mutant.o"
