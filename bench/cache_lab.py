"""What bench/cache.py measures with: texts that a machine has, the command, and tables."""

import concurrent.futures
import glob
import itertools
import json
import os
import statistics
import subprocess
import sys


def say(sentence):
    print(sentence, file=sys.stderr, flush=True)


# ---- texts -----------------------------------------------------------------------------------------------------------


def licence():
    with open("/usr/share/common-licenses/GPL-3", encoding="utf-8") as file:
        return file.read()


def topics():
    from pydoc_data.topics import topics as parts  # pylint: disable=import-outside-toplevel
    return "\n\n".join(parts[name] for name in sorted(parts))


def article():
    found = sorted(glob.glob("/usr/share/perl/5*/Locale/Maketext/TPJ13.pod"))
    if not found:
        raise FileNotFoundError("/usr/share/perl/5*/Locale/Maketext/TPJ13.pod")
    with open(found[-1], encoding="utf-8") as file:
        return file.read()


TEXTS = {"GPL-3": (licence, "package base-files"), "topics": (topics, "pydoc_data, package libpython3-stdlib"),
         "TPJ13": (article, "package perl-modules")}


def find_texts():
    found = {}
    for name, (read, source) in TEXTS.items():
        try:
            found[name] = read()
        except (OSError, ImportError) as error:
            say(f"text {name} is missing ({source}): {error}")
    if not found:
        sys.exit("cache: none of the texts is there")
    return found


# ---- the command -----------------------------------------------------------------------------------------------------


class Lab:
    """The command, one model, and pieces of the texts."""

    def __init__(self, arguments, model, folder):
        self.arguments, self.model, self.folder = arguments, model, folder
        self.texts = arguments.texts
        self.cache = {}

    def try_json(self, *words):
        """(JSON or None, exit status, what it said)."""
        common = ["--threads", str(self.arguments.threads), "--json", "--quiet"]
        command = [self.arguments.fovea, *map(str, words), *common]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return (json.loads(done.stdout) if done.returncode == 0 else None), done.returncode, done.stderr.strip()

    def json(self, *words):
        report, status, said = self.try_json(*words)
        if status != 0:
            sys.exit(f"cache: fovea {' '.join(map(str, words))}: status {status}: {said}")
        return report

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(text)
        return self.path(name)

    def pieces_of(self, text, *words):
        return self.json("tokenize", "-m", self.model, "-f", self.write("tokenize", text), *words)

    def middle(self, name, tokens):
        """The middle of a text, from the start of a line, about that many tokens."""
        text = self.texts[name]
        length = min(len(text), 5 * tokens)
        for _ in range(4):
            at = (len(text) - length) // 2
            at = text.find("\n", at) + 1 if at else 0
            piece = text[at:at + length]
            count = len(self.pieces_of(piece)["ids"])
            if abs(count - tokens) <= tokens // 100:
                break
            length = min(len(text), int(length * tokens / count))
        return piece

    def piece(self, name, tokens):
        """A file with the middle of a text."""
        path = self.path(f"{name}-{tokens}")
        return path if os.path.exists(path) else self.write(f"{name}-{tokens}", self.middle(name, tokens))

    def run(self, path, cache, *words):
        return self.json("run", "-m", self.model, "-f", path, "--cache", cache, *words)

    def compare(self, path, specs, score=256, answer=1):
        """{spec: figures}, and dense's under `full`; specs may repeat, as (spec, turn)."""
        words = [word for spec in specs for word in ("--with", f"cache={spec}")]
        report = self.json("compare", "-m", self.model, "-f", path, "--raw", "--score", score, "-n", answer, *words)
        say(f"  compared {len(specs)} set-ups on {os.path.basename(path)}")
        return report["runs"], report["document_tokens"]

    def side_by_side(self, function, items):
        """Results of a function that runs the command, in order; --jobs of them at a time."""
        with concurrent.futures.ThreadPoolExecutor(self.arguments.jobs) as pool:
            return list(pool.map(function, items))

    def ask_ahead(self, specs, lengths, depths, names=None):
        """Asks now for what `needles` will ask for."""
        names = names or list(self.texts)
        for name in names:
            self.piece(name, max(lengths))
        self.side_by_side(lambda at: self.needle(at[1], at[0], lengths, depths), itertools.product(specs, names))

    def needle(self, name, spec, lengths, depths):
        """{(length, depth): score} of facts hidden in a text."""
        at = (name, spec, tuple(lengths), tuple(depths))
        if at not in self.cache:
            self.cache[at] = self.needle_now(name, spec, lengths, depths)
        return self.cache[at]

    def needle_now(self, name, spec, lengths, depths):
        report = self.json("eval", "needle", "-m", self.model, "-f", self.piece(name, max(lengths)), "--lengths",
                           ",".join(map(str, lengths)), "--depths", ",".join(map(str, depths)), "--cache", spec)
        return {(row["length"], row["depth"]): row["score"] for row in report["rows"]}

    def needles(self, spec, lengths, depths, names=None):
        """Scores of every text, one list for each (length, depth)."""
        found = {(length, depth): [] for length in lengths for depth in depths}
        for name in names or self.texts:
            for at, score in self.needle(name, spec, lengths, depths).items():
                found[at].append(score)
        say(f"  facts under {spec}: {share(sum(found.values(), []))}")
        return found

    def kv_bytes(self, spec, tokens):
        """Bytes of rows after a text of so many tokens."""
        at = (spec, tokens)
        if at not in self.cache:
            path = self.piece(next(iter(self.texts)), tokens)
            self.cache[at] = self.run(path, spec, "--raw", "-n", 1)["kv_bytes"]
        return self.cache[at]

    def equal(self, spec, tokens):
        """`sinkring` with as many bytes of rows after a text of so many tokens."""
        low, high = tokens // 4, tokens // 2
        a, b = (self.kv_bytes(f"sinkring:budget={budget}", tokens) for budget in (low, high))
        budget = round(low + (self.kv_bytes(spec, tokens) - a) * (high - low) / (b - a))
        return f"sinkring:budget={max(budget, 8)}"


def share(scores):
    scores = list(scores)
    return f"{sum(scores):g} of {len(scores)}"


def mib(count):
    return f"{count / 2 ** 20:.1f}"


def number(value):
    return "0" if value == 0 else f"{value:.2g}"


def table(heads, rows):
    marks = ["---" if n == 0 else "---:" for n in range(len(heads))]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in [heads, marks, *rows]).replace(
        "| --- |", "|---|").replace("| ---: ", "|---:").replace("---:|---: |", "---:|---:|")


def code(spec, folder=None):
    return "`" + (spec.replace(folder + os.sep, "") if folder else spec) + "`"


def means(lab, tokens, specs, score=256, names=None):
    """{spec: (KL, top-1, perplexity, kv_bytes, decode rate)}, means over texts (perplexity: geometric)."""
    found = {spec: [] for spec in ["full", *specs]}
    paths = [lab.piece(name, tokens) for name in names or lab.texts]
    for runs, _ in lab.side_by_side(lambda path: lab.compare(path, specs, score), paths):
        for spec, run in zip(found, runs):
            found[spec].append(run)
    return {spec: {"kl": statistics.mean(run["kl"] for run in runs),
                   "top1": statistics.mean(run["top1"] for run in runs),
                   "perplexity": statistics.geometric_mean(run["perplexity"] for run in runs),
                   "kv_bytes": statistics.mean(run["kv_bytes"] for run in runs),
                   "rate": statistics.median(run["decode_tokens_per_second"] for run in runs)}
            for spec, runs in found.items()}
