# fovea bench gna: bounds by pairs and by tiles of windows on a grid, reckoned and beside what is measured.
. "$(dirname "$(realpath "$0")")/common.bash"

# the published table, to its digits
expect published 0 '' "$fovea" bench gna --simulate --json
holds fields '(all({"what", "shape", "grid", "window", "stride", "dilation", "causal", "q_tile", "kv_tile", "flop_ratio",
    "bound"} == set(r) for r in j))'
holds numbers '([(r["grid"], r["stride"], r["q_tile"], "%.4g" % r["flop_ratio"], "%.3g" % r["bound"]) for r in j] == [
    ("32768", "1", "128", "16", "15.1"), ("32768", "256", "128", "16", "16"), ("32768", "2048", "128", "16", "16"),
    ("256x256", "1x1", "16x8", "10.24", "7.51"), ("256x256", "16x16", "16x8", "10.24", "10.2"),
    ("256x256", "1x1", "1x128", "10.24", "3.2"),
    ("30x48x80", "1x1x1", "2x8x8", "11.11", "5.44"), ("30x48x80", "16x8x8", "2x8x8", "11.11", "11.1"),
    ("16x44x80", "1x1x1", "4x4x8", "2.292", "2.08"), ("16x44x80", "1x16x16", "4x4x8", "2.292", "2.29")])'
holds whole_tiles 'all(abs(j[n]["bound"] - j[n]["flop_ratio"]) < 1e-6 for n in (1, 2, 4, 7, 9))'
expect table 0 '' "$fovea" bench --simulate
grep -qE '^HunyuanVideo +30x48x80 +18x24x24 +16x8x8 +2x8x8 +2x8x8 +11.11 +11.11$' out || fail table "$(cat out)"
expect usual_tiles 0 '' "$fovea" bench gna:grid=256x256,window=80x80 na:grid=64,window=9 --simulate --json
holds usual_tiles_of '[(r["q_tile"], r["kv_tile"]) for r in j] == [("16x8", "16x8"), ("128", "128")]'
holds own_shape '[r["shape"] for r in j] == ["256x256", "64"] and "%.3g" % j[0]["bound"] == "7.51"'

# against the definition, pair by pair and tile by tile
python3 - "$fovea" << 'PYTHON' || fail definition "see above"
import itertools, json, math, os, random, subprocess, sys

seed = os.environ.get("FOVEA_TEST_SEED") or str(random.randrange(1 << 32))
print(f"seed {seed}")
random.seed(seed)


def sees(x, y, n, w, s, d, causal):
    if x % d != y % d:
        return False
    i, j, size = x // d, y // d, len(range(x % d, n, d))
    if causal:
        return max(min(i // s * s + s - 1, size - 1) - w + 1, 0) <= j <= i
    leader = min(i // s * s + s // 2, size - 1)
    start = max(leader - w // 2, 0)
    if leader + w // 2 + w % 2 - 1 >= size:
        start = size - w
    return start <= j < start + w


def tiles_of(n, d, size):
    """Cells of each tile: so many in a row of one residue."""
    for residue in range(d):
        cells = list(range(residue, n, d))
        yield from (cells[at:at + size] for at in range(0, len(cells), size))


def count(axes, q_tile, kv_tile):
    """Visible pairs, and pairs of tiles whose keys lie in the box around the keys of the queries, over the whole grid."""
    dims = [a[0] for a in axes]
    cells = list(itertools.product(*map(range, dims)))
    pairs = sum(all(sees(x[a], y[a], *axes[a]) for a in range(len(axes))) for x in cells for y in cells)
    touched = 0
    for queries in itertools.product(*(tiles_of(a[0], a[3], t) for a, t in zip(axes, q_tile))):
        boxes = []
        for a, axis in enumerate(axes):
            keys = [y for x in queries[a] for y in range(axis[0]) if sees(x, y, *axis)]
            boxes.append((min(keys), max(keys)))
        for keys in itertools.product(*(tiles_of(a[0], a[3], t) for a, t in zip(axes, kv_tile))):
            touched += all(k[0] % a[3] == q[0] % a[3] and k[0] <= high and k[-1] >= low
                           for a, q, k, (low, high) in zip(axes, queries, keys, boxes))
    return pairs, touched


for rank in [1, 1, 2, 2, 3, 3]:
    q_tile, kv_tile = ([random.randint(1, 5) for _ in range(rank)] for _ in range(2))
    grids, specs = [], []
    for _ in range(5):
        axes = []
        for _ in range(rank):
            n = random.randint(2, {1: 40, 2: 9, 3: 5}[rank])
            d = random.randint(1, min(3, n // 2))
            w = random.randint(2, n // d)
            axes.append((n, w, random.randint(1, w), d, random.random() < 0.3))
        grids.append(axes)
        text = ("x".join(str(int(a[field])) for a in axes) for field in range(5))
        specs.append("gna:grid={},window={},stride={},dilation={},causal={}".format(*text))
    command = [sys.argv[1], "bench", *specs, "--simulate", "--json"]
    command += ["--q-tile", "x".join(map(str, q_tile)), "--kv-tile", "x".join(map(str, kv_tile))]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for row, axes, spec in zip(rows, grids, specs, strict=True):
        all_pairs, all_tiles = count([(a[0], a[0], 1, 1, a[4]) for a in axes], q_tile, kv_tile)
        pairs, tiles = count(axes, q_tile, kv_tile)
        for name, expected in ("flop_ratio", all_pairs / pairs), ("bound", all_tiles / tiles):
            if not math.isclose(row[name], expected, rel_tol=1e-7): # nine digits are printed
                sys.exit(f"{spec} {q_tile} {kv_tile}: {name}: expected {expected}, got {row[name]}")
print("ok definition")
PYTHON

# measured: two grids without --sizes, one that is given with its own length
expect measured 0 '' "$fovea" bench gna --json --seconds 0 --precision f32
holds strides '([r["what"].split(":")[1] for r in j if r["what"].startswith("gna")] ==
    [f"grid=4096,window=256,stride={s}" for s in (1, 8, 16, 256)] +
    [f"grid=64x64,window=16x16,stride={s}x{s}" for s in (1, 8, 16)])'
holds bounds '(all(abs(r["flop_bound"] * r["density"] - 1) < 1e-6 and r["tile_bound"] <= 1.001 * r["flop_bound"] and
    abs(r["dense_seconds"] / r["seconds"] / r["tile_bound"] - r["of_tile_bound"]) < 1e-6 * r["of_tile_bound"]
    for r in j if r["what"].startswith("gna")))'
# of the last strides tiles are made of what windows see and nothing else
holds whole_windows '(lambda r: [abs(r[n]["tile_bound"] - r[n]["flop_bound"]) < 1e-6 for n in (0, 3, 4, 5, 6)])(
    [r for r in j if r["what"].startswith("gna")]) == [False, True, False, True, True]'
expect own_length 0 '' "$fovea" bench gna:grid=8x16,window=3x3 --json --seconds 0
holds own_length_of '[r["tokens"] for r in j if "tokens" in r] == [128, 128]'
expect causal 0 '' "$fovea" bench gna:grid=128,window=16,causal=1 --json --seconds 0
holds beside_causal_dense 'all("causal" in r["shape"] for r in j if "tokens" in r) and j[-1]["flop_bound"] < 128 / 16'
expect words 0 '' "$fovea" bench gna:grid=16x16,window=8x8,stride=8 --seconds 0
grep -qE 'times as fast at the last, at most 4.00 by its pairs and 4.00 by its tiles' out || fail words "$(cat out)"

expect no_grid 2 'expected gna, or a SPEC with a grid' "$fovea" bench attend --simulate
expect no_windows 2 'not windows on a grid' "$fovea" bench bra:grid=8x8,regions=2 --simulate
expect csw_is_none 2 'not windows on a grid' "$fovea" bench csw:grid=8x8,stripe=2 --simulate
expect tile_axes 2 "q-tile: expected one number, or one for each axis of 'gna:grid=8x8,window=3x3', 2; got 3" "$fovea" bench gna:grid=8x8,window=3x3 --simulate --q-tile 2x2x2
expect tile_zero 2 "'kv-tile'" "$fovea" bench gna --simulate --kv-tile 0
expect tile_alone 2 'need --simulate' "$fovea" bench gna --q-tile 8
expect bad_window 2 'window' "$fovea" bench gna:grid=8x8,window=9x9 --simulate
expect no_report 2 'measures nothing' "$fovea" bench gna --simulate --report gna.html
absent no_page gna.html
