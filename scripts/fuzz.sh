#!/bin/sh
# Fuzzes with clang's libFuzzer under ASan and UBSan: scripts/fuzz.sh BUILD TARGETS SECONDS [merge]
# Each target runs SECONDS on its corpus and on what earlier runs found (BUILD/found/NAME); new inputs go
# there. merge: instead, the few of them that reach what the named inputs do not join the corpus.
set -eu

build=$1 targets=$2 seconds=$3 merge=${4:-}
corpus=$(pwd)/tests/fuzz/corpus

has_fuzzer()
{
    echo 'int LLVMFuzzerTestOneInput(const char *d, long n) { return !d && n; }' |
        clang -fsanitize=fuzzer,address,undefined -x c -o /dev/null - 2>/dev/null
}

if ! has_fuzzer; then
    command -v apt-get >/dev/null 2>&1 || { echo "fuzz: please install clang and its runtime" >&2; exit 1; }
    run=""
    [ "$(id -u)" = 0 ] || run="sudo"
    echo "fuzz: installing clang" >&2
    $run apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $run apt-get install -y -qq --no-install-recommends clang >/dev/null
    major=$(clang -dumpversion | cut -d. -f1)
    DEBIAN_FRONTEND=noninteractive $run apt-get install -y -qq --no-install-recommends \
        "libclang-rt-$major-dev" >/dev/null
fi
[ -e "$build/build.ninja" ] || CC=clang meson setup "$build" -Dfuzz=true \
    -Db_sanitize=address,undefined -Db_lundef=false

export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
for target in $targets; do
    ninja -C "$build" "tests/fuzz/fuzz_$target"
    found=$build/found/$target
    mkdir -p "$found"
    if [ -n "$merge" ]; then
        find "$corpus/$target" -regex '.*/[0-9a-f]+' -delete
        "$build/tests/fuzz/fuzz_$target" -merge=1 -set_cover_merge=1 -use_counters=0 -max_len=2048 \
            "$corpus/$target" "$found"
        continue
    fi
    "$build/tests/fuzz/fuzz_$target" -max_total_time="$seconds" -max_len=4096 -timeout=20 -entropic=0 \
        -print_final_stats=1 -artifact_prefix="$build/$target-" "$found" "$corpus/$target"
done
