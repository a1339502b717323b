# fovea recommend: what is tried, what is found, and the line to copy.
. "$(dirname "$(realpath "$0")")/common.bash"
need_model "$smollm"
need_model "$gemma"
bytes=4000 score=16
[ "${FOVEA_SANITIZED:-0}" = 0 ] || bytes=2200 score=4 # a hundred tokens a second
head -c "$bytes" "$source_dir/LICENSE" > 'the text'
call="$fovea recommend -m $smollm --score $score"

# the bound, the time that decides, and the fastest of those within it
sound='(lambda runs, found: len({r["spec"] for r in runs}) == len(runs) and runs[0]["spec"] == "dense" and runs[0]["kl"] == 0
    and all(r["within"] == (r["kl"] <= j["within"]) for r in runs)
    and all(abs(r["seconds"] / (j["document_tokens"] / r["prefill_tokens_per_second"] + j["answer_tokens"] / r["decode_tokens_per_second"]) - 1) < 1e-3 for r in runs)
    and found["within"] and found["seconds"] == min(r["seconds"] for r in runs if r["within"]))(j["tried"], j["recommended"])'
expect wide 0 '' $call -f 'the text' --within 50 --only sinkring,moba -n 64 -p "What's this?" --json
holds fields '{"model", "document_tokens", "scored_tokens", "within", "answer_tokens", "recommended", "tried", "not_tried"} == set(j)'
holds sound "$sound"
holds counts '1 < len(j["tried"]) + j["not_tried"] <= 5 and j["scored_tokens"] == '$score
cp out found
python3 -c 'import json; print(json.load(open("out"))["recommended"]["command"])' > command
sed "s|^fovea|$fovea|; s|$| -n 2 --json|" command > line
expect copied 0 '' sh ./line
holds copied_is_the_setup '(lambda f: (j["attention"] == (f["attention"] or "dense")) and (j["cache"] == (f["cache"] or "full")))(json.load(open("found"))["recommended"]) and len(j["tokens"]) <= 2'
expect tight 0 '' $call -f 'the text' --within 0 --only moba --raw
grep -q 'Nothing that was tried is within 0 nats of dense: stay with dense' out || fail tight "$(cat out)"
grep -q "fovea run -m .* -f 'the text' --raw\$" out || fail tight_line "$(tail -n 1 out)"
expect given 0 '' $call -f 'the text' --only moba --with sinkwin:window=32 -n 0 --json
holds given_is_first 'j["tried"][1]["spec"] == "sinkwin:window=32" and j["answer_tokens"] == 0 and '"$sound"
expect windows 0 '' "$fovea" recommend -m "$gemma" --score $score -f 'the text' --only sinkwin --json
holds windows_stay 'all("/" not in r["spec"] for r in j["tried"]) and '"$sound"

expect given_refused 2 'cannot be causal' $call -f 'the text' --with bra:grid=4x4
expect only_unknown 2 "did you mean 'moba'" $call -f 'the text' --only mooba
expect only_untried 2 'give it by --with' $call -f 'the text' --only moba,dense
expect no_text 2 'f is missing' $call
printf 'a' > short
expect too_short 1 'expected at least 2' $call -f short --raw
interrupt ctrl_c $call -f "$source_dir/LICENSE" --device ref
