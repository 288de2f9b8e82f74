#!/bin/sh
# Tests and times nadir on this machine's card, and writes report.md beside this file. Needs a driver and nothing else.
#
#   sh run.sh            everything
#   sh run.sh WORD ...   only tests whose names have one of the words in them; times of nothing
#
# Every test is a process of its own: one that loses the device takes no other with it. The exit code is 1 when any failed.
set -u
cd "$(dirname "$0")" || exit 2
here=$PWD
report=$here/report.md
export CARGO_MANIFEST_DIR="$here" NADIR_WEIGHTS="$here/weights" NADIR_PROGRAM="$here/bin/nadir" NADIR_REQUIRE_CUDA=1
chmod +x bin/*
passed=0
failed=0

say() { printf '%s\n' "$*" | tee -a "$report"; }
# A command's output, as a block.
block() {
    say '```'
    "$@" 2>&1 | tee -a "$report"
    say '```'
}
is_chosen() { # a test's name
    [ -z "$words" ] && return 0
    for word in $words; do
        case $1 in *"$word"*) return 0 ;; esac
    done
    return 1
}
now() { date +%s; }

# Runs one test of a program and says its verdict.
one() { # program, name
    start=$(now)
    if output=$("bin/$1" --exact --nocapture --include-ignored "$2" 2>&1); then
        verdict=ok
        passed=$((passed + 1))
    else
        verdict=FAILED
        failed=$((failed + 1))
    fi
    say "| $1 | $2 | $verdict | $(($(now) - start)) |"
    # Figures that tests print, and why one failed.
    figures=$(printf '%s\n' "$output" | grep -E ' dB|nodes|refused$' | grep -v '^test ')
    [ -z "$figures" ] || printf '%s\n' "$figures" >>figures.txt
    [ $verdict = ok ] || printf '%s\n\n' "$1: $2" "$output" >>failures.txt
}

# All tests of a program whose names begin with one of these.
tests() { # program, beginnings...
    program=$1
    shift
    names=$("bin/$program" --list --include-ignored 2>/dev/null | sed -n 's/: test$//p')
    for name in $names; do
        [ $# -eq 0 ] && begins=yes || begins=
        for beginning in "$@"; do
            case $name in "$beginning"*) begins=yes ;; esac
        done
        if [ -n "$begins" ] && is_chosen "$name"; then one "$program" "$name"; fi
    done
}

words=$*
: >"$report"
: >figures.txt
: >failures.txt
say "# nadir on this machine's card"
say
say "$(date -u '+%Y-%m-%d %H:%M') UTC, $(uname -srm)"
say
if command -v nvidia-smi >/dev/null; then
    block nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv
fi
block bin/nadir doctor

say
say "## Tests"
say
say "| program | test | verdict | s |"
say "|---|---|---|---|"
tests lib ops:: tensor:: nn::
tests cuda
tests cuda_device
# As memory is handed out to users, with what no kernel may write over around the tensors of graphs.
NADIR_SENTINELS=on
export NADIR_SENTINELS
tests cuda the_shipped_model
unset NADIR_SENTINELS
say
say "$passed passed, $failed failed"
if [ -s figures.txt ]; then
    say
    say "Figures of the tests:"
    block cat figures.txt
fi
if [ -s failures.txt ]; then
    say
    say "What failed:"
    block cat failures.txt
fi

say
say "## The same PTX on the virtual device"
say
say "A picture of the model that ships, 4 steps, from the card and from the virtual device, which executes the PTX on the"
say "processor. Sums are in another order on a card's tensor cores: pictures may differ in few levels, by one."
say
for dtype in f32 bf16 f16; do
    draw="bin/nadir generate river --device cuda --dtype $dtype --steps 4 -s 1 -q --no-metadata"
    $draw -o "card-$dtype.png" >/dev/null 2>&1 || {
        say "the card drew none in $dtype"
        failed=$((failed + 1))
    }
    LD_LIBRARY_PATH="$here/vgpu" VGPU_CHECKS=off $draw -o "virtual-$dtype.png" >/dev/null 2>&1 ||
        say "the virtual device drew none in $dtype"
    if cmp -s "card-$dtype.png" "virtual-$dtype.png"; then alike="bit for bit"; else alike="not bit for bit"; fi
    say "- $dtype: $alike (card-$dtype.png, virtual-$dtype.png)"
done

if [ -z "$words" ]; then
    say
    say "## Times"
    for dtype in f32 bf16 f16; do
        say
        say "Products of Stable Diffusion 1.5 in $dtype:"
        block bin/products "$dtype"
        say
        say "Kernels of a picture of the model that ships, 20 steps in $dtype:"
        block bin/nadir profile river --device cuda --dtype "$dtype" --steps 20 -q
    done
    say
    say "64 pictures of 20 steps in bf16, 16 at once, from start to end:"
    start=$(now)
    bin/nadir generate river --device cuda --dtype bf16 --steps 20 -s 1 -b 64 --batch 16 -q -o "pictures/" >/dev/null ||
        failed=$((failed + 1))
    say "$(($(now) - start)) s"
fi
say
say "Report: $report"
[ $failed -eq 0 ]
