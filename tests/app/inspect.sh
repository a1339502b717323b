# Probes that listen to a reading: fovea inspect on both models, alone and together, files, the report, refusals.
. "$(dirname "$(realpath "$0")")/common.bash"
need_model "$smollm"
need_model "$gemma"
bytes=6000 prefix=100
[ "${FOVEA_SANITIZED:-0}" = 0 ] || bytes=700 prefix=24 # a hundred tokens a second
head -c "$bytes" "$source_dir/LICENSE" > text
look="$fovea inspect -m $smollm -f text"

# ---- together, and one by one ----
streaming="entropy distance:clip=50 sink_mass:sink=2,recent=16 top_keys:top=3"
prefixes="logit_growth:tokens=$prefix attn_indicators:tokens=$prefix"
specs="$streaming $prefixes"
expect together 0 '' $look $(printf -- ' --probe %s' $specs) --report page.html --json
cp out together.json
holds all_are_there '[p["probe"] for p in j["probes"]] == ["entropy", "distance", "sink_mass", "top_keys", "logit_growth", "attn_indicators"]'
holds layers_and_heads 'all([l["layer"] for l in p["layers"]] == list(range(30)) for p in j["probes"]) and all(
    [h["head"] for h in l["heads"]] == list(range(9)) for p in j["probes"][:5] for l in p["layers"])'
holds tokens "[p['tokens'] for p in j['probes']][4:] == [$prefix, $prefix] and len({p['tokens'] for p in j['probes'][:4]}) == 1"
python3 - > why 2>&1 << 'PYTHON' || fail numbers "$(cat why)"
import json, math
entropy, distance, sink, top, growth, maps = json.load(open("together.json"))["probes"]
def heads(p): return [h for l in p["layers"] for h in l["heads"]]
tokens = entropy["tokens"]
assert all(0 <= h["entropy"] <= math.log(tokens) for h in heads(entropy))
assert all(0 <= h["distance"] <= 50 for h in heads(distance))
assert all(0 <= h["sink"] <= 1.001 and 0 < h["recent"] <= 1.001 for h in heads(sink))
for h in heads(top):
    shares = [k["share"] for k in h["keys"]]
    assert len(shares) == 3 and shares == sorted(shares, reverse=True) and 0 < shares[2] and abs(sum(shares) - h["share"]) < 1e-6
    assert all(0 <= k["position"] < tokens and isinstance(k["text"], str) for k in h["keys"])
assert sum(k["position"] == 0 for h in heads(top) for k in h["keys"]) > 100  # the first token is a sink
for p, name, whole in ((entropy, "entropy", lambda x: sum(x) / 9), (growth, "max_logit", max)):
    for l in p["layers"]:
        assert abs(l[name] - whole([h[name] for h in l["heads"]])) < 1e-6 * (1 + l[name])
names = ["entropy", "norm", "diversity", "sink", "local0", "local1", "local2", "local3"]
for l in growth["layers"]:
    assert l["y"] == [[h["max_logit"], h["entropy"]] for h in l["heads"]]
assert "y" not in entropy["layers"][0]  # there is no layer of that name
for l in maps["layers"]:
    assert set(l) == {"layer", "window", "y", *names} and l["y"] == [l[name] for name in names]
    assert 0 < l["sink"] < 1 and 0 < l["norm"] <= math.sqrt(maps["tokens"]) and l["window"] == 0
PYTHON
echo ok numbers
number=0
for spec in $specs; do
    expect "alone_$spec" 0 '' $look --probe "$spec" --json
    python3 -c 'import json, sys; sys.exit(json.load(open("out")) != json.load(open("together.json"))["probes"]['$number'])' ||
        fail "alone_$spec" 'not what it finds with the others'
    number=$((number + 1))
    [ "${FOVEA_SANITIZED:-0}" = 0 ] || break
done
expect by_name 0 '' "$fovea" inspect entropy:layers=3+5,heads=0 -m "$smollm" -f text --json
holds parts '[l["layer"] for l in j["layers"]] == [3, 5] and all([h["head"] for h in l["heads"]] == [0] for l in j["layers"])'
expect words 0 '' $look --probe entropy --probe top_keys:layers=4
grep -q 'LEAST (HEAD)' out && grep -q "most attention over all heads" out || fail words "$(head -n 5 out)"

# ---- windows of a model's own ----
expect windows 0 '' "$fovea" inspect -m "$gemma" -f text --probe distance --probe attn_indicators:tokens="$prefix" --json
holds windows_are_kept 'all((l["window"] == 512) == ((l["layer"] + 1) % 6 != 0) and (l["window"] == 0 or max(h["distance"] for h in l["heads"]) < 512) for l in j["probes"][0]["layers"])'

expect begin 0 '' "$fovea" inspect -m "$gemma" -f text --probe top_keys:tokens="$prefix",layers=5 --json
holds token_of_no_text 'all("<bos>" in [k["text"] for k in h["keys"] if k["position"] == 0] for h in j["layers"][0]["heads"])'

# ---- files ----
expect files 0 '' $look --probe entropy:bins=8,out=e.npy --probe sink_mass:bins=4,heads=1,out=s.npy --probe top_keys:out=k.npy --probe attn_indicators:tokens="$prefix",out=m.npy --json
python3 - > why 2>&1 << 'PYTHON' || fail file_shapes "$(cat why)"
import ast, json, math, struct
def load(name):
    data = open(name, "rb").read()
    length = int.from_bytes(data[8:10], "little")
    shape = ast.literal_eval(data[10:10 + length].decode())["shape"]
    return shape, struct.unpack(f"<{math.prod(shape)}f", data[10 + length:])
found = json.load(open("out"))["probes"]
tokens = found[0]["tokens"]
shape, bins = load("e.npy")
assert shape == (30, 9, 8), shape
edges = [-(-b * tokens // 8) for b in range(9)]
for n, head in enumerate(h for l in found[0]["layers"] for h in l["heads"]):
    mean = sum(bins[8 * n + b] * (edges[b + 1] - edges[b]) for b in range(8)) / tokens
    assert abs(mean - head["entropy"]) < 1e-5 * (1 + mean), (n, mean, head)
shape, bins = load("s.npy")
assert shape == (2, 30, 9, 4) and sum(not math.isnan(x) for x in bins) == 2 * 30 * 4, shape
shape, keys = load("k.npy")
assert shape == (30, 9, tokens), shape
assert all(abs(sum(keys[n * tokens:(n + 1) * tokens]) - 1) < 1e-4 for n in range(270))
shape, maps = load("m.npy")
assert shape == (8, 30) and all(abs(maps[l] - found[3]["layers"][l]["entropy"]) < 1e-4 * maps[l] for l in range(30)), shape
PYTHON
echo ok file_shapes

# ---- the report ----
grep -q '<h2>How spread out attention is</h2>' page.html && [ "$(grep -c '<figure class="heat">' page.html)" -ge 7 ] || fail report "$(head -c 300 page.html)"
! grep -Eq '(src|href)="?http|<script' page.html || fail report 'it is not by itself'
python3 - > why 2>&1 << 'PYTHON' || fail report_html "$(tail -n 1 why)"
from html.parser import HTMLParser
class Check(HTMLParser):
    stack = []
    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br"): self.stack.append(tag)
    def handle_startendtag(self, tag, attributes): pass
    def handle_endtag(self, tag): assert self.stack.pop() == tag, (tag, self.stack, self.getpos())
    def handle_data(self, data): assert "nan" not in data.lower().split() and "inf" not in data.split(), data
check = Check()
check.feed(open("page.html", encoding="utf-8").read())
assert not check.stack, check.stack
PYTHON
echo ok report
expect report_of_plans 0 '' "$fovea" inspect -m "$smollm" -f text --probe attn_influence:tokens="$prefix",answer=4,block=16 --report influence.html --json
holds influence_by_head 'all([h["total"] for h in l["heads"]] == l["total"] and len(l["heads"]) == 3 for l in j["layers"])'
grep -q '<h2>Attention influence</h2>' influence.html || fail report_of_plans 'no section'

# ---- refusals ----
expect near 2 "did you mean 'sink_mass'" $look --probe sink_mas
expect option 2 "did you mean 'tokens'" $look --probe entropy:token=3
expect range 2 'expected 1 to 4096' $look --probe entropy:bins=0
expect maps_range 2 'expected 2 to 4096' $look --probe attn_indicators:tokens=5000
expect no_model 2 'm MODEL is missing' "$fovea" inspect -f text --probe entropy
expect no_text 2 'f FILE is missing' "$fovea" inspect -m "$smollm" --probe entropy
expect beyond 2 'was trained for' $look --probe entropy:tokens=9000
expect no_layer 2 "'layers': the model has 30" $look --probe distance:layers=30
expect no_head 2 "'heads': the model has 9" $look --probe distance:heads=0+9
expect short 0 '' $look --probe entropy:tokens=4000 --json # all of a shorter text
holds short_is_read "j['tokens'] == $(python3 -c 'import json; print(json.load(open("together.json"))["probes"][0]["tokens"])')"
printf x > one
expect one_token 1 'at least 2 tokens, got 1' "$fovea" inspect -m "$smollm" -f one --probe entropy
expect no_folder 1 'cannot be created' $look --probe entropy:out=nowhere/e.npy
expect no_page 1 'cannot be created' $look --probe entropy --report nowhere/page.html
absent nothing_left nowhere
