#!/bin/sh
# Installs what the build and the tests need, where apt is there and something is missing.
set -eu

packages="gcc libc6-dev make pkg-config meson ninja-build libjson-c-dev libzstd-dev libssl-dev libcmocka-dev
          g++ mandoc spin binutils systemtap-sdt-dev python3 python3-pytest python3-hypothesis"
missing=""
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1; then
    echo "install-deps: please install:$missing" >&2
    exit 1
fi
run=""
[ "$(id -u)" = 0 ] || run="sudo"
echo "install-deps: installing$missing" >&2
$run apt-get update -qq
DEBIAN_FRONTEND=noninteractive $run apt-get install -y -qq --no-install-recommends $missing >/dev/null
