# Cache policies from the command line: each on both models, the frontier, and the probes that write plan files.
. "$(dirname "$(realpath "$0")")/common.bash"
need_model "$smollm"
need_model "$gemma"
bytes=6000 b=200 depths=50,100 percent=40,20 n=2 # b: the rows that budgets leave
[ "${FOVEA_SANITIZED:-0}" = 0 ] || bytes=1400 b=128 depths=50 percent=40 n=1 # a hundred tokens a second
head -c "$bytes" "$source_dir/LICENSE" > text
call="$fovea run -m $smollm --raw -f text -n 4 --json"

# ---- plan files, from the probes ----
expect heads 0 '' "$fovea" inspect srh -m "$smollm" --lengths $((b * 2)) --depths $depths --cap 40 --out heads.json --json
holds heads_in_json "len(j['srh']) == 30 and len(j['srh'][0]) == 9 and len(j['trh']) == 30 and 0 < j['counted'] <= j['runs'] == 3 * $n"
holds losses 'abs(sum(j["importance"]) - 1) < 1e-6 and all(x >= 0 for x in j["importance"])'
holds masses 'all(s >= 0 for row in j["srh"] + j["trh"] for s in row) and max(map(max, j["srh"])) > 1'
python3 - > why 2>&1 <<'PYTHON' || fail plan_of_heads "$(cat why)"
import json
plan, scores = json.load(open("heads.json")), json.load(open("out"))["srh"]
assert len(plan["heads"]) == 30 == len(plan["importance"])
for heads, row in zip(plan["heads"], scores):
    assert heads == sorted(range(9), key=lambda h: -row[h])[:4], (heads, row)
PYTHON
echo ok plan_of_heads
expect layers 0 '' "$fovea" inspect hylra -m "$smollm" -f text --steps 3 --keep "$b" --recent 32 --chunk 32 --out layers.json --json
holds layers_in_json 'len(j["plan"]) == 30 and len(j["full"]) == 3 and all(s < l for l, s in enumerate(j["plan"]))'
holds overlaps 'all(0 <= x <= 1 for row in j["overlap"] for x in row) and all(j["overlap"][l][l] == 1 for l in range(30))'
holds sources 'sum(s < 0 for s in j["plan"]) <= j["changes_allowed"] == 3 + math.ceil(30 * 0.9 * 0.3) and j["probe"] == "hylra" and j["layers"] == 30'
holds gains '(abs(j["sum"] - sum(gains)) < 1e-6 and abs(j["min"] - min(gains)) < 1e-9 for gains in
    [[1 if s < 0 else j["overlap"][s][l] for l, s in enumerate(j["plan"])]]).__next__()'
cp out by_flags
if [ "${FOVEA_SANITIZED:-0}" = 0 ]; then
    expect layers_by_probe 0 '' "$fovea" inspect -m "$smollm" -f text --probe hylra:steps=3,keep="$b",recent=32,chunk=32,out=again.json --json
    cmp -s out by_flags && cmp -s again.json layers.json || fail layers_by_probe 'a verb and its probe differ'
fi
expect too_short 1 'nothing would be left out' "$fovea" inspect hylra -m "$smollm" -f text --keep 4000 --out no.json
absent no_plan no.json
[ "${FOVEA_SANITIZED:-0}" = 0 ] && lengths=256,320 || lengths=320
npy values example.npy 4,4 '1 .9 .6 .5  0 1 .8 .7  0 0 1 .95  0 0 0 1' f8
for case in '1 [-1,0,0,0] 0.5 3' '2 [-1,0,-1,2] 0.9 3.85' '4 [-1,-1,-1,-1] 1 4' '3,rollback=1 [-1,-1,-1,2] 0.95 3.95'; do
    read -r changes plan least sum <<< "$case"
    expect "plan_of_$changes" 0 '' "$fovea" inspect --probe "hylra:overlap=example.npy,changes=$changes" --json
    holds "plan_is_$plan" "j['plan'] == $plan and abs(j['min'] - $least) < 1e-6 and abs(j['sum'] - $sum) < 1e-6 and j['ratio90'] is None"
done
expect plan_from_full 0 '' "$fovea" inspect --probe hylra:overlap=example.npy,changes=2,rollback=0,full_as_source=1,out=full.json --json
holds read_from_full 'j["plan"] == [-1, 0, -1, 2] and j["full"] == [0] and json.load(open("full.json")) == {"plan": j["plan"], "full": [0]}'
npy values bad.npy 2,2 '1 2 0 1'
expect overlap_is_a_share 1 'overlap of 0 to 1' "$fovea" inspect --probe hylra:overlap=bad.npy
npy random flat.npy 2,3
expect overlap_is_square 1 'layers,layers' "$fovea" inspect --probe hylra:overlap=flat.npy
expect rollback_layers 2 'layers 0 to 3' "$fovea" inspect --probe hylra:overlap=example.npy,rollback=4
expect rollback_alone 2 "goes with 'overlap'" "$fovea" inspect -m "$smollm" -f text --probe hylra:rollback=4
expect probe_model 2 'm MODEL is missing' "$fovea" inspect --probe hylra
expect probe_name 2 "did you mean 'hylra'" "$fovea" inspect --probe hylr
expect probe_none 2 'probe SPEC is missing' "$fovea" inspect
expect spans 0 '' "$fovea" inspect moa -m "$smollm" --lengths $lengths --depths 50 --density 0.6 --step 64 --out found.json --json
holds spans_in_json 'len(j["alphas"]) == 30 and all(len(row) == 3 for row in j["alphas"] + j["betas"]) and j["plans"] >= 1'
holds spans_read 'j["lengths"][-2:] == [320, 640] and all(0.54 - 1e-6 <= d <= 0.6 + 1e-6 for d in j["density"])'
holds spans_lose 'len(j["loss"]) == len(j["lengths"]) - 1 and all(0 < x < 1e4 for x in j["loss"])'
python3 -c 'import json; p, q = json.load(open("found.json")), json.load(open("out"))
assert p == {k: q[k] for k in p} and set(p) == {"alphas", "betas"}
assert all(len(set(zip(a, b))) <= 2 for a, b in zip(p["alphas"], p["betas"]))' || fail plan_of_spans "$(cat found.json)"
echo ok plan_of_spans
expect spans_length 2 'multiples of 64' "$fovea" inspect moa -m "$smollm" --lengths 300
expect spans_context 2 'trained for' "$fovea" inspect moa -m "$smollm" --lengths 65536
expect spans_step 2 'spans to choose from' "$fovea" inspect moa -m "$smollm" --lengths 256 --step 100000
expect spans_steps 2 'spans to choose from' "$fovea" inspect moa -m "$smollm" --lengths 4096 --step 1
expect spans_judge 2 'multiples of 64' "$fovea" inspect moa -m "$smollm" --lengths 256 --judge 64
expect spans_answer 2 'less than --lengths' "$fovea" inspect moa -m "$smollm" --lengths 256 --answer 256
expect spans_none 1 'no plan of at most 2 spans' "$fovea" inspect moa -m "$smollm" --lengths 256 --depths 50 --density 0.02 --out no.json
absent no_spans no.json
expect influence 0 '' "$fovea" inspect attn_influence -m "$smollm" -f text --tokens 200 --answer 8 --out influence.npy --json
holds influence_in_json 'j["probe"] == "attn_influence" and len(j["layers"]) == 30 and 0 < j["loss"] < 20'
holds influence_shares '(all(t > 0 and 0 <= f <= 1 and 0 < d <= 1 for l in j["layers"]
    for t, f, d in zip(l["total"], l["first_block"], l["diagonal"], strict=True)))'
python3 - > why 2>&1 <<'PYTHON' || fail influence_file "$(cat why)"
import json, struct
data = open("influence.npy", "rb").read()
head, rest = data[10:10 + int.from_bytes(data[8:10], "little")], data[10 + int.from_bytes(data[8:10], "little"):]
assert b"(30, 3, 4, 4)" in head and len(rest) == 30 * 3 * 16 * 4, head
cells = struct.unpack("<1440f", rest)
totals = [t for l in json.load(open("out"))["layers"] for t in l["total"]]
assert all(abs(sum(cells[16 * h:16 * h + 16]) - t) < 1e-4 * t for h, t in enumerate(totals))
assert all(cells[16 * h + 4 * r + c] == 0 for h in range(90) for r in range(4) for c in range(r + 1, 4))
PYTHON
echo ok influence_file
cp out by_flags
expect influence_by_probe 0 '' "$fovea" inspect -m "$smollm" -f text --probe attn_influence:tokens=200,answer=8 --probe hylra:steps=1,keep="$b",recent=32,chunk=32 --json
holds influence_and_hylra '[p["probe"] for p in j["probes"]] == ["attn_influence", "hylra"] and j["probes"][0] == json.load(open("by_flags"))'
printf 'a few words' > few
expect influence_short 1 "needs more than its 'answer', 32" "$fovea" inspect attn_influence -m "$smollm" -f few
expect influence_answer 2 'less than' "$fovea" inspect attn_influence -m "$smollm" -f text --tokens 32 --answer 32
cat > spans.json <<'PLAN'
{"alphas": [[0, 64, 128]], "betas": [[0.25, 0.25, 0.125]]}
PLAN
python3 - <<'PYTHON'
import json
plan = json.load(open("spans.json"))
json.dump({key: rows * 30 for key, rows in plan.items()}, open("spans.json", "w"))
PYTHON

# ---- each policy ----
policies="vattn sinkring:budget=$b sinkring:budget=$b,rope=cache h2o:budget=$b snapkv:budget=$b pyramidkv:budget=$b
    compresskv:budget=$b compresskv:budget=$b,plan=heads.json guikv:budget_pct=20,frames=0-$b+$b-$((2 * b))
    shard:local=2 layer_plan:budget=$b moa:plan=spans.json,max_new=16 moa:plan=found.json,max_new=16
    gemfilter:budget=$b alisa:r=0.2 blocktopk:top=8 hylra:plan=layers.json,keep=$b,recent=32,activate_at=64"
[ "${FOVEA_SANITIZED:-0}" = 0 ] || # the others walk through the same code
    policies="vattn h2o:budget=$b compresskv:budget=$b,plan=heads.json moa:plan=found.json,max_new=16 alisa:r=0.2"
for spec in $policies; do
    expect "$spec" 0 '' $call --cache "$spec" --kept kept.json
    holds "$spec in JSON" "j['cache'] == '$spec' and len(j['tokens']) == 4 and j['kv_bytes'] <= j['peak_kv_bytes'] and \\
          (j['kv_committed_bytes'] <= j['peak_kv_bytes'] + 180 * 65536 or '$spec' == 'vattn')"
    python3 - "$spec" $b > why 2>&1 <<'PYTHON' || fail "what $spec keeps" "$(cat why)"
import json, sys
run, kept, spec = json.load(open("out")), json.load(open("kept.json")), sys.argv[1]
budget = int(sys.argv[2])
tokens, rows = run["prompt_tokens"], sum(len(h) for layer in kept["end"]["kept"] for h in layer)
assert run["kv_bytes"] == rows * 256, (run["kv_bytes"], rows)
assert all(h == sorted(set(h)) for when in ("prefill", "end") for layer in kept[when]["kept"] for h in layer)
name = spec.split(":")[0]
selects = name in ("alisa", "blocktopk", "hylra")
assert (kept["end"]["selected"] is not None) == selects
if selects or name == "vattn":
    assert rows == 90 * (tokens + 3)
elif name == "moa":
    assert rows < 90 * tokens
else:
    assert rows < 90 * tokens * 0.8
if name == "vattn":  # whole pages of 2 MiB, for keys and values of each layer
    assert run["kv_committed_bytes"] % (60 << 21) == 0 < run["kv_committed_bytes"], run["kv_committed_bytes"]
if name in ("snapkv", "h2o", "gemfilter", "sinkring"):
    assert all(len(h) == budget for layer in kept["prefill"]["kept"] for h in layer)
if name in ("pyramidkv", "compresskv"):
    assert sum(len(h) for layer in kept["prefill"]["kept"] for h in layer) == 90 * budget
if name in ("h2o", "sinkring"):
    assert all(len(h) == budget for layer in kept["end"]["kept"] for h in layer)
assert kept["renumbered"] == (name == "gemfilter")
PYTHON
    echo "ok what $spec keeps"
done
for spec in sinkring:budget=$b h2o:budget=$b snapkv:budget=$b shard:local=2 gemfilter:budget=$b alisa blocktopk:top=8 \
    full:k=q8_0,v=q4_0; do
    [ "${FOVEA_SANITIZED:-0}" = 0 ] || break
    expect "gemma $spec" 0 '' "$fovea" run -m "$gemma" --raw -f text -n 3 --json --cache "$spec"
    holds "gemma $spec in JSON" 'len(j["tokens"]) == 3'
done

# ---- bad plans: 1; bad options: 2 ----
echo '{"plan": [0], "full": []}' > bad.json
expect bad_plan 1 "bad.json: 'plan': expected 30 items" $call --cache hylra:plan=bad.json
expect no_plan_file 1 'none.json' $call --cache moa:plan=none.json
expect plan_needed 2 "'plan' must be given" $call --cache moa
expect window 2 'more rows than the window' $call --cache snapkv:budget=32
expect both 2 "acts on the model's own attention" $call --cache h2o --attention moba:block=64

# ---- compare, eval ----
expect compared 0 '' "$fovea" compare -m "$smollm" -f text -n 2 --score 16 --with snapkv:budget=$b \
    --with 'cache=full:k=q8_0,v=q8_0' --with 'attention=sinkwin:window=100 cache=full:k=q8_0' --report r.html --json
holds compared_memory 'j["runs"][1]["kv_bytes"] < 0.5 * j["runs"][0]["kv_bytes"] and j["runs"][2]["kv_bytes"] < 0.6 * j["runs"][0]["kv_bytes"]'
holds compared_distance '0 < j["runs"][2]["kl"] < 0.02 < j["runs"][1]["kl"] or j["runs"][2]["kl"] < j["runs"][1]["kl"]'
expect two_caches 2 'names two caches' "$fovea" compare -m "$smollm" -f text --with 'cache=h2o snapkv'
expect ppl 0 '' "$fovea" eval ppl -m "$smollm" -f text --ctx 256 --chunks 1 --cache snapkv:budget=64 --json
holds ppl_counts 'j["tokens"] == 127'
expect needle 0 '' "$fovea" eval needle -m "$smollm" -f text --lengths 400 --depths 50 --cache h2o:budget=100 --json
expect frontier 0 '' "$fovea" eval cache -m "$smollm" -f text --only sinkring,snapkv,full --percent $percent --score 8 \
    --depths 50 --lengths 300 --report frontier.html --json
holds frontier_rows "[r['policy'] for r in j['rows']] == ['full'] * 4 + ['sinkring'] * $n + ['snapkv'] * $n"
holds frontier_fields 'all({"kv_bytes", "kl", "needle", "prefill_tokens_per_second", "frontier"} <= set(r) for r in j["rows"]) and j["rows"][0]["frontier"]'
grep -q '<svg' frontier.html && ! grep -qi 'http' frontier.html || fail frontier_page 'no picture, or something outside'
echo ok frontier_page
expect frontier_name 2 'no cache policy is called' "$fovea" eval cache -m "$smollm" -f text --only snapk
