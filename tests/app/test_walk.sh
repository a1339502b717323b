#!/bin/bash
# The walk of docs/add-a-mechanism.md, taken: its code is extracted, put where it says, compiled, and run through the
# conformance suite.  Usage: test_walk.sh COMMAND SOURCE_DIR
set -euo pipefail
build=$(cd "$(dirname "$1")" && pwd) source=$(cd "$2" && pwd)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT

mkdir -p "$tree/include" "$tree/src/attention" "$tree/tests"
cp -r "$source/include/fovea" "$tree/include/"
cp -r "$source/src" "$tree/"
cp -r "$source/tests/sheets" "$source/tests/support" "$source/tests/attention" "$tree/tests/"

# Carries out each "<!-- walk: ... -->" with the code block that follows it.
awk -v tree="$tree" '
    /^<!-- walk: / { verb = $3; path = tree "/" $4; anchor = $0
                     sub(/.* before /, "", anchor); sub(/ -->$/, "", anchor); next }
    /^```c$/ && verb { inside = 1; code = ""; next }
    /^```$/ && inside {
        inside = 0; steps++
        if (verb == "new") printf "%s", code > path
        else {
            text = ""; done = 0
            while ((getline line < path) > 0) {
                if (!done && index(line, anchor)) { text = text code; done = 1 }
                text = text line "\n"
            }
            close(path)
            if (!done) { print "walk: no line with \"" anchor "\" in " path > "/dev/stderr"; exit 1 }
            printf "%s", text > path
        }
        close(path); verb = ""; next
    }
    inside { code = code $0 "\n" }
    END { if (steps != 5) { print "walk: expected 5 steps, found " steps > "/dev/stderr"; exit 1 } }
' "$source/docs/add-a-mechanism.md"

cd "$tree"
name=strided
flags="-std=gnu17 -O1 -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Werror -fno-math-errno"
flags="$flags -Iinclude -Isrc -Itests -DFOVEA_SOURCE_DIR=\"$source\" -DFOVEA_BINARY_DIR=\"$build\""
if nm "$build/libfovea_static.a" 2>/dev/null | grep __asan_init >/dev/null; then flags="$flags -fsanitize=address,undefined"; fi
${CC:-cc} $flags src/attention/local/$name.c src/attention/registry.c tests/sheets/*.c tests/support/support.c \
    tests/support/cases.c tests/support/trial.c tests/attention/test_conformance.c "$build/libfovea_static.a" -o walk \
    -Wl,--wrap=aligned_alloc,--wrap=realloc \
    $(pkg-config --libs cmocka libpcre2-8 jansson) -lpthread -lm
CMOCKA_MESSAGE_OUTPUT=STDOUT ./walk '*' $name
