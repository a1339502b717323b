#!/usr/bin/env python3
"""Measure fovea beside what a person can install today, alternately in one run, and print markdown.

    bench/peers.py [gemm|attend|decode|smollm2|gemma3|start|serve|quality]... [--quick] [--write]

Needs build/fovea and the models of scripts/fetch-models.py. Peers come from PyPI into an environment of its own (--venv,
default .lab, made when it is missing): llama-cpp-python builds llama.cpp from source (some minutes on two cores), torch
takes 5 GB of disk. What cannot be installed is named in its rows; nothing is measured for it.

Fairness. Each measurement is a process of its own, so that neither side's idle threads disturb the other, all in one
process group, and the sides take turns; figures are medians over the turns. llama.cpp runs as its own benchmark does
(f16 cache, fused attention, ids fed without sampling, each feed waiting for its logits); fovea's figures of models are
those of `fovea run --json`, its choice of tokens included, and of kernels those of `fovea bench --json`.

"of limit" is fovea's share of what the machine allows at best, measured in the same run: multiply-adds, dot products or
reading memory, whichever bounds the work. Generation must read the weights and the cache once for each token.
--write puts the rows into bench/RESULTS.md between marks of their group. --quick: one turn, short prompts. --keep FILE:
turns are added to those of earlier runs that the file holds, and with --filter TEXT only rows whose name contains it are
measured, so that a long run can be cut into pieces that fit a quiet minute, and spread over many.
"""

import argparse
import datetime
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import peer_work as work

ROOT = work.ROOT
FILES = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma3": "gemma-3-270m-q4_k_m.gguf"}
PROMPTS = {"smollm2": (512, 2048, 7680), "gemma3": (512, 2048, 8192)}
GENERATE, SHORT, LONG = 128, 16, 7000
PACKAGES = {"llama.cpp": ["numpy", "gguf", "jinja2", "llama-cpp-python==0.3.36"], "torch": ["numpy", "torch"],
            "onnxruntime": ["numpy", "onnx", "onnxruntime"]}
MODULES = {"llama.cpp": "llama_cpp, gguf, jinja2, numpy", "torch": "torch", "onnxruntime": "onnxruntime, onnx"}
GOLDEN = os.path.join(ROOT, "tests", "golden")


def say(sentence):
    print(sentence, file=sys.stderr, flush=True)


# ---- peers -----------------------------------------------------------------------------------------------------------


class Lab:
    """The environment of the peers, and why one of them is missing."""

    def __init__(self, folder, install):
        self.python = os.path.join(folder, "bin", "python")
        self.missing = {}
        self.install = install
        if not os.path.exists(self.python):
            if not install:
                sys.exit(f"peers: {folder} is not there (leave out --no-install)")
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        self.known = {}

    def has(self, peer):
        if peer not in self.known:
            self.known[peer] = self.imports(peer) or (self.install and self.fetch(peer))
        return self.known[peer]

    def imports(self, peer):
        done = subprocess.run([self.python, "-c", f"import {MODULES[peer]}"], capture_output=True, check=False)
        if done.returncode != 0:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
            self.missing[peer] = lines[-1] if lines else "it cannot be imported"
        return done.returncode == 0

    def fetch(self, peer):
        say(f"installing {peer}")
        done = subprocess.run([self.python, "-m", "pip", "install", "--quiet", *PACKAGES[peer]], check=False)
        return done.returncode == 0 and self.imports(peer)

    def run(self, name, **request):
        """A process of its own: what peer_work's function of that name prints."""
        done = subprocess.run([self.python, os.path.abspath(__file__), "--work", name, json.dumps(request)],
                              stdout=subprocess.PIPE, check=False)
        if done.returncode != 0:
            sys.exit(f"peers: {name} ended with status {done.returncode}")
        return json.loads(done.stdout)

    def version(self, peer):
        package = PACKAGES[peer][-1].split("==")[0]
        done = subprocess.run([self.python, "-c", "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))",
                               package], capture_output=True, text=True, check=False)
        return f"{package} {done.stdout.strip()}"


# ---- fovea -----------------------------------------------------------------------------------------------------------


def fovea_json(arguments, *words):
    """JSON of one process, and the most memory it held."""
    command = [arguments.fovea, *words, "--threads", str(arguments.threads), "--json", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        out = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        sys.exit(f"peers: {' '.join(command)} ended with status {child.returncode}")
    return json.loads(out), usage.ru_maxrss * 1024


def fovea_run(arguments, path, prompt, generate):
    report, memory = fovea_json(arguments, "run", "-m", path, "-f", prompt, "--raw", "-n", str(generate))
    return {**report, "memory": memory}


# ---- rows ------------------------------------------------------------------------------------------------------------


class Row:
    """One figure: what, each side's number of each turn, and fovea's share of its limit."""

    def __init__(self, what, peer, unit, less=False):
        self.what, self.peer, self.unit, self.less = what, peer, unit, less
        self.theirs, self.ours, self.share, self.goal = [], [], [], ""

    def add(self, more):
        """Turns of another row of the same figure."""
        for mine, other in ((self.theirs, more.theirs), (self.ours, more.ours), (self.share, more.share)):
            mine.extend(other)
        self.goal = more.goal

    def text(self):
        def number(values):
            return f"{statistics.median(values):.4g} {self.unit}" if values else "–"

        ratio = "–"
        if self.theirs and self.ours:
            a, b = statistics.median(self.theirs), statistics.median(self.ours)
            ratio = f"{a / b if self.less else b / a:.2f}"
        share = f"{100 * statistics.median(self.share):.0f} %" if self.share else self.goal or "–"
        return f"| {self.what} | {self.peer} | {number(self.theirs)} | {number(self.ours)} | {ratio} | {share} |"


def kernels(arguments, lab, what, words, peers, wanted=lambda shape: True):
    """Rows of one kind of `fovea bench` beside functions of peer_work, {peer: function}, for the wanted shapes."""
    rows = {(peer, ""): Row(what, f"{peer}: not installed ({lab.missing[peer]})", "ms")
            for peer in peers if not lab.has(peer)}
    for turn in range(arguments.turns):
        report, _ = fovea_json(arguments, "bench", what, *words, "--seconds", "0.3")
        mine = {row["shape"]: row for row in report
                if row["what"] == what and wanted(row["shape"]) and arguments.filter in f"{what} {row['shape']}"}
        for peer, function in peers.items():
            if not lab.has(peer):
                continue
            theirs = lab.run(function, threads=arguments.threads, cells=list(mine))
            for cell, seconds in theirs.items():
                row = rows.setdefault((peer, cell), Row(f"{what} {cell}", peer, "ms", less=True))
                row.theirs.append(1e3 * seconds)
                row.ours.append(1e3 * mine[cell]["seconds"])
                row.share.append(mine[cell]["of_peak"])
        say(f"  {what}, turn {turn + 1}")
    return list(rows.values())


def gemm(arguments, lab):
    return kernels(arguments, lab, "gemm", ["--sizes", "2048"], {"torch": "torch_gemm"},
                   lambda shape: shape.startswith("2048 x"))


def attend(arguments, lab):
    return kernels(arguments, lab, "attend", ["--sizes", "4096"],
                   {"torch": "torch_attention", "onnxruntime": "onnx_attention"},
                   lambda shape: "D=256" not in shape)


def decode(arguments, lab):
    return kernels(arguments, lab, "decode", [], {"torch": "torch_attention"},
                   lambda shape: shape.endswith((", f32", ", bf16")))


# ---- models ----------------------------------------------------------------------------------------------------------


def prompt_flops(shape, tokens):
    """As bench_model.c counts: two for each weight of the layers, the vocabulary's once, and attention."""
    flops = 2 * shape["layer_weights"] * tokens + 2 * shape["head_weights"]
    for window in shape["windows"]:
        reach = min(window or tokens, tokens)
        flops += 4 * shape["attention_width"] * (reach * (reach + 1) / 2 + (tokens - reach) * reach)
    return flops


def peaks(arguments):
    report, _ = fovea_json(arguments, "bench", "scan", "--sizes", "16", "--seconds", "0")
    found = {(row["what"], row["shape"]): row for row in report if row["what"].startswith("peak ")}
    compute = found.get(("peak dot", "bf16")) or found["peak fma", "f32"]
    return {"flops": 1e9 * compute["gflops"], "read": 1e9 * found["peak read", "bytes read"]["gbytes"]}


def model_cells(name, arguments):
    """(name of the row, tokens of prompt, whether it is of generating)."""
    prompts, after = ((512,), (SHORT,)) if arguments.quick else (PROMPTS[name], (SHORT, LONG))
    cells = [*((f"{name} generate {GENERATE} after {n}", n, True) for n in after),
             *((f"{name} prompt {n}", n, False) for n in prompts)]
    return [cell for cell in cells if arguments.filter in cell[0]]


def model(name):
    def measure(arguments, lab):
        path = os.path.join(arguments.models, FILES[name])
        cells = model_cells(name, arguments)
        if not lab.has("llama.cpp"):
            return [Row(name, f"llama.cpp: not installed ({lab.missing['llama.cpp']})", "tokens/s")]
        shape, limit = lab.run("model_shape", model=path), peaks(arguments)
        rows = [Row(what, "llama.cpp", "tokens/s") for what, _, _ in cells]
        with tempfile.TemporaryDirectory() as folder:
            counts = lab.run("llama_prompts", model=path, folder=folder, tokens=[tokens for _, tokens, _ in cells])
            for turn in range(arguments.turns):
                for row, (_, tokens, generates) in zip(rows, cells):
                    generate = GENERATE if generates else 1
                    theirs = lab.run("llama_model", model=path, tokens=tokens, threads=arguments.threads,
                                     generate=generate)
                    ours = fovea_run(arguments, path, os.path.join(folder, f"prompt-{tokens}"), generate)
                    if ours["prompt_tokens"] != counts[str(tokens)]:
                        sys.exit(f"peers: {FILES[name]}: expected fovea to count {counts[str(tokens)]} prompt tokens, "
                                 f"got {ours['prompt_tokens']}")
                    row.theirs.append(theirs["decode" if generates else "prefill"])
                    row.ours.append(ours[f"{'decode' if generates else 'prefill'}_tokens_per_second"])
                    if generates:
                        row.share.append((shape["bytes"] + ours["kv_bytes"]) * row.ours[-1] / limit["read"])
                    else:
                        row.share.append(prompt_flops(shape, tokens) * row.ours[-1] / tokens / limit["flops"])
                say(f"  {name}, turn {turn + 1}")
        return rows

    return measure


# ---- start-up and memory, quality ------------------------------------------------------------------------------------


def first_token(arguments, path):
    """Seconds from the start of the process to the first byte of its answer to ten tokens."""
    command = [arguments.fovea, "run", "-m", path, "--raw", "-p", "The capital of France is a city on the river",
               "-n", "1", "--threads", str(arguments.threads), "--quiet"]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        child.stdout.read(1)
        seconds = time.perf_counter() - start
        child.communicate()
    if child.returncode != 0:
        sys.exit(f"peers: {' '.join(command)} ended with status {child.returncode}")
    return seconds


def start(arguments, lab):
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, file in FILES.items():
            if arguments.filter not in name:
                continue
            path = os.path.join(arguments.models, file)
            row = Row(f"{name}: start to first token of 10", "goal: 100 ms", "ms", less=True)
            row.ours = [1e3 * first_token(arguments, path) for _ in range(1 if arguments.quick else 5)]
            rows.append(row)
            prompt = os.path.join(folder, "prompt")
            with open(work.GPL, encoding="ascii") as source, open(prompt, "w", encoding="ascii") as file:
                file.write((source.read() * 2)[:int(4.71 * LONG)])  # about that many tokens
            run = fovea_run(arguments, path, prompt, 8)
            spare = run["memory"] - os.path.getsize(path) - run["kv_bytes"]
            row = Row(f"{name}: most memory, {run['prompt_tokens']} tokens", "goal: weights + cache + 64 MiB", "MiB",
                      less=True)
            row.ours, row.goal = [run["memory"] / 2 ** 20], f"weights + cache {spare / 2 ** 20:+.0f} MiB"
            rows.append(row)
    return rows


class Server:
    """`fovea serve` on a free port, for as long as a block lasts."""

    def __init__(self, arguments, path, *words):
        command = [arguments.fovea, "serve", "-m", path, "--port", "0", "--threads", str(arguments.threads), *words]
        self.child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def __enter__(self):
        for line in self.child.stderr:
            if "listening on http://" in line:
                self.host, self.port = line.strip().rsplit("/", 1)[1].split(":")
                threading.Thread(target=self.child.stderr.read, daemon=True).start()
                return self
        sys.exit("peers: the server did not start")

    def __exit__(self, *_):
        self.child.terminate()
        self.child.wait()

    def post(self, path, body):
        connection = http.client.HTTPConnection(self.host, int(self.port), timeout=600)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            sys.exit(f"peers: the server answered {answer.status}: {text[:200]}")
        return json.loads(text)


def served(server, streams, prompt, tokens):
    """Seconds until `streams` clients that ask at the same time all have their answers."""
    def ask(stream):
        ids = [(7 * stream + p) % 1000 + 100 for p in range(prompt)]
        answer = server.post("/v1/completions", {"prompt": ids, "max_tokens": tokens, "temperature": 0,
                                                 "ignore_eos": True, "cache_prompt": False})
        if answer["usage"]["completion_tokens"] != tokens:
            sys.exit(f"peers: expected {tokens} tokens, got {answer['usage']}")

    clients = [threading.Thread(target=ask, args=(stream,)) for stream in range(streams)]
    begin = time.perf_counter()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return time.perf_counter() - begin


def serve(arguments, lab):
    """Tokens written a second, all streams together, prompts included in the time."""
    rows = []
    for name, file in FILES.items():
        path = os.path.join(arguments.models, file)
        for streams in (1, 4, 16):
            what = f"{name}: {streams} streams, prompts of 256, 128 tokens each"
            if arguments.filter not in what:
                continue
            have = lab.has("llama.cpp")
            row = Row(what, "llama.cpp" if have else f"llama.cpp: not installed ({lab.missing['llama.cpp']})",
                      "tokens/s")
            for _ in range(arguments.turns):
                if have:
                    done = lab.run("llama_streams", model=path, threads=arguments.threads, streams=streams, prompt=256,
                                   tokens=128)
                    row.theirs.append(streams * 128 / done["seconds"])
                with Server(arguments, path, "--parallel", str(streams)) as server:
                    served(server, streams, 256, 128)
                    row.ours.append(streams * 128 / served(server, streams, 256, 128))
            rows.append(row)
    return rows


def quality(arguments, lab):
    """Perplexity of the GPL (golden.py's procedure) and KL of next tokens from f32, once: both are deterministic."""
    rows, tokens = [], 512
    for name, file in FILES.items():
        if arguments.filter not in name:
            continue
        path = os.path.join(arguments.models, file)
        have = lab.has("llama.cpp")
        peer = "llama.cpp" if have else f"llama.cpp: not installed ({lab.missing['llama.cpp']})"
        with open(os.path.join(GOLDEN, f"{name}.json"), encoding="ascii") as golden:
            exact = json.load(golden)["perplexity"]["perplexity"]
        perplexity = Row(f"{name}: perplexity, 3 chunks of 2048 (f32 weights in llama.cpp: {exact:.4f})", peer, "",
                         less=True)
        perplexity.ours = [fovea_json(arguments, "eval", "ppl", "-m", path, "-f", work.GPL, "--ctx", "2048")[0]
                           ["perplexity"]]
        divergence = Row(f"{name}: mean KL from f32, {tokens} tokens", peer, "nats", less=True)
        with tempfile.TemporaryDirectory() as folder:
            logits = {kind: os.path.join(folder, f"{kind}.npy") for kind in ("auto", "f32")}
            if have:
                lab.run("llama_prompts", model=path, folder=folder, tokens=[tokens])
                for kind, target in logits.items():
                    fovea_json(arguments, "run", "-m", path, "-f", os.path.join(folder, f"prompt-{tokens}"), "--raw",
                               "-n", "1", "--precision", kind, "--logits", target)
                divergence.ours = [lab.run("kl_of_files", reference=logits["f32"], other=logits["auto"])["kl"]]
                theirs = lab.run("llama_kl", model=path, tokens=tokens, logits=logits["f32"])
                divergence.theirs = [theirs["prompt"]]
                perplexity.theirs = [lab.run("llama_perplexity", model=path)]
        rows += [perplexity, divergence]
        say(f"  quality of {name}")
    return rows


GROUPS = {"gemm": gemm, "attend": attend, "decode": decode, "smollm2": model("smollm2"), "gemma3": model("gemma3"),
          "start": start, "serve": serve, "quality": quality}
PEERS = {"gemm": ["torch"], "attend": ["torch", "onnxruntime"], "decode": ["torch"], "smollm2": ["llama.cpp"],
         "gemma3": ["llama.cpp"], "start": [], "serve": ["llama.cpp"], "quality": ["llama.cpp"]}


# ---- figures of earlier runs -----------------------------------------------------------------------------------------


def load_kept(path):
    if not path or not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def store_kept(path, kept):
    if not path:
        return
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(kept, file)
    os.replace(path + ".part", path)


def with_kept(kept, rows, seconds):
    """(rows, seconds) of a group with those of earlier runs, all of which `kept` then holds."""
    known = {}
    for fields in kept.get("rows", []):
        row = Row("", "", "")
        vars(row).update(fields)
        known[row.what, row.peer] = row
    for row in rows:
        if (row.what, row.peer) in known:
            known[row.what, row.peer].add(row)
        else:
            known[row.what, row.peer] = row
    kept.update(rows=[vars(row) for row in known.values() if row.ours], seconds=kept.get("seconds", 0) + seconds)
    return list(known.values()), kept["seconds"]


# ---- the file --------------------------------------------------------------------------------------------------------


def cpu_name():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return f"{names[0] if names else 'unknown processor'}, {os.cpu_count()} cores"


def commit_name():
    done = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True,
                          check=False)
    return done.stdout.strip() or "no commit"


def turns_of(rows):
    counts = sorted({len(row.ours) for row in rows if row.ours}) or [0]
    return f"{counts[0]} to {counts[-1]} turns" if len(counts) > 1 else f"{counts[0]} turn{'s' * (counts[0] != 1)}"


def section(group, rows, arguments, lab, seconds):
    versions = ", ".join(lab.version(peer) for peer in PEERS[group] if lab.has(peer)) or "no peer"
    command = f"bench/peers.py {group}" + (" --quick" if arguments.quick else "")
    lines = [
        f"<!-- peers {group}: begin -->", "", f"## {group}", "",
        f"{datetime.date.today().isoformat()}, {cpu_name()}, {arguments.threads} threads, {versions}, fovea "
        f"{commit_name()}; load {os.getloadavg()[0]:.1f} at the end.",
        f"Medians of {turns_of(rows)} taken alternately ({seconds:.0f} s): `{command}`.", "",
        "| figure | peer | theirs | fovea | ratio | of limit |", "|---|---|---:|---:|---:|---:|",
        *(row.text() for row in rows), "", f"<!-- peers {group}: end -->"]
    return "\n".join(lines)


def write_section(group, text):
    begin, end = (f"<!-- peers {group}: {mark} -->" for mark in ("begin", "end"))
    path = os.path.join(ROOT, "bench", "RESULTS.md")
    before = ""
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            before = file.read()
    if begin in before and end in before:
        head, rest = before.split(begin, 1)
        after = head + text + rest.split(end, 1)[1]
    else:
        after = (before.rstrip("\n") or "# Results") + "\n\n" + text + "\n"
    with open(path + ".part", "w", encoding="utf-8") as file:
        file.write(after)
    os.replace(path + ".part", path)


def add_common_options(parser):
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fovea", default=os.path.join(ROOT, "build", "fovea"))
    parser.add_argument("--models", default=os.path.join(ROOT, "models"))
    parser.add_argument("--venv", default=os.path.join(ROOT, ".lab"))
    parser.add_argument("--no-install", action="store_true", help="measure beside what is there")
    parser.add_argument("--keep", metavar="FILE", help="figures are kept there from run to run")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", nargs="*", metavar="|".join(GROUPS))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one turn; prompts of 16 and 512 tokens")
    add_common_options(parser)
    parser.add_argument("--filter", default="", metavar="TEXT", help="only rows whose name contains it")
    parser.add_argument("--write", action="store_true", help="also put the rows into bench/RESULTS.md")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(work.WORK[arguments.work[0]](json.loads(arguments.work[1]))))
        return
    unknown = [group for group in arguments.group if group not in GROUPS]
    if unknown:
        parser.error(f"unknown group {unknown[0]}: expected {', '.join(GROUPS)}")
    if not os.access(arguments.fovea, os.X_OK):
        sys.exit(f"peers: {arguments.fovea} is not there: build it first (make)")
    if arguments.quick:
        arguments.turns = 1
    lab, kept = Lab(os.path.abspath(arguments.venv), not arguments.no_install), load_kept(arguments.keep)
    for group in arguments.group or GROUPS:
        say(group)
        begin = time.monotonic()
        rows = GROUPS[group](arguments, lab)
        rows, seconds = with_kept(kept.setdefault(group, {}), rows, time.monotonic() - begin)
        store_kept(arguments.keep, kept)
        text = section(group, rows, arguments, lab, seconds)
        print(text, flush=True)
        if arguments.write:
            write_section(group, text)


if __name__ == "__main__":
    main()
