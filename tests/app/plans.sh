# fovea-plans: what plans and terms of attention cost beside dense attention.
. "$(dirname "$(realpath "$0")")/common.bash"
plans=$(dirname "$fovea")/fovea-plans

works rows 0 'window' "$plans" --tokens 256 --dim 16 --heads 2 --seconds 0 --json
holds fields 'all({"name", "share", "seconds", "of_dense", "turns"} == set(r) for r in j)'
holds numbers 'len(j) == 31 and all(0 < r["share"] <= 1 and r["seconds"] > 0 and r["of_dense"] > 0 and r["turns"] >= 5 for r in j)'
holds densities '[round(sum(r["share"] for r in j[5 * n:5 * n + 5]) / 5, 1) for n in range(3)] == [0.5, 0.2, 0.1]'
holds keys '[abs(r["share"] - d) < 0.004 for r, d in zip(j[4::5], [.5, .2, .1, .05, .02])] == [True] * 5'
works bf16 0 'window of' "$plans" --tokens 128 --bf16 --seconds 0 --filter window --threads 2
works filter 0 'soft-cap' "$plans" --tokens 128 --seconds 0 --filter soft
! grep -q 'window' out || fail filter "$(cat out)"
works nothing 1 "contains 'no such'" "$plans" --tokens 64 --seconds 0 --filter 'no such'
works help 0 'usage: fovea-plans' "$plans" --help
works bad_tokens 2 'a multiple of 64' "$plans" --tokens 100
works bad_number 2 "got 'x'" "$plans" --dim x
works bad_flag 2 'unknown option' "$plans" --fast
