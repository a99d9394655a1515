#!/bin/bash
# make lint: the folder rules, clang-format's opinion is not asked here, clang-tidy and cppcheck must be clean.
# usage: tests/lint.sh [rules|tidy|cppcheck] ...   (default: all)
set -u
cd "$(dirname "$0")/.."
what=${*:-rules tidy cppcheck}
failed=0
complain() { echo "lint: $*" >&2; failed=1; }

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
    done <<'E2' | tee /tmp/sl-lint-rules.$$
base
engine base
queue base
artifacts base
server base queue artifacts
agent base queue artifacts
cli base queue artifacts server agent
E2
    [ ! -s /tmp/sl-lint-rules.$$ ] || failed=1
    rm -f /tmp/sl-lint-rules.$$
    for f in $(git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.py' '*.lua' '*.sh'); do
        [ -f "$f" ] || continue
        n=$(wc -l <"$f")
        [ "$n" -le 500 ] || head -n 12 "$f" | grep -qi 'long because' || complain "$f has $n lines and does not say why (\"Long because ...\" at its top)"
    done
    grep -nE '\b(strcpy|strcat|sprintf|vsprintf|gets|strncpy|system|popen)\(' $(git ls-files '*.c' | grep -v '^tests/') &&
        complain "a banned function: use sl_buf, snprintf, sl_spawn"
}
tidy() {
    command -v clang-tidy >/dev/null || { echo "not run: clang-tidy is not installed"; return; }
    local flags="-std=c11 -D_GNU_SOURCE -DSL_VERSION=__FILE__ -I. -fopenmp $(pkg-config --cflags jansson libcrypto libpcre2-8 hiredis openblas 2>/dev/null)"
    git ls-files 'base/*.c' 'engine/*.c' 'queue/*.c' 'artifacts/*.c' 'server/*.c' 'agent/*.c' 'cli/*.c' |
        xargs -P 2 -n 4 sh -c 'clang-tidy --quiet "$@" -- '"$flags"' 2>/dev/null' _ | tee /tmp/sl-tidy.$$
    ! grep -qE '(warning|error):' /tmp/sl-tidy.$$ || complain "clang-tidy is not clean"
    rm -f /tmp/sl-tidy.$$
}
cppcheck_() {
    command -v cppcheck >/dev/null || { echo "not run: cppcheck is not installed"; return; }
    cppcheck -q -j 2 --std=c11 --enable=warning,performance,portability --error-exitcode=1 --inline-suppr \
        --suppress=missingIncludeSystem -D_GNU_SOURCE -DSL_VERSION='"x"' -I. \
        '-Djson_array_foreach(list,i,v)=for (i = 0; (v = json_array_get(list, i)) != 0; i++)' \
        '-Djson_object_foreach(object,k,v)=for (k = first_of(object); (v = json_object_get(object, k)) != 0;)' base engine queue artifacts server agent cli ||
        complain "cppcheck is not clean"
}
for w in $what; do
    case $w in rules) rules ;; tidy) tidy ;; cppcheck) cppcheck_ ;; *) complain "what is $w?" ;; esac
done
exit $failed
