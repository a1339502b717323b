# fovea-checkops: every primitive agrees with the reference backend on every instruction set of this machine.
. "$(dirname "$(realpath "$0")")/common.bash"
checkops=$(dirname "$fovea")/fovea-checkops

works check 0 ' 0 failed' "$checkops" --check
grep -q 'seed: --seed [0-9]' err || fail seed "$(cat err)"
works rows 0 'seed' "$checkops" --check --json --filter gemm --threads 1 --seed 7
holds fields 'all({"op", "shape", "isa", "ok", "error", "tolerance"} <= set(r) for r in j)'
holds gemm 'len(j) > 0 and all(r["op"] == "gemm" and r["ok"] and 0 <= r["error"] <= r["tolerance"] for r in j)'
works again 0 'seed' "$checkops" --check --json --filter gemm --threads 3 --seed 7
works one_isa 0 'seed' "$checkops" --check --json --isa c
holds all_of_c '{r["isa"] for r in j} == {"c"}'
holds primitives '({"gemm", "linear", "map", "norm", "rope", "softmax", "pool", "conv2d", "select", "gather", "cumsum", "dequantize", "quantize",
    "attend", "attend_backward", "attend_stats", "scan", "scan_backward", "merge", "merge_backward"} <=
    {r["op"] for r in j})'
works timed 0 'seed' "$checkops" --json --isa c --filter region
holds times 'all(r["seconds"] > 0 and r["runs"] >= 5 and r["of_peak"] >= 0 for r in j)'
works help 0 'usage: fovea-checkops' "$checkops" --help
works nothing 1 "contains 'no such thing'" "$checkops" --check --filter 'no such thing'
works bad_isa 2 "expected avx512" "$checkops" --isa mmx
works bad_flag 2 'unknown option' "$checkops" --fast
