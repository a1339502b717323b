#!/usr/bin/env python3
"""Measure what cache policies promise, each by the experiment its paper suggests, and print Markdown.

    bench/cache.py [EXPERIMENT]... [--model FILE.gguf] [--gemma FILE.gguf] [--quick] [--out FILE.md]

Everything is measured through the command (build/fovea, build/fovea-storage). Experiments carry the names of policies:

    guikv       tables that are nearly alike as frames, and a cell that only an old one has
    storage     pages of 1000 requests, steps beside a gather by block table, models under vattn
    hylra       a plan from one text against choosing in every layer, on another
    layer_plan  where the full layers stand
    kinetics    the table of costs, and distance from dense by rows read
    shard       facts by block, heads with blocks of their own or with the same ones
    alisa       distance and perplexity by the share of rows read, and rows in a file
    gemfilter   how near the fact an early layer chooses, and what a prompt costs
    compresskv  who votes, and how layers share a budget
    moa         spans from `fovea inspect moa`
    types       keys and values in fewer bits

Texts are three documents that a Debian machine with Python has; pieces come from their middle. --quick takes one text
and fewer points. A policy with fewer rows stands beside `sinkring` with as many bytes of rows ("equal"), and beside
`full`, whose own misses are misses of the model. Speeds are of runs that took turns; on a busy machine only their
ratios mean anything.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile

from cache_lab import Lab, code, find_texts, means, mib, number, say, share, table

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODELS = os.path.join(ROOT, "models")


# ---- guikv -----------------------------------------------------------------------------------------------------------

NAMES = ("Adams Baker Carter Dixon Evans Foster Grant Harris Irving Jones Kelly Lewis Mason Nolan Owens Parker").split()
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


def screens(seed, odd_frame):
    """Five tables that are alike but for one cell of an old one: (tables, name, its code)."""
    draw = random.Random(seed * 5 + odd_frame)
    rows = {name: draw.choice(("opened", "paid", "sent")) for name in NAMES}
    odd, key = draw.choice(NAMES[1:-1]), str(draw.randint(10000, 99999))
    frames = []
    for frame in range(5):
        notes = {name: f"The order of {name} has been {state}." for name, state in rows.items()}
        if frame == odd_frame:
            notes[odd] = f"The secret number of {odd} is {key}."
        lines = [f"{name} | {state} | {notes[name]}" for name, state in rows.items()]
        frames.append("\n".join([f"Screen {frame + 1}", "Customer | State | Note", *lines]) + "\n\n")
    return frames, odd, key


def spans(lab, before, frames, whole):
    """Token spans of the frames, as `frames=` wants them; text of one byte a character."""
    pieces = lab.pieces_of(whole, "--special")["pieces"]
    begin = lab.run(lab.write("count", whole), "full", "--raw", "-n", 1)["prompt_tokens"] - len(pieces)
    ends, total = [], 0
    for piece in pieces:
        total += len(piece)
        ends.append(total)
    if total != len(whole):
        sys.exit("cache: tokens of the tables do not add up to their text")
    marks, at = [], len(before)
    for frame in frames:
        first = sum(end <= at for end in ends)
        at += len(frame)
        marks.append((begin + first, begin + sum(end <= at for end in ends)))
    return "+".join(f"{a}-{b}" for a, b in marks), len(pieces) + begin


def guikv(lab):
    before, after = SYSTEM + "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    percents, seeds = ((20,), (1,)) if lab.arguments.quick else ((10, 20, 40), (1, 2))
    found, held, tokens, asked = {}, {}, [], 0
    for seed in seeds:
        for odd_frame in range(4):
            frames, name, key = screens(seed, odd_frame)
            question = f"What is the secret number of {name}? It is written in the text above."
            lead = f"The secret number of {name} is"
            whole = before + "".join(frames) + question + after + lead
            score = len(lab.pieces_of(lead)["ids"])
            marks, count = spans(lab, before, frames, whole)
            prompt = count - score
            path, setups = lab.write("screens", whole), {("full", 100): "full"}
            for percent in percents:
                cap = prompt * percent // 100
                setups.update({
                    ("snapkv:window=8", percent): f"snapkv:budget={cap},window=8",
                    ("guikv:alpha=0", percent): f"guikv:budget_pct={percent},alpha=0,frames={marks}",
                    ("guikv", percent): f"guikv:budget_pct={percent},frames={marks}"})
            runs, _ = lab.compare(path, list(setups.values())[1:], score, 16)
            for at, run in zip(setups, runs):
                found.setdefault(at, []).append((key in run["answer"], run["kl"], run["kv_bytes"]))
            for at, spec in setups.items() if seed == 1 else ():
                held.setdefault(at, []).append(digits_held(lab, path, spec, key))
            tokens.append(prompt)
            asked += 1
    rows = [(code(policy), f"{percent} %", f"{sum(hit for hit, _, _ in runs)} of {asked}",
             f"{100 * statistics.mean(held[policy, percent]):.0f} %", number(statistics.mean(kl for _, kl, _ in runs)),
             mib(statistics.mean(size for _, _, size in runs)))
            for (policy, percent), runs in found.items()]
    return (f"Prompts of {min(tokens)} to {max(tokens)} tokens; KL over the answer's first words, which are fed.\n\n"
            + table(("set-up", "rows", "found", "digits kept", "KL", "kept MiB"), rows))


def digits_held(lab, path, spec, key):
    """The share of a number's rows that layers and heads hold behind the prompt."""
    lab.run(path, spec, "--raw", "-n", 1, "--kept", lab.path("kept.json"))
    with open(lab.path("kept.json"), encoding="utf-8") as file:
        kept = json.load(file)
    part = lab.pieces_of(key)["ids"]
    at = place_of(kept["ids"], part)
    lists = [head for layer in kept["prefill"]["kept"] for head in layer]
    return sum(at + n in head for head in map(set, lists) for n in range(len(part))) / len(lists) / len(part)


# ---- storage ---------------------------------------------------------------------------------------------------------


def storage(lab):
    tool = os.path.join(os.path.dirname(lab.arguments.fovea), "fovea-storage")
    parts = []
    for words in (["--part", "requests"], ["--part", "decode", "--context", "32768", "--layers", "30"]):
        done = subprocess.run([tool, *words], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"cache: fovea-storage {' '.join(words)}: status {done.returncode}: {done.stderr.strip()}")
        parts.append("    " + done.stdout.strip().replace("\n", "\n    "))
    specs = ["full", "full:page=2097152", "vattn", "vattn:page=65536", "vattn:megacache=1"]
    path, turns = lab.piece("GPL-3", 1000 if lab.arguments.quick else 7000), 1 if lab.arguments.quick else 3
    runs = {spec: [] for spec in specs}
    for _ in range(turns):
        for spec in specs:
            runs[spec].append(lab.run(path, spec, "--raw", "-n", 64))
    tokens = runs["full"][0]["tokens"]
    plain = statistics.median(run["decode_tokens_per_second"] for run in runs["full"])
    rows = []
    for spec, all_turns in runs.items():
        rate = statistics.median(run["decode_tokens_per_second"] for run in all_turns)
        last = all_turns[-1]
        rows.append((code(spec), mib(last["kv_bytes"]), mib(last["kv_committed_bytes"]), f"{rate:.0f}",
                     f"{rate / plain:.2f}", "yes" if last["tokens"] == tokens else "NO"))
    parts.append(table(("set-up", "rows MiB", "mapped MiB", "writes", "of `full`", "same tokens"), rows))
    return "\n\n".join(parts)


# ---- hylra -----------------------------------------------------------------------------------------------------------


def hylra(lab):
    names = (2 * list(lab.texts))[1::-1]  # the plan from the longer one
    long, short = (2000, 2000) if lab.arguments.quick else (7500, 3072)
    options = "chunk=64,keep=1024,sink=64,recent=256,activate_at=1024"
    found = lab.json("inspect", "hylra", "-m", lab.model, "-f", lab.piece(names[0], long), "--keep", 1024, "--recent",
                     256, "--steps", 8, "--out", lab.path("plan.json"))
    layers, full = len(found["plan"]), found["full"]
    with open(lab.path("own.json"), "w", encoding="utf-8") as file:
        json.dump({"plan": [-1] * layers, "full": full}, file)
    reused = sum(source >= 0 for source in found["plan"])
    gains = [found["overlap"][source][layer] for layer, source in enumerate(found["plan"]) if source >= 0]
    parts = [f"Of {layers} layers {len(full)} read everything ({', '.join(map(str, full))}), {reused} reuse "
             f"({100 * reused / layers:.0f} %), {layers - len(full) - reused} choose; overlap of reused lists "
             f"{min(gains, default=1):.2f} to {max(gains, default=1):.2f}."]
    specs = {f"{plan}, {estimator}": f"hylra:plan={lab.path(plan + '.json')},{options},estimator={estimator}"
             for estimator in ("mean", "exact") for plan in ("own", "plan")}
    specs["equal reads"] = "sinkring:budget=1024"
    path, depths = lab.piece(names[1], long - 600), (10, 30, 50, 70, 90)
    runs, _ = lab.compare(path, list(specs.values()), 64 if lab.arguments.quick else 128)
    lab.ask_ahead(["full", *specs.values()], (short,), depths, names[1:2])
    rows = []
    for (label, spec), run in zip({"full": "full", **specs}.items(), runs):
        facts = lab.needles(spec, (short,), depths, names[1:2])
        rows.append((label, number(run["kl"]), f"{run['top1']:.3f}", f"{run['perplexity']:.2f}",
                     share(sum(facts.values(), []))))
    parts.append(table(("choosing, estimator", "KL", "top-1", "perplexity", "facts"), rows))
    parts.append(step_times(lab, path, {"full": "full", **specs}))
    return "\n\n".join(parts)


def step_times(lab, path, setups):
    """Tokens a second behind a long prompt, set-ups taking turns."""
    turns = 1 if lab.arguments.quick else 3
    runs, _ = lab.compare(path, list(setups.values()) * turns, 64)
    rates = {label: [run["decode_tokens_per_second"] for run in runs[1 + at::len(setups)]]
             for at, label in enumerate(setups)}
    rows = [(label, f"{statistics.median(mine):.0f}",
             f"{statistics.median(rate / whole for rate, whole in zip(mine, rates['full'])):.2f}")
            for label, mine in rates.items()]
    return table(("choosing, estimator", "writes", "of full"), rows)


# ---- layer_plan ------------------------------------------------------------------------------------------------------


def layer_plan(lab):
    lengths, depths = (1536,), (10, 50, 90)
    specs = [f"layer_plan:budget=256,full={full}" for full in ("middle", "bottom", "top", "interleaved")]
    specs += ["layer_plan:budget=256,pattern=stride", "sinkring:budget=256"]
    if lab.arguments.quick:
        lengths, specs = (1024,), specs[:1]
    kl = means(lab, lengths[-1], specs, 128)
    rows = []
    lab.ask_ahead(["full", *specs], lengths, depths)
    for spec in ["full", *specs]:
        facts = lab.needles(spec, lengths, depths)
        rows.append((code(spec), mib(lab.kv_bytes(spec, lengths[-1])), number(kl[spec]["kl"]),
                     f"{kl[spec]['perplexity']:.2f}",
                     *(share(facts[length, depth]) for length in lengths for depth in depths)))
    same = {length: lab.equal(specs[0], length) for length in lengths}
    last = same[lengths[-1]]
    kl = means(lab, lengths[-1], [last], 128)[last]
    facts = [scores for length in lengths for scores in lab.needles(same[length], (length,), depths).values()]
    rows.append(("equal: " + code(last), mib(lab.kv_bytes(last, lengths[-1])), number(kl["kl"]),
                 f"{kl['perplexity']:.2f}", *map(share, facts)))
    heads = [f"facts at {depth} %" for _ in lengths for depth in depths]
    return table(("set-up", "kept MiB", "KL", "perplexity", *heads), rows)


# ---- kinetics --------------------------------------------------------------------------------------------------------

SHAPES = {"0.6B": (0.752e9, 28, 16), "1.7B": (2.03e9, 28, 16), "4B": (4.02e9, 36, 32), "8B": (8.19e9, 36, 32),
          "14B": (14.77e9, 40, 40), "32B": (32.76e9, 64, 64)}
PRINTED = {"0.6B": (59.28, 9740.99, 28.49, 1082.33, 24.64), "1.7B": (101.15, 9740.99, 70.37, 1082.33, 66.52),
           "4B": (220.79, 12524.12, 141.62, 1391.57, 131.73), "8B": (357.43, 12524.12, 278.27, 1391.57, 268.37),
           "14B": (607.68, 13915.69, 497.73, 1546.19, 483.98), "32B": (1390.14, 22265.11, 1108.66, 2473.90, 1073.48)}


def kinetics(lab):
    rows, worst = [], 0
    for name, (params, layers, heads) in SHAPES.items():
        shape = f"kinetics_cost:params={params:g},layers={layers},heads={heads},kv_heads=8,dim=128,in=1024,out=16384"
        dense, sparse = (lab.json("bench", f"{shape},budget={budget}") for budget in (0, 1024))
        dense, sparse = ([row for row in report if row["what"] == "kinetics_cost"][0] for report in (dense, sparse))
        ours = (dense["comp"], dense["memory"], sparse["comp"], sparse["memory"], dense["parameter_flops"])
        worst = max(worst, *(abs(a - b) for a, b in zip(ours, PRINTED[name])))
        rows.append((name, *(f"{value:.2f}" for value in ours)))
    parts = [table(("model", "dense flops", "dense memory", "1024 keys: flops", "memory", "weights"), rows),
             f"Largest difference from the table by the authors' formulas: {worst:.3f} (it has two decimals)."]
    tokens, budgets = (1024, (128,)) if lab.arguments.quick else (3000, (128, 256, 512, 1024))
    specs = {}
    for budget in budgets:
        inner = budget - 36  # of which 4 are sinks and 32 the newest
        specs.update({("top keys", budget): f"blocktopk:block=1,top={inner},sink=4,local=32",
                      ("top blocks of 16", budget): f"blocktopk:block=16,top={inner // 16},sink=4,local=32",
                      ("window", budget): f"sinkring:budget={budget}"})
    found = means(lab, tokens, list(specs.values()), 128)
    kinds = ("top keys", "top blocks of 16", "window")
    parts.append(table(("keys read", *kinds), [(budget, *(number(found[specs[kind, budget]]["kl"]) for kind in kinds))
                                               for budget in budgets]))
    lengths, depths = ((1024,), (50,)) if lab.arguments.quick else ((2048,), (10, 50, 90))
    rows = []
    lab.ask_ahead([specs[kind, budget] for budget in budgets[:3] for kind in kinds], lengths, depths)
    for budget in budgets[:3]:
        rows.append((budget, *(share(sum(lab.needles(specs[kind, budget], lengths, depths).values(), []))
                               for kind in kinds)))
    rows.append(("all", share(sum(lab.needles("full", lengths, depths).values(), [])), "", ""))
    parts.append(table(("facts, keys read", *kinds), rows))
    return "\n\n".join(parts)


# ---- shard -----------------------------------------------------------------------------------------------------------


def shard(lab):
    length, block, local = 1024, 32, 4
    blocks = range(8, 10) if lab.arguments.quick else range(8, 16)
    depths = [round(100 * (at + 0.3) * block / length) for at in blocks]
    strides, names = (8,) if lab.arguments.quick else (2, 8), list(lab.texts)[:2][-1:]
    base = f"block={block},local={local}"
    specs = [f"shard:{base},stride={stride}{homo}" for stride in strides for homo in ("", ",homo=1")]
    specs += [f"shard:{base},stride={strides[-1]},homo=1,offset=1"]
    plans = [f"0-9,20-29/shard:{base},stride={strides[-1]}{homo};rest/full" for homo in ("", ",homo=1")]
    rows, setups = [], ["full", *specs, *([] if lab.arguments.quick else plans)]
    lab.ask_ahead([*setups, *(lab.equal(spec, length) for spec in setups[1:])], (length,), depths, names)
    for spec in setups:
        same = lab.equal(spec, length) if spec != "full" else None
        facts = lab.needles(spec, (length,), depths, names)
        row = [code(spec), mib(lab.kv_bytes(spec, length)), *(share(found).split()[0] for found in facts.values())]
        if same:
            row.append(share(sum(lab.needles(same, (length,), depths, names).values(), [])))
        else:
            row.append("–")
        rows.append(row)
    found = means(lab, length, specs, 128)
    for row in rows:
        spec = row[0].strip("`")
        row.insert(2, number(found[spec]["kl"]) if spec in found else "–")
    heads = [f"block {depth * length // 100 // block}" for depth in depths]
    return (f"Facts in {names[0]}, {length} tokens in {length // block} blocks, the last {local} of them local; KL over"
            f" {len(lab.texts)} texts.\n\n" + table(("set-up", "kept MiB", "KL", *heads, "equal"), rows))


# ---- alisa -----------------------------------------------------------------------------------------------------------


def alisa(lab):
    tokens, shares = (1024, (0.2,)) if lab.arguments.quick else (2000, (0.5, 0.3, 0.2, 0.1))
    kinds = {"alisa": "alisa:r={r}", "sets=kv": "alisa:r={r},sets=kv", "sinkring": "sinkring:budget={b}",
             "h2o": "h2o:budget={b}"}
    specs = {(kind, r): text.format(r=r, b=round(r * (tokens - 128))) for r in shares for kind, text in kinds.items()}
    found = means(lab, tokens, ["alisa:r=1", *specs.values()], 128)
    parts = [table(("r", *kinds), [("1", *[f"{found['alisa:r=1']['perplexity']:.2f} / "
                                          f"{number(found['alisa:r=1']['kl'])}"] * 2, "", "")]
                   + [(r, *(f"{found[specs[kind, r]]['perplexity']:.2f} / {number(found[specs[kind, r]]['kl'])}"
                            for kind in kinds)) for r in shares])]
    lengths, depths = (1024,), ((50,) if lab.arguments.quick else (10, 50, 90))
    near = {(kind, r): text.format(r=r, b=round(r * 1024)) for r in shares for kind, text in kinds.items()}
    names = list(lab.texts)[:2]
    lab.ask_ahead(near.values(), lengths, depths, names)
    rows = [(r, *(share(sum(lab.needles(near[kind, r], lengths, depths, names).values(), [])) for kind in kinds))
            for r in shares]
    parts.append(table(("facts, r", *kinds), rows))
    text, chunk = lab.piece(next(iter(lab.texts)), 2300), 512 if lab.arguments.quick else 1024
    asked = [(r, kind) for r in (1, *shares) for kind in ("alisa", "sinkring", "h2o")]
    setups = ["full" if r == 1 else kinds[kind].format(r=r, b=round(r * 3 * chunk // 4)) for r, kind in asked]
    words = ("eval", "ppl", "-m", lab.model, "-f", text, "--ctx", chunk, "--chunks", 1)
    found = lab.side_by_side(lambda spec: lab.json(*words, "--cache", spec), setups)
    cells = {at: f"{report['perplexity']:.2f}" for at, report in zip(asked, found)}
    rows = [(r, *(cells[r, kind] for kind in ("alisa", "sinkring", "h2o"))) for r in (1, *shares)]
    parts.append(table((f"`eval ppl --ctx {chunk}`, r", "alisa", "sinkring", "h2o"), rows))
    return "\n\n".join([*parts, *offloaded(lab)])


def offloaded(lab):
    """Rows in a file, where the command can: tokens a second with and without recomputing the oldest."""
    path, r = lab.piece("GPL-3" if "GPL-3" in lab.texts else next(iter(lab.texts)), 7000), "alisa:r=0.2"
    specs = [r, f"{r},resident=2048", f"{r},resident=2048,recompute=1024", f"{r},resident=2048,bits=8"]
    _, status, said = lab.try_json("run", "-m", lab.model, "-p", "a", "-n", 1, "--cache", specs[1])
    if status != 0:
        say(f"  rows in a file: skipped: {said}")
        return []
    runs = {spec: [] for spec in specs}
    for _ in range(1 if lab.arguments.quick else 3):
        for spec in specs:
            runs[spec].append(lab.run(path, spec, "--raw", "-n", 64))
    rows = []
    for spec, turns in runs.items():
        last = turns[-1]
        same = last["tokens"] == runs[r][0]["tokens"]
        rows.append((code(spec), mib(last["kv_bytes"]), mib(last.get("kv_host_bytes", 0)),
                     f"{statistics.median(run['decode_tokens_per_second'] for run in turns):.1f}",
                     "yes" if same else "no"))
    return [table(("set-up", "in memory MiB", "in a file MiB", "writes", "same tokens"), rows)]


# ---- gemfilter -------------------------------------------------------------------------------------------------------


def hidden(lab, name, tokens, depth, seed):
    """(file, question, number) of a text with a fact at a depth, in percent."""
    text, key = lab.middle(name, tokens - 64), str(random.Random(seed).randint(10000, 99999))
    at = text.find("\n", len(text) * depth // 100)
    path = lab.write(f"hidden-{name}-{depth}", f"{text[:at]} The secret number of Lisbon is {key}. {text[at:]}")
    return path, "What is the secret number of Lisbon? It is written in the text above.", key


def place_of(ids, part):
    """Where `part` stands in `ids`; None: nowhere."""
    return next((at for at in range(len(ids) - len(part)) if ids[at:at + len(part)] == part), None)


def gemfilter(lab):
    tokens, depths, budget = 1024, ((50,) if lab.arguments.quick else (10, 50, 90)), 128
    prompts = [hidden(lab, name, tokens, depth, number_) for number_, (name, depth) in
               enumerate((name, depth) for name in lab.texts for depth in depths)]
    kept_file, parts, rows = lab.path("kept.json"), [], []
    layers = range(0, 30, 15 if lab.arguments.quick else 3)
    for layer in (None, *layers):
        spec = "full" if layer is None else f"gemfilter:budget={budget},layer={layer}"
        far, found = [], []
        for path, question, key in prompts:
            run = lab.run(path, spec, "-p", question, "-n", 24, "--kept", kept_file)
            found.append(key in run["text"])
            if layer is None:
                continue
            with open(kept_file, encoding="utf-8") as file:
                kept = json.load(file)
            number_ids = lab.pieces_of(key)["ids"]
            at = place_of(kept["ids"], number_ids)
            chosen = set(kept["prefill"]["kept"][0][0])
            far.append((min(abs(position - at) for position in chosen),
                        sum(at + n in chosen for n in range(len(number_ids))) / len(number_ids)))
        rows.append(("`full`" if layer is None else layer, share(found),
                     *((f"{statistics.median(d for d, _ in far):g}", f"{max(d for d, _ in far)}",
                        f"{100 * statistics.mean(s for _, s in far):.0f} %") if far else ("–", "–", "–"))))
        say(f"  layer {layer}: {share(found)}")
    parts.append(f"{budget} tokens of about {tokens}.\n\n" + table(("layer", "found", "distance, median", "most",
                                                                    "digits kept"), rows))
    budgets = (128,) if lab.arguments.quick else (128, 256, 512, 1024)
    specs = ("gemfilter:budget={k},layer=12", "gemfilter:budget={k},layer=12,keep_first=4,keep_last=32",
             "snapkv:budget={k}", "sinkring:budget={k}")
    names = list(lab.texts)[:2]
    lab.ask_ahead([spec.format(k=k) for k in budgets for spec in specs], (2048,), depths, names)
    rows = [(k, *(share(sum(lab.needles(spec.format(k=k), (2048,), depths, names).values(), [])) for spec in specs))
            for k in budgets]
    rows.append(("all", share(sum(lab.needles("full", (2048,), depths, names).values(), [])), "", "", ""))
    parts.append("Facts in 2048 tokens of two texts.\n\n" +
                 table(("k", "layer 12", "keep_first=4, keep_last=32", "`snapkv`", "`sinkring`"), rows))
    parts.append(prompt_times(lab, budgets))
    return "\n\n".join(parts)


def prompt_times(lab, budgets):
    """Seconds of a long prompt under gemfilter beside (r/L) T(n) + T(k), sides taking turns."""
    turns, n, name = (1 if lab.arguments.quick else 3), 4096, "GPL-3" if "GPL-3" in lab.texts else next(iter(lab.texts))
    lab.json("run", "-m", lab.model, "-p", "a", "-n", 1, "--kept", lab.path("kept.json"))
    with open(lab.path("kept.json"), encoding="utf-8") as file:
        layers = json.load(file)["layers"]
    layer = round(0.4 * layers)
    long = lab.piece(name, n)
    shorts = {k: lab.piece(name, k) for k in budgets}
    ratio, rows, seconds = {}, [], {}
    for _ in range(turns):
        whole = lab.run(long, "full", "--raw", "-n", 1)["prefill_seconds"]
        for k in budgets:
            mine = lab.run(long, f"gemfilter:budget={k},layer={layer}", "--raw", "-n", 1)["prefill_seconds"]
            again = lab.run(long, "full", "--raw", "-n", 1)["prefill_seconds"]
            short = lab.run(shorts[k], "full", "--raw", "-n", 1)["prefill_seconds"]
            law = layer / layers * (whole + again) / 2 + short
            ratio.setdefault(k, []).append((mine / law, (whole + again) / 2 / mine))
            seconds.setdefault(k, []).append((mine, law))
            whole = again
    for k in budgets:
        rows.append((k, f"{1e3 * statistics.median(a for a, _ in seconds[k]):.0f}",
                     f"{1e3 * statistics.median(b for _, b in seconds[k]):.0f}",
                     f"{statistics.median(a for a, _ in ratio[k]):.2f}",
                     f"{statistics.median(b for _, b in ratio[k]):.2f}"))
    return (f"{n} tokens, layer {layer} of {layers}, medians of {turns}.\n\n" +
            table(("k", "prompt, ms", "law, ms", "of law", "times as fast as `full`"), rows))


# ---- compresskv ------------------------------------------------------------------------------------------------------


def voters_of(scores, count):
    return [sorted(range(len(row)), key=lambda head: (-row[head], head))[:count] for row in scores]


def heads_of(lab, name, path):
    """Scores of heads on a text, and the importance of layers."""
    out = lab.path(f"srh-{name}.json")
    report = lab.json("inspect", "srh", "-m", lab.model, "-f", path, "--lengths", 512 if lab.arguments.quick else 1024,
                      "--depths", "10,50,90", "--out", out)
    with open(out, encoding="utf-8") as file:
        return report, json.load(file)["importance"]


def added(sums, more, weight):
    return [[(sums[row][at] if sums else 0) + weight * value for at, value in enumerate(values)]
            for row, values in enumerate(more)]


def compresskv(lab):
    names = list(lab.texts)
    srh, trh, importance, counted, asked = None, None, None, 0, 0
    for name, (report, shares) in zip(names, lab.side_by_side(
            lambda at: heads_of(lab, at[0], at[1]), [(name, lab.piece(name, 1024)) for name in names])):
        srh, trh = (added(sums, report[which], report["counted"]) for sums, which in ((srh, "srh"), (trh, "trh")))
        importance = added(importance, [shares], 1 / len(names))
        counted, asked = counted + report["counted"], asked + report["runs"]
        say(f"  heads on {name}: {report['counted']} of {report['runs']} prompts counted")
    draw, heads = random.Random(1), len(srh[0])
    voters = {"srh": voters_of(srh, 4), "trh": voters_of(trh, 4),
              "random 4": [draw.sample(range(heads), 4) for _ in srh], "all": [list(range(heads))] * len(srh)}
    plans = {}
    for name, lists in voters.items():
        plans[name] = lab.path(f"{name.replace(' ', '-')}.json")
        with open(plans[name], "w", encoding="utf-8") as file:
            json.dump({"heads": lists, "importance": importance[0]}, file)
    budgets = (256,) if lab.arguments.quick else (64, 128, 256, 512)
    lengths, depths, names = (1024,), ((50,) if lab.arguments.quick else (10, 50, 90)), names[:2]
    rows = []
    lab.ask_ahead([f"compresskv:budget={budget},layer_budget={how},plan={plan}" for plan in plans.values()
                   for how in ("uniform", "error") for budget in budgets], lengths, depths, names)
    for name, plan in plans.items():
        for layer_budget in ("uniform", "error"):
            cells = [lab.needles(f"compresskv:budget={budget},layer_budget={layer_budget},plan={plan}", lengths, depths,
                                 names)
                     for budget in budgets]
            rows.append((name, layer_budget, *(share(sum(facts.values(), [])) for facts in cells)))
    others = ("snapkv:budget={b},window=8", "sinkring:budget={b}")
    lab.ask_ahead([spec.format(b=budget) for spec in others for budget in budgets], lengths, depths, names)
    for spec in others:
        rows.append((code(spec.replace("budget={b},", "").replace(":budget={b}", "")), "uniform", *(
            share(sum(lab.needles(spec.format(b=budget), lengths, depths, names).values(), [])) for budget in budgets)))
    whole = share(sum(lab.needles("full", lengths, depths, names).values(), []))
    rows.append(("`full`", "–", *[whole] * len(budgets)))
    best = sorted(((srh[l][h] / counted, l, h) for l in range(len(srh)) for h in range(heads)), reverse=True)[:5]
    same = statistics.mean(len(set(a) & set(b)) for a, b in zip(voters["srh"], voters["trh"]))
    shares = importance[0]
    return (f"{counted} of {asked} prompts counted. Strongest heads (layer.head score): "
            + ", ".join(f"{l}.{h} {score:.2f}" for score, l, h in best)
            + f". srh and trh lists share {same:.1f} of 4 heads. Importance of layers {min(shares):.3f} "
            f"(layer {shares.index(min(shares))}) to {max(shares):.3f} (layer {shares.index(max(shares))}).\n\n"
            + table(("voters", "layers", *map(str, budgets)), rows)
            + "\n\n" + voters_kl(lab, plans, budgets[1::2] or budgets, names))


def voters_kl(lab, plans, budgets, names):
    specs = {(name, budget, how): f"compresskv:budget={budget},layer_budget={how},plan={plan}"
             for name, plan in plans.items() for budget in budgets for how in ("uniform", "error")}
    found = means(lab, 1024, list(specs.values()), 64, names)
    rows = [(name, how, *(number(found[specs[name, budget, how]]["kl"]) for budget in budgets))
            for name in plans for how in ("uniform", "error")]
    return table(("KL, voters", "layers", *map(str, budgets)), rows)


# ---- moa -------------------------------------------------------------------------------------------------------------


def moa(lab):
    names = list(lab.texts) if len(lab.texts) > 1 else 2 * list(lab.texts)
    lengths, depths = ((1024,), (50,)) if lab.arguments.quick else ((1024, 2048), (10, 50, 90))
    rows = []
    for density in (0.5, 0.25):
        plan = lab.path(f"moa-{density}.json")
        _, status, said = lab.try_json("inspect", "moa", "-m", lab.model, "-f", lab.piece(names[0], 2048), "--lengths",
                                       ",".join(map(str, lengths)), "--density", density, "--out", plan)
        if status == 2:
            say(f"  skipped: {said}")
            return "This version has no `inspect moa`.\n"
        if status != 0:
            sys.exit(f"cache: inspect moa: status {status}: {said}")
        for length in lengths:
            spec = f"moa:plan={plan},max_new=32"
            same = lab.equal(spec, length)
            found = means(lab, length, [spec, same], 128, names[1:])
            for which in (spec, same):
                facts = lab.needles(which, (length,), depths, names[1:])
                rows.append((density, length, code(which, lab.folder), mib(lab.kv_bytes(which, length)),
                             number(found[which]["kl"]), share(sum(facts.values(), []))))
    for length in lengths:
        facts = lab.needles("full", (length,), depths, names[1:])
        rows.append(("–", length, "`full`", mib(lab.kv_bytes("full", length)), 0, share(sum(facts.values(), []))))
    return table(("density", "tokens", "set-up", "kept MiB", "KL", "facts"), rows)


# ---- types -----------------------------------------------------------------------------------------------------------


def types(lab):
    kinds, parts = ("f16", "q8_0", "q4_0"), []
    specs = {(k, v): f"full:k={k},v={v}" for k in kinds for v in kinds}
    models = [(lab, (512,) if lab.arguments.quick else (512, 7000))]
    if os.path.exists(lab.arguments.gemma):
        models.append((Lab(lab.arguments, lab.arguments.gemma, tempfile.mkdtemp(dir=lab.folder)),
                       (512,) if lab.arguments.quick else (512, 4000)))
    for other, lengths in models:
        for length in lengths:
            names = list(lab.texts) if length < 1000 else list(lab.texts)[:2][-1:]  # GPL-3 has not 7000 to spare
            found = means(other, length, list(specs.values()), 128 if length < 1000 else 256, names)
            cell = {at: f"{number(found[spec]['kl'])} / {found[spec]['top1']:.2f}" for at, spec in specs.items()}
            rows = [(f"`k={k}`", *(cell[k, v] for v in kinds)) for k in kinds]
            parts.append(f"{os.path.basename(other.model)}, {length} tokens:\n\n"
                         + table(("KL / top-1", *(f"`v={v}`" for v in kinds)), rows))
    return "\n\n".join(parts)


# ---- all of it -------------------------------------------------------------------------------------------------------

EXPERIMENTS = {function.__name__: function for function in
               (guikv, storage, hylra, layer_plan, kinetics, moa, shard, alisa, gemfilter, compresskv, types)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="*", metavar="|".join(EXPERIMENTS))
    parser.add_argument("--model", default=os.path.join(MODELS, "SmolLM2-135M-Instruct.Q4_1.gguf"))
    parser.add_argument("--gemma", default=os.path.join(MODELS, "gemma-3-270m-q4_k_m.gguf"),
                        help="the second model of `types`")
    parser.add_argument("--fovea", default=os.path.join(ROOT, "build", "fovea"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, metavar="N",
                        help="commands that run at the same time, where nothing is timed")
    parser.add_argument("--quick", action="store_true", help="one text, few points: to see that all of it runs")
    parser.add_argument("--out", metavar="FILE", help="Markdown goes there (otherwise to standard output)")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.experiment if name not in EXPERIMENTS]
    if unknown:
        parser.error(f"unknown experiment {unknown[0]}: expected {', '.join(EXPERIMENTS)}")
    for path in (arguments.fovea, arguments.model):
        if not os.path.exists(path):
            sys.exit(f"cache: {path} is not there (make; scripts/fetch-models.py)")
    arguments.texts = find_texts()
    if arguments.quick:
        arguments.texts = dict(list(arguments.texts.items())[:1])
    done = []
    for name in arguments.experiment or EXPERIMENTS:
        say(name)
        with tempfile.TemporaryDirectory() as folder:
            text = EXPERIMENTS[name](Lab(arguments, arguments.model, folder)).replace(folder + os.sep, "")
        done.append(f"## {name}\n\n{text}\n")
        if not arguments.out:
            print(done[-1], flush=True)
    if arguments.out:
        with open(arguments.out + ".part", "w", encoding="utf-8") as file:
            file.write("\n".join(done))
        os.replace(arguments.out + ".part", arguments.out)


if __name__ == "__main__":
    main()
