#!/bin/sh
# Installs what building, the demo and the tests need on Debian 12 or Ubuntu 24.04. Does nothing when all is there.
# usage: deploy/install-deps.sh [PACKAGE...]   more packages beside
# Run as root or with sudo at hand. Installing redis-server here leaves no service running: the demo and the
# tests start their own.
set -eu
packages="build-essential pkg-config git ca-certificates python3 python3-pip python3-venv unzip procps zstd
    libjansson-dev libyaml-dev libssl-dev libpcre2-dev zlib1g-dev libopenblas-openmp-dev libcurl4-openssl-dev libexpat1-dev libarchive-dev
    libhiredis-dev libmicrohttpd-dev libsqlite3-dev libzstd-dev libutf8proc-dev libsentencepiece-dev libcmocka-dev redis-server wordnet-base mandoc
    libjs-chart.js"
missing=
for p in $packages "$@"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
echo "installing:$missing"
sudo=
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "run as root, or install sudo: packages are missing:$missing" >&2; exit 1; }
    sudo=sudo
fi
# policy-rc.d denies service starts while packages are set up; an existing one is left alone.
policy=/usr/sbin/policy-rc.d
made_policy=
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy >/dev/null
    $sudo chmod 755 $policy
    made_policy=1
fi
had_redis=$(dpkg-query -W -f='${Status}' redis-server 2>/dev/null | grep -c 'ok installed' || true)
cleanup() { [ -z "$made_policy" ] || $sudo rm -f $policy; }
trap cleanup EXIT
$sudo apt-get update -qq
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
# Not started now, and not at the next boot either, unless the operator had it before.
if [ "$had_redis" = 0 ] && command -v systemctl >/dev/null; then
    $sudo systemctl disable redis-server >/dev/null 2>&1 || true
fi
