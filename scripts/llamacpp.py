"""A thin layer over the C interface of llama.cpp as the wheel llama-cpp-python carries it.

Used by golden.py and bench/peers.py, in the laboratory's virtual environment (golden.py says how to make it).
It works on token ids and whole rows of logits, which the wheel's own high-level class hides.
"""

import ctypes
import importlib.metadata
import os
import sys

import numpy as np

try:
    import llama_cpp
except ImportError:
    sys.exit("the Python package llama-cpp-python is missing: run this with the laboratory's environment "
             "(scripts/golden.py --help says how to make it)")

GGML_TYPE = {"f32": 0, "f16": 1}
FLASH = {False: 0, True: 1}  # llama_flash_attn_type: disabled, enabled


def version():
    return f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"


@llama_cpp.llama_log_callback
def _log(level, text, _user_data):
    if level == 4 or os.environ.get("LLAMA_LOG"):  # GGML_LOG_LEVEL_ERROR
        sys.stderr.write(text.decode("utf-8", "replace"))


llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()


def render_chat(template, messages):
    """The text of messages [(role, content)] with a generation prompt, by the name of a template llama.cpp knows."""
    chat = (llama_cpp.llama_chat_message * len(messages))(
        *[llama_cpp.llama_chat_message(role.encode(), content.encode()) for role, content in messages])
    buffer = ctypes.create_string_buffer(65536)
    count = llama_cpp.llama_chat_apply_template(template.encode(), chat, len(messages), True, buffer, len(buffer))
    if count < 0:
        raise ValueError(f"llama.cpp does not know the chat template {template}")
    return buffer.raw[:count].decode("utf-8")


class Model:
    """One GGUF file: its vocabulary and its weights."""

    def __init__(self, path, vocab_only=False):
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = 0
        self.path = path
        self.handle = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            raise OSError(f"llama.cpp cannot load {path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.vocabulary_size = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.bos = llama_cpp.llama_vocab_bos(self.vocab)
        self.add_bos = bool(llama_cpp.llama_vocab_get_add_bos(self.vocab))

    def close(self):
        llama_cpp.llama_model_free(self.handle)

    def tokenize(self, text, special=False, bos=False):
        """Ids of text (str); bos adds the begin token if the file asks for one."""
        data = text.encode("utf-8")
        room = len(data) + 8
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, room, bos, special)
        if count < 0:
            raise ValueError(f"llama_tokenize wants room for {-count} ids of {len(data)} bytes")
        return list(ids[:count])

    def text_of(self, ids):
        """The bytes of ids, piece after piece, special tokens as their text."""
        out = b""
        buffer = ctypes.create_string_buffer(4096)
        for token in ids:
            count = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, True)
            out += buffer.raw[:count]
        return out

    def ends(self, token):
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    def chat_template(self):
        text = llama_cpp.llama_model_chat_template(self.handle, None)
        return text.decode("utf-8") if text else None


class Context:
    """A cache of ctx rows and the forward pass. kv is the type of the cache, flash the fused attention."""

    def __init__(self, model, ctx, kv="f16", flash=True, threads=2):
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = ctx
        params.n_batch = ctx
        params.n_ubatch = min(512, ctx)
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = GGML_TYPE[kv]
        params.flash_attn_type = FLASH[flash]
        params.no_perf = True
        self.model = model
        self.handle = llama_cpp.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise OSError(f"llama.cpp cannot make a context of {ctx} for {model.path}")
        self.batch = llama_cpp.llama_batch_init(ctx, 0, 1)
        self.position = 0

    def close(self):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.handle)

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.handle), True)
        self.position = 0

    def feed(self, ids, logits_from=None):
        """Runs ids after what is in the cache; returns logits [len(ids) - logits_from, vocabulary] (f32, a copy).

        logits_from counts within ids; None means the last position only.
        """
        first = len(ids) - 1 if logits_from is None else logits_from
        batch = self.batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i] = token
            batch.pos[i] = self.position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i >= first
        status = llama_cpp.llama_decode(self.handle, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status} at position {self.position}")
        self.position += len(ids)
        rows = len(ids) - first
        if rows == 0:
            llama_cpp.llama_synchronize(self.handle)
            return np.empty((0, self.model.vocabulary_size), np.float32)
        pointer = llama_cpp.llama_get_logits(self.handle)
        return np.ctypeslib.as_array(pointer, shape=(rows, self.model.vocabulary_size)).copy()
