#!/bin/bash
# The product at work on one machine: a private Redis, the server and an agent; SmolLM2-135M learns two tasks about WordNet
# by prompt tuning; a table of accuracies ends it. Called by `make demo`. usage: deploy/demo.sh BUILD-DIR
#
# Environment: KEEP=1 leaves everything running and prints how to reach and end it; DEVICE=cuda trains on a GPU, in bf16;
# SOFTLAUNCH_MODEL replaces the model; SPEC another job spec; OVERRIDES "key=value ..." for it; DEMO_BIN another folder of the
# programs, WORDNET_ROWS one with the rows already made. Writes BUILD-DIR/reports/demo.json.
set -euo pipefail
mkdir -p "$1"
build=$(realpath "$1")
cd "$(dirname "$0")/.."
started=$(date +%s)
bin=${DEMO_BIN:-$build/bin}
device=${DEVICE:-cpu}
case $device in
cpu) on_device=() ;;
cuda) on_device=(resources.gpus=1 trainer.precision=bf16) ;;
*) echo "DEVICE=$device: expected cpu or cuda" >&2; exit 2 ;;
esac
spec=${SPEC:-examples/wordnet.json}
work=$build/demo
report=$build/reports/demo.json
cached=false
sockets=
pids=()

say() { printf '\n== %s\n' "$*"; }
stop_all() { # by process id, the agent first so that it can hand back its run
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        kill "${pids[i]}" 2>/dev/null || true
        for _ in $(seq 100); do kill -0 "${pids[i]}" 2>/dev/null || break; sleep 0.1; done
        kill -9 "${pids[i]}" 2>/dev/null || true
    done
}
finish() {
    status=$?
    trap - EXIT INT TERM
    if [ "${KEEP:-}" = 1 ] && [ $status = 0 ]; then
        echo "${pids[*]} $sockets" >"$work/left"
        cat <<END

left running; to look around:
  export SOFTLAUNCH_SERVER=$url SOFTLAUNCH_TOKEN=\$(cat $work/token)
  $bin/softlaunch runs show demo
  $bin/softlaunch artifact ls
  $bin/softlaunch enqueue $spec name=mine --follow
to end it (the next make demo does, too):
  kill ${pids[*]}; rm -r $sockets

The page, with the finished run (sign in with what stands behind "token="; the browser sends it to no one else):
  $url/login#token=$(cat "$work/token")
END
    else
        stop_all
        [ -z "$sockets" ] || rm -rf "$sockets"
        [ $status = 0 ] || echo "the demo failed; its logs are in $work" >&2
    fi
    exit $status
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
wait_for() { # seconds what command...
    local n=$(($1 * 10)) what=$2
    shift 2
    until "$@" 2>/dev/null; do
        ((n-- > 0)) || { echo "$what did not come up; see $work" >&2; exit 1; }
        sleep 0.1
    done
}

# What an earlier KEEP=1 left running. A number may be another process's by now: only ours names our folders.
end_earlier() {
    local left
    read -ra left <"$work/left"
    for pid in "${left[@]::${#left[@]}-1}"; do
        grep -qaE "$work|softlaunch-demo-" "/proc/$pid/cmdline" 2>/dev/null && pids+=("$pid")
    done
    [ ${#pids[@]} = 0 ] || echo "ending the demo that was left running"
    stop_all
    pids=()
    case ${left[-1]} in /tmp/softlaunch-demo-??????) rm -rf "${left[-1]}" ;; esac
}
[ ! -f "$work/left" ] || end_earlier
rm -rf "$work"
mkdir -p "$work" "$(dirname "$report")"

say "model and data"
cache=${SOFTLAUNCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/softlaunch}
[ -z "$(ls "$cache"/*.gguf 2>/dev/null)" ] || cached=true
model=$(deploy/fetch-model.sh)
echo "model: $model"
if [ -n "${WORDNET_ROWS:-}" ]; then
    cp -r "$WORDNET_ROWS" "$work/wordnet"
else
    "$bin/softlaunch" data wordnet --wordnet /usr/share/wordnet --out "$work/wordnet"
fi

say "a private Redis, the server and an agent"
# A unix socket's path has at most 107 bytes, so it lies under /tmp.
sockets=$(mktemp -d /tmp/softlaunch-demo-XXXXXX)
redis-server --port 0 --unixsocket "$sockets/redis.sock" --appendonly yes --dir "$work" --save '' \
    --maxmemory-policy noeviction --daemonize no >"$work/redis.log" 2>&1 &
pids+=($!)
wait_for 10 redis-server redis-cli -s "$sockets/redis.sock" ping >/dev/null
(umask 077 && head -c 32 /dev/urandom | sha256sum | cut -c1-48 >"$work/token")
"$bin/softlaunch" serve --listen 127.0.0.1:0 --data "$work/store" --redis "unix://$sockets/redis.sock" \
    --token-file "$work/token" --port-file "$work/port" >"$work/serve.log" 2>&1 &
pids+=($!)
wait_for 10 "softlaunch serve" test -s "$work/port"
url=http://127.0.0.1:$(cat "$work/port")
SOFTLAUNCH_SERVER=$url SOFTLAUNCH_TOKEN=$(cat "$work/token")
export SOFTLAUNCH_SERVER SOFTLAUNCH_TOKEN
"$bin/softlaunch" agent --redis "unix://$sockets/redis.sock" --server "$url" --work-dir "$work/agent" \
    >"$work/agent.log" 2>&1 &
pids+=($!)

"$bin/softlaunch" artifact put smollm2-135m "$model"
"$bin/softlaunch" artifact put wordnet "$work"/wordnet/*.jsonl

say "one run, two tasks: softlaunch enqueue $spec"
# shellcheck disable=SC2086
"$bin/softlaunch" enqueue "$spec" name=demo "${on_device[@]}" ${OVERRIDES:-} --follow

say "what it learned"
"$bin/softlaunch" runs show demo --json >"$work/run.json"
"$bin/softlaunch" artifact get --unpack wordnet-prompts:candidate "$work/result" >/dev/null
seconds=$(($(date +%s) - started))
commit=${GPU_COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}
python3 tests/system/demo_report.py "$work/run.json" "$work/result/wordnet-prompts/metrics.json" "$report" "$seconds" "$cached" "$commit" "$device"
