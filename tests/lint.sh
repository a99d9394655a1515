#!/bin/bash
# make lint: the folder rules, clang-format's opinion is not asked here, clang-tidy and cppcheck must be clean. Prints TAP.
# usage: tests/lint.sh [rules|tidy|tidy-short|cppcheck] ...   (default: rules tidy cppcheck)
# tidy follows every path through a function that it can (12 minutes of a core); tidy-short, for `make test`, leaves off a
# function after TIDY_NODES states (3.5 minutes): it finds nearly the same. tidy-short and cppcheck are skipped when they are of
# another version than the tree is kept clean for: each version has findings of its own.
set -u
cd "$(dirname "$0")/.."
what=${*:-rules tidy cppcheck}
failed=0 skipped=
TIDY_VERSION=14 CPPCHECK_VERSION=2.10 TIDY_NODES=50000
scratch=$(mktemp)
trap 'rm -f "$scratch"' EXIT
complain() { echo "lint: $*" >&2; failed=1; }
skip() { skipped=$*; }

# Dependencies point down (README, "How the folders lie"). FOLDER: what it may include.
rules() {
    while read -r folder allowed; do
        for f in "$folder"/*.[ch] "$folder"/*/*.[ch]; do
            [ -f "$f" ] || continue
            grep -oE '^#include "[a-z_]+/' "$f" | sed 's/.*"//; s,/,,' | sort -u | while read -r used; do
                case " $allowed $folder " in
                *" $used "*) ;;
                *) echo "$f includes $used/, which $folder/ may not use" ;;
                esac
            done
        done
    done <<'E2' | tee "$scratch"
base
engine base
queue base
artifacts base
server base queue artifacts
agent base queue artifacts
cli base queue artifacts server agent
E2
    [ ! -s "$scratch" ] || failed=1
    for f in $(git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.py' '*.lua' '*.sh'); do
        [ -f "$f" ] || continue
        n=$(wc -l <"$f")
        [ "$n" -le 500 ] || head -n 12 "$f" | grep -qi 'long because' || complain "$f has $n lines and does not say why (\"Long because ...\" at its top)"
    done
    grep -nE '\b(strcpy|strcat|sprintf|vsprintf|gets|strncpy|system|popen)\(' $(git ls-files '*.c' | grep -v '^tests/') &&
        complain "a banned function: use sl_buf, snprintf, sl_spawn"
}
tidy() { # how many at once, then more options
    command -v clang-tidy >/dev/null || { skip "clang-tidy is not installed"; return; }
    [ "$1" != 1 ] || clang-tidy --version | grep -q "version $TIDY_VERSION\." || { skip "it is kept clean for clang-tidy $TIDY_VERSION"; return; }
    local at_once=$1 flags="-std=c11 -D_GNU_SOURCE -DSL_VERSION=__FILE__ -I. -fopenmp $(pkg-config --cflags jansson libcrypto libpcre2-8 hiredis openblas 2>/dev/null)"
    shift
    git ls-files 'base/*.c' 'engine/*.c' 'queue/*.c' 'artifacts/*.c' 'server/*.c' 'agent/*.c' 'cli/*.c' |
        xargs -P "$at_once" -n 4 sh -c 'clang-tidy --quiet '"$*"' "$@" -- '"$flags"' 2>/dev/null' _ | tee "$scratch"
    ! grep -qE '(warning|error):' "$scratch" || complain "clang-tidy is not clean"
}
tidy_short() {
    local option=--extra-arg=-Xclang
    tidy 1 $option --extra-arg=-analyzer-config $option --extra-arg=max-nodes=$TIDY_NODES
}
cppcheck_() {
    command -v cppcheck >/dev/null || { skip "cppcheck is not installed"; return; }
    [ "$(cppcheck --version)" = "Cppcheck $CPPCHECK_VERSION" ] || { skip "it is kept clean for cppcheck $CPPCHECK_VERSION"; return; }
    cppcheck -q -j 2 --std=c11 --enable=warning,performance,portability --error-exitcode=1 --inline-suppr \
        --suppress=missingIncludeSystem -D_GNU_SOURCE -DSL_VERSION='"x"' -I. \
        '-Djson_array_foreach(list,i,v)=for (i = 0; (v = json_array_get(list, i)) != 0; i++)' \
        '-Djson_object_foreach(object,k,v)=for (k = first_of(object); (v = json_object_get(object, k)) != 0;)' base engine queue artifacts server agent cli ||
        complain "cppcheck is not clean"
}
all=0
for w in $what; do
    failed=0 skipped=
    case $w in
    rules) rules ;;
    tidy) tidy 2 ;;
    tidy-short) tidy_short ;;
    cppcheck) cppcheck_ ;;
    *) complain "what is $w?" ;;
    esac
    if [ -n "$skipped" ]; then echo "ok - lint: $w # SKIP $skipped"
    elif [ $failed = 0 ]; then echo "ok - lint: $w"
    else echo "not ok - lint: $w"; all=1; fi
done
exit $all
