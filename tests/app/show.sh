# fovea show --plan: who reads whom, in words, as JSON, SVG and PNG, on noise and on a model's own queries and keys.
. "$(dirname "$(realpath "$0")")/common.bash"

cat > pictures.py << 'PYTHON'
import json, struct, sys, xml.dom.minidom, zlib
def png(path):
    data = open(path, "rb").read()
    assert data[:8] == b"\x89PNG\r\n\x1a\n", "no PNG"
    at, chunks = 8, {}
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[at + 8 + length:at + 12 + length])[0], kind
        chunks[kind] = body
        at += 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    raw = zlib.decompress(chunks[b"IDAT"])
    assert len(raw) == height * (width + 1), "pixels are missing"
    return width, height, [raw[y * (width + 1) + 1:(y + 1) * (width + 1)] for y in range(height)]
def check(j, panels):
    n, rows = j["size"], j["plan"]
    pairs = sum(count for row in rows for _, count in row)
    assert len(rows) == n
    for i, row in enumerate(rows):
        end = -1
        for at, count in row:
            assert at > end and count > 0, f"query {i}: runs {row}"
            end = at + count
        assert end <= (i + 1 if j["causal"] else n), f"query {i} reads key {end - 1}"
    possible = n * (n + 1) / 2 if j["causal"] else n * n
    assert abs(j["density"] - pairs / possible) < 1e-6, (j["density"], pairs / possible)
    text = open("plan.svg", encoding="utf-8").read()
    svg = xml.dom.minidom.parseString(text)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", ""), "asks for something outside"
    assert len(svg.getElementsByTagName("image")) == panels - 1
    width, height, pixels = png("plan.png")
    assert width > (panels - 1) * height and width <= panels * height + 16 and height >= 256
    if panels == 1 and n <= 256: # each cell is a pair, whose colour says whether it is read
        scale = height // n
        read = sum(pixels[i * scale][k * scale] == 254 for i in range(n) for k in range(n))
        assert read == pairs, f"{read} pixels, {pairs} pairs"
check(json.load(open("out")), int(sys.argv[1]))
PYTHON
draws() { # NAME PANELS ARGUMENTS...: as JSON and both files, which agree
    local name=$1 panels=$2
    shift 2
    expect "$name" 0 '' "$fovea" show "$@" --plan --json --svg plan.svg --png plan.png
    python3 pictures.py "$panels" > why 2>&1 || fail "$name" "$(tail -n 1 why)"
}

# ---- on noise ----
"$fovea" list mechanism --json > all.json || fail list "$(cat err)"
names() { # those of which a Python expression over m holds
    python3 -c "import json; print(*[m['name'] for m in json.load(open('all.json')) if $1])"
}
drawn=$(names "'no_plan' not in m['traits']")
[ "${FOVEA_SANITIZED:-0}" = 0 ] || drawn='dense gna moba anchor psa hip' # the others walk through the same code
for name in $drawn; do
    draws "plan_$name" 1 "$name"
    holds "plan_${name}_fields" '{"name", "spec", "size", "causal", "density", "plan"} == set(j) and j["size"] == 64'
    holds "plan_${name}_density" '0 < j["density"] <= 1'
    expect "plan_${name}_text" 0 '' "$fovea" show "$name" --plan
    python3 -c 'import sys; sys.exit(not all(len(l) <= 80 for l in open("out", encoding="utf-8").read().split("\n")[1:]))' ||
        fail "plan_${name}_text" 'wider than 80 columns'
done
for name in moba blocktopk power sinkwin gna bra nsa; do
    expect "small_$name" 0 '' "$fovea" show "$name" --plan --json
    holds "small_${name}_leaves_something_out" 'j["density"] < 0.75'
done
for name in $(names "'no_plan' in m['traits']"); do
    expect "no_plan_of_$name" 2 'no set of query-key pairs' "$fovea" show "$name" --plan
done
draws window 1 sinkwin:sink=2,window=5 --size 40
holds window_is_the_window '(j["spec"] == "sinkwin:sink=2,window=5" and j["plan"][3] == [[0, 4]] and
    all(j["plan"][i] == [[0, 2], [i - 4, 5]] for i in range(7, 40)))'
cp out first
expect seeded 0 '' "$fovea" show moba:block=4,top=3 --plan --json --seed 3
cp out other
expect again 0 '' "$fovea" show moba:block=4,top=3 --plan --json --seed 3 --threads 1
cmp -s out other || fail again 'the same seed gives another picture'
expect other_seed 0 '' "$fovea" show moba:block=4,top=3 --plan --json --seed 4
! cmp -s out other || fail other_seed 'another seed gives the same picture'
draws large 1 moba --size 600
expect large_text 0 '' "$fovea" show moba --plan --size 600
grep -q '^a column is 8.33 keys' out && grep -q '░' out || fail large_text "$(cat out)"
expect text 0 '' "$fovea" show sinkwin:sink=1,window=2 --plan --size 4
[ "$(sed -n 4,5p out | tr '\n' '|')" = '█▄  |█▀█▄|' ] || fail text "$(cat out)"

# ---- refusals ----
expect policy 2 'is a cache policy' "$fovea" show sinkring --plan
expect unknown 2 "did you mean 'moba'" "$fovea" show mobba --plan
expect bad_option 2 "did you mean 'window'" "$fovea" show sinkwin:windo=3 --plan
expect needs_plan 2 'plan is missing' "$fovea" show moba --size 32
expect needs_from 2 'needs --from' "$fovea" show moba --plan --layer 3
expect bad_size 2 'size' "$fovea" show moba --plan --size 5000
expect bad_grid 1 'grid' "$fovea" show gna:grid=5x5,window=3x3 --plan
expect no_folder 1 'cannot be created' "$fovea" show moba --plan --svg none/x.svg
absent nothing_left none

# ---- on a model ----
need_model "$smollm"
head -c 3000 "$source_dir/README.md" > text
of="--from $smollm -f text --size 200"
draws from 2 moba:block=16,top=3 $of --layer 11 --head 4
holds from_fields '{"name", "spec", "size", "causal", "density", "plan", "model", "layer", "head", "recall"} == set(j)'
holds from_values 'j["size"] == 200 and j["layer"] == 11 and j["head"] == 4 and 0 < j["density"] < j["recall"] < 1'
cp out moba.json
expect from_all 0 '' "$fovea" show dense --plan --json $of --layer 11 --head 4
holds all_of_it 'j["density"] == 1 and abs(j["recall"] - 1) < 1e-4'
expect from_more 0 '' "$fovea" show moba:block=16,top=6 --plan --json $of --layer 11 --head 4
holds more_is_more 'j["recall"] > json.load(open("moba.json"))["recall"]'
expect from_default 0 '' "$fovea" show sinkwin:window=16 --plan --json $of --quiet
holds middle_layer 'j["layer"] == 15 and j["head"] == 0'
expect from_text 0 '' "$fovea" show sinkwin:window=16 --plan $of
grep -q 'reads [0-9.]* % of the attention' out && grep -q '^left, what is read' out || fail from_text "$(cat out)"
printf 'A few words.' > few
expect from_few 0 'all are drawn' "$fovea" show sinkwin:window=2 --plan --json --from "$smollm" -f few
expect no_text 2 'f FILE is missing' "$fovea" show moba --plan --from "$smollm"
expect bad_layer 2 'expected 0 to 29' "$fovea" show moba --plan $of --layer 30
expect bad_head 2 'expected 0 to 8' "$fovea" show moba --plan $of --head 9
expect not_causal 2 'cannot be causal' "$fovea" show bra --plan $of
expect not_causal_on_a_grid 2 'cannot be causal' "$fovea" show gna --plan $of
expect no_file 1 'cannot be opened' "$fovea" show moba --plan --from "$smollm" -f none
: > empty
expect empty 1 'is empty' "$fovea" show moba --plan --from "$smollm" -f empty
expect no_such_model 1 'none.gguf' "$fovea" show moba --plan --from none.gguf -f text
