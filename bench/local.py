#!/usr/bin/env python3
"""Measure windows, grids and other static masks beside dense attention of the same shape and causality; print Markdown.

    bench/local.py [PART]... [--quick] [--out FILE.md] [--only NAME,..]

    density   plans that show about 50, 20, 10, 5 and 2 % of the pairs: time as a share of dense's
    length    1024 to 16384 tokens: mechanisms that read summaries, features or other queries
    bounds    gna beside the bounds that its pairs and the tiles of this machine's kernels set (sheet of arXiv 2504.16922)

Each row is one of `fovea bench SPEC --sizes N --json`, with dense attention in the same run; 8 heads, D = 64, f32. OVER is
the points by which time's share of dense passes the share of the pairs: at most 5 are meant for plans, and those above are
bold. Times are only as good as the machine is quiet.
"""

import argparse
import json
import os
import subprocess
import sys

import peers
from cache_lab import code, say, table

MEANT = 5  # points
LENGTHS = [1024, 2048, 4096, 8192, 16384]


def every(form, *values):
    return [form.format(value) for value in values]


# Tokens, and SPECs from high densities to low.  A grid has its own length.  Causal plans have longer texts: what each query
# costs whatever it reads is twice the share of dense attention's time there.
DENSITY = {
    "na": (None, every("na:grid=64x64,window={0}x{0}", 45, 29, 21, 15, 9)),
    "gna": (None, every("gna:grid=64x64,{}", "window=44x44,stride=22", "window=28x28,stride=14", "window=20x20,stride=10",
                        "window=16x16,stride=8", "window=8x8,stride=8")),
    "halo": (None, every("halo:grid=64x64,{},pad=mask", "block=16,halo=16", "block=16,halo=8", "block=8,halo=6",
                         "block=8,halo=3", "block=4,halo=2") + ["halo:grid=64x64,block=8,halo=3"]),
    "csw": (None, every("csw:grid=64x64,stripe={}", 32, 13, 7, 3, 1)),
    "lga": (None, every("lga:grid={}", "4x32x32,groups=1", "4x32x32,groups=2", "4x32x32,groups=4", "4x28x28,groups=7",
                        "4x28x28,groups=7,grouping=short")),
    "frame_tile": (8192, every("frame_tile:{}", "frames=16,refs=4", "frames=32,refs=2", "frames=64,refs=2",
                               "frames=64,refs=1", "frames=128,refs=1")),
    "radial": (8192, every("radial:{}", "frames=32,block=128", "frames=64,block=64,sink=0", "frames=64,block=32,sink=0",
                           "frames=128,block=128", "frames=128,block=64,sink=0", "frames=64,form=token,sink=0")),
    "power": (16384, every("power:{}", "block=64,window_blocks=75", "block=64,window_blocks=22", "block=64,window_blocks=8",
                           "block=32,window_blocks=6", "block=32,window_blocks=1,sink_blocks=0")),
    "s2": (8192, every("s2:{}", "local=32,stride=8", "local=10,stride=16", "local=4,stride=32", "local=2,stride=64",
                       "block=32,local=2,stride=128")),
    "sinkwin": (8192, every("sinkwin:window={}", 2400, 864, 420, 206, 82)),
    "lsattn": (8192, every("lsattn:global={}", "1,window=2000", "1,window=400", "0,window=420", "0,window=206",
                           "0,window=82")),
    "s2attn": (8192, every("s2attn:groups={}", 2, 5, 10, 20, 50)),
    "sfattn": (8192, every("sfattn:groups={}", 2, 5, 10, 20, 50)),
    "fixedmap": (8192, ["fixedmap"]),
    "staticqk": (8192, ["staticqk"]),
    "postmask": (4096, ["postmask", "postmask:alpha=0.5"]),
}
NO_PLANS = {"fixedmap", "staticqk", "postmask"}  # every pair is read

LENGTH = {
    "taylor2": ["taylor2"],
    "selfgate": ["selfgate"],
    "combiner": every("combiner:form={}", "fixed", "logn", "axial_mixture", "axial_rowmajor"),
    "descriptor": every("descriptor:ratio={}", 4, 2),
}


def bench(arguments, specs, sizes=None):
    """Rows of mechanisms, in the order of the SPECs."""
    command = [arguments.fovea, "bench", *specs, "--json", "--quiet", "--precision", "f32", "--threads",
               str(arguments.threads), "--seconds", "0.05" if arguments.quick else str(arguments.seconds)]
    if sizes:
        command += ["--sizes", ",".join(map(str, sizes))]
    rows = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return [row for row in rows if "dense_seconds" in row]


def cells(row, plan):
    share, time = 100 * row["density"], 100 * row["seconds"] / row["dense_seconds"]
    over = f"{time - share:+.1f}"
    reckoned = "~" if row["dense_extrapolated"] else ""
    return (code(row["what"]), row["shape"].removeprefix("8 heads, ").replace(", D=64", ""), f"{1e3 * row['seconds']:.2f}",
            f"{share:.1f} %", f"{reckoned}{time:.1f} %", f"**{over}**" if plan and time - share > MEANT else over)


COLUMNS = ("set-up", "shape", "ms", "pairs", "of dense's time", "over")


def density(arguments):
    """Time against density."""
    lines = []
    for name, (tokens, specs) in chosen(arguments, DENSITY):
        for spec in specs[len(specs) // 2:][:1] if arguments.quick else specs:
            lines += [cells(row, name not in NO_PLANS) for row in bench(arguments, [spec], [tokens] if tokens else None)]
        say(f"  {name}")
    return table(COLUMNS, lines)


def length(arguments):
    """Time against length."""
    lines = []
    for name, specs in chosen(arguments, LENGTH):
        for spec in specs:
            lines += [(*cells(row, False)[:-1], f"{row['dense_seconds'] / row['seconds']:.2f}")
                      for row in bench(arguments, [spec], LENGTHS[:2] if arguments.quick else LENGTHS)]
        say(f"  {name}")
    return table((*COLUMNS[:-1], "times as fast"), lines)


def bounds(arguments):
    """Speed-ups of gna and what bounds them."""
    lines = [(code(row["what"]), f"{1e3 * row['seconds']:.2f}", f"{1e3 * row['dense_seconds']:.2f}",
              f"{row['dense_seconds'] / row['seconds']:.2f}", f"{row['flop_bound']:.2f}", f"{row['tile_bound']:.2f}",
              f"{100 * row['of_tile_bound']:.0f} %") for row in bench(arguments, ["gna"])]
    return table(("set-up", "ms", "dense, ms", "times as fast", "by pairs at most", "by tiles at most", "of that"), lines)


PARTS = {function.__name__: function for function in (density, length, bounds)}


def chosen(arguments, specs):
    wanted = arguments.only.split(",") if arguments.only else specs
    return [(name, specs[name]) for name in specs if name in wanted]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", metavar="|".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="a minute: fewer densities and lengths, short measurements")
    parser.add_argument("--only", metavar="NAME,..", help="mechanisms to measure (all)")
    parser.add_argument("--seconds", type=float, default=0.5, help="least time for each row")
    parser.add_argument("--out", metavar="FILE", help="Markdown goes there (otherwise to standard output)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fovea", default=os.path.join(peers.ROOT, "build", "fovea"))
    arguments = parser.parse_args()
    unknown = [name for name in arguments.part if name not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]}: expected {', '.join(PARTS)}")
    done = []
    for name in arguments.part or PARTS:
        say(name)
        done.append(f"## {name}\n\n{PARTS[name](arguments)}\n")
        if not arguments.out:
            print(done[-1], flush=True)
    if arguments.out:
        with open(arguments.out + ".part", "w", encoding="utf-8") as file:
            file.write("\n".join(done))
        os.replace(arguments.out + ".part", arguments.out)


if __name__ == "__main__":
    sys.exit(main())
