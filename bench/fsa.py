#!/usr/bin/env python3
"""nsa's two schedules over the query heads that share a key-value head; prints markdown.

    bench/fsa.py [--tokens 4096] [--heads 16] [--turns 5] [--spec OPTIONS] [--quick]

Needs build/fovea. `schedule=nsa` reads, for each query, the blocks of keys it chose; `schedule=fsa` (arXiv 2508.18224) reads
each block once for all queries that chose it and merges their partial results. Both compute one function, in f32 (the last
column: the largest difference of outputs and gradients, over the largest value). Each time is that of `fovea attend`, with
--grad forward and backward together; a process for each, both schedules in turns, medians. What the schedule does not touch
(compression, its branch, the window) is in all of them. `auto` takes fsa up to 8 query heads.
"""

import argparse
import array
import json
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCHEDULES = ("nsa", "fsa")
GROUPS = (1, 2, 4, 8, 16)


def write(path, shape, seed):
    """Even numbers between -1.7 and 1.7, whose variance is 1."""
    draw = random.Random(seed).random
    count = 1
    for size in shape:
        count *= size
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {tuple(shape)}, }}"
    head += " " * (63 - (10 + len(head)) % 64) + "\n"
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode())
        array.array("f", (3.4 * draw() - 1.7 for _ in range(count))).tofile(file)


def read(path):
    with open(path, "rb") as file:
        data = file.read()
    values = array.array("f")
    values.frombytes(data[10 + struct.unpack("<H", data[8:10])[0]:])
    return values


class Lab:
    def __init__(self, arguments, folder):
        self.arguments, self.folder = arguments, folder

    def path(self, name):
        return os.path.join(self.folder, name)

    def attend(self, schedule, gradients):
        spec = f"nsa:{self.arguments.spec},schedule={schedule}"
        command = [self.arguments.fovea, "attend", "-a", spec, "--json", "-o", self.path(f"o-{schedule}.npy")]
        for name in "qkv":
            command += [f"--{name}", self.path(f"{name}.npy")]
        if gradients:
            command += ["--grad", self.path("do.npy")]
            for name in ("dq", "dk", "dv"):
                command += [f"--{name}", self.path(f"{name}-{schedule}.npy")]
        done = subprocess.run(command + ["--threads", str(self.arguments.threads)], stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)

    def distance(self):
        """The largest difference of the schedules in any result, over its largest value."""
        most = 0
        for name in ("o", "dq", "dk", "dv"):
            a, b = (read(self.path(f"{name}-{schedule}.npy")) for schedule in SCHEDULES)
            most = max(most, max(map(abs, map(float.__sub__, a, b))) / max(map(abs, a)))
        return most

    def group(self, group):
        """Medians {(schedule, gradients): ms}, the last report and the distance."""
        heads, tokens, dim = self.arguments.heads, self.arguments.tokens, self.arguments.dim
        for seed, (name, count) in enumerate((("q", heads), ("k", heads // group), ("v", heads // group), ("do", heads))):
            write(self.path(f"{name}.npy"), (1, count, tokens, dim), f"{seed} {group}")
        times, report = {}, None
        for _ in range(self.arguments.turns):
            for gradients in (False, True):
                for schedule in SCHEDULES:
                    report = self.attend(schedule, gradients)
                    times.setdefault((schedule, gradients), []).append(1e3 * report["seconds"])
        return {key: statistics.median(values) for key, values in times.items()}, report, self.distance()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fovea", default=os.path.join(ROOT, "build", "fovea"))
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--spec", default="compress=mean,top=16", help="nsa's other options")
    parser.add_argument("--quick", action="store_true", help="one turn over 1024 tokens")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tokens, arguments.turns = 1024, 1
    if not os.path.exists(arguments.fovea):
        sys.exit(f"fsa: {arguments.fovea} is missing: build it first ('make')")
    groups = [group for group in GROUPS if arguments.heads % group == 0]
    print(f"`nsa:{arguments.spec}`, {arguments.heads} query heads, {arguments.tokens} tokens, D = {arguments.dim}, "
          f"{arguments.threads} threads, medians of {arguments.turns}, ms.\n")
    print("| query heads a KV head | forward, nsa | fsa | nsa / fsa | with backward, nsa | fsa | nsa / fsa | difference |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(arguments, folder)
        for group in groups:
            times, report, distance = lab.group(group)
            cells = []
            for gradients in (False, True):
                by_query, by_block = (times[schedule, gradients] for schedule in SCHEDULES)
                cells += [f"{by_query:.0f}", f"{by_block:.0f}", f"{by_query / by_block:.2f}"]
            print(f"| {group} | {' | '.join(cells)} | {distance:.1e} |", flush=True)
    print(f"\nOn {report['backend']}; density {report['density']:.2f} of dense's pairs, over the three branches.")


if __name__ == "__main__":
    main()
