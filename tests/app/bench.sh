# fovea bench: rows with their fields; peaks in the same run.
. "$(dirname "$(realpath "$0")")/common.bash"

expect bench 0 '' "$fovea" bench attend scan decode gemm power:block=16 --sizes 64,100 --json
holds fields 'all(set(r) == {"what", "shape", "backend", "seconds", "gflops", "gbytes", "of_peak"} for r in j)'
holds peaks '{"peak fma", "peak copy"} <= {r["what"] for r in j}'
holds work '{"attend", "scan", "decode", "gemm", "power:block=16"} <= {r["what"] for r in j}'
holds numbers 'all(r["seconds"] > 0 and r["of_peak"] > 0 and r["gflops"] + r["gbytes"] > 0 for r in j)'
expect table 0 '' "$fovea" bench gemm --sizes 64
grep -q '^gemm ' out || fail table "$(cat out)"
expect unknown 2 'neither' "$fovea" bench nothing
expect no_model 2 'm MODEL is missing' "$fovea" bench model
expect bad_sizes 2 'sizes' "$fovea" bench gemm --sizes 0
if [ -r "$smollm" ]; then
    expect model 0 '' "$fovea" bench model -m "$smollm" --sizes 32 --json
    holds model_rows '{"model prompt", "model token"} <= {r["what"] for r in j}'
fi
interrupt ctrl_c 1 "$fovea" bench attend --sizes 4096 --device ref
