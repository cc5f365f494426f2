#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Verifies model/handover.pml and model/file.pml, and shows that every mutant of them is caught.
# usage: scripts/model.sh [--quick]    --quick: the smaller bounds, as the tests do
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
model=$top/model/handover.pml
file_model=$top/model/file.pml
jobs=$(nproc 2>/dev/null || echo 2)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
command -v spin >/dev/null || { echo "model: spin is missing; scripts/install-deps.sh installs it" >&2; exit 77; }

# run NAME OPTIMISATION OPTIONS...: one verification in a directory of its own, its output in NAME/out
run() {
    local name=$1 level=$2
    shift 2
    mkdir -p "$work/$name"
    cd "$work/$name"
    {
        spin "$@" -a "$model" &&
            ${CC:-gcc} "$level" -w -DSAFETY -DNOCLAIM -DCOLLAPSE -DMEMLIM=4000 -o pan pan.c &&
            ./pan -m1000000
    } >out 2>&1 || echo "exit $?" >>out
}

figure() { # NAME PATTERN: the number before PATTERN
    grep -oE "[0-9.e+]+ $2" "$work/$1/out" | head -1 | cut -d' ' -f1
}

declare -A bounds=(
    [no-faults]="-DNO_FAULTS -DCRASHES=0 -DFAILS=0 -DLINKS=0 -DLOSS=0"
    [one-crash-one-failed-write]="-DCRASHES=1 -DFAILS=1 -DLINKS=0"
)
order="no-faults one-crash-one-failed-write"
if [ "${1:-}" != "--quick" ]; then
    bounds[two-crashes]="-DCRASHES=2 -DFAILS=0 -DLINKS=1"
    bounds[two-crashes-one-failed-write]="-DCRASHES=2 -DFAILS=1 -DLINKS=0"
    bounds[a-lost-link]="-DCRASHES=1 -DFAILS=1 -DLINKS=1"
    bounds[a-user-cancels]="-DCRASHES=1 -DFAILS=1 -DLINKS=0 -DABORTS=1"
    bounds[two-attempts]="-DCRASHES=1 -DFAILS=0 -DLINKS=1 -DABORTS=1 -DEPOCHS=2"
    bounds[queues-of-three]="-DCRASHES=1 -DFAILS=0 -DLINKS=1 -DQUEUE=3"
    order="$order two-crashes two-crashes-one-failed-write a-lost-link a-user-cancels two-attempts queues-of-three"
fi

mutants_of() {
    grep -oE '^ \*  ?[0-9 ][0-9] [a-zA-Z]' "$1" | grep -oE '[0-9]+'
}
mutants=$(mutants_of "$model")
file_mutants=$(mutants_of "$file_model")
declare -A file_bounds=(
    [file-no-faults]="-DCRASHES=0 -DFAILS=0"
    [file-two-crashes-two-failed-writes]="-DCRASHES=2 -DFAILS=2"
)
mutant_bounds() {
    case $1 in
    9) echo "-DCRASHES=0 -DFAILS=1 -DLINKS=0 -DABORTS=1 -DEPOCHS=2" ;;
    11) echo "-DCRASHES=1 -DFAILS=0 -DLINKS=1" ;;
    14) echo "${bounds[no-faults]}" ;;
    *) echo "${bounds[one-crash-one-failed-write]}" ;;
    esac
}

throttle() {
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || true; done
}
for name in $order; do
    throttle
    # shellcheck disable=SC2086
    run "$name" -O1 ${bounds[$name]} &
done
for n in $mutants; do
    throttle
    # shellcheck disable=SC2046
    run "mutant-$n" -O0 -DMUTANT="$n" $(mutant_bounds "$n") &
done
for name in "${!file_bounds[@]}"; do
    throttle
    # shellcheck disable=SC2086
    model=$file_model run "$name" -O0 ${file_bounds[$name]} &
done
for n in $file_mutants; do
    throttle
    model=$file_model run "mutant-file-$n" -O0 -DMUTANT="$n" -DCRASHES=1 -DFAILS=2 &
done
wait
for name in "${!file_bounds[@]}"; do
    order="$order $name"
    bounds[$name]=${file_bounds[$name]}
done
for n in $file_mutants; do
    mutants="$mutants file-$n"
done

bad=0
printf '%-30s %10s %7s %8s  %s\n' model states depth seconds bounds
for name in $order; do
    grep -q "errors: 0" "$work/$name/out" && verdict="" || { verdict=" FAILED"; bad=1; }
    ! grep -qE "max search depth too small|out of memory" "$work/$name/out" || { verdict=" INCOMPLETE"; bad=1; }
    printf '%-30s %10s %7s %8s  %s%s\n' "$name" "$(figure "$name" 'states, stored')" \
        "$(grep -oE 'depth reached [0-9]+' "$work/$name/out" | cut -d' ' -f3)" \
        "$(grep -oE 'elapsed time [0-9.]+' "$work/$name/out" | cut -d' ' -f3)" "${bounds[$name]//-D/}" "$verdict"
    [ -z "$verdict" ] || grep -E "assertion violated|invalid end|error|exit" "$work/$name/out" | head -3
done
caught=0
count=0
for n in $mutants; do
    count=$((count + 1))
    what=$(grep -oE "assertion violated .*\(at" "$work/mutant-$n/out" | sed 's/assertion violated *//; s/ *(at$//' || true)
    if [ -n "$what" ]; then
        caught=$((caught + 1))
        printf '%-30s %10s  caught by %s\n' "mutant $n" "$(figure "mutant-$n" 'states, stored')" "$what"
    else
        printf '%-30s SURVIVED\n' "mutant $n"
        grep -E "errors|exit|error" "$work/mutant-$n/out" | head -3
        bad=1
    fi
done
echo "model: $caught of $count mutants caught"
[ "$count" -ge 23 ] || { echo "model: the lists of mutants cannot be read" >&2; bad=1; }
exit $bad
