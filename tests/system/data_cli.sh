#!/bin/bash
# `data wordnet` and `data check` as a person uses them. Prints TAP.
# Environment: SL_BIN (folder of the programs), SL_MODEL (SmolLM2's GGUF).
set -u
cd "$(dirname "$0")/../.."
worker=${SL_BIN:-build/bin}/softlaunch-worker
wordnet=/usr/share/wordnet
[ -n "${SL_MODEL:-}" ] && [ -f $wordnet/data.noun ] ||
    { echo "not run: needs SL_MODEL and $wordnet/data.noun (Debian: wordnet-base)"; exit 77; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0
check() { # what it is, then a command
    local what=$1
    shift
    if "$@"; then echo "ok - $what"; else echo "not ok - $what"; sed 's/^/# /' "$dir/out" "$dir/err"; failed=1; fi
}
run() { # expected exit status, command...
    local want=$1
    shift
    "$@" >"$dir/out" 2>"$dir/err"
    [ $? = "$want" ]
}
says() { grep -qF -- "$2" "$dir/$1"; }

check "wordnet writes its splits" run 0 "$worker" data wordnet --wordnet $wordnet --out "$dir/wn" --seed 5
check "... of the default sizes" [ "$(cat "$dir"/wn/{train,validation,test}.jsonl | wc -l)" = 4480 ]
check "wordnet takes other sizes" run 0 "$worker" data wordnet --wordnet $wordnet --out "$dir/small" \
    --category 24,12,12 --part-of-speech 8,4,4
check "... and obeys them" [ "$(wc -l <"$dir/small/train.jsonl")" = 32 ]
check "wordnet without arguments is wrong usage" run 2 "$worker" data wordnet
check "... and says how" says err "usage: softlaunch data wordnet --wordnet DIR --out DIR"
check "wordnet of a folder without WordNet fails" run 1 "$worker" data wordnet --wordnet "$dir" --out "$dir/x"
check "... naming the package" says err "wordnet-base"
check "wordnet into a file's place fails" run 1 "$worker" data wordnet --wordnet $wordnet --out "$dir/out/x"
check "an unknown subcommand is wrong usage" run 2 "$worker" data squash
check "... and is named" says err "there is no \"squash\""

check "check renders rows" run 0 "$worker" data check --spec examples/wordnet.json --model "$SL_MODEL" \
    --rows 3 --data "$dir/wn/train.jsonl"
check "... with virtual tokens, the loss marked" \
    grep -qE '<v0>\.\.\.<v15>What (kind|part).*\\nAnswer:\[\[ [a-z]+<\|im_end\|>\]\]$' "$dir/out"
check "... three of them" [ "$(grep -c '<v0>' "$dir/out")" = 3 ]
check "... with counts" says out "3600 rows read, 3600 kept, 0 of them truncated; skipped: 0 longer than 192"
sed 's/"max_seq_length": 192/"max_seq_length": 60/' examples/wordnet.json >"$dir/short.json"
check "a short limit truncates" run 0 "$worker" data check --spec "$dir/short.json" --model "$SL_MODEL" \
    --data "$dir/wn/train.jsonl" "$dir/wn/test.jsonl"
check "... and counts it, over two files" \
    grep -qE '^4040 rows read, 4040 kept, [1-9][0-9]+ of them truncated' "$dir/out"
sed 's/"max_seq_length": 192/"max_seq_length": 40/' examples/wordnet.json >"$dir/tiny.json"
check "a limit that most rows cannot keep" run 0 "$worker" data check --spec "$dir/tiny.json" \
    --model "$SL_MODEL" --data "$dir/wn/train.jsonl"
check "... is warned of" says out "warning: more than half of the rows are skipped"

sed '417s/.*/{"taskname": "category", /' "$dir/wn/train.jsonl" >"$dir/bad.jsonl"
check "a bad line fails" run 1 "$worker" data check --spec examples/wordnet.json --model "$SL_MODEL" \
    --data "$dir/bad.jsonl"
check "... and is named" says err "bad.jsonl:417: not valid JSON"
sed 's/{context}/{gloss}/; s/"truncate_field": "context"/"truncate_field": "gloss"/' examples/wordnet.json >"$dir/field.json"
check "a template's field that no row has fails" run 1 "$worker" data check --spec "$dir/field.json" \
    --model "$SL_MODEL" --data "$dir/wn/train.jsonl"
check "... and is named with what the rows have" says err "has {gloss}, which none of its 2400 rows has"
sed 's/"answer_only_loss": true/"answer_only_los": true/; s/"lr": [^,]*/"lr": 0/' examples/wordnet.json >"$dir/key.json"
check "a bad configuration fails" run 1 "$worker" data check --spec "$dir/key.json" --model "$SL_MODEL" \
    --data "$dir/wn/train.jsonl"
check "... with the nearest key" says err "answer_only_los: unknown key; the nearest known key is \"answer_only_loss\""
check "... and every other error" says err "config.model.optim.lr: expected a number above 0, found 0"
check "a spec whose rows are artifacts needs --data" run 1 "$worker" data check --spec examples/wordnet.json \
    --model "$SL_MODEL"
check "... and is told so" says err "add --data FILE"
head -c 1000 "$SL_MODEL" >"$dir/cut.gguf"
check "a truncated model fails" run 1 "$worker" data check --spec examples/wordnet.json --model "$dir/cut.gguf" \
    --data "$dir/wn/train.jsonl"
check "... and is named" says err "cut.gguf"
exit $failed
