# fovea-activations: what rounding activations costs, for each choice, beside f32.
. "$(dirname "$(realpath "$0")")/common.bash"
need_model "$smollm"
activations=$(dirname "$fovea")/fovea-activations
printf 'The licenses for most software are designed to take away your freedom.' > text

works measured 0 mean_kl "$activations" -m "$smollm" -f text --logits f32.npy
holds choices '[(r["activations"], r["path"]) for r in j["rows"]] == [(a, p) for a in ("shipped", "bf16", "int8") for p in ("prompt", "steps")]'
# Rounding to more bits costs less: 15 bits of the largest of 32 values, 8 of each, 7 of the largest of 32.
holds order '(lambda kl: 0 < kl["shipped"] < kl["bf16"] < kl["int8"] < 1)({r["activations"]: r["mean_kl"] for r in j["rows"] if r["path"] == "steps"})'
holds bound 'all(r["mean_kl"] <= 2e-3 for r in j["rows"] if r["activations"] == "shipped")'
holds top 'all(0.5 < r["top1"] <= 1 for r in j["rows"])'
cp out first.json
tokens=$(python3 -c 'import json; print(json.load(open("out"))["tokens"])')
npy shape f32.npy "$tokens,49152" '<f4' > why 2>&1 || fail logits "$(cat why)"
echo ok logits
expect as_run 0 '' "$fovea" run -m "$smollm" -f text --raw -n 1 --precision f32 --logits run.npy --json
cmp -s f32.npy run.npy || fail reference "the reference is not what fovea run computes"
echo ok reference
works threads 0 mean_kl "$activations" -m "$smollm" -f text --threads 1
cmp -s out first.json || fail same_bits "another number of threads gives $(cat out)"
echo ok same_bits
works help 0 'usage: fovea-activations' "$activations" --help
works no_text 2 'missing.*-f TEXT' "$activations" -m "$smollm"
works bad_threads 2 'expected a number' "$activations" -m "$smollm" -f text --threads two
works unknown 2 'unknown option' "$activations" --fast
works no_file 1 'no such' "$activations" -m "$smollm" -f 'no such'
: > empty
works empty 1 'is empty' "$activations" -m "$smollm" -f empty
