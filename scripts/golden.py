#!/usr/bin/env python3
"""Make the golden files of tests/golden/ with llama.cpp. Laboratory work: not part of the build or of CI.

    python3 -m venv .lab && .lab/bin/pip install numpy gguf jinja2 llama-cpp-python==0.3.36
    .lab/bin/python scripts/golden.py [smollm2|gemma3|templates|all] [--scratch DIR]

llama-cpp-python builds llama.cpp from source (a C++ compiler and CMake; some minutes on two cores). The models come
from scripts/fetch-models.py. Per model this writes tests/golden/NAME.json and NAME-*.npy; it needs 2 GB in --scratch
(default .lab/scratch) for the weights dequantised to F32, which stay there.

Weights. As shipped, llama.cpp rounds activations to 8 bits before every product with quantised weights. To compare
arithmetic and not that rounding, everything here except the ids runs on a GGUF with the same metadata and every tensor
dequantised to F32; then only the cache and, in its attention, the operands of the products with it are f16.

What the files hold:
  tokenize    ids of nasty texts, no begin token, with and without parsing special-token text. "back" is there where
              the pieces joined do not give the text again (the bytes they give, as hexadecimal digits): SmolLM2 has
              no token for some control characters and drops them, Gemma makes U+2581 a space. One text holds U+0000.
  greedy      arg-max continuations (48 tokens, or fewer where the model ended: "stop" is "end"; the end token is not
              among the ids). "margins" is the lead of each chosen logit over the runner-up.
  chat        the file's own Jinja template rendered with a generation prompt, and the ids of that text with
              special-token text parsed and no begin token added. Empty if the file has no template.
  logits      for every position of a 200-token prompt: the 128 largest log-probabilities, descending (ids i32
              [200,128], log-probabilities f32 [200,128]) and summary f32 [200,2] = logsumexp of the logits, mean logit.
              The sum over those 128 and one class for all the rest bounds KL(golden || ours) from below; about a tenth
              of the probability is in the rest, and the bound was 0.82 to 0.91 of the whole KL for both models, from
              KL 5e-7 to 5e-3. The mean logit holds the tail in place. "kl_between" says how far llama.cpp's own
              settings are from the committed one (mean KL over the positions, whole vocabulary, in nats).
  perplexity  see perplexity() below.
templates.json holds conversations as llama.cpp renders its built-in templates by name, without a begin token. Where a
model file's own Jinja text differs (chatml files that add a system message of theirs), that file's "chat" rows count.

Perplexity, as llama.cpp's tool computes it with -c CTX (the whole procedure):
  1. Tokenize the whole file, special-token text as plain text, with the begin token first if the file asks for it
     (add_bos_token). llama.cpp drops one newline at the end of the file when it reads it.
  2. Cut the ids into consecutive chunks of CTX; what remains at the end is left out. Chunks = ids / CTX.
  3. Each chunk is run on its own, positions from 0, with an empty cache. If the model adds a begin token, the first
     id of every chunk is REPLACED by it (the length stays CTX).
  4. Of each chunk the logits at positions CTX/2 .. CTX-2 predict the ids at CTX/2+1 .. CTX-1: CTX - CTX/2 - 1 scores
     (1023 for 2048). The prediction made at the last position is not used.
  5. Perplexity = exp(mean negative log-likelihood over all scores of all chunks). Standard error = perplexity *
     sqrt((mean of squares - square of mean) / (scores - 1)).
"""

import argparse
import hashlib
import json
import os
import sys

import gguf
import jinja2.sandbox
import numpy as np

import golden_inputs as inputs
import llamacpp

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
GPL = "/usr/share/common-licenses/GPL-3"
FILES = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma3": "gemma-3-270m-q4_k_m.gguf"}
GREEDY_TOKENS = 48
TOP = 128
CTX = 2048
KV, FLASH = "f16", True  # the setting whose figures are committed: llama.cpp's default on a CPU
# f32 with flash attention is left out: llama.cpp rounds its rows to f16 before that kernel, so it equals f16.
SETTINGS = [("f16", True), ("f16", False), ("f32", False)]


def say(sentence):
    print(sentence, file=sys.stderr, flush=True)


def sha256_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dequantise(source, target):
    """Writes target: the metadata of source with every tensor as F32. Nothing is done if target is there."""
    if os.path.exists(target):
        return
    say(f"writing {target}")
    reader = gguf.GGUFReader(source)
    architecture = reader.get_field("general.architecture").contents()
    part = target + ".part"
    writer = gguf.GGUFWriter(part, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = int(gguf.LlamaFileType.ALL_F32) if field.name == "general.file_type" else field.contents()
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, field.types[0], sub_type=sub_type)
    tensors = [(t, tuple(int(n) for n in reversed(t.shape))) for t in reader.tensors]
    for tensor, shape in tensors:
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, shape in tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.write_tensor_data(np.ascontiguousarray(values, np.float32).reshape(shape))
    writer.close()
    os.replace(part, target)


def log_softmax(logits):
    """f64 log-probabilities and logsumexp of f32 rows."""
    rows = logits.astype(np.float64)
    top = rows.max(axis=-1, keepdims=True)
    total = top + np.log(np.exp(rows - top).sum(axis=-1, keepdims=True))
    return rows - total, total[..., 0]


def mean_kl(a, b):
    """Mean over positions of KL(a || b) in nats, from f64 log-probabilities."""
    return float((np.exp(a) * (a - b)).sum(axis=-1).mean())


def tokenize_rows(model):
    rows = []
    for special, texts in ((False, inputs.PLAIN), (True, inputs.SPECIAL)):
        for text in texts:
            ids = model.tokenize(text, special=special)
            row = {"text": text, "special": special, "ids": ids}
            back = model.text_of(ids)
            if back != text.encode("utf-8"):
                row["back"] = back.hex()
            rows.append(row)
    return rows


def chat_rows(model):
    source = model.chat_template()
    if source is None:
        return []
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(source)
    rows = []
    for system, user in inputs.CHATS:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": user})
        text = template.render(messages=messages, add_generation_prompt=True,
                               bos_token=model.text_of([model.bos]).decode("utf-8"))
        row = {"system": system} if system else {}
        row.update(user=user, text=text, ids=model.tokenize(text, special=True))
        rows.append(row)
    return rows


def greedy_rows(model, chats):
    prompts = [(name, model.tokenize(text, special=True, bos=True)) for name, text in inputs.RAW.items()]
    if chats:
        prompts += [(f"chat-{i}", row["ids"]) for i, row in enumerate(chats)]
    else:
        prompts += [(n, model.tokenize(t, special=True, bos=True)) for n, t in inputs.RAW_WITHOUT_TEMPLATE.items()]
    context = llamacpp.Context(model, 512, KV, FLASH)
    rows = []
    for name, prompt in prompts:
        context.clear()
        logits = context.feed(prompt)[0]
        ids, margins, stop = [], [], "length"
        while len(ids) < GREEDY_TOKENS:
            token = int(logits.argmax())
            if model.ends(token):
                stop = "end"
                break
            second, first = np.partition(logits, -2)[-2:]
            ids.append(token)
            margins.append(round(float(first - second), 4))
            logits = context.feed([token])[0]
        rows.append({"name": name, "prompt_ids": prompt, "ids": ids, "stop": stop, "margins": margins})
        say(f"  greedy {name}: {model.text_of(ids).decode('utf-8', 'replace')!r}")
    context.close()
    return rows


def logit_prompts(model):
    with open(GPL, "rb") as file:
        file.seek(inputs.GPL_OFFSET)
        gpl = file.read(4000).decode("ascii")
    for source, text in (("prose of our own (scripts/golden_inputs.py)", inputs.PROSE),
                         (f"GPL-3 from byte {inputs.GPL_OFFSET}", gpl)):
        ids = model.tokenize(text, bos=True)
        if len(ids) < inputs.LOGIT_TOKENS:
            raise ValueError(f"{source}: expected at least {inputs.LOGIT_TOKENS} tokens, got {len(ids)}")
        yield source, ids[:inputs.LOGIT_TOKENS]


def logit_rows(model, name, folder):
    rows = []
    for i, (source, prompt) in enumerate(logit_prompts(model)):
        by_setting = {}
        for kv, flash in SETTINGS:
            context = llamacpp.Context(model, 512, kv, flash)
            by_setting[kv, flash] = context.feed(prompt, logits_from=0)
            context.close()
        probabilities = {setting: log_softmax(logits)[0] for setting, logits in by_setting.items()}
        reference = probabilities[KV, FLASH]
        between = {f"{kv} {'flash' if flash else 'plain'}": mean_kl(reference, other)
                   for (kv, flash), other in probabilities.items() if (kv, flash) != (KV, FLASH)}
        exact = probabilities["f32", False]
        say(f"  logits {i}: mean KL from {KV} {'flash' if FLASH else 'plain'} to " +
            ", ".join(f"{k} {v:.2e}" for k, v in between.items()) +
            "; from f32 plain to " + ", ".join(f"{kv} {'flash' if flash else 'plain'} {mean_kl(exact, other):.2e}"
                                               for (kv, flash), other in probabilities.items()))
        logits = by_setting[KV, FLASH]
        top = np.argsort(-logits, axis=-1, kind="stable")[:, :TOP]
        row = {"source": source, "prompt_ids": prompt, "kl_between": between}
        for field, label, values in (
                ("top_ids", "ids", top.astype("<i4")),
                ("top_logprobs", "logprobs", np.take_along_axis(reference, top, -1).astype("<f4")),
                ("summary", "summary", np.stack([log_softmax(logits)[1], logits.mean(-1, dtype=np.float64)],
                                                -1).astype("<f4"))):
            row[field] = f"{name}-{i}-{label}.npy"
            np.save(os.path.join(folder, row[field]), np.ascontiguousarray(values))
        rows.append(row)
    return rows


def perplexity(model, kv, flash):
    with open(GPL, "rb") as file:
        text = file.read().decode("ascii").removesuffix("\n")
    ids = model.tokenize(text, bos=True)
    chunks, first = len(ids) // CTX, CTX // 2
    context = llamacpp.Context(model, CTX, kv, flash)
    scores, per_chunk = [], []
    for chunk in range(chunks):
        part = ids[chunk * CTX:(chunk + 1) * CTX]
        if model.add_bos:
            part = [model.bos, *part[1:]]
        context.clear()
        logits = context.feed(part, logits_from=first)[:-1]
        nll = np.empty(len(logits))
        for start in range(0, len(logits), 64):  # f64 rows of a large vocabulary, a few at a time
            rows = log_softmax(logits[start:start + 64])[0]
            nll[start:start + 64] = -rows[np.arange(len(rows)), part[first + 1 + start:first + 1 + start + len(rows)]]
        scores.append(nll)
        per_chunk.append(float(nll.mean()))
    context.close()
    nll = np.concatenate(scores)
    value = float(np.exp(nll.mean()))
    error = value * float(np.sqrt(((nll ** 2).mean() - nll.mean() ** 2) / (len(nll) - 1)))
    return {"kv": kv, "flash_attention": flash, "perplexity": value, "stderr": error, "nll_of_chunks": per_chunk,
            "file_tokens": len(ids), "chunks": chunks, "scored": len(nll)}


def perplexity_entry(model, shipped):
    runs = [perplexity(model, kv, flash) for kv, flash in SETTINGS]
    main = next(run for run in runs if (run["kv"], run["flash_attention"]) == (KV, FLASH))
    entry = {"file": os.path.basename(GPL), "file_sha256": sha256_of(GPL), "ctx": CTX, **main}
    entry["other_settings"] = [{k: run[k] for k in ("kv", "flash_attention", "perplexity")}
                               for run in runs if run is not main]
    entry["as_shipped"] = perplexity(shipped, KV, FLASH)["perplexity"]
    shown = ", ".join(f"{r['kv']} {'flash' if r['flash_attention'] else 'plain'} {r['perplexity']:.4f}" for r in runs)
    say(f"  perplexity: {shown}, as shipped {entry['as_shipped']:.4f}")
    return entry


def json_text(document):
    """One row of a list on a line, so that the file is both small and readable in a diff."""
    lines = []
    for key, value in document.items():
        if isinstance(value, list):
            rows = ",\n".join("    " + json.dumps(row, ensure_ascii=True) for row in value)
            lines.append(f"  {json.dumps(key)}: [\n{rows}\n  ]" if value else f"  {json.dumps(key)}: []")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=True)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def make_templates(folder):
    rows = [{"template": name, "messages": [{"role": role, "content": content} for role, content in messages],
             "text": llamacpp.render_chat(name, messages)}
            for name in inputs.TEMPLATES for messages in inputs.CONVERSATIONS]
    with open(os.path.join(folder, "templates.json"), "w", encoding="ascii") as file:
        file.write(json_text({"llama_cpp": llamacpp.version(), "templates": rows}))


def make(name, models, scratch, folder):
    path = os.path.join(models, FILES[name])
    f32_path = os.path.join(scratch, FILES[name].replace(".gguf", ".f32.gguf"))
    say(f"{name}: {path}")
    dequantise(path, f32_path)
    shipped, model = llamacpp.Model(path), llamacpp.Model(f32_path)
    tokenize = tokenize_rows(shipped)
    if tokenize != tokenize_rows(model):
        raise ValueError(f"{f32_path} does not tokenize like {path}: remove it and run this again")
    chats = chat_rows(shipped)
    document = {
        "model": FILES[name], "sha256": sha256_of(path), "llama_cpp": llamacpp.version(), "weights": "f32, dequantised",
        "kv": KV, "flash_attention": FLASH, "bos": model.bos, "add_bos": model.add_bos,
        "perplexity": perplexity_entry(model, shipped),
        "tokenize": tokenize, "chat": chats, "greedy": greedy_rows(model, chats),
        "logits": logit_rows(model, name, folder),
    }
    with open(os.path.join(folder, f"{name}.json"), "w", encoding="ascii") as file:
        file.write(json_text(document))
    shipped.close()
    model.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=[*FILES, "templates", "all"], default="all")
    parser.add_argument("--models", default=os.path.join(ROOT, "models"), help="where the GGUF files are")
    parser.add_argument("--scratch", default=os.path.join(ROOT, ".lab", "scratch"), help="where the F32 weights go")
    parser.add_argument("--to", default=os.path.join(ROOT, "tests", "golden"), help="where the golden files go")
    arguments = parser.parse_args()
    os.makedirs(arguments.scratch, exist_ok=True)
    os.makedirs(arguments.to, exist_ok=True)
    if arguments.model in ("templates", "all"):
        make_templates(arguments.to)
    for name in FILES if arguments.model == "all" else [n for n in FILES if n == arguments.model]:
        make(name, arguments.models, arguments.scratch, arguments.to)


if __name__ == "__main__":
    main()
