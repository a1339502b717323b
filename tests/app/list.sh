# fovea list, show, help: what the tables say, and wrong command lines.
. "$(dirname "$(realpath "$0")")/common.bash"

expect version 0 '' "$fovea" --version
grep -q '^fovea [0-9]*\.[0-9]*\.[0-9]*$' out || fail version "$(cat out)"
expect list 0 '' "$fovea" list
grep -q '^sinkwin ' out || fail list_names_mechanisms "$(cat out)"
expect list_json 0 '' "$fovea" list --json
holds list_fields 'all(set(r) == {"name", "kind", "title", "sheet", "family", "traits"} for r in j)'
holds list_kinds '{r["kind"] for r in j} == {"mechanism", "policy", "probe", "layer", "operator", "reducer", "steer", "model"}'
holds list_has 'all(n in [r["name"] for r in j] for n in ["dense", "sinkwin", "power", "lightning2", "hedgehog", "llama", "gemma3"])'
holds list_once 'len({(r["kind"], r["name"]) for r in j}) == len(j)'
expect show_both 0 '' "$fovea" show attn_influence --json
holds show_both_probes '[j["kind"]] + [a["kind"] for a in j["also"]] == ["probe", "probe"] and j["also"][0]["inputs"]'
expect list_one_kind 0 '' "$fovea" list mechanism --json
holds list_one_kind_only 'j and all(r["kind"] == "mechanism" and r["traits"] for r in j)'
names=$(python3 -c 'import json; print(*[r["name"] for r in json.load(open("out"))])')
expect list_models 0 '' "$fovea" list models --json
holds list_models_only 'j and all(r["kind"] == "model" for r in j)'
for word in policy policies; do
    expect "list_$word" 0 '' "$fovea" list $word --json
    holds "list_${word}_only" '(all(r["kind"] == "policy" and r["family"] in ("cache", "policy") and r["title"] for r in j)
        and {"full", "sinkring"} <= {r["name"] for r in j if r["family"] == "cache"}
        and {"tile_search"} == {r["name"] for r in j if r["family"] == "policy"})' # on tensors
done
policies=$(python3 -c 'import json; print(*[r["name"] for r in json.load(open("out")) if r["family"] == "cache"])')
expect list_policies_table 0 '' "$fovea" list policy
grep -Eq '^sinkring +policy +cache ' out || fail list_policies_table "$(cat out)"

some() { # all of them, or under sanitizers, where each walks through the same code, a few
    [ "${FOVEA_SANITIZED:-0}" = 0 ] && echo "$@" || echo "${@:1:5}"
}
for name in $(some $names) llama; do
    expect "show_$name" 0 '' "$fovea" show "$name" --json
    holds "show_${name}_fields" '{"options", "params", "formula", "cost", "paper", "name", "kind", "title", "sheet", "family", "traits"} == set(j) - {"also"}'
    holds "show_${name}_options" 'all({"name", "type", "default", "min", "max", "help"} <= set(o) and o["help"] for o in j["options"])'
    holds "show_${name}_params" 'all(set(p) == {"name", "shape", "help"} for p in j["params"])'
    expect "show_${name}_text" 0 '' "$fovea" show "$name"
done
for name in $(some $policies) blocktopk; do # one that is also a mechanism has the policy under "also"
    expect "show_${name}" 0 '' "$fovea" show "$name" --json
    holds "show_${name}_fields" '{"options", "params", "formula", "cost", "paper", "name", "kind", "title", "sheet", "family", "traits"} == set(j) - {"also"}'
    holds "show_${name}_policy" '[r["kind"] for r in [j] + j.get("also", [])].count("policy") == 1'
    holds "show_${name}_common" '(lambda p: p["formula"] and p["params"] == [] and [n for n in [o["name"] for o in p["options"]]
        if n in ("k", "v", "page")].__len__() == 3)([r for r in [j] + j.get("also", []) if r["kind"] == "policy"][0])'
    expect "show_${name}_text" 0 '' "$fovea" show "$name"
    grep -q '^  keeps  ' out && grep -q '^  k=f16 ' out || fail "show_${name}_text" "$(cat out)"
done
expect show_sinkring 0 '' "$fovea" show sinkring --json
holds policy_defaults '{o["name"]: o["default"] for o in j["options"]} == {"sink": 4, "window": 1020, "budget": 0, "rope": "true", "prefill": "window", "k": "f16", "v": "f16", "page": 0}'
holds policy_choices '[o["choices"] for o in j["options"] if o["name"] == "k"] == [["f16", "bf16", "f32", "q8_0", "q4_0"]]'
holds policy_traits '{"position", "bounded"} <= set(j["traits"]) and j["paper"].startswith("arXiv ")'
expect show_sinkwin 0 '' "$fovea" show sinkwin --json
holds defaults '{o["name"]: str(o["default"]) for o in j["options"]} == {"sink": "4", "window": "1024", "block": "1"}'

expect no_verb 2 '' sh -c "$fovea 2> e; s=\$?; grep -q usage e || exit 9; echo 'fovea: usage shown' >&2; exit \$s"
expect unknown_verb 2 "did you mean 'compare'" "$fovea" compar
expect no_train 2 'no verb of this version' "$fovea" train
expect half_a_verb 2 'ppl or needle' "$fovea" eval
expect unknown_name 2 "did you mean 'sinkwin'" "$fovea" show sinkwn
expect no_name 2 'NAME' "$fovea" show
expect unknown_kind 2 'mechanism, policy, probe, layer, operator, reducer, steer or model' "$fovea" list caches
expect near_kind 2 "did you mean 'policy'" "$fovea" list polcy
expect unknown_policy 2 "did you mean 'sinkring'" "$fovea" show sinkrng
expect too_many 2 'not expected' "$fovea" show dense power
expect full_disk 1 'cannot be written' sh -c "exec $fovea list > /dev/full"
sh -c "$fovea help --man; echo \$? > status" | head -c 1 > /dev/null
echo ok closed_pipe_is_no_signal

for verb in run compare recommend "eval ppl" "eval needle" "eval cache" "eval recall" "inspect srh" "inspect hylra" "inspect moa" "inspect attn_influence" inspect attend apply list show tokenize bench serve; do
    expect "help ${verb}" 0 '' "$fovea" help $verb
    cp out first
    expect "${verb} --help" 0 '' "$fovea" $verb --help
    cmp -s out first || fail "help of $verb" "two ways, two texts"
done
expect help_family 0 '' "$fovea" eval --help
grep -q -- '--depths' out && grep -q -- '--chunks' out || fail help_family "$(cat out)"
expect man 0 '' "$fovea" help --man
grep -q '^.TH FOVEA 1' out || fail man "$(head -n 1 out)"
for flag in attention with depths threads; do # every verb's flags are in the page, with their dashes escaped
    grep -q -- "\\\\-\\\\-$flag" out || fail man_flags "--$flag is not in the man page"
done
expect bash_completion 0 '' "$fovea" help --bash
bash -n out || fail bash_completion "does not parse"
complete_with() { # WORDS...: what bash would offer for the last of them
    bash -c '. ./completion; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _fovea; echo "${COMPREPLY[@]}"' _ "$@"
}
cp out completion
[ "$(complete_with fovea comp)" = compare ] || fail completes_verbs "$(complete_with fovea comp)"
[ "$(complete_with fovea run --attent)" = --attention ] || fail completes_flags "$(complete_with fovea run --attent)"
[ "$(complete_with fovea attend -a sinkw)" = sinkwin ] || fail completes_names "$(complete_with fovea attend -a sinkw)"
[ "$(complete_with fovea run --cache sinkr)" = sinkring ] || fail completes_policies "$(complete_with fovea run --cache sinkr)"
[ "$(complete_with fovea show sinkr)" = sinkring ] || fail completes_shown "$(complete_with fovea show sinkr)"
[ "$(complete_with fovea apply hc)" = hcam ] || fail completes_layers "$(complete_with fovea apply hc)"
[ "$(complete_with fovea list po)" = policy ] || fail completes_kinds "$(complete_with fovea list po)"
[ "$(complete_with fovea inspect --probe hyl)" = hylra ] || fail completes_probes "$(complete_with fovea inspect --probe hyl)"
[ "$(complete_with fovea inspect mo)" = moa ] || fail completes_both "$(complete_with fovea inspect mo)"
[ "$(complete_with fovea in)" = inspect ] || fail completes_once "$(complete_with fovea in)"
[ "$(complete_with fovea eval '')" = 'ppl needle cache recall' ] || fail completes_families "$(complete_with fovea eval '')"
echo ok bash_completes
expect zsh_completion 0 '' "$fovea" help --zsh
head -n 1 out | grep -q '^#compdef fovea' || fail zsh_completion "$(head -n 1 out)"

expect show_default 0 '' "$fovea" show sinkwin --json
holds one_item_is_a_number '[o["default"] for o in j["options"]] == [4, 1024, 1]'
