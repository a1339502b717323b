# fovea attend: results, gradients, and every way to refuse.
. "$(dirname "$(realpath "$0")")/common.bash"

same() { # NAME A B TOLERANCE
    npy close "$2" "$3" "$4" > why 2>&1 || fail "$1" "$(cat why)"
    echo "ok $1"
}

for t in q:1,4,9,16 k:1,2,11,16 v:1,2,11,8 do:1,4,9,8 k9:1,2,9,16 v9:1,2,9,8 k3:1,3,11,16 v3:1,3,11,8 k10:1,2,10,16 r3:4,9,16; do
    npy random "${t%%:*}.npy" "${t#*:}" || fail setup npy
done
call="$fovea attend --q q.npy --k k.npy --v v.npy"

# ---- results ----
npy attention q.npy k.npy v.npy o.expected
expect dense 0 '' $call -a dense -o o.npy --lse lse.npy
same dense_is_attention o.npy o.expected 1e-5
npy shape lse.npy 1,4,9 '<f4' || fail lse_shape
npy attention q.npy k.npy v.npy o.expected causal
expect causal 0 '' $call -a dense --causal -o o.npy --plan plan.npy
same causal_is_attention o.npy o.expected 1e-5
npy shape plan.npy 1,1,9,11 '|u1' || fail plan_shape
expect reference 0 '' $call -a dense --causal -o r.npy --device ref
same reference_agrees r.npy o.npy 1e-5
expect decode 0 '' $call -a dense --causal --decode -o d.npy
same decode_agrees d.npy o.npy 1e-5
expect one_thread 0 '' $call -a dense --causal -o t.npy --threads 1
cmp -s t.npy o.npy || fail threads_change_nothing "the files differ"
echo ok threads_change_nothing
expect scale 0 '' $call -a dense --scale 0 -o z.npy
expect bf16 0 '' $call -a dense --causal --precision bf16 -o b.npy
same bf16_is_near b.npy o.npy 3e-2
! cmp -s b.npy o.npy || fail bf16_rounds "the files are the same"

# ---- types ----
for code in f8 f2; do
    npy random q.$code 1,4,9,16 $code && npy random k.$code 1,2,11,16 $code && npy random v.$code 1,2,11,8 $code
    npy attention q.$code k.$code v.$code e.npy
    expect type_$code 0 '' "$fovea" attend -a dense --q q.$code --k k.$code --v v.$code -o o.$code
    same type_${code}_agrees o.$code e.npy 1e-5
    npy shape o.$code 1,4,9,8 '<f4' || fail type_${code}_gives_f32
done
npy random q.i4 1,4,9,16 i4
expect type_integer 1 'q.i4: holds i32' "$fovea" attend -a dense --q q.i4 --k k.npy --v v.npy -o x.npy

# ---- gradients ----
expect gradients 0 '' $call -a dense --causal -o o.npy --grad do.npy --dq dq.npy --dk dk.npy --dv dv.npy
npy shape dq.npy 1,4,9,16 '<f4' && npy shape dk.npy 1,2,11,16 '<f4' && npy shape dv.npy 1,2,11,8 '<f4' || fail gradient_shapes
expect gradients_reference 0 '' $call -a dense --causal -o r.npy --grad do.npy --dk dk.ref --device ref
same gradients_agree dk.npy dk.ref 1e-4
npy random bias.npy 1,4,9,11
expect gradient_of_param 0 '' $call -a dense -o o.npy --param bias=bias.npy --grad do.npy --dparam bias=dbias.npy
npy shape dbias.npy 1,4,9,11 '<f4' || fail gradient_of_param_shape
npy pack bias.safetensors bias=bias.npy && npy random mask.npy 1,1,9,9 && npy pack mask.safetensors mask=mask.npy || fail setup pack
expect bundle 0 '' $call -a dense -o w.npy --param weights=bias.safetensors --grad do.npy --dparam weights=d.safetensors
cmp -s w.npy o.npy && npy unpack d.safetensors bias d.npy && cmp -s d.npy dbias.npy || fail bundle "the files differ"

# ---- what it says ----
expect json 0 '' $call -a sinkwin:window=4,sink=1 -o o.npy --json
holds json_fields 'set(j) == {"mechanism", "backend", "seconds", "score_seconds", "select_seconds", "attend_seconds", "flops", "bytes", "pairs", "density"}'
holds json_values 'j["mechanism"] == "sinkwin" and j["pairs"] > 0 and 0 < j["density"] < 1 and j["seconds"] > 0'
[ ! -s err ] || fail json_is_alone "standard error: $(cat err)"
expect quiet 0 '' $call -a dense -o o.npy --quiet
[ ! -s out ] && [ ! -s err ] || fail quiet_is_quiet "$(cat out err)"

# ---- the command line is wrong: 2 ----
rm -f x.npy
expect no_flags 2 'a is missing' "$fovea" attend
expect unknown_mechanism 2 "did you mean 'dense'" $call -a dens -o x.npy
expect unknown_option 2 "did you mean 'window'" $call -a dense:windw=3 -o x.npy
expect bad_value 2 'expected 0 to' $call -a dense:window=-1 -o x.npy
expect bad_spec 2 'SPEC' $call -a 'dense:' -o x.npy
expect unknown_flag 2 "did you mean '--causal'" $call -a dense -o x.npy --causl
expect unknown_device 2 'expected cpu or ref' $call -a dense -o x.npy --device gpu
expect no_cuda 2 'CUDA' $call -a dense -o x.npy --device cuda:0
expect bad_threads 2 'threads' $call -a dense -o x.npy --threads -1
expect bad_number 2 'finite' $call -a dense -o x.npy --scale nan
expect bad_precision 2 'f32 or bf16' $call -a dense -o x.npy --precision f8
expect twice 2 'twice' $call -a dense -o x.npy --q q.npy
expect operand 2 'not expected' $call -a dense -o x.npy extra
expect no_scale 2 'scale' $call -a hedgehog --causal --scale 1 -o x.npy
expect no_plan 2 'plan' $call -a hedgehog --plan p.npy -o x.npy
expect unknown_param 2 "did you mean 'bias'" $call -a dense --param bia=bias.npy -o x.npy
expect bad_param 2 'NAME=FILE' $call -a dense --param bias -o x.npy
expect param_twice 2 'twice' $call -a dense --param bias=bias.npy --param bias=bias.npy -o x.npy
expect no_gradient 2 "postmask: 'mask' has no gradient" "$fovea" attend -a postmask --q none --k none --v none -o x.npy --param mask=none --grad none --dparam mask=d.npy
expect in_bundle_too 2 "'bias' is given twice: by itself and in bias.safetensors" $call -a dense --param bias=bias.npy --param weights=bias.safetensors -o x.npy
expect nothing_has_gradients 2 'no tensor given with --param has a gradient' "$fovea" attend -a postmask --q none --k none --v none -o x.npy --param weights=mask.safetensors --grad do.npy --dparam weights=d.npy
expect names_before_files 2 "did you mean 'bias'" "$fovea" attend -a dense --q none --k none --v none --param bia=none -o x.npy
expect unknown_param_out 2 'writes no tensor' $call -a dense --param-out s=s.npy -o x.npy
expect grad_without 2 'dq' $call -a dense --grad do.npy -o x.npy
expect dq_without_grad 2 'grad is missing' $call -a dense --dq dq.npy -o x.npy
expect decode_and_grad 2 'exclude' $call -a dense --decode --causal --grad do.npy --dq dq.npy -o x.npy

# ---- the work fails: 1 ----
expect unknown_in_bundle 1 "mask.safetensors: tensor 'mask' is no param of dense" $call -a dense --param weights=mask.safetensors -o x.npy
expect no_file 1 'none.npy: cannot be opened' "$fovea" attend -a dense --q none.npy --k k.npy --v v.npy -o x.npy
expect folder 1 'is a directory' "$fovea" attend -a dense --q . --k k.npy --v v.npy -o x.npy
: > empty.npy
expect empty_file 1 'is empty' "$fovea" attend -a dense --q empty.npy --k k.npy --v v.npy -o x.npy
head -c 200 q.npy > cut.npy
expect cut_file 1 'cut.npy' "$fovea" attend -a dense --q cut.npy --k k.npy --v v.npy -o x.npy
expect not_npy 1 'not a .npy' "$fovea" attend -a dense --q "$source_dir/LICENSE" --k k.npy --v v.npy -o x.npy
npy raw big.npy '>f4' False '(1, 4, 9, 16)' 2304
expect big_endian 1 'big-endian' "$fovea" attend -a dense --q big.npy --k k.npy --v v.npy -o x.npy
npy raw fortran.npy '<f4' True '(1, 4, 9, 16)' 2304
expect fortran 1 'Fortran' "$fovea" attend -a dense --q fortran.npy --k k.npy --v v.npy -o x.npy
npy raw huge.npy '<f4' False '(4294967296, 4294967296, 9, 16)' 64
expect huge 1 'overflows' "$fovea" attend -a dense --q huge.npy --k k.npy --v v.npy -o x.npy
expect rank 1 'expected 4 dimensions' "$fovea" attend -a dense --q r3.npy --k k.npy --v v.npy -o x.npy
expect heads 1 'divide' "$fovea" attend -a dense --q q.npy --k k3.npy --v v3.npy -o x.npy
expect keys 1 'keys of k' "$fovea" attend -a dense --q q.npy --k k10.npy --v v.npy -o x.npy
expect gradient_shape 1 'do9.npy' sh -c "cp q.npy do9.npy; exec $call -a dense --grad do9.npy --dq x.npy -o x.npy"
expect no_folder 1 'cannot be created' $call -a dense -o none/x.npy
expect no_folder_for_lse 1 'none/l.npy: cannot be created' $call -a dense -o x.npy --lse none/l.npy
absent no_half_files x.npy none s.npy p.npy
expect device_file 0 '' $call -a dense -o /dev/null
[ -c /dev/null ] || fail device_file_stays "/dev/null is no device any more"

# ---- Ctrl-C ----
npy random long.npy 1,4,20000,32
interrupt ctrl_c "$fovea" attend -a dense --q long.npy --k long.npy --v long.npy -o x.npy --device ref
absent ctrl_c_leaves_nothing x.npy
