#!/usr/bin/env python3
"""Measure fovea beside llama.cpp on whole models, alternately in one run, and print a markdown table.

    .lab/bin/python scripts/peer-speed.py [smollm2] [gemma3] [--threads 2] [--repeats 3] [--write]

Needs build/fovea, the models of scripts/fetch-models.py and the laboratory's environment (scripts/golden.py --help).
Each measurement is a process of its own, so that neither side's idle threads disturb the other, and the two sides take
turns; the table shows medians. Prompt: tokens a second over a prompt of N tokens of the GPL version 3. Generation: 128
tokens after that prompt. llama.cpp runs as its own benchmark does (default f16 cache, fused attention, ids fed without
sampling); fovea's figures are those of `fovea run --json`, its choice of tokens included.
--write puts the table into bench/RESULTS.md between the marks that it finds or makes there.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
GPL = "/usr/share/common-licenses/GPL-3"
FILES = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma3": "gemma-3-270m-q4_k_m.gguf"}
PROMPTS = (512, 2048)
GENERATE = 128
BEGIN, END = "<!-- peer-speed: begin -->", "<!-- peer-speed: end -->"


def say(sentence):
    print(sentence, file=sys.stderr, flush=True)


def prompt_of(model, tokens):
    """Text of the GPL that makes about that many ids (a cut can join differently), and its ids."""
    with open(GPL, encoding="ascii") as file:
        ids = model.tokenize(file.read(), bos=True)[:tokens]
    body = ids[1:] if model.add_bos else ids
    text = model.text_of(body)
    return text, model.tokenize(text.decode("utf-8"), bos=True)


def measure_llama(path, tokens, threads):
    """In a process of its own: {"prompt_tokens", "prefill", "decode"} with rates in tokens a second."""
    import llamacpp

    model = llamacpp.Model(path)
    _, ids = prompt_of(model, tokens)
    context = llamacpp.Context(model, len(ids) + GENERATE, threads=threads)
    context.feed(ids[:32])  # touches the weights once, as fovea's loading does
    context.clear()
    start = time.perf_counter()
    context.feed(ids)
    middle = time.perf_counter()
    for token in ids[:GENERATE]:
        context.feed([token])
    end = time.perf_counter()
    return {"prompt_tokens": len(ids), "prefill": len(ids) / (middle - start), "decode": GENERATE / (end - middle)}


def write_prompt(path, tokens, target):
    import llamacpp

    model = llamacpp.Model(path, vocab_only=True)
    text, ids = prompt_of(model, tokens)
    with open(target, "wb") as file:
        file.write(text)
    return len(ids)


def measure_fovea(fovea, path, prompt, threads):
    command = [fovea, "run", "-m", path, "-f", prompt, "--raw", "-n", str(GENERATE), "--threads", str(threads),
               "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        sys.exit(f"peer-speed: {' '.join(command)} ended with status {done.returncode}: "
                 f"{done.stderr.decode('utf-8', 'replace').strip()}")
    report = json.loads(done.stdout)
    if len(report["tokens"]) < GENERATE:
        say(f"  fovea generated {len(report['tokens'])} of {GENERATE} tokens; its rate is over those")
    return {"prompt_tokens": report["prompt_tokens"], "prefill": report["prefill_tokens_per_second"],
            "decode": report["decode_tokens_per_second"]}


def measure_pair(name, tokens, arguments, prompt):
    path = os.path.join(arguments.models, FILES[name])
    expected = write_prompt(path, tokens, prompt)
    sides = {"llama.cpp": [], "fovea": []}
    for turn in range(arguments.repeats):
        peer = subprocess.run([sys.executable, __file__, "--measure-llama", path, "--tokens", str(tokens),
                               "--threads", str(arguments.threads)], stdout=subprocess.PIPE, check=True)
        sides["llama.cpp"].append(json.loads(peer.stdout))
        sides["fovea"].append(measure_fovea(arguments.fovea, path, prompt, arguments.threads))
        got = sides["fovea"][-1]["prompt_tokens"]
        if got != expected:
            sys.exit(f"peer-speed: {FILES[name]}: expected fovea to count {expected} prompt tokens, got {got}")
        say(f"  {name} {tokens} turn {turn + 1}: " + ", ".join(
            f"{side} {runs[-1]['prefill']:.0f} / {runs[-1]['decode']:.1f}" for side, runs in sides.items()))
    rows = []
    for what, field in ((f"prompt {expected}", "prefill"), (f"generate {GENERATE} after {expected}", "decode")):
        peer, ours = (statistics.median(run[field] for run in runs) for runs in sides.values())
        rows.append(f"| {FILES[name].removesuffix('.gguf')} | {what} | {peer:.1f} | {ours:.1f} | {ours / peer:.2f} |")
    return rows


def cpu_name():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return f"{names[0] if names else 'unknown CPU'}, {os.cpu_count()} cores"


def commit_name():
    done = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True,
                          check=False)
    return done.stdout.strip() or "no commit"


def section(rows, arguments):
    import llamacpp

    command = "scripts/peer-speed.py " + " ".join(sys.argv[1:])
    lines = [
        BEGIN, "", "## Whole models beside llama.cpp", "",
        f"Tokens a second, {arguments.threads} threads, medians of {arguments.repeats} turns taken alternately.",
        f"{datetime.date.today().isoformat()}, {cpu_name()}, load {os.getloadavg()[0]:.1f} at the end; "
        f"{llamacpp.version()} (f16 cache, fused attention), fovea {commit_name()}.", f"Command: `{command.strip()}`.",
        "", "| model | work | llama.cpp | fovea | ratio |", "|---|---|---:|---:|---:|", *rows, "", END]
    return "\n".join(lines)


def write_section(text):
    path = os.path.join(ROOT, "bench", "RESULTS.md")
    before = ""
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            before = file.read()
    if BEGIN in before and END in before:
        head, rest = before.split(BEGIN, 1)
        after = head + text + rest.split(END, 1)[1]
    else:
        after = (before.rstrip("\n") or "# Results") + "\n\n" + text + "\n"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".part", "w", encoding="utf-8") as file:
        file.write(after)
    os.replace(path + ".part", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="*", metavar="smollm2|gemma3")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--fovea", default=os.path.join(ROOT, "build", "fovea"))
    parser.add_argument("--models", default=os.path.join(ROOT, "models"))
    parser.add_argument("--write", action="store_true", help="also put the table into bench/RESULTS.md")
    parser.add_argument("--measure-llama", help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.model if name not in FILES]
    if unknown:
        parser.error(f"unknown model {unknown[0]}: expected {' or '.join(FILES)}")
    if arguments.measure_llama:
        print(json.dumps(measure_llama(arguments.measure_llama, arguments.tokens, arguments.threads)))
        return
    if not os.access(arguments.fovea, os.X_OK):
        sys.exit(f"peer-speed: {arguments.fovea} is not there: build it first (make)")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.model or FILES:
            for tokens in PROMPTS:
                rows += measure_pair(name, tokens, arguments, os.path.join(folder, "prompt.txt"))
    text = section(rows, arguments)
    print(text)
    if arguments.write:
        write_section(text)


if __name__ == "__main__":
    main()
