"""What a process of its own measures for bench/peers.py: one peer, one group of figures, printed as JSON.

Each function takes the request of peers.py. Those of kernels get `cells`, the shapes of fovea bench's rows, and return
{cell: seconds} of those they can compute, so that both sides have the same. Times are medians of at least five calls
over at least 0.3 seconds, after one to warm up, as fovea bench takes them.
"""

import os
import re
import statistics
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "scripts"))
GPL = "/usr/share/common-licenses/GPL-3"
FILE_TYPES = {name: name + "_M" for name in ("Q3_K", "Q4_K", "Q5_K")}  # llama.cpp's names of mixtures; ours are pure

ATTENTION = re.compile(r"(\d+)/(\d+) heads, (\d+) x (\d+), D=(\d+), (f32|bf16)(, causal)?$")
PRODUCT = re.compile(r"(\d+) x (\d+) x (\d+), (f32|bf16)$")


def median_of(call):
    call()
    times, begin = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() < begin + 0.3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


# ---- torch and onnxruntime -------------------------------------------------------------------------------------------


def torch_types(threads):
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    return torch, {"f32": torch.float32, "bf16": torch.bfloat16}


def torch_gemm(request):
    torch, types = torch_types(request["threads"])
    cells = {}
    for cell in filter(PRODUCT.match, request["cells"]):
        m, n, k, dtype = PRODUCT.match(cell).groups()
        a, b = (torch.rand(int(rows), int(k)).to(types[dtype]) for rows in (m, n))
        cells[cell] = median_of(lambda a=a, b=b: torch.matmul(a, b.T))
    return cells


def torch_attention(request):
    """One query of grouped heads is computed both ways that torch has, its own grouping and the queries of a group as
    rows of one head, and the faster counts."""
    torch, types = torch_types(request["threads"])
    attention = torch.nn.functional.scaled_dot_product_attention
    cells = {}
    for cell in filter(ATTENTION.match, request["cells"]):
        *sizes, dtype, causal = ATTENTION.match(cell).groups()
        heads, key_heads, queries, keys, dim = map(int, sizes)
        q = torch.rand(1, heads, queries, dim).to(types[dtype])
        k, v = (torch.rand(1, key_heads, keys, dim).to(types[dtype]) for _ in range(2))
        ways = [lambda q=q, k=k, v=v: attention(q, k, v, is_causal=bool(causal), enable_gqa=heads != key_heads)]
        if queries == 1 and heads != key_heads:
            rows = q.reshape(1, key_heads, heads // key_heads, dim)
            ways.append(lambda rows=rows, k=k, v=v: attention(rows, k, v))
        cells[cell] = min(median_of(way) for way in ways)
    return cells


def onnx_attention(request):
    """ONNX's own Attention (operator set 23), f32: what onnxruntime's processor provider computes."""
    import numpy as np
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    cells = {}
    for cell in filter(ATTENTION.match, request["cells"]):
        *sizes, dtype, causal = ATTENTION.match(cell).groups()
        heads, key_heads, queries, keys, dim = map(int, sizes)
        if dtype != "f32":
            continue
        shapes = [[1, heads, queries, dim], [1, key_heads, keys, dim], [1, key_heads, keys, dim],
                  [1, heads, queries, dim]]
        values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
                  for name, shape in zip("qkvo", shapes)]
        node = onnx.helper.make_node("Attention", ["q", "k", "v"], ["o"], is_causal=int(bool(causal)))
        graph = onnx.helper.make_graph([node], "attention", values[:3], values[3:])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        feeds = {name: np.random.rand(*shape).astype(np.float32) for name, shape in zip("qkv", shapes)}
        cells[cell] = median_of(lambda session=session, feeds=feeds: session.run(None, feeds))
    return cells


# ---- llama.cpp -------------------------------------------------------------------------------------------------------


def prompt_of(model, tokens):
    """Text of the GPL that makes about that many ids (a cut can join differently), and its ids."""
    with open(GPL, encoding="ascii") as file:
        text = file.read()
    while True:
        ids = model.tokenize(text, bos=True)
        if len(ids) >= tokens:
            break
        text += text
    ids = ids[:tokens]
    text = model.text_of(ids[1:] if model.add_bos else ids)
    return text, model.tokenize(text.decode("utf-8"), bos=True)


def llama_streams(request):
    """Seconds that llama.cpp's own batch takes to read the prompts of `streams` streams and to write `tokens` tokens
    for each, as its batched benchmark does: prompts in batches of 2048, then one token of every stream at a time."""
    import llama_cpp
    import llamacpp

    streams, prompt, tokens = request["streams"], request["prompt"], request["tokens"]
    model = llamacpp.Model(request["model"])
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = streams * (prompt + tokens)
    params.n_batch, params.n_ubatch, params.n_seq_max = 2048, 512, streams
    params.n_threads = params.n_threads_batch = request["threads"]
    params.flash_attn_type = llamacpp.FLASH[True]
    params.no_perf, params.kv_unified = True, False
    context = llama_cpp.llama_init_from_model(model.handle, params)
    batch = llama_cpp.llama_batch_init(2048, 0, 1)

    def run(rows):
        batch.n_tokens = len(rows)
        for i, (stream, position, token, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = stream
        if llama_cpp.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")

    seconds = []
    for _ in range(2):  # the first to warm up
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        start = time.perf_counter()
        rows = [(s, p, (7 * s + p) % 1000 + 100, p == prompt - 1) for s in range(streams) for p in range(prompt)]
        for at in range(0, len(rows), 2048):
            run(rows[at:at + 2048])
        llama_cpp.llama_synchronize(context)
        for n in range(tokens - 1):
            run([(s, prompt + n, (11 * s + n) % 1000 + 100, True) for s in range(streams)])
            llama_cpp.llama_synchronize(context)
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds[-1]}


def llama_prompts(request):
    """Writes the prompts that fovea reads: {tokens: ids it makes}."""
    import llamacpp

    model = llamacpp.Model(request["model"], vocab_only=True)
    counts = {}
    for tokens in request["tokens"]:
        text, ids = prompt_of(model, tokens)
        with open(os.path.join(request["folder"], f"prompt-{tokens}"), "wb") as file:
            file.write(text)
        counts[str(tokens)] = len(ids)
    return counts


def llama_model(request):
    """{"prefill", "decode"} in tokens a second. The tokens fed one at a time are those of the prompt again, so that
    their number does not depend on its length. Each feed waits for its logits."""
    import llamacpp

    model = llamacpp.Model(request["model"])
    _, ids = prompt_of(model, request["tokens"])
    count = request["generate"]
    context = llamacpp.Context(model, len(ids) + count, threads=request["threads"])
    context.feed(ids[:32])  # touches the weights once, as fovea's loading does
    context.clear()
    start = time.perf_counter()
    context.feed(ids)
    middle = time.perf_counter()
    for n in range(count):
        context.feed([ids[n % len(ids)]])
    end = time.perf_counter()
    return {"prefill": len(ids) / (middle - start), "decode": count / (end - middle)}


def llama_perplexity(request):
    """By golden.py's procedure, with the file as it is shipped."""
    import golden
    import llamacpp

    model = llamacpp.Model(request["model"])
    return golden.perplexity(model, golden.KV, golden.FLASH)["perplexity"]


def llama_kl(request):
    """KL divergence of next tokens from given logits (.npy, f32) of the same prompt: {"prompt": fed whole, "steps": fed
    one at a time}. One thread is enough: no time is taken."""
    import llamacpp
    import numpy as np

    model = llamacpp.Model(request["model"])
    reference = np.load(request["logits"], mmap_mode="r")
    _, ids = prompt_of(model, request["tokens"])
    context = llamacpp.Context(model, len(ids), threads=1)
    whole = mean_kl(reference, context.feed(ids, logits_from=0))
    context.clear()
    steps = sum(mean_kl(reference[n:n + 1], context.feed([token])) for n, token in enumerate(ids))
    return {"prompt": whole, "steps": steps / len(ids)}


def llama_quantise(request):
    """Makes `target` from `source` with every matrix in that type, or llama.cpp's substitute where the rows are no whole
    blocks of it: what llama.cpp's own tool does with --pure --allow-requantize."""
    import ctypes

    import llama_cpp
    import llamacpp  # its log: errors only

    assert llamacpp
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + FILE_TYPES.get(request["type"], request["type"]))
    options.allow_requantize = options.pure = True
    options.nthread = request["threads"]
    part = request["target"] + ".part"
    status = llama_cpp.llama_model_quantize(os.fsencode(request["source"]), os.fsencode(part), ctypes.byref(options))
    if status != 0:
        sys.exit(f"llama_model_quantize returned {status} for {request['source']}")
    os.replace(part, request["target"])
    return types_of({"model": request["target"]})


def types_of(request):
    """{type: share of the model's matrices}, by their number of weights."""
    import gguf

    counts = {}
    for tensor in gguf.GGUFReader(request["model"]).tensors:
        if len(tensor.shape) == 2:
            counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
    return {name: count / sum(counts.values()) for name, count in counts.items()}


def mean_kl(reference, other):
    """Mean KL(reference || other) in nats over rows of logits."""
    import numpy as np

    def log_softmax(rows):
        rows = rows.astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))

    total = 0.0
    for start in range(0, len(reference), 64):
        p, q = (log_softmax(rows[start:start + 64]) for rows in (reference, other))
        total += float((np.exp(p) * (p - q)).sum())
    return total / len(reference)


def kl_of_files(request):
    import numpy as np

    return {"kl": mean_kl(np.load(request["reference"]), np.load(request["other"]))}


def model_shape(request):
    """What the limit of a model's speed needs: weights of layers and vocabulary, attention, windows."""
    import gguf

    reader = gguf.GGUFReader(request["model"])
    field = {name: part.contents() for name, part in reader.fields.items()
             if not name.startswith("tokenizer.")}
    kind = field["general.architecture"]
    layers, heads = field[f"{kind}.block_count"], field[f"{kind}.attention.head_count"]
    dim = field.get(f"{kind}.attention.key_length", field[f"{kind}.embedding_length"] // heads)
    window = field.get(f"{kind}.attention.sliding_window", 0)
    matrices = [t for t in reader.tensors if len(t.shape) == 2]
    head = [t for t in matrices if t.name == "output.weight"] or [t for t in matrices if t.name == "token_embd.weight"]
    return {"layer_weights": sum(int(t.n_elements) for t in matrices if t.name.startswith("blk.")),
            "head_weights": int(head[0].n_elements), "bytes": sum(int(t.n_bytes) for t in reader.tensors),
            "attention_width": heads * dim,
            # gemma3: every sixth layer sees everything
            "windows": [window if window and (n + 1) % 6 else 0 for n in range(layers)]}


WORK = {function.__name__: function for function in
        (torch_gemm, torch_attention, onnx_attention, llama_prompts, llama_streams, llama_model, llama_perplexity, llama_kl,
         llama_quantise, types_of, kl_of_files, model_shape)}
