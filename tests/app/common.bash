# What the command's tests share.  Each test is run as: bash X.sh <fovea> <source folder>.
# A check prints "ok NAME"; the first one that fails prints "not ok NAME: why" and ends the test.
set -u
fovea=$(realpath "$1")
source_dir=$(realpath "$2")
models=${FOVEA_MODELS:-$source_dir/models}
smollm=$models/SmolLM2-135M-Instruct.Q4_1.gguf
gemma=$models/gemma-3-270m-q4_k_m.gguf
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1

fail() { # NAME WHY
    echo "not ok $1: $2"
    exit 1
}

# attempt NAME STATUS COMMAND...: runs it, its output in out and err.
attempt() {
    local name=$1 status=$2 got
    shift 2
    "$@" > out 2> err
    got=$?
    [ "$got" -eq "$status" ] || fail "$name" "expected exit status $status, got $got: $(tail -n 3 err)"
}

# expect NAME STATUS WORDS COMMAND...: the exit status, and words on standard error (a grep pattern; '' is anything).
# Failures say one sentence: the last line of standard error starts with "fovea: ".
expect() {
    local name=$1 status=$2 words=$3
    shift 3
    attempt "$name" "$status" "$@"
    if [ -n "$words" ] && ! grep -q -- "$words" err; then
        fail "$name" "expected '$words' in: $(tail -n 1 err)"
    fi
    if [ "$status" -ne 0 ] && [ "$(grep -c '^fovea: ' err)" -ne 1 ]; then
        fail "$name" "expected one sentence, got: $(cat err)"
    fi
    echo "ok $name"
}

# works NAME STATUS WORDS COMMAND...: the exit status, and words on either output, of a laboratory program.
works() {
    local name=$1 status=$2 words=$3
    shift 3
    attempt "$name" "$status" "$@"
    grep -q -- "$words" out err || fail "$name" "expected '$words' in: $(cat out err)"
    echo "ok $name"
}

# holds NAME PYTHON: an expression over `j`, the JSON on standard output of the last command.
holds() {
    python3 - "$2" > why 2>&1 << 'PYTHON' || fail "$1" "$2: $(tail -n 1 why); got $(head -c 300 out)"
import json, math, sys
j = json.load(open("out"))
if not eval(sys.argv[1]):
    sys.exit("does not hold")
PYTHON
    echo "ok $1"
}

# No file under its final name, and none left over beside it.
absent() { # NAME FILE...
    local name=$1
    shift
    for file in "$@"; do
        [ ! -e "$file" ] || fail "$name" "$file is there"
    done
    ! ls ./*.part* > /dev/null 2>&1 || fail "$name" "left over: $(ls ./*.part*)"
    echo "ok $name"
}

# Whether a command has come so far that it catches Ctrl-C.
catches() { # PID
    local caught
    [ "$(cat "/proc/$1/comm" 2> /dev/null)" = "$(basename "$fovea")" ] || return 1 # not the shell that becomes it
    caught=$(sed -n 's/^SigCgt:\t//p' "/proc/$1/status" 2> /dev/null)
    [ $((0x${caught:-0} & 2)) -ne 0 ]
}

# interrupt NAME COMMAND...: Ctrl-C in the midst of work gives a sentence and exit status 1.
interrupt() {
    local name=$1 got
    shift
    "$@" > out 2> err &
    local child=$!
    until catches "$child"; do
        kill -0 "$child" 2> /dev/null || fail "$name" "it ended at once: $(tail -n 1 err)"
        sleep 0.02
    done
    sleep 0.7 # so that the work has begun; where it has not, the outcome is the same
    kill -INT "$child" 2> /dev/null || fail "$name" "it ended within 0.7 s: $(tail -n 1 err)"
    wait "$child"
    got=$?
    [ "$got" -eq 1 ] || fail "$name" "expected exit status 1, got $got: $(tail -n 1 err)"
    grep -q 'interrupted' err || fail "$name" "expected a sentence, got: $(tail -n 1 err)"
    echo "ok $name"
}

need_model() { # FILE
    [ -r "$1" ] || fail "model" "$1 is not there ('make models' fetches it)"
}

npy() { python3 "$source_dir/tests/app/npy.py" "$@"; }
