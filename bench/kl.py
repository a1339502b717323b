#!/usr/bin/env python3
"""Quality and speed of each choice of activations on each type of weights that GGUF files hold; prints markdown.

    bench/kl.py [FILE.gguf]... [--only kl|speed] [--turns N] [--keep FILE] [--write]

Needs build/fovea, build/fovea-activations and the environment of bench/peers.py. Without FILE it makes one for each type
from the two models (llama.cpp's quantiser, every matrix in that type, from weights that were quantised before), in
--types, and takes those. A row of 256 weights is the least that a K type can hold; matrices with other rows get the
type that llama.cpp puts in its place, and the table says which share has which.

KL is the mean over the first tokens of the GPL of KL(f32 || choice) in nats, where f32 is `--precision f32` of the same
file. "as shipped" is what sessions do: prompts in bf16, single tokens in 16-bit integers with a scale for every 32. The
other choices are what the rounding of activations alone costs (fovea-activations says how); llama.cpp's own are 8-bit
integers, with a scale for every 32 or, on K types, for every 256. Speeds are medians over turns taken alternately: 512
tokens of prompt, and single tokens behind it.

--keep: figures are kept in that file, and a later run goes on from there, so that a long run can be cut in pieces.
--write puts the tables into bench/RESULTS.md.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile

import peers
import peer_work as work

TYPES = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
PROMPT, GENERATE = 512, 64
LIMIT = 2e-3


def make_files(arguments, lab):
    """Paths of all types of both models, smollm2-Q4_0.gguf and so on; those that are missing are made."""
    os.makedirs(arguments.types, exist_ok=True)
    paths = []
    for kind in TYPES:
        for name, file in peers.FILES.items():
            paths.append(os.path.join(arguments.types, f"{name}-{kind}.gguf"))
            if not os.path.exists(paths[-1]):
                peers.say(f"  making {paths[-1]}")
                lab.run("llama_quantise", source=os.path.join(arguments.models, file), target=paths[-1], type=kind,
                        threads=arguments.threads)
    return paths


def kl(arguments, lab, path):
    """{"shipped prompt": KL, "int8 steps": KL, ..., "llama.cpp prompt": KL, ...}."""
    with tempfile.TemporaryDirectory() as folder:
        counts = lab.run("llama_prompts", model=path, folder=folder, tokens=[arguments.tokens])
        logits = os.path.join(folder, "f32.npy")
        done = subprocess.run([os.path.join(os.path.dirname(arguments.fovea), "fovea-activations"), "-m", path, "-f",
                               os.path.join(folder, f"prompt-{arguments.tokens}"), "--threads", str(arguments.threads),
                               "--logits", logits], stdout=subprocess.PIPE, check=True)
        report = json.loads(done.stdout)
        if report["tokens"] != counts[str(arguments.tokens)]:
            sys.exit(f"kl: {path}: expected fovea to count {counts[str(arguments.tokens)]} tokens, got "
                     f"{report['tokens']}")
        theirs = lab.run("llama_kl", model=path, tokens=arguments.tokens, logits=logits)
    found = {f"{row['activations']} {row['path']}": row["mean_kl"] for row in report["rows"]}
    return {**found, **{f"llama.cpp {feed}": value for feed, value in theirs.items()}}


def speed(arguments, lab, path):
    """Tokens a second of each turn: {"prompt": [[theirs, ours], ...], "generate": ...}."""
    turns = {"prompt": [], "generate": []}
    for _ in range(arguments.turns):
        theirs = lab.run("llama_model", model=path, tokens=PROMPT, threads=arguments.threads, generate=GENERATE)
        report, _ = peers.fovea_json(arguments, "bench", "model", "-m", path, "--sizes", str(PROMPT), "--seconds", "0.4")
        seconds = {row["what"]: row["seconds"] for row in report}
        turns["prompt"].append([theirs["prefill"], PROMPT / seconds["model prompt"]])
        turns["generate"].append([theirs["decode"], 1 / seconds["model token"]])
    return turns


# ---- tables ----------------------------------------------------------------------------------------------------------


def parts_of(types):
    """'Q4_K 17 %, Q5_0 83 %', the largest last: the type that the file is named for comes first if it is rare."""
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in sorted(types.items(), key=lambda item: item[1]))


def table(heading, rows):
    return ["| " + " | ".join(heading) + " |", "|---|---|" + "---:|" * (len(heading) - 2),
            *("| " + " | ".join(row) + " |" for row in rows), ""]


def kl_table(figures):
    columns = ["shipped prompt", "shipped steps", "bf16 steps", "int8 prompt", "int8 steps", "llama.cpp prompt",
               "llama.cpp steps"]

    def cell(value):
        if value is None:
            return "–"
        text = f"{value:.1e}".replace("e-0", "e-")
        return f"**{text}**" if value > LIMIT else text

    return table(["file", "weights", *columns],
                 [[name, parts_of(found["types"]), *(cell(found["kl"].get(column)) for column in columns)]
                  for name, found in figures.items() if "kl" in found])


def speed_table(figures):
    def cells(turns):
        theirs, ours = (statistics.median(turn[side] for turn in turns) for side in (0, 1))
        return [f"{theirs:.4g}", f"{ours:.4g}", f"{ours / theirs:.2f}"]

    rows = [[name, parts_of(found["types"]), *cells(found["speed"]["prompt"]), *cells(found["speed"]["generate"])]
            for name, found in figures.items() if "speed" in found]
    return table(["file", "weights", f"prompt {PROMPT}: llama.cpp", "fovea", "ratio", "generate: llama.cpp", "fovea",
                  "ratio"], rows)


def section(arguments, lab, figures):
    turns = sorted({len(found["speed"]["prompt"]) for found in figures.values() if "speed" in found})
    return "\n".join([
        "<!-- peers kl: begin -->", "", "## kl", "",
        f"{datetime.date.today().isoformat()}, {peers.cpu_name()}, {arguments.threads} threads, "
        f"{lab.version('llama.cpp')}, fovea {peers.commit_name()}: `bench/kl.py`.", "",
        f"Mean KL from `--precision f32` in nats over {arguments.tokens} tokens of the GPL, of each choice of",
        f"activations; above the bound of {LIMIT:g} in bold. `bench/kl.py --help` says what the columns are.", "",
        *kl_table(figures),
        f"Tokens a second, medians of {' or '.join(map(str, turns)) or 'no'} turns taken alternately.", "",
        *speed_table(figures), "<!-- peers kl: end -->"])


def in_order(figures):
    """By type, then by model; files of other names last."""
    def place(name):
        model, _, kind = name.partition("-")
        return (TYPES.index(kind), list(peers.FILES).index(model)) if kind in TYPES else (len(TYPES), 0)

    return dict(sorted(figures.items(), key=lambda item: place(item[0])))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="*", help="GGUF files; without any, one of each type of both models")
    parser.add_argument("--only", choices=["kl", "speed"], help="measure only that")
    parser.add_argument("--tokens", type=int, default=300, help="of the text, for KL")
    parser.add_argument("--turns", type=int, default=3, help="of the speeds")
    parser.add_argument("--types", default=os.path.join(peers.ROOT, "build", "types"), help="where files of types go")
    parser.add_argument("--write", action="store_true", help="also put the tables into bench/RESULTS.md")
    peers.add_common_options(parser)
    arguments = parser.parse_args()
    lab = peers.Lab(os.path.abspath(arguments.venv), not arguments.no_install)
    if not lab.has("llama.cpp"):
        sys.exit(f"kl: llama.cpp is not installed ({lab.missing['llama.cpp']})")
    figures = peers.load_kept(arguments.keep)
    for path in arguments.file or make_files(arguments, lab):
        found = figures.setdefault(os.path.basename(path).removesuffix(".gguf"), {})
        found.setdefault("types", lab.run("types_of", model=path))
        for name, measure in (("kl", kl), ("speed", speed)):
            if name not in found and arguments.only in (None, name):
                peers.say(f"  {name} of {path}")
                found[name] = measure(arguments, lab, path)
        peers.store_kept(arguments.keep, figures)
    text = section(arguments, lab, in_order(figures))
    print(text)
    if arguments.write:
        peers.write_section("kl", text)


if __name__ == "__main__":
    main()
