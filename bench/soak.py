#!/usr/bin/env python3
"""Keep `fovea serve` busy for a while with clients that come and go, and watch its memory.

    bench/soak.py [--minutes 10] [--clients 64] [--model MODEL.gguf] [--seed 1]

Each client sends requests one after the other: chats and completions, streamed or not, some of whose prompts begin alike,
under several cache policies; a third of them leave before the answer is complete, and some send what is no request at
all. Every ten seconds the server's resident memory, running and waiting requests and the bytes of keys and values are
printed; at the end how many answers came, how many were cut short, and how far memory moved over the second half.
Exits 1 if an answer was wrong in form, the server ended, or did not end cleanly.
"""

import argparse
import http.client
import json
import os
import random
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORDS = "the river of time carries every small boat and nobody knows where it will come to rest tonight".split()
CACHES = [None, None, None, "sinkring:budget=128", "snapkv:budget=64,window=16", "h2o:budget=64", "full:k=q8_0,v=q8_0",
          "blocktopk:top=8"]


class Counts:
    def __init__(self):
        self.lock = threading.Lock()
        self.answers = self.cut = self.refused = self.garbage = 0
        self.wrong = []

    def add(self, name):
        with self.lock:
            setattr(self, name, getattr(self, name) + 1)


def text_of(rng, words):
    """Half of all prompts begin alike."""
    start = WORDS * (words // len(WORDS) + 1) if rng.random() < 0.5 else []
    return " ".join((start + [rng.choice(WORDS) for _ in range(words)])[:words])


def body_of(rng):
    body = {"max_tokens": rng.randint(1, 60), "temperature": rng.choice([0, 0, 0.8]), "seed": rng.randint(0, 99),
            "stream": rng.random() < 0.5, "n": rng.choice([1, 1, 1, 2])}
    cache = rng.choice(CACHES)
    if cache:
        body["cache"] = cache
    text = text_of(rng, rng.randint(1, 300))
    if rng.random() < 0.5:
        return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": text}]}
    return "/v1/completions", {**body, "prompt": text}


def one_request(rng, port, counts):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        if rng.random() < 0.02:
            connection.request("POST", "/v1/completions", b"\xff{", {"Content-Type": "application/json"})
            if connection.getresponse().status != 400:
                counts.wrong.append("garbage was taken")
            counts.add("garbage")
            return
        path, body = body_of(rng)
        leaves = rng.random() < 1 / 3
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        if leaves:
            time.sleep(rng.random() * 2)
            counts.add("cut")
            return
        answer = connection.getresponse()
        text = answer.read()
        if answer.status == 429:
            counts.add("refused")
            time.sleep(0.2)
        elif answer.status != 200:
            counts.wrong.append(f"{answer.status}: {text[:200]}")
        elif body["stream"]:
            if not text.rstrip().endswith(b"data: [DONE]"):
                counts.wrong.append(f"a stream ends with {text[-80:]}")
            counts.add("answers")
        else:
            if len(json.loads(text)["choices"]) != body["n"]:
                counts.wrong.append("choices are missing")
            counts.add("answers")
    finally:
        connection.close()


def client(seed, port, counts, until):
    rng = random.Random(seed)
    while time.monotonic() < until and not counts.wrong:
        try:
            one_request(rng, port, counts)
        except (OSError, http.client.HTTPException, ValueError) as error:
            counts.wrong.append(f"{type(error).__name__}: {error}")


def resident(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0


def metrics(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line and line[0] != "#"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--model", default=os.path.join(ROOT, "models", "SmolLM2-135M-Instruct.Q4_1.gguf"))
    parser.add_argument("--fovea", default=os.path.join(ROOT, "build", "fovea"))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    command = [arguments.fovea, "serve", "-m", arguments.model, "--port", "0", "--parallel", "8", "--queue", "128",
               "--quiet"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        line = server.stderr.readline()
        while line and "listening on" not in line:
            line = server.stderr.readline()
        port = int(line.strip().rsplit(":", 1)[1])
        threading.Thread(target=server.stderr.read, daemon=True).start()
        counts, begin = Counts(), time.monotonic()
        until = begin + 60 * arguments.minutes
        clients = [threading.Thread(target=client, args=(arguments.seed * 1000 + n, port, counts, until))
                   for n in range(arguments.clients)]
        for thread in clients:
            thread.start()
        memory = []
        print("seconds  resident MiB  running  waiting  rows MiB  answers  left early")
        while time.monotonic() < until and not counts.wrong and server.poll() is None:
            time.sleep(10)
            now = metrics(port)
            memory.append(resident(server.pid))
            print(f"{time.monotonic() - begin:7.0f} {memory[-1]:13.1f} {now['fovea_requests_running']:8.0f} "
                  f"{now['fovea_requests_waiting']:8.0f} {now['fovea_kv_bytes'] / 2 ** 20:9.1f} {counts.answers:8} "
                  f"{counts.cut:11}", flush=True)
        for thread in clients:
            thread.join()
        server.terminate()
        status = server.wait()
    half = memory[len(memory) // 2:]
    if half:
        print(f"resident over the second half: {min(half):.1f} to {max(half):.1f} MiB, from {half[0]:.1f} to "
              f"{half[-1]:.1f}")
    print(f"{counts.answers} answers, {counts.cut} clients left early, {counts.refused} told to come again, "
          f"{counts.garbage} sent garbage; the server ended with status {status}")
    for wrong in counts.wrong[:5]:
        print(f"wrong: {wrong}", file=sys.stderr)
    sys.exit(1 if counts.wrong or status != 0 else 0)


if __name__ == "__main__":
    main()
