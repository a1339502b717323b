# fovea run: answers, streams, logits, and every way to refuse.
. "$(dirname "$(realpath "$0")")/common.bash"
need_model "$smollm"
need_model "$gemma"
call="$fovea run -m $smollm"
question='What is the capital of France?'

expect answer 0 '' $call -p "$question" -n 12 --json
holds fields '{"model", "architecture", "attention", "cache", "prompt_tokens", "tokens", "text", "stop", "prefill_seconds", "prefill_tokens_per_second", "decode_tokens_per_second", "kv_bytes", "peak_kv_bytes"} <= set(j)'
holds answers '"Paris" in j["text"] and j["stop"] == "end" and j["architecture"] == "llama"'
holds counts 'len(j["tokens"]) <= 12 and j["prompt_tokens"] > 20 and all(type(t) is int for t in j["tokens"])'
holds rows 'j["kv_bytes"] == (j["prompt_tokens"] + len(j["tokens"])) * 30 * 3 * 64 * 2 * 2 == j["peak_kv_bytes"]'
cp out first.json
expect json_is_repeatable 0 '' $call -p "$question" -n 12 --json
holds json_repeats 'j["tokens"] == json.load(open("first.json"))["tokens"]'
expect stream 0 'tokens read' $call -p "$question" -n 12
python3 -c 'import json; assert open("out").read() == json.load(open("first.json"))["text"]' || fail stream_is_the_text "$(cat out)"
echo ok stream_is_the_text
expect quiet 0 '' $call -p "$question" -n 12 --quiet
[ ! -s err ] || fail quiet_is_quiet "$(cat err)"
expect threads 0 '' $call -p "$question" -n 12 --threads 1 --json
holds threads_change_nothing 'j["tokens"] == json.load(open("first.json"))["tokens"]'
expect f32 0 '' $call -p "$question" -n 12 --precision f32 --json
holds f32_answers '"Paris" in j["text"]'
expect limit 0 '' $call -p "$question" -n 2 --json
holds limit_stops 'len(j["tokens"]) == 2 and j["stop"] == "limit"'
expect nothing 0 '' $call -p "$question" -n 0 --json
holds nothing_written 'j["tokens"] == [] and j["text"] == ""'
expect stop 0 '' $call -p "$question" --stop ' is' --json
holds stop_text 'j["stop"] == "text" and " is" not in j["text"]'
expect raw 0 '' $call -p 'The capital of France is' --raw -n 4 --json
holds raw_continues '"Paris" in j["text"] and j["prompt_tokens"] == 5'
printf 'Mr. Grimaud keeps seventeen bees.' > doc
expect document 0 '' $call -f doc -p 'How many bees does he keep? Answer with one number.' -n 24 --json
holds document_is_read '"eventeen" in j["text"] or "17" in j["text"]'
expect sampled 0 '' $call -p "$question" -n 12 --temp 1.5 --top-k 50 --top-p 0.9 --min-p 0.01 --repeat-penalty 1.1 --seed 7 --json
cp out seven.json
expect sampled_again 0 '' $call -p "$question" -n 12 --temp 1.5 --top-k 50 --top-p 0.9 --min-p 0.01 --repeat-penalty 1.1 --seed 7 --json
holds seed_repeats 'j["tokens"] == json.load(open("seven.json"))["tokens"]'
for spec in sinkwin:sink=4,window=8 power:block=4,window_blocks=2 '0-3,29/dense;rest/sinkwin:window=16'; do
    expect "attention $spec" 0 '' $call -p "$question" -n 4 --attention "$spec" --json
    holds "attention $spec in JSON" "j['attention'] == '$spec'"
done
expect gemma 0 'no chat template' "$fovea" run -m "$gemma" -p 'The capital of France is' -n 4
grep -q 'the capital of' out || fail gemma "$(cat out)"
echo ok gemma_continues

# ---- logits ----
expect logits 0 '' $call --raw -p 'one two three four five' -n 1 --logits l.npy --json
npy shape l.npy "$(python3 -c 'import json; print(json.load(open("out"))["prompt_tokens"])'),49152" '<f4' > why 2>&1 || fail logits_shape "$(cat why)"
echo ok logits_shape
expect logits_sinkless 2 '' $call --raw -p 'one two' --attention nothing --logits m.npy
absent no_logits_after_failure m.npy

# ---- caches ----
words=$(seq -s ' ' 1 150)
for spec in full 'full:k=q8_0,v=bf16' sinkring:budget=64 '0-9,29/sinkring:window=60;rest/full'; do
    expect "cache $spec" 0 '' $call --raw -p "$words" -n 5 --cache "$spec" --json --kept kept.json --step-logits s.npy
    holds "cache $spec in JSON" "j['cache'] == '$spec'"
    holds "bytes under $spec" "j['kv_bytes'] <= j['peak_kv_bytes'] and j['kv_committed_bytes'] >= j['kv_bytes'] and \
          j['kv_committed_bytes'] <= j['kv_bytes'] + 180 * 65536"
    npy shape s.npy 5,49152 '<f4' > why 2>&1 || fail "step logits under $spec" "$(cat why)"
    python3 - "$spec" > why 2>&1 <<'PYTHON' || fail "kept rows under $spec" "$(cat why)"
import json, sys
run, kept, spec = json.load(open("out")), json.load(open("kept.json")), sys.argv[1]
assert kept["policy"] == spec and kept["layers"] == 30 and kept["kv_heads"] == [3] * 30, kept["policy"]
assert kept["prompt_tokens"] == run["prompt_tokens"] and not kept["renumbered"]
n = kept["positions"]
assert n == run["prompt_tokens"] + 4 == len(kept["ids"]) and kept["ids"][-4:] == run["tokens"][:4]
assert kept["end"]["selected"] is None
for when, count in ("prefill", run["prompt_tokens"]), ("end", n):
    for layer, heads in enumerate(kept[when]["kept"]):
        acts = spec.startswith("sinkring") or (spec[0] == "0" and (layer < 10 or layer == 29))
        rows = [j for j in range(count) if not acts or j < 4 or count - 1 - j < 60]
        assert heads == [rows] * 3, (when, layer, heads[0])
PYTHON
    echo "ok kept rows under $spec"
done
expect first_token 0 '' $call --raw -p "$words" -n 1 --logits l.npy --step-logits s.npy --cache sinkring:window=2000
cmp -s <(tail -c $((49152 * 4)) l.npy) <(tail -c $((49152 * 4)) s.npy) || fail first_token 'row 0 is not the prompt'"'"'s last'
echo ok first_token_comes_from_the_prompt

# ---- policies by position, and a filter of prompts ----
python3 -c 'import json; json.dump({"alphas": [[0] * 3] * 30, "betas": [[0.25, 0.5, 1]] * 30}, open("spans.json", "w"))'
for spec in shard:block=16,local=4,stride=3 layer_plan:block=16,budget=96,full=interleaved moa:plan=spans.json,max_new=8 \
    gemfilter:budget=70,keep_last=2; do
    expect "cache $spec" 0 '' $call --raw -p "$words" -n 5 --cache "$spec" --json --kept kept.json
    ! grep -q warning err || fail "no warning under $spec" "$(cat err)"
    python3 - "$spec" > why 2>&1 <<'PYTHON' || fail "kept rows under $spec" "$(cat why)"
import json, sys
run, kept, spec = json.load(open("out")), json.load(open("kept.json")), sys.argv[1]
T, n = kept["prompt_tokens"], kept["positions"]
assert n == T + 4 == len(kept["ids"]) and kept["renumbered"] == spec.startswith("gem")
full = [(2 * m + 1) * 30 // 22 for m in range(11)]
def sees(p, l, g, j):
    P, J = p // 16, j // 16
    if spec.startswith("shard"): return P - J < 4 or (J + g) % 3 == 0
    if spec.startswith("layer"): return l in full or J < 1 or P - J < 5
    S = (max(int([.25, .5, 1][g] * (T + 8)), 128) + 63) // 64 * 64
    return j < 64 or p - j < S - 64
for when, count in ("prefill", T), ("end", n):
    for l, heads in enumerate(kept[when]["kept"]):
        for g, rows in enumerate(heads):
            if spec.startswith("gem"):
                assert rows == heads[0] == kept[when]["kept"][0][0] and len(rows) == 70 + count - T, (when, l, rows)
                assert rows == sorted(set(rows)) and rows[68:] == list(range(T - 2, count)), rows
            else:
                assert rows == [j for j in range(count) if sees(count - 1, l, g, j)], (when, l, g, rows)
rows = sum(len(rows) for heads in kept["end"]["kept"] for rows in heads)
assert run["kv_bytes"] == rows * 64 * 2 * 2, (run["kv_bytes"], rows)
PYTHON
    echo "ok kept rows under $spec"
done
expect shards_that_lack_blocks 0 'warning: shard: outside the window 3 of every 8 blocks' $call -p a -n 1 --cache shard
[ "$(grep -c warning: err)" -eq 1 ] || fail one_warning "$(cat err)"
expect logits_of_what_is_left_out 2 'leaves some of' $call --raw -p "$words" -n 1 --cache gemfilter:budget=70 --logits g.npy
absent no_logits_of_what_is_left_out g.npy
expect moa_without_plan 2 'plan' $call -p a --cache moa
expect moa_no_such_plan 1 'nosuch.json' $call -p a --cache moa:plan=nosuch.json
echo '{"alphas": [[1]], "betas": [[1]]}' > short.json
expect moa_short_plan 1 'expected 30 items, got 1' $call -p a --cache moa:plan=short.json

# ---- the command line is wrong: 2 ----
expect no_model 2 'is missing' "$fovea" run -p a
expect no_prompt 2 'nothing to read' sh -c "exec $call < /dev/null"
expect unknown_attention 2 "did you mean 'sinkwin'" $call -p a --attention sinkwn
expect unknown_option 2 "did you mean 'window'" $call -p a --attention sinkwin:windo=3
expect bad_layers 2 'outside 0 to 29' $call -p a --attention '0-30/dense'
expect never_causal 2 '' $call -p a --attention bra:grid=4x4
expect no_cache 2 'no cache policy is called' $call -p a --cache nosuch
expect no_steer 2 'none is registered' $call -p a --steer pasta
expect bad_precision 2 'auto or f32' $call -p a --precision f64
expect bad_temperature 2 'expected 0 to' $call -p a --temp -1
expect bad_top_p 2 'expected 0 to 1' $call -p a --top-p 2
expect bad_tokens 2 'n: expected' $call -p a -n -1

# ---- the work fails: 1 ----
expect empty_prompt 1 'empty' $call -p ''
: > empty
expect empty_document 1 'empty: is empty' $call -f empty -p "$question"
expect no_document 1 'cannot be opened' $call -f none -p "$question"
printf 'ab\xff' > bytes
expect not_utf8 1 'bytes: is not UTF-8 text at byte offset 2' $call -f bytes -p "$question"
expect no_model_file 1 'cannot be opened' "$fovea" run -m none.gguf -p a
python3 -c 'print("a word or two " * 4000)' > long
expect past_context 1 'bytes of the text fit' $call -f long -p "$question"
expect past_ctx 1 'model allows more' $call -p "$question" --ctx 8
dd if="$smollm" of=cut.gguf bs=1M count=40 2> /dev/null
expect cut_model 1 'cut.gguf' "$fovea" run -m cut.gguf -p a
expect not_utf8_question 1 "-p: is not UTF-8 text at byte offset 1" $call -p "$(printf 'a\xffb')"
mkfifo pipe
expect pipe_for_model 1 'expected a regular file' timeout 300 "$fovea" run -m pipe -p a
sh -c "$call -p '$question' --quiet 2> err; echo \$? > status" | :
[ "$(cat status)" -eq 1 ] && grep -q 'standard output cannot be written' err || fail closed_pipe "$(cat status err)"
echo ok closed_pipe_is_a_sentence
expect full_disk 1 'standard output cannot be written: No space' sh -c "exec $call -p a -n 4 > /dev/full"

# ---- Ctrl-C ----
head -c 20000 /usr/share/common-licenses/GPL-3 > doc 2> /dev/null || head -c 11000 "$source_dir/LICENSE" > doc
interrupt ctrl_c_waiting $call -f pipe -p "$question"
interrupt ctrl_c $call -f doc -p "$question" --device ref --logits l2.npy
absent ctrl_c_leaves_nothing l2.npy
