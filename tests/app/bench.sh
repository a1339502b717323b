# fovea bench: rows with their fields; peaks in the same run.
. "$(dirname "$(realpath "$0")")/common.bash"

quick="--seconds 0.01"
expect bench 0 '' "$fovea" bench attend scan decode gemm power:block=16 --sizes 64,100 --json $quick
holds fields '(all({"what", "shape", "backend", "seconds", "gflops", "gbytes", "of_peak", "bound", "runs"} <= set(r)
    for r in j))'
holds peaks '{"peak fma", "peak copy", "peak read"} <= {r["what"] for r in j}'
holds peak_times 'all(r["of_peak"] == 1 and 0 < r["seconds"] < 60 for r in j if r["what"].startswith("peak "))'
holds work '{"attend", "scan", "decode", "gemm", "power:block=16"} <= {r["what"] for r in j}'
holds numbers 'all(r["seconds"] > 0 and r["of_peak"] > 0 and r["gflops"] + r["gbytes"] > 0 and r["runs"] >= 1 for r in j)'
holds precisions '[sum(r["what"] == "attend" and d in r["shape"] for r in j) for d in ("f32", "bf16")] == [12, 12]'
holds layouts '(all(sum(r["what"] == "decode" and h in r["shape"] for r in j) == 10
    for h in ("32/8 heads", "64/8 heads", "9/3 heads", "4/1 heads")))'
holds stored_weights '({"q4_0", "q4_1", "q8_0", "q4_K", "q6_K", "iq4_nl", "f32", "bf16"} <=
    {r["shape"].split(", ")[-1] for r in j if r["what"] == "gemm"})'
# what fits the caches is not judged by memory
holds in_cache 'not any(r["bound"] == "memory" for r in j if not r["what"].startswith("peak "))'
holds beside_dense '(all({"tokens", "dense_seconds", "beats_dense_from"} <= set(r) for r in j if r["what"] == "power:block=16")
    and sum(r["what"] == "dense" for r in j) == 2)'
parts='abs(r["score_seconds"] + r["select_seconds"] + r["attend_seconds"] - r["seconds"]) < 1e-6 * r["seconds"]'
holds parts_of_time "all($parts for r in j if 'tokens' in r)"
holds density '[r["density"] for r in j if r["what"] == "dense"] == [1, 1] and all(0 < r["density"] <= 1 for r in j if r["what"] == "power:block=16")'
holds slope '[("slope" in r) for r in j if r["what"] == "power:block=16"] == [False, True]'
expect choosing 0 '' "$fovea" bench moba:block=32,top=2 --sizes 512,256,1024 --json $quick --dense-seconds 1e-4 --precision f32
holds choosing_has_its_time '(all(r["score_seconds"] > 0 and r["select_seconds"] > 0 and r["attend_seconds"] > 0
    for r in j if r["what"] == "moba:block=32,top=2"))'
holds dense_is_extrapolated '(lambda d, m: len(d) == 1 and [r["dense_extrapolated"] for r in m] ==
    [r["tokens"] > d[0]["tokens"] for r in m] and m[2]["dense_extrapolated"] and
    all(abs(r["dense_seconds"] / d[0]["seconds"] / (r["tokens"] / d[0]["tokens"]) ** 2 - 1) < 1e-5 for r in m))(
    [r for r in j if r["what"] == "dense"], [r for r in j if r["what"] == "moba:block=32,top=2"])'
expect extrapolated_words 0 '' "$fovea" bench moba --sizes 256 $quick --dense-seconds 0 --precision f32
grep -q '~ beside dense' out || fail extrapolated_words "$(cat out)"
expect one_precision 0 '' "$fovea" bench attend gemm --sizes 64 --precision f32 --json $quick
holds no_bf16 'not any("bf16" in r["shape"] for r in j if not r["what"].startswith("peak "))'
expect all 0 '' "$fovea" bench all --sizes 256,64 --report all.html --json $quick
holds every_mechanism '({"sinkwin", "gna", "power", "moba", "bra", "nsa", "lightning2", "hedgehog", "agent"} <=
    {r["what"] for r in j})'
holds ascending '[r["tokens"] for r in j if r["what"] == "gna"] == [64, 256]'
holds grids 'all("grid=8x8" in r["shape"] for r in j if r["what"] in ("gna", "bra", "agent") and r["tokens"] == 64)'
holds crossings '(all(r["beats_dense_from"] is None or 64 <= r["beats_dense_from"] <= 256
    for r in j if "beats_dense_from" in r))'
grep -q '<polyline' all.html || fail report "$(head -c 300 all.html)"
! grep -qE 'https?://|src=|@import|<script' all.html || fail report "it asks for something outside"
expect own_grid 0 '' "$fovea" bench gna:grid=4x16,window=3x3 --sizes 64 $quick
grep -qE 'gna.* (never beats|beats) dense' out || fail crossing "$(cat out)"
expect bad_grid 1 'grid' "$fovea" bench gna:grid=5x5,window=3x3 --sizes 64 $quick
expect table 0 '' "$fovea" bench gemm --sizes 64 $quick
grep -q '^gemm ' out || fail table "$(cat out)"
# costs of test-time runs are reckoned, not measured: the numbers of the law's own table
shape=params=8.19e9,layers=36,heads=32,kv_heads=8,dim=128,in=1024,out=16384,trials=1,block=0,local=0
kinetics=kinetics_cost:$shape,intensity=562.5,share_prompt=auto,bytes=2
expect kinetics 0 '' "$fovea" bench $kinetics,budget=0 $kinetics,budget=1024 --json --report costs.html
holds kinetics_rows '(len(j) == 2 and
    all(set(r) == {"what", "comp", "memory", "eflops", "parameter_flops"} and r["what"] == "kinetics_cost" for r in j))'
holds kinetics_numbers '(all(abs(r["comp"] - c) < .0051 and abs(r["memory"] - m) < .0051 and
    abs(r["eflops"] - r["comp"] - r["memory"]) < 1e-4 and abs(r["parameter_flops"] - 268.37) < .0051
    for r, c, m in zip(j, (357.43, 278.27), (12524.12, 1391.57))))'
[ "$(grep -o '<polyline' costs.html | wc -l)" = 24 ] || fail kinetics_report "expected six lines in each of four plots"
python3 -c 'import sys, xml.dom.minidom as x; [x.parseString(p.split("</svg>")[0].join(["<svg", "</svg>"])) for p in
    open("costs.html").read().split("<svg")[1:]]' || fail kinetics_report "an image is no XML"
grep -q 'Qwen3 14B' costs.html && ! grep -qiE 'nan|inf[^oe]|https?://|src=' costs.html || fail kinetics_report "odd words"
expect kinetics_table 0 '' "$fovea" bench kinetics_cost:budget=1024,block=16
grep -q '^kinetics_cost .* 281.05 .* 268.37  1024 keys in blocks of 16$' out || fail kinetics_table "$(cat out)"
expect kinetics_beside 0 '' "$fovea" bench gemm kinetics_cost --sizes 64 --json $quick
holds kinetics_beside_rows '{"gemm", "kinetics_cost", "peak read"} <= {r["what"] for r in j}'
expect kinetics_search 2 "'block' needs a budget" "$fovea" bench kinetics_cost:block=16
expect kinetics_option 2 "did you mean 'budget'" "$fovea" bench kinetics_cost:budge=16
expect unknown 2 'neither' "$fovea" bench nothing
expect no_model 2 'm MODEL is missing' "$fovea" bench model
expect no_folder 1 'absent' "$fovea" bench scan --sizes 64 --report absent/b.html $quick
expect bad_option 2 'window' "$fovea" bench sinkwin:window=x
expect bad_sizes 2 'sizes' "$fovea" bench gemm --sizes 0
if [ -r "$smollm" ]; then
    expect model 0 '' "$fovea" bench model -m "$smollm" --sizes 32 --json $quick
    holds model_rows '{"model prompt", "model token"} <= {r["what"] for r in j}'
    holds model_work 'all(r["of_peak"] > 0 and r["bound"] for r in j)'
fi
interrupt ctrl_c "$fovea" bench attend --sizes 4096 --device ref
