# fovea apply: results, gradients, what it says, and every way to refuse.
. "$(dirname "$(realpath "$0")")/common.bash"

same() { # NAME A B TOLERANCE
    npy close "$2" "$3" "$4" > why 2>&1 || fail "$1" "$(cat why)"
    echo "ok $1"
}
same_numbers() { # NAME A B COUNT: of whatever shapes
    python3 - "$2" "$3" "$4" << 'PYTHON' || fail "$1" "numbers differ"
import struct, sys
a, b = (struct.unpack(f"<{sys.argv[3]}f", open(path, "rb").read()[-4 * int(sys.argv[3]):]) for path in sys.argv[1:3])
sys.exit(any(abs(x - y) > 1e-5 for x, y in zip(a, b)))
PYTHON
    echo "ok $1"
}
# reshaped FILE SHAPE OTHER SHAPE: the same random numbers in two shapes
reshaped() {
    npy random "$1" "$2" && mv "$1" kept && npy random "$1" "$4" && mv "$1" "$3" && mv kept "$1"
}

for t in x:1,5,4 keys:1,3,4 contents:1,3,2,4 do:1,5,4 b:4 w5:5,5 x3:1,5,3; do
    npy random "${t%%:*}.npy" "${t#*:}" || fail setup npy
done
npy values unit.npy 4,4 '1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1'
npy values mask.npy 1,5,3 '1 0 1 1 1 1 0 0 1 1 1 0 0 0 0' u1
npy values mask8.npy 1,5,3 '1 0 1 1 1 1 0 0 1 1 1 0 0 0 0' i8
units=()
for name in summary_q summary_k q k v out; do units+=(--param ${name}_weight=unit.npy); done
memory=(--in x=x.npy --in keys=keys.npy --in contents=contents.npy)
call=("$fovea" apply hcam:chunk=2,top=2,heads=1,position=0 "${memory[@]}" "${units[@]}")

# ---- results: with unit matrices the layer is the mechanism ----
reshaped x.npy 1,5,4 q.npy 1,1,5,4
reshaped contents.npy 1,3,2,4 k.npy 1,1,6,4
expect layer 0 'y \[1,5,4\]' "${call[@]}" --out y=y.npy
expect mechanism 0 '' "$fovea" attend -a hcam:chunk=2,top=2 --q q.npy --k k.npy --v k.npy --param summary_k=keys.npy -o o.npy
npy shape y.npy 1,5,4 '<f4' || fail shape y
same_numbers layer_is_the_mechanism y.npy o.npy 20
expect masked 0 '' "${call[@]}" --in mask=mask.npy --out y=m.npy
mkfifo pipe || fail setup mkfifo
cat pipe > piped.npy &
reader=$!
expect pipe 0 '' "${call[@]}" --in mask=mask.npy --out y=pipe
wait "$reader"
cmp -s piped.npy m.npy || fail pipe "what came through it differs"
expect masked_i8 0 '' "${call[@]}" --in mask=mask8.npy --out y=m8.npy
cmp -s m.npy m8.npy || fail masked_i8 "the files differ"
! cmp -s m.npy y.npy || fail masked "the mask does nothing"
expect reference 0 '' "${call[@]}" --in mask=mask.npy --param out_bias=b.npy --out y=r.npy --device ref
expect cpu 0 '' "${call[@]}" --in mask=mask.npy --param out_bias=b.npy --out y=c.npy
same reference_agrees r.npy c.npy 1e-5

# tab, from its table
tab=("$fovea" apply tab:heads=2,group=3,size=2x4)
for t in tx:2,8,6 centres:3,6 q_weight:4,6 k_weight:4,6 v_weight:6,6 centre_k_weight:4,6 centre_v_weight:6,6 \
    proj_weight:6,6 conv_weight:6,6 ffn.fc1_weight:5,6 ffn.dw_weight:5,5,5 ffn.fc2_weight:6,5; do
    npy random "${t%%:*}.npy" "${t#*:}" || fail setup npy
    [ "$t" = tx:2,8,6 ] || tab+=(--param "${t%%:*}=${t%%:*}.npy")
done
expect tab 0 '' "${tab[@]}" --in x=tx.npy --out y=ty.npy
expect tab_reference 0 '' "${tab[@]}" --in x=tx.npy --out y=tr.npy --device ref
same tab_agrees ty.npy tr.npy 1e-4

# ---- gradients ----
expect gradients 0 '' "${call[@]}" --out y=g.npy --grad y=do.npy --din x=dx.npy --dparam q_weight=dq.npy --dparam summary_k_weight=ds.npy
same gradients_write_the_output g.npy y.npy 1e-6
npy shape dx.npy 1,5,4 '<f4' && npy shape dq.npy 4,4 '<f4' && npy shape ds.npy 4,4 '<f4' || fail gradient_shapes
expect gradients_reference 0 '' "${call[@]}" --out y=g.npy --grad y=do.npy --din x=dr.npy --dparam summary_k_weight=dsr.npy --device ref
same gradients_agree dx.npy dr.npy 1e-4
same gradients_of_params_agree ds.npy dsr.npy 1e-4

# ---- many tensors in one file ----
all=()
for name in summary_q summary_k q k v out; do all+=(${name}_weight=unit.npy); done
npy random b2.npy 4 f2 && npy pack all.safetensors "${all[@]}" && npy pack most.safetensors "${all[@]:1}" out_bias=b2.npy || fail setup pack
bundled=("$fovea" apply hcam:chunk=2,top=2,heads=1,position=0 "${memory[@]}")
expect bundle 0 '' "${bundled[@]}" --param weights=all.safetensors --out y=w.npy
cmp -s w.npy y.npy || fail bundle "the files differ"
expect bundle_and_files 0 '' "${bundled[@]}" --param summary_q_weight=unit.npy --param weights=most.safetensors --param q_bias=b.npy --out y=w.npy
expect files_alone 0 '' "${call[@]}" --param out_bias=b2.npy --param q_bias=b.npy --out y=v.npy
cmp -s w.npy v.npy || fail bundle_and_files "the files differ"
expect bundle_of_gradients 0 '' "${bundled[@]}" --param q_bias=b.npy --param weights=all.safetensors --out y=w.npy --grad y=do.npy \
    --dparam weights=d.safetensors --dparam q_weight=dq2.npy
[ "$(npy unpack d.safetensors)" = 'k_weight out_weight q_bias q_weight summary_k_weight summary_q_weight v_weight' ] || fail names_of_gradients "$(npy unpack d.safetensors)"
expect gradients_in_files 0 '' "${call[@]}" --param q_bias=b.npy --out y=w.npy --grad y=do.npy --dparam q_weight=dq.npy --dparam q_bias=db.npy --dparam summary_k_weight=ds.npy
for name in q_weight:dq q_bias:db summary_k_weight:ds; do
    npy unpack d.safetensors "${name%:*}" d.npy && cmp -s d.npy "${name#*:}.npy" || fail bundle_of_gradients "${name%:*} differs"
done
cmp -s dq2.npy dq.npy || fail bundle_of_gradients "what has a file of its own differs"
packed=()
for option in "${tab[@]:3}"; do [ "$option" = --param ] || packed+=("$option"); done
npy pack tab.safetensors "${packed[@]}" || fail setup pack
expect bundle_of_tab 0 '' "${tab[@]:0:3}" --in x=tx.npy --param weights=tab.safetensors --out y=tw.npy --grad y=tx.npy --dparam weights=td.safetensors
cmp -s tw.npy ty.npy || fail bundle_of_tab "the files differ"
! npy unpack td.safetensors | grep -q centres || fail bundle_of_tab "what has no gradient is there"

# ---- other kinds: a reducer with an output of integers, a steer of two copies, a probe without gradients ----
for t in sx:2,9,4 score_weight:1,4 mlp1_weight:16,4 mlp2_weight:4,16 pq:1,4,6,3 pk:1,2,6,3; do
    npy random "${t%%:*}.npy" "${t#*:}" || fail setup npy
done
reducer=("$fovea" apply stm_dpc:tokens=3,heads=2 --in x=sx.npy)
for name in score_weight mlp1_weight mlp2_weight; do reducer+=(--param $name=$name.npy); done
for name in q k v o; do reducer+=(--param ${name}_weight=unit.npy); done
expect reducer 0 'y \[2,3,4\], cluster \[2,9\]' "${reducer[@]}" --out y=sy.npy --out cluster=sc.npy
npy shape sy.npy 2,3,4 '<f4' && npy shape sc.npy 2,9 '<i4' || fail shapes_of_a_reducer
expect reducer_again 0 '' "${reducer[@]}" --out cluster=sd.npy
cmp -s sc.npy sd.npy || fail reducer_again "the files differ"
expect reducer_gradient 0 '' "${reducer[@]}" --out y=sy.npy --grad y=sy.npy --dparam score_weight=dw.npy
expect cluster_has_no_gradient 2 "'cluster' has no gradient" "${reducer[@]}" --out y=sy.npy --grad cluster=none --din x=dy.npy
expect too_few_tokens 1 'expected at most the tokens there are, 9, got 10' "$fovea" apply stm_dpc:tokens=10 "${reducer[@]:3}" --out y=y0.npy
steer=("$fovea" apply cross_override:grid=1x2x4,native=2x2,heads=2 --in w=kept8.npy --in f=kept8.npy --in c=x.npy)
npy random kept8.npy 1,8,4 || fail setup npy
for name in self_q self_k self_v self_o cross_q cross_k cross_v cross_o; do steer+=(--param $name=unit.npy); done
expect steer 0 'w \[1,8,4\], f \[1,8,4\]' "${steer[@]}" --out w=sw.npy --out f=sf.npy
! cmp -s sw.npy sf.npy || fail steer "windows do nothing"
expect probe 0 'y \[1,4,2\]' "$fovea" apply logit_growth --in q=pq.npy --in k=pk.npy --out y=py.npy
expect probe_has_no_gradient 2 'has no gradients' "$fovea" apply logit_growth --in q=none --in k=none --out y=py.npy --grad y=none --din q=dy.npy

# ---- operators: with a softmax between them they are a mechanism; a name of two kinds; a policy that decides on a plan ----
for t in nq:2,4,12,5 nk:2,2,12,5 nv:2,2,12,6 rpb:4,5,3; do npy random "${t%%:*}.npy" "${t#*:}" || fail setup npy; done
grid=grid=4x3,window=3x2
qk=(--in q=nq.npy --in k=nk.npy)
expect operator 0 'a \[2,4,12,6\]' "$fovea" apply na_qk:$grid,causal=1,scale=0.5 "${qk[@]}" --out a=logits.npy
python3 - << 'PYTHON' || fail softmax python
import math, struct
data = open("logits.npy", "rb").read()
rows = struct.unpack("<576f", data[-4 * 576:])
weights = []
for at in range(0, 576, 6):
    powers = [math.exp(x) for x in rows[at:at + 6]]
    weights += [x / sum(powers) for x in powers]
open("weights.npy", "wb").write(data[:-4 * 576] + struct.pack("<576f", *weights))
PYTHON
expect operator_back 0 'o \[2,4,12,6\]' "$fovea" apply na_av:$grid,causal=1 --in a=weights.npy --in v=nv.npy --out o=no.npy
expect na 0 '' "$fovea" attend -a na:$grid --causal --scale 0.5 --q nq.npy --k nk.npy --v nv.npy -o na.npy
same operators_are_na no.npy na.npy 1e-5
expect bias_of_an_even_window 2 "needs odd windows and no causal axis; axis 1: window 2" "$fovea" apply na_qk:$grid "${qk[@]}" --param rpb=rpb.npy --out a=y0.npy
expect cells 1 'expected \[B, H, N, D\] = \[2,4,15,5\], got \[2,4,12,5\]' "$fovea" apply na_qk:grid=5x3,window=3 "${qk[@]}" --out a=y0.npy
expect long_window 2 'window 5 x dilation 1: expected at most the axis, 4' "$fovea" apply na_qk:grid=4x3,window=5x3 "${qk[@]}" --out a=y0.npy
absent no_logits y0.npy

separate=()
for name in q k v o; do separate+=(--param ${name}_weight=unit.npy); done
npy random stream.npy 7,4 && npy random embeddings.npy 1,5,4 || fail setup npy
expect fixed_stream 0 'y \[1,5,4\]' "$fovea" apply fixedmap:heads=2,rope_base=10000 --in x=x.npy --in s=stream.npy "${separate[@]}" --out y=fy.npy --grad y=do.npy --din s=ds.npy --dparam k_weight=dk.npy
npy shape ds.npy 7,4 '<f4' || fail shape_of_a_gradient ds
expect embeddings 0 'y \[1,5,4\]' "$fovea" apply staticqk:heads=2 --in x=x.npy --in s=embeddings.npy "${separate[@]}" --out y=fy.npy
reshaped es.npy 1,5,4 eq.npy 1,1,5,4
reshaped ex.npy 1,5,4 ev.npy 1,1,5,4
expect one_head 0 '' "$fovea" apply staticqk:heads=1 --in x=ex.npy --in s=es.npy "${separate[@]}" --out y=ey.npy
expect mechanism_of_the_name 0 '' "$fovea" attend -a staticqk --causal --q eq.npy --k eq.npy --v ev.npy -o eo.npy
same_numbers layer_is_the_mechanism_of_its_name ey.npy eo.npy 20
expect short_stream 1 'at least as many rows as there are tokens, 5, got 4' "$fovea" apply fixedmap:heads=2 --in x=x.npy --in s=unit.npy "${separate[@]}" --out y=y0.npy
expect heads_are_needed 2 "'heads' must be given" "$fovea" apply staticqk --in x=x.npy --in s=embeddings.npy "${separate[@]}" --out y=y0.npy

for t in fq:3,2,12,4 fk:3,1,12,4 fv:3,1,12,5; do npy random "${t%%:*}.npy" "${t#*:}" || fail setup npy; done
video=(--in q=fq.npy --in k=fk.npy --in v=fv.npy)
expect policy 0 'refs \[3\], errors \[3,2\]; plan 0-2/frame_tile:frames=4,refs=1$' "$fovea" apply tile_search:frames=4,family=2+1,threshold=1e9 "${video[@]}" --out refs=fr.npy --out errors=fe.npy
npy shape fr.npy 3 '<i4' && npy shape fe.npy 3,2 '<f4' || fail shapes_of_a_policy
expect policy_json 0 '' "$fovea" apply tile_search:frames=4,family=2+1,threshold=0 "${video[@]}" --out errors=fe.npy --json
holds plan_of_a_policy 'set(j) == {"layer", "backend", "seconds", "outputs", "plan"} and j["plan"] == "0-2/dense"'
expect odd_frames 1 'expected 5 frames of equal length and 0 tokens of text, got 12 tokens' "$fovea" apply tile_search:frames=5,family=1,threshold=0 "${video[@]}" --out refs=y0.npy
expect more_than_frames 2 'expected at most the frames, 4, got 5' "$fovea" apply tile_search:frames=4,family=5,threshold=0 "${video[@]}" --out refs=y0.npy
expect threshold_is_needed 2 "'threshold' must be given" "$fovea" apply tile_search:frames=4,family=1 "${video[@]}" --out refs=y0.npy
absent no_decision y0.npy

# ---- what it says ----
expect json 0 '' "${call[@]}" --out y=y.npy --json
holds json_fields 'set(j) == {"layer", "backend", "seconds", "outputs"}'
holds json_values 'j["layer"] == "hcam" and j["seconds"] > 0 and j["outputs"] == {"y": [1, 5, 4]}'
[ ! -s err ] || fail json_is_alone "standard error: $(cat err)"
expect quiet 0 '' "${call[@]}" --out y=y.npy --quiet
[ ! -s out ] && [ ! -s err ] || fail quiet_is_quiet "$(cat out err)"

# ---- the command line is wrong: 2, before any file is opened ----
rm -f y.npy
expect unknown_layer 2 "did you mean 'hcam'" "$fovea" apply hcm --in x=none --out y=y.npy
expect mechanism_is_no_layer 2 "layer 'moba' is not known" "$fovea" apply moba --in x=none --out y=y.npy
expect unknown_option 2 "did you mean 'chunk'" "$fovea" apply hcam:chunks=3 --in x=none --out y=y.npy
expect needs_size 2 'size' "$fovea" apply tab --in x=none --out y=y.npy
expect no_name 2 'NAME' "$fovea" apply --in x=none --out y=y.npy
expect no_in 2 'in is missing' "$fovea" apply hcam --out y=y.npy
expect no_out 2 'out is missing' "$fovea" apply hcam --in x=none
expect missing_input 2 "input 'contents' .* is missing" "$fovea" apply hcam --in x=none --in keys=none --out y=y.npy
expect missing_matrix 2 "param 'summary_q_weight' .* is missing" "$fovea" apply hcam --in x=none --in keys=none --in contents=none --out y=y.npy
expect unknown_input 2 "input 'key' is not known; did you mean 'keys'" "${call[@]}" --in key=none --out y=y.npy
expect unknown_param 2 "param 'qbias' is not known; did you mean 'q_bias'" "${call[@]}" --param qbias=none --out y=y.npy
expect bundle_twice 2 "'weights' is given twice" "${call[@]}" --param weights=none --param weights=none --out y=y.npy
expect bundle_of_what_has_no_params 2 "param 'weights' is not known; it has none" "$fovea" apply logit_growth --in q=pq.npy --in k=pk.npy --param weights=none.safetensors --out y=y.npy
expect bundle_is_no_input 2 "input 'weights' is not known" "${call[@]}" --in weights=none --out y=y.npy
expect input_before_bundle 2 "input 'contents' .* is missing" "$fovea" apply hcam --in x=none --in keys=none --param weights=none --out y=y.npy
expect output_before_bundle 2 "output 'z' is not known" "${bundled[@]}" --param weights=none --out z=y.npy
expect given_in_both 2 "'q_weight' is given twice: by itself and in all.safetensors" "${bundled[@]}" --param weights=all.safetensors --param q_weight=none --out y=y.npy
expect missing_in_bundle 2 "param 'summary_q_weight' .* is missing" "${bundled[@]}" --param weights=most.safetensors --out y=y.npy
expect unknown_output 2 "output 'z' is not known" "${call[@]}" --out z=y.npy
expect bad_pair 2 'in: expected NAME=FILE' "${call[@]}" --in mask --out y=y.npy
expect twice 2 'is given twice' "${call[@]}" --in x=none --out y=y.npy
expect one_of_many 2 "param q_bias: expected a .npy file, got none.safetensors (weights=FILE is for many in one)" "${call[@]}" --param q_bias=none.safetensors --out y=y.npy
expect many_of_one 2 "out y: expected a .npy file, got y.safetensors" "${call[@]}" --out y=y.safetensors
expect grad_without 2 'din' "${call[@]}" --out y=y.npy --grad y=do.npy
expect din_without_grad 2 'grad is missing' "${call[@]}" --out y=y.npy --din x=dx.npy
expect grad_of_unknown 2 "output 'o' is not known" "${call[@]}" --out y=y.npy --grad o=do.npy --din x=dy.npy
expect gradient_of_memory 2 "'keys' has no gradient" "${call[@]}" --out y=y.npy --grad y=none --din keys=dy.npy
expect gradient_of_what_is_not_given 2 'expected a tensor given with --param' "${call[@]}" --out y=y.npy --grad y=do.npy --dparam q_bias=dy.npy

# ---- the work fails: 1 ----
expect no_bundle 1 'none.safetensors: cannot be opened' "${bundled[@]}" --param weights=none.safetensors --out y=y.npy
expect no_safetensors 1 'b.npy: is not a safetensors file' "${bundled[@]}" --param weights=b.npy --out y=y.npy
npy pack near.safetensors q_wieght=unit.npy && npy pack far.safetensors 0=unit.npy && npy pack ints.safetensors out_bias=mask8.npy "${all[@]}"
expect unknown_in_bundle 1 "near.safetensors: tensor 'q_wieght' is no param of hcam; did you mean 'q_weight'? ('fovea show hcam' lists them)" "${bundled[@]}" --param weights=near.safetensors --out y=y.npy
expect unlike_any 1 "far.safetensors: tensor '0' is no param of hcam ('fovea show hcam' lists them)" "${bundled[@]}" --param weights=far.safetensors --out y=y.npy
expect integers_in_bundle 1 "ints.safetensors: tensor 'out_bias': holds i64, expected f32" "${bundled[@]}" --param weights=ints.safetensors --out y=y.npy
npy pack shapes.safetensors q_bias=w5.npy "${all[@]}"
expect shape_in_bundle 1 "param 'q_bias': expected \[E\] = \[4\], got \[5,5\]" "${bundled[@]}" --param weights=shapes.safetensors --out y=y.npy
head -c 300 all.safetensors > cut.safetensors
expect bundle_cut 1 'cut.safetensors: the header would take .* the download may be incomplete' "${bundled[@]}" --param weights=cut.safetensors --out y=y.npy
expect no_folder_for_gradients 1 'none/d.safetensors: cannot be created' "${call[@]}" --out y=y.npy --grad y=do.npy --dparam weights=none/d.safetensors
expect no_file 1 'none.npy: cannot be opened' "${call[@]}" --in mask=none.npy --out y=y.npy
expect mask_of_floats 1 'holds f32, expected integers' "${call[@]}" --in mask=x.npy --out y=y.npy
expect shape 1 "param 'q_bias': expected \[E\] = \[4\], got \[5,5\]" "${call[@]}" --param q_bias=w5.npy --out y=y.npy
expect chunk 1 "'contents': expected \[B, Mc, Cn, E\] = \[1,3,7,4\], got \[1,3,2,4\]" "$fovea" apply hcam:chunk=7,heads=1 "${memory[@]}" "${units[@]}" --out y=y.npy
expect heads 1 '3 heads do not divide 4 channels' "$fovea" apply hcam:chunk=2,heads=3 "${memory[@]}" "${units[@]}" --out y=y.npy
expect grid 1 "expected \[B, N, C\] = \[2,9,6\], got \[2,8,6\]" "${tab[@]:0:2}" tab:heads=2,size=3x3 "${tab[@]:3}" --in x=tx.npy --out y=y.npy
expect gradient_shape 1 "gradient of output 'y'" "${call[@]}" --out y=y.npy --grad y=x3.npy --din x=dy.npy
expect no_folder 1 'cannot be created' "${call[@]}" --out y=none/y.npy
absent no_half_files y.npy y.safetensors dy.npy none

# ---- list and show ----
expect list_layers 0 '' "$fovea" list layers --json
holds layers_listed 'j and all(r["kind"] == "layer" and r["traits"] == ["differentiable"] for r in j) and {"hcam", "tab"} <= {r["name"] for r in j}'
expect show 0 '' "$fovea" show hcam --json
holds show_has_both '[j["kind"]] + [a["kind"] for a in j["also"]] == ["mechanism", "layer"]'
holds show_tensors '(lambda l: [p["name"] for p in l["inputs"]] == ["x", "keys", "contents", "mask"] and [p["name"] for p in l["outputs"]] == ["y"]
    and {"summary_q_weight", "out_bias"} <= {p["name"] for p in l["params"]})(j["also"][0])'
expect show_two_kinds 0 '' "$fovea" show staticqk --json
holds mechanism_then_layer '(lambda l: j["kind"] == "mechanism" and l["kind"] == "layer" and [o["name"] for o in l["options"]] == ["heads", "causal", "rope_base"] and [p["name"] for p in l["inputs"]] == ["x", "s"])(j["also"][0])'
expect list_operators 0 '' "$fovea" list operators --json
holds operators_listed '[r["name"] for r in j] == ["na_qk", "na_av"]'
expect show_text 0 '' "$fovea" show tab
grep -q '^Inputs (--in NAME=FILE):' out && grep -q 'ffn.dw_weight \[F, 5, 5\] .*must be given' out || fail show_text "$(cat out)"
