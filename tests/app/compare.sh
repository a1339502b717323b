# fovea compare: the procedure, its JSON, the table and the report.
. "$(dirname "$(realpath "$0")")/common.bash"
need_model "$smollm"
call="$fovea compare -m $smollm"
cat > '<b>doc & co.txt' << 'TEXT'
Mr. Grimaud keeps seventeen bees in a glass house behind the railway station. Every morning he counts them twice, once
from the left and once from the right, and writes both numbers into a red book. On Sundays he reads from the book to the
bees, who do not listen. His sister, who lives in Tampere, believes that he keeps pigeons. <script>alert(1)</script>
TEXT
doc='<b>doc & co.txt'
question='How many bees does he keep? <i>'

expect compare 0 '' $call -f "$doc" -p "$question" --with sinkwin:sink=2,window=16 --with 'attention=0-3/dense;rest/power:block=8' \
    --with dense -n 8 --score 16 --json --report r.html
holds fields 'set(j) == {"model", "document_tokens", "scored_tokens", "runs"}'
holds run_fields 'all(set(r) == {"spec", "prefill_tokens_per_second", "decode_tokens_per_second", "kv_bytes", "density", "kl", "top1", "perplexity", "answer", "tokens", "attention_seconds", "score_seconds", "select_seconds", "attention_speedup"} for r in j["runs"])'
holds dense_is_first '[r["spec"] for r in j["runs"]] == ["dense", "sinkwin:sink=2,window=16", "attention=0-3/dense;rest/power:block=8", "dense"]'
holds scored 'j["scored_tokens"] == 16 and 80 < j["document_tokens"] < 160'
holds dense_is_dense 'j["runs"][0]["kl"] == 0 and j["runs"][0]["top1"] == 1 and abs(j["runs"][0]["density"] - 1) < 1e-9'
holds same_set_up_same_numbers 'all(j["runs"][3][f] == j["runs"][0][f] for f in ["kl", "top1", "perplexity", "answer", "tokens", "kv_bytes", "density"])'
holds others_differ 'all(0 < r["kl"] < 10 and 0 <= r["top1"] <= 1 and r["perplexity"] > 1 and 0 < r["density"] < 1 for r in j["runs"][1:3])'
holds speeds 'all(r["prefill_tokens_per_second"] > 0 and r["decode_tokens_per_second"] > 0 for r in j["runs"])'
holds attention_times 'all(r["attention_seconds"] > 0 and r["attention_speedup"] > 0 and r["score_seconds"] == 0 for r in j["runs"])'
holds attention_of_dense 'j["runs"][0]["attention_speedup"] == 1'
holds attention_of_the_same_layers '(lambda a, b: abs(b["attention_speedup"] * b["attention_seconds"] / a["attention_seconds"] - 1) < 1e-5)(*j["runs"][:2])'
holds attention_of_fewer_layers '(lambda a, b: b["attention_speedup"] * b["attention_seconds"] < a["attention_seconds"])(j["runs"][0], j["runs"][2])'
holds answers 'all(len(r["tokens"]) <= 8 for r in j["runs"])'
cp out compare.json

# the answer of dense is what run gives for the same prompt
expect run 0 '' "$fovea" run -m "$smollm" -f "$doc" -p "$question" -n 8 --json
holds answer_is_runs 'j["tokens"] == json.load(open("compare.json"))["runs"][0]["tokens"]'

# where the document and the question are all read densely, nothing is left of a mechanism
expect dense_last 0 '' $call -f "$doc" -p "$question" --with anchor:block=16,step=1,init=0,theta=-inf --dense-last 256 -n 8 \
    --score 16 --json
holds nothing_is_left '(lambda a, b: b["kl"] < 1e-3 and b["tokens"] == a["tokens"])(*j["runs"])'

# perplexity and distance are what the logits of run give
cat > check.py << 'PYTHON'
import json, math, struct, sys
def rows(path):
    data = open(path, "rb").read()
    size = struct.unpack("<H", data[8:10])[0]
    body, vocabulary = data[10 + size:], 49152
    return [struct.unpack_from(f"<{vocabulary}f", body, 4 * vocabulary * r) for r in range(len(body) // 4 // vocabulary)]
def log_softmax(row):
    top = max(row)
    total = top + math.log(sum(math.exp(x - top) for x in row))
    return [x - total for x in row]
compared = json.load(open("compare.json"))
T, S = compared["document_tokens"], compared["scored_tokens"]
dense, window = rows("dense.npy"), rows("window.npy")
kl = top1 = 0
for t in range(T - S, T):
    p, q = log_softmax(dense[t]), log_softmax(window[t])
    kl += sum(math.exp(a) * (a - b) for a, b in zip(p, q)) / S
    top1 += (max(range(len(p)), key=p.__getitem__) == max(range(len(q)), key=q.__getitem__)) / S
got = compared["runs"][1]
assert abs(got["kl"] - kl) < 0.02 * kl + 1e-3, f"KL: expected {kl}, got {got['kl']}"
assert abs(got["top1"] - top1) < 0.07, f"top-1: expected {top1}, got {got['top1']}"
PYTHON
expect dense_logits 0 '' "$fovea" run -m "$smollm" -f "$doc" -p "$question" -n 0 --logits dense.npy --json
expect window_logits 0 '' "$fovea" run -m "$smollm" -f "$doc" -p "$question" -n 0 --logits window.npy --attention sinkwin:sink=2,window=16 --json
python3 check.py > why 2>&1 || fail figures_agree_with_logits "$(tail -n 1 why)"
echo ok figures_agree_with_logits

# ---- the report ----
python3 - << 'PYTHON' > why 2>&1 || fail report "$(tail -n 1 why)"
import html.parser, re
text = open("r.html", encoding="utf-8").read()
assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")
assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", text), "asks for something outside"
assert not re.search(r"url\(|@import|https?://", text), "names something outside"
assert "<script" not in text and "<b>doc" not in text and "<i>" not in text, "text of others is not escaped"
assert "&lt;b&gt;doc &amp; co.txt" in text and "&lt;i&gt;" in text
assert text.count("<svg") == 8 and text.count("data:image/png;base64,") == 8 and text.count('class="pair"') == 2 and "prefers-color-scheme" in text
class Balance(html.parser.HTMLParser):
    stack = []
    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "rect", "br"): self.stack.append(tag)
    def handle_startendtag(self, tag, attrs): pass
    def handle_endtag(self, tag): assert self.stack.pop() == tag, tag
parser = Balance()
parser.feed(text)
assert not parser.stack, parser.stack
PYTHON
echo ok report
python3 - << 'PYTHON' > why 2>&1 || fail pictures "$(tail -n 1 why)"
import base64, re, struct, zlib
text = open("r.html", encoding="utf-8").read()
tokens = __import__("json").load(open("compare.json"))["document_tokens"] - 16
assert re.search(r"layer 15, head [0-8]: ([0-9.]+) % of the attention is on the ([0-9.]+) % of pairs", text), "no words"
images = [base64.b64decode(u) for u in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", text)][4:]
for n, data in enumerate(images): # as many cells as tokens; blank exactly where a query comes before a key
    width, height = struct.unpack(">II", data[16:24])
    at = data.index(b"IDAT")
    raw = zlib.decompress(data[at + 4:at + 4 + struct.unpack(">I", data[at - 4:at])[0]])
    assert width == height == tokens, (width, tokens)
    for i in range(height):
        row = raw[i * (width + 1) + 1:(i + 1) * (width + 1)]
        assert all((row[k] == 0) == (k > i) for k in range(width)), f"image {n}, query {i}"
        if n == 0: # sinkwin:sink=2,window=16
            assert all((row[k] == 254) == (k < 2 or i - k < 16) for k in range(i + 1)), f"query {i}"
PYTHON
echo ok pictures

# ---- the table ----
expect table 0 'report: t.html' $call -f "$doc" -p "$question" --with lightning2 -n 2 --score 8 --report t.html
grep -q '^SET-UP  *READ  *WRITE  *MEMORY  *DENSITY  *KL  *TOP-1  *PPL  *ATTENTION' out && grep -q '^lightning2 .*x)' out || fail table "$(cat out)"
grep -q 'keeps a state' t.html || fail report_of_a_state "it does not say so"
expect short 0 'the last' $call -f "$doc" --with moba:block=8,top=2 -n 1 --score 100000 --json
holds short_scores_what_there_is 'j["scored_tokens"] == j["document_tokens"] - 1'
expect choosing 0 '' $call -f "$doc" --with moba:block=8,top=2 -n 0 --score 4 --json
holds choosing_has_its_time '(lambda r: 0 < r["score_seconds"] and 0 < r["select_seconds"] and
    r["score_seconds"] + r["select_seconds"] < r["attention_seconds"])(j["runs"][1])'

# ---- refusals ----
expect no_with 2 'with is missing' $call -f "$doc"
expect no_document 2 'no document' $call --with dense
expect unknown_setup 2 "did you mean 'sinkwin'" $call -f "$doc" --with sinkwn
expect late_setup_is_checked_first 2 'windo' $call -f "$doc" --with sinkwin:window=8 --with sinkwin:windo=8
[ ! -s out ] || fail late_setup_is_checked_first "$(cat out)"
expect cache 2 'no cache policy is called' $call -f "$doc" --with 'cache=nosuch:budget=64'
expect steer 2 'none is registered' $call -f "$doc" --with 'dense steer=x'
expect two_attentions 2 'two attentions' $call -f "$doc" --with 'dense attention=dense'
expect empty_with 2 'expected a SPEC' $call -f "$doc" --with ''
expect bad_score 2 'score' $call -f "$doc" --with dense --score 0
: > empty
expect empty_document 1 'is empty' $call -f empty --with dense
printf a > one
expect no_file 1 'cannot be opened' $call -f none --with dense
python3 -c 'print("a word or two " * 4000)' > long
expect past_context 1 'bytes of the text fit' $call -f long --with dense
expect report_folder 1 'cannot be created' $call -f "$doc" --with dense -n 1 --score 2 --report none/r.html
TMPDIR=/nowhere expect no_scratch 1 'TMPDIR' $call -f "$doc" --with dense
head -c 20000 /usr/share/common-licenses/GPL-3 > big 2> /dev/null || head -c 11000 "$source_dir/LICENSE" > big
interrupt ctrl_c $call -f big --with dense --device ref --report half.html
absent ctrl_c_leaves_nothing half.html
