#!/bin/bash
# Manual pages and completion: made of what the commands say of themselves. Prints TAP.
set -u
cd "$(dirname "$0")/../.."
bin=$PWD/${SL_BIN:-${SL_BUILD:-build}/bin}
case ${SL_BIN:-} in /*) bin=$SL_BIN ;; esac
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0
check() { # what it is, then a command
    local what=$1
    shift
    if "$@" >"$dir/said" 2>&1; then echo "ok - $what"; else echo "not ok - $what"; sed 's/^/# /' "$dir/said" | head -20; failed=1; fi
}
commands=$("$bin/softlaunch" help | sed -n 's/^  \([a-z][a-z]*\)  .*/\1/p')
check "help lists commands" [ "$(echo "$commands" | wc -l)" -ge 12 ]
check "pages are made" env PATH="$PATH" deploy/man.sh "$bin" "$dir/man"
for c in $commands; do
    page=$dir/man/man1/softlaunch-$c.1
    check "$c: a page with its usage and each of its options" bash -c "
        for o in \$('$bin/softlaunch' $c --help 2>&1 </dev/null | sed -nE 's/^  (-., )?(--[a-z-]+).*/\\2/p'); do
            grep -qF -- \"\$o\" '$page' || { echo \"no \$o\"; exit 1; }
        done; sed -n '/^.Sh SYNOPSIS/,/^.Sh [^S]/p' '$page' | grep -q '^softlaunch $c'"
done
if command -v mandoc >/dev/null; then
    # Pages of the same set are not installed here: their absence is the one thing it may say.
    lint() { ! mandoc -Tlint "$dir"/man/man1/*.1 | grep -vE "referenced manual not found: Xr softlaunch(-($(echo $commands | tr ' ' '|')))? 1$"; }
    check "mandoc finds nothing wrong" lint
    says() { mandoc -Tascii "$dir/man/man1/$1.1" | col -b | grep -qF -- "$2"; }
    check "the agent's page explains an option" says softlaunch-agent "runs at a time"
else
    echo "ok - mandoc finds nothing wrong # SKIP mandoc is not installed"
fi

offers() { # words of a command line, the last one unfinished: what bash offers
    PATH=$bin:$PATH bash -c 'source deploy/completion/softlaunch.bash
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _softlaunch; echo "${COMPREPLY[@]}"' _ "$@"
}
check "bash: commands" [ "$(offers softlaunch enq)" = enqueue ]
check "bash: verbs" [ "$(offers softlaunch queues '')" = "pause resume drain set" ]
check "bash: the verbs of webhooks" [ "$(offers softlaunch webhook '')" = "ls add rm test" ]
check "bash: a webhook's options" [ "$(offers softlaunch webhook add x --se)" = "--secret-file --server" ]
check "bash: a command's options" [ "$(offers softlaunch enqueue --wait-r)" = --wait-replicas ]
check "bash: the worker's options too" [ "$(offers softlaunch train --run)" = --run-dir ]
check "bash: files otherwise" [ "$(offers softlaunch enqueue examples/wordnet.j)" = examples/wordnet.json ]
if command -v zsh >/dev/null; then
    zsh_offers() {
        PATH=$bin:$PATH zsh -f -c '_describe() { print -l -- "${(@P)2}"; }; _files() { print files; }
            words=("$@") CURRENT=$#; PREFIX=$words[-1]; source deploy/completion/_softlaunch' _ "$@"
    }
    check "zsh: commands with what they do" bash -c "$(declare -f zsh_offers); bin=$bin; zsh_offers softlaunch '' | grep -q '^enqueue:put a run on a queue'"
    check "zsh: options with what they do" bash -c "$(declare -f zsh_offers); bin=$bin; zsh_offers softlaunch enqueue -- | grep -q '^--follow:the same'"
    check "zsh: the verbs of webhooks" bash -c "$(declare -f zsh_offers); bin=$bin; zsh_offers softlaunch webhook '' | grep -q '^test'"
    check "zsh: verbs" bash -c "$(declare -f zsh_offers); bin=$bin; zsh_offers softlaunch agents '' | grep -q '^drain'"
else
    echo "ok - zsh completes # SKIP zsh is not installed"
fi
exit $failed
