#!/usr/bin/env bash
# The programs in docs/api.md compile against the public headers and the shared library alone, and run.
set -u
fovea=$1 source=$2
build=$(dirname "$fovea")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

fail() { echo "not ok $1"; shift; [ $# -eq 0 ] || printf '%s\n' "$@"; exit 1; }

awk -v dir="$scratch" '/^```c$/ { n++; out = dir "/program" n ".c"; next } /^```$/ { out = ""; next } out { print > out }' \
    "$source/docs/api.md"
[ "$(ls "$scratch" | wc -l)" -eq 2 ] || fail "docs/api.md holds two programs"

sanitizer=$(nm -D "$build/libfovea.so" | grep -q __asan_init && echo "-fsanitize=address,undefined" || true)
for n in 1 2; do
    cc -std=c11 -Wall -Werror $sanitizer -I "$source/include" "$scratch/program$n.c" -o "$scratch/program$n" \
        -L "$build" -lfovea -Wl,-rpath,"$build" > "$scratch/log" 2>&1 || fail "program $n compiles" "$(cat "$scratch/log")"
    echo "ok program $n of docs/api.md compiles against the public headers"
done

text=$("$scratch/program1" 2>&1) || fail "the attention program runs" "$text"
case "$text" in "power on "*"% of the pairs of dense") echo "ok the attention program runs" ;; *) fail "the attention program prints its density" "$text" ;; esac

model=$source/models/SmolLM2-135M-Instruct.Q4_1.gguf
if [ -e "$model" ]; then
    text=$("$scratch/program2" "$model" 2>&1) || fail "the model program runs" "$text"
    case "$text" in *Paris*) echo "ok the model program answers" ;; *) fail "the model program answers Paris" "$text" ;; esac
elif [ "${FOVEA_TEST_WITHOUT_MODELS:-}" != 1 ]; then
    fail "the model program runs" "$model is missing: make model fetches it"
fi

# Nothing but the public names is exported.
private=$(nm -D --defined-only "$build/libfovea.so" | awk '{ print $3 }' | while read -r name; do
    grep -qrw -- "${name%%@*}" "$source/include" || echo "$name"
done)
[ -z "$private" ] || fail "libfovea.so exports only public names" "$private"
echo "ok libfovea.so exports only public names"
