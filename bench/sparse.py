#!/usr/bin/env python3
"""Measure sparse attention on real models and real prose, and print Markdown.

    bench/sparse.py [PART]... [--family content|local] [--quick] [--out FILE.md] [--only NAME,..]

    prefill   fovea compare: speed of a prompt and of attention, distance from dense, with llama.cpp in the same run
    needle    facts hidden at several lengths and depths; needle_as_is: without --dense-last
    recall    share of the true attention mass that each mechanism reads, by density

Prose is the Debian Administrator's Handbook (package debian-handbook, Raphael Hertzog and Roland Mas; GPL-2+ or
CC-BY-SA-3.0), whose English HTML is fetched with `apt-get download` and stripped of markup and listings. Pieces are from
its middle. Speeds are of runs that took turns; on a busy machine only their ratios mean anything. --family: mechanisms
that choose by content (docs/sparse.md), or by position (docs/local.md). --only keeps to mechanisms of these names, --model to one model, --lengths to these numbers of
tokens; --no-peer leaves llama.cpp out.
"""

import argparse
import glob
import html.parser
import os
import re
import statistics
import subprocess
import sys
import tempfile

import peers
from cache_lab import Lab, code, number, say, table

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODELS = {"SmolLM2-135M": "SmolLM2-135M-Instruct.Q4_1.gguf", "Gemma 3 270M": "gemma-3-270m-q4_k_m.gguf"}
LAST = 64  # tokens at the prompt's end that read everything: the question
LENGTHS = {"SmolLM2-135M": [7000], "Gemma 3 270M": [16000, 30000]}

# Set-ups by family. SmolLM2's first layers stay dense; of Gemma 3 those with a window of their own keep it.
CONTENT = (
    "anchor:block=64,step=4,theta=8",
    "anchor:block=64,step=4,theta=4",
    "hip:k=1024,window=256,sink=16,rep=centre",
    "hip:k=512,window=512,sink=16,rep=centre,stride=16,share_heads=1",
    "dhsa:block=128,budget=2048,chunk=32",
    "psa:block_q=64,block_k=64",
    "moba:block=128,top=16",
    "nsa:compress=mean",
    "blocktopk:block=128,top=8,local=256",
    "superlinear:window_index=31,back=3,forward=1,search_scale=0.125",
    "corecontext:group=8,window=2048,pool=kv_head,log_bias=1",
    "sinkwin:sink=64,window=1984",
)
LOCAL = (
    "sinkwin:sink=64,window=1984",
    "sinkwin:sink=4,window=1020",
    "power",
    "power:block=64,window_blocks=16",
    "s2:local=16,stride=8",
    "s2:local=16,stride=8,homo=1",
    "s2:local=16,stride=8,mode=relative",
    "lsattn:window=1024,global=1",
    "s2attn:group=2048",
    "sfattn:group=2048",
    "combiner:segment=256,pool=mean,span_bias=1",
    "combiner:form=logn,pool=mean,span_bias=1",
)
SMOL, GEMMA = MODELS
SPECS = {
    ("content", SMOL): [f"0-2/dense;rest/{spec}" for spec in CONTENT],
    ("content", GEMMA): list(CONTENT),
    # besides, a third of the layers full: in the middle, spread, the first ones (of Gemma's three one)
    ("local", SMOL): [*(f"0-2/dense;rest/{spec}" for spec in LOCAL),
                      *(f"{full}/dense;rest/{spec}" for spec in ("sinkwin:sink=64,window=1984", "s2:local=16,stride=8")
                        for full in ("10-19", "0,3,6,9,12,15,18,21,24,27", "0-9"))],
    ("local", GEMMA): [*LOCAL, *(f"{full}/dense;{rest}/{spec}"
                                 for spec in ("sinkwin:sink=64,window=1984", "s2:local=16,stride=8")
                                 for full, rest in (("11", "5,17"), ("5", "11,17"), ("17", "5,11")))],
}
SUMS = ("corecontext", "combiner")  # what they keep of the past has no place for single rows that read everything


# ---- prose -----------------------------------------------------------------------------------------------------------


class Prose(html.parser.HTMLParser):
    """Paragraphs and headings of one page."""

    VOID = {"br", "img", "hr", "meta", "link", "input"}

    def __init__(self):
        super().__init__()
        self.open, self.words, self.out = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag in self.VOID:
            return
        block = dict(attrs).get("class") == "para" or tag in ("h1", "h2", "h3", "h4")
        if block:
            self.end()
        self.open.append((tag, block, tag in ("script", "style", "pre")))

    def handle_endtag(self, tag):
        while self.open:
            name, block, _ = self.open.pop()
            if block:
                self.end()
            if name == tag:
                break

    def handle_data(self, data):
        if any(block for _, block, _ in self.open) and not any(skip for _, _, skip in self.open):
            self.words.append(data)

    def end(self):
        text = " ".join("".join(self.words).split())
        self.words = []
        if len(text) > 60:
            self.out.append(text)


def read_page(path):
    page = Prose()
    with open(path, encoding="utf-8") as file:
        page.feed(file.read())
    page.end()
    return page.out


def handbook(folder):
    """The book's prose, kept in a file."""
    path = os.path.join(folder, "handbook.txt")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            return file.read()
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["apt-get", "-qq", "download", "debian-handbook"], cwd=scratch, check=True,
                       stderr=subprocess.DEVNULL)
        subprocess.run(["dpkg-deb", "-x", glob.glob(os.path.join(scratch, "*.deb"))[0], scratch], check=True)
        root = os.path.join(scratch, "usr", "share", "doc", "debian-handbook", "html", "en-US")
        with open(os.path.join(root, "index.html"), encoding="utf-8") as file:
            pages = dict.fromkeys(re.findall(r'href="([\w.-]+\.html)', file.read()))
        parts = [part for page in pages if os.path.exists(os.path.join(root, page))
                 for part in read_page(os.path.join(root, page))]
    text = "\n\n".join(dict.fromkeys(parts))
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return text


# ---- parts -----------------------------------------------------------------------------------------------------------


def lab_of(arguments, model, folder):
    return Lab(arguments, os.path.join(arguments.models, MODELS[model]), folder)


def specs_of(arguments, model):
    wanted = arguments.only.split(",") if arguments.only else None
    return [spec for spec in SPECS[arguments.family, model] if not wanted or spec.split("/")[-1].split(":")[0] in wanted]


def models_of(arguments):
    return [model for model in MODELS if not arguments.model or arguments.model in model]


def lengths_of(arguments, model):
    if arguments.lengths:
        return [int(length) for length in arguments.lengths.split(",")]
    return [2000] if arguments.quick else LENGTHS[model]


def seconds(value):
    return f"{value:.2f}" if value is not None else "–"


def prefill_rows(runs):
    dense = runs[0]
    for run in runs:
        spent = run["attention_seconds"]
        choosing = (run["score_seconds"] + run["select_seconds"]) / spent if spent else 0
        yield (code(run["spec"].removeprefix("attention=")), f"{100 * run['density']:.0f} %", f"{run['prefill_tokens_per_second']:.0f}",
               f"{run['prefill_tokens_per_second'] / dense['prefill_tokens_per_second']:.2f}", seconds(spent),
               f"{run['attention_speedup']:.2f}" if run is not dense else "1",
               f"{100 * choosing:.0f} %" if choosing else "–", number(run["kl"]), f"{run['top1']:.3f}")


def prefill(arguments, folder):
    """Each set-up, dense and llama.cpp read the same number of tokens."""
    parts = []
    peer = None if arguments.no_peer else peers.Lab(os.path.abspath(arguments.venv), not arguments.no_install)
    for model in models_of(arguments):
        for tokens in lengths_of(arguments, model):
            lab = lab_of(arguments, model, folder)
            path = lab.piece("handbook", tokens)
            theirs = []
            if peer and peer.has("llama.cpp"):
                theirs = [peer.run("llama_model", model=lab.model, tokens=tokens, threads=arguments.threads,
                                   generate=1)["prefill"] for _ in range(1 if arguments.quick else 2)]
            words = [word for spec in specs_of(arguments, model) for word in ("--with", f"attention={spec}")]
            report = lab.json("compare", "-m", lab.model, "-f", path, "--raw", "--score", 128, "-n", 1, *words)
            rows = list(prefill_rows(report["runs"]))
            note = f"llama.cpp reads {statistics.median(theirs):.0f} tokens/s in the same run" if theirs else \
                "llama.cpp was not measured"
            dense = report["runs"][0]["prefill_tokens_per_second"]
            if theirs:
                note += f" (dense here: {dense / statistics.median(theirs):.1f} times as many)"
            parts.append(f"### {model}, {report['document_tokens']} tokens\n\n{note}.\n\n" + table(
                ("set-up", "pairs", "tokens/s", "of dense", "attention, s", "times as fast", "choosing", "KL",
                 "top-1"), rows))
            say(f"  {model}, {tokens}")
    return "\n\n".join(parts)


def needle(arguments, folder, last=LAST):
    """Facts found at lengths and depths."""
    parts = []
    for model in models_of(arguments):
        lengths = lengths_of(arguments, model)
        if not arguments.quick and not arguments.lengths:
            lengths = sorted({4000, *lengths})
        depths = [50] if arguments.quick else [5, 20, 35, 50, 65, 80, 95]
        lab, rows = lab_of(arguments, model, folder), []
        for spec in ["dense", *specs_of(arguments, model)]:
            cells = {}
            for length in lengths:
                report = lab.json("eval", "needle", "-m", lab.model, "-f", lab.piece("handbook", length), "--lengths",
                                  length, "--depths", ",".join(map(str, depths)), "--attention", spec, "--dense-last",
                                  0 if any(name in spec for name in SUMS) else last)
                cells.update({(length, row["depth"]): row["score"] for row in report["rows"]})
                say(f"  {model}, {length}: {sum(row['score'] for row in report['rows']):g} under {spec}")
            rows.append((code(spec), *(" ".join(f"{cells[length, depth]:g}" for depth in depths) for length in lengths),
                         f"{sum(cells.values()):g} of {len(cells)}"))
        parts.append(f"### {model}\n\nDepths {', '.join(map(str, depths))} %, in this order.\n\n" + table(
            ("set-up", *(f"{length} tokens" for length in lengths), "found"), rows))
    return "\n\n".join(parts)


def needle_as_is(arguments, folder):
    """The same where the last tokens read no more than the others."""
    return needle(arguments, folder, 0)


def recall(arguments, folder):
    """Mass inside each plan, averaged over layers."""
    parts = []
    for model in models_of(arguments):
        lab = lab_of(arguments, model, folder)
        report = lab.json("eval", "recall", "-m", lab.model, "-f", lab.piece("handbook", 2000 if arguments.quick else 4000))
        found = {}
        for row in report["rows"]:
            found.setdefault(row["attention"], []).append(row)
        rows = [(code(spec), f"{100 * statistics.mean(row['density'] for row in own):.1f} %",
                 f"{100 * statistics.mean(row['recall'] for row in own):.1f} %",
                 f"{100 * min(row['recall'] for row in own):.1f} %") for spec, own in found.items()]
        parts.append(f"### {model}\n\n" + table(("set-up", "pairs", "mass read", "in the worst layer"), rows))
    return "\n\n".join(parts)


# ---- all of it -------------------------------------------------------------------------------------------------------

PARTS = {function.__name__: function for function in (prefill, needle, needle_as_is, recall)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", metavar="|".join(PARTS))
    parser.add_argument("--family", choices=("content", "local"), default="content", help="which mechanisms (content)")
    parser.add_argument("--quick", action="store_true", help="2000 tokens, one depth: to see that all of it runs")
    parser.add_argument("--only", metavar="NAME,..", help="mechanisms to try (all)")
    parser.add_argument("--model", metavar="WORD", help="the model whose name holds it (all)")
    parser.add_argument("--lengths", metavar="N,..", help="tokens of the texts")
    parser.add_argument("--no-peer", action="store_true", help="leave llama.cpp out")
    parser.add_argument("--out", metavar="FILE", help="Markdown goes there (otherwise to standard output)")
    parser.add_argument("--text", default=tempfile.gettempdir(), metavar="FOLDER", help="where the prose is kept")
    peers.add_common_options(parser)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.part if name not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]}: expected {', '.join(PARTS)}")
    arguments.texts = {"handbook": handbook(arguments.text)}
    done = []
    for name in arguments.part or PARTS:
        say(name)
        with tempfile.TemporaryDirectory() as folder:
            done.append(f"## {name}\n\n{PARTS[name](arguments, folder)}\n".replace(folder + os.sep, ""))
        if not arguments.out:
            print(done[-1], flush=True)
    if arguments.out:
        with open(arguments.out + ".part", "w", encoding="utf-8") as file:
            file.write("\n".join(done))
        os.replace(arguments.out + ".part", arguments.out)


if __name__ == "__main__":
    sys.exit(main())
