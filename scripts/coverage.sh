#!/bin/sh
# Line and branch coverage of the core, the engine and the stream by the unit tests and those with whole
# processes; the suites that prove tests (by faults that they must notice) are left out.
# Usage: scripts/coverage.sh BUILD_DIR
# REPORT_ONLY=1: of the tests that ran already.
set -eu

build="$1"
if ! command -v gcovr >/dev/null 2>&1; then
    run=""
    [ "$(id -u)" = 0 ] || run="sudo"
    $run apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $run apt-get install -y -qq --no-install-recommends gcovr >/dev/null
fi
[ -f "$build/build.ninja" ] || meson setup "$build" -Dsabotage=true -Db_coverage=true --buildtype=debug
failed=0
if [ -z "${REPORT_ONLY:-}" ]; then
    ninja -C "$build"
    find "$build" -name '*.gcda' -delete
    # Not install: a static library that counts does not link with a program that does not.
    suites="--no-suite prove --no-suite tidy --no-suite fuzz --no-suite explore --no-suite mutation"
    # shellcheck disable=SC2086
    tests=$(meson test -C "$build" --list $suites 2>/dev/null | sed -n 's|.* / ||p' | grep -vx install)
    # shellcheck disable=SC2086
    SWEEP_STRIDE=1 meson test -C "$build" $suites --print-errorlogs --timeout-multiplier 3 $tests || failed=1
fi
# The objects of the library alone: other programs of the tests have the same sources, compiled in another
# way. What cannot be taken is not counted: an assertion that fails, a deliberate fault that is off in all
# of these tests and that the prove suites turn on.
report() {
    gcovr --root . --object-directory "$build" --exclude-branches-by-pattern '.*(assert\(|vfmig_sabotage\().*' \
        "$@" "$build"/libvfmig.so.*.p
}
# Into a file first: of a pipe only the last command's exit code counts.
report --filter 'src/core/' --filter 'src/engine/' --filter 'src/stream/' --txt --branches --print-summary >"$build/coverage.txt"
sed -n '/^File/,$p' "$build/coverage.txt"
for part in core engine stream; do
    report --filter "src/$part/" --print-summary >"$build/coverage-$part.txt"
    sed -n "s/^\(lines\|branches\):/src\/$part \1:/p" "$build/coverage-$part.txt"
done
exit $failed
