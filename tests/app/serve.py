"""Checks `fovea serve` as its clients see it.  Run as: serve.py FOVEA MODEL MODEL_WITHOUT_TEMPLATE."""
import base64
import concurrent.futures
import json
import math
import os
import re
import resource
import socket
import struct
import threading
import time

from serving import (
    CHAT, COMPLETIONS, EMBEDDINGS, FRANCE, MODEL, SANITIZED, Server, answers_of, chat_text, check,
    error_of, head, ok, read_all, text_of,
)


# ---- what there is ---------------------------------------------------------------------------------------------------


def test_lists(s):
    status, headers, data = s.request("GET", "/health")
    check("health", status == 200 and json.loads(data) == {"status": "ok"}, data)
    status, headers, data = s.request("HEAD", "/health")
    check("head", status == 200 and data == b"" and headers["Content-Length"] == "15", headers)
    status, headers, data = s.request("GET", "/v1/models")
    model = json.loads(data)["data"][0]
    check("models", json.loads(data)["object"] == "list" and set(model) == {"id", "object", "created", "owned_by", "meta"}
          and model["object"] == "model" and model["owned_by"] == "fovea" and model["meta"]["context"] == 512
          and model["meta"]["architecture"] == "llama" and model["meta"]["parameters"] > 1e8, data)
    ok("health and lists")
    file = os.path.basename(MODEL)
    for name in (model["id"], file, file[:-5]):
        status, _, data = s.request("GET", "/v1/models/" + name.replace(" ", "%20"))
        check("model " + name, status == 200 and json.loads(data)["id"] == model["id"], data)
        check("named " + name, s.post("/tokenize", {"content": "a", "model": name})[0] == 200)
    status, _, data = s.request("GET", "/v1/models/other")
    check("no_model", status == 404 and json.loads(data)["error"]["code"] == "model_not_found", data)
    s.refuses("unknown_model", 404, CHAT, {**FRANCE, "model": "gpt-4o"}, "model", "model_not_found")
    ok("models by every name")
    status, headers, data = s.request("GET", "/")
    check("page", status == 200 and headers["Content-Type"].startswith("text/html") and len(data) > 1000, headers)
    outside = re.findall(rb"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", data)
    check("page_asks_for_nothing_outside", not outside, outside)
    ok("the page stands alone")


def test_chat(s):
    answer = s.good(CHAT, FRANCE)
    choice = answer["choices"][0]
    check("chat", set(answer) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage", "fovea"}
          and answer["object"] == "chat.completion" and len(answer["choices"]) == 1 and choice["index"] == 0
          and choice["message"]["role"] == "assistant" and "Paris" in choice["message"]["content"]
          and choice["finish_reason"] == "stop" and choice["logprobs"] is None, answer)
    usage = answer["usage"]
    check("usage", usage["prompt_tokens"] > 20 and 0 < usage["completion_tokens"] < 30
          and usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
          and usage["prompt_tokens_details"]["cached_tokens"] >= 0, usage)
    check("figures", set(answer["fovea"]) == {"attention", "cache", "kv_bytes", "queue_seconds", "prefill_seconds",
                                              "decode_tokens_per_second"} and answer["fovea"]["kv_bytes"] > 0, answer)
    ok("chat")
    again = s.good(CHAT, {**FRANCE, "messages": [{"role": "user", "content": [
        {"type": "text", "text": "What is the "}, {"type": "text", "text": "capital of France?"}]}]})
    check("parts", again["choices"][0]["message"] == choice["message"] and again["id"] != answer["id"], again)
    turns = {"messages": [{"role": "developer", "content": "Answer in one word."}, *FRANCE["messages"],
                          {"role": "assistant", "content": "Paris."}, {"role": "tool", "content": "{}"},
                          {"role": "user", "content": "And of Italy?"}], "temperature": 0, "max_tokens": 8}
    roles = {"developer": "system"}
    text = "".join("<|im_start|>{}\n{}<|im_end|>\n".format(roles.get(m["role"], m["role"]), m["content"])
                   for m in turns["messages"]) + "<|im_start|>assistant\n"
    rendered = s.good(COMPLETIONS, {"prompt": text, "temperature": 0, "max_tokens": 8})
    turned = s.good(CHAT, turns)
    check("turns", turned["choices"][0]["message"]["content"] == rendered["choices"][0]["text"]
          and turned["usage"]["prompt_tokens"] == rendered["usage"]["prompt_tokens"], (turned, rendered))
    ok("parts and turns")
    chunks = s.stream(CHAT, {**FRANCE, "stream_options": {"include_usage": True}})
    first, last = chunks[0]["choices"][0], chunks[-2]["choices"][0]
    check("stream_first", first["delta"] == {"role": "assistant", "content": ""} and first["finish_reason"] is None, first)
    check("stream_last", last["delta"] == {} and last["finish_reason"] == "stop", last)
    check("stream_usage", chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] ==
          usage["completion_tokens"] and all(c["usage"] is None for c in chunks[:-1]), chunks[-1])
    check("stream_object", all(c["object"] == "chat.completion.chunk" and c["id"] == chunks[0]["id"] for c in chunks))
    check("stream_text", chat_text(chunks) == choice["message"]["content"], chat_text(chunks))
    check("no_usage", all("usage" not in c for c in s.stream(CHAT, FRANCE)))
    ok("a stream is the same text")


def test_choices(s):
    body = {"messages": FRANCE["messages"], "temperature": 1.2, "seed": 5, "max_tokens": 12}
    three = s.good(CHAT, {**body, "n": 3})
    texts = [c["message"]["content"] for c in three["choices"]]
    check("indices", [c["index"] for c in three["choices"]] == [0, 1, 2] and len(set(texts)) > 1, three)
    for i in range(3):
        alone = s.good(CHAT, {**body, "seed": 5 + i})
        check(f"seed+{i}", alone["choices"][0]["message"]["content"] == texts[i], (alone, texts))
    chunks = s.stream(CHAT, {**body, "n": 3})
    check("streamed_choices", [chat_text(chunks, i) for i in range(3)] == texts, texts)
    check("each_ends", sum(c["finish_reason"] is not None for k in chunks for c in k["choices"]) == 3)
    ok("choices and seeds")
    ids = s.good("/tokenize", {"content": "One two three"})["tokens"]
    lists = s.good(COMPLETIONS, {"prompt": ["One two three", "A b c"], "n": 2, "max_tokens": 4, "temperature": 0})
    check("prompts", [c["index"] for c in lists["choices"]] == [0, 1, 2, 3]
          and lists["choices"][0]["text"] == lists["choices"][1]["text"] != lists["choices"][2]["text"], lists)
    by_ids = s.good(COMPLETIONS, {"prompt": [ids, ids], "max_tokens": 4, "temperature": 0})
    check("ids", [c["text"] for c in by_ids["choices"]] == [lists["choices"][0]["text"]] * 2, by_ids)
    flat = s.good(COMPLETIONS, {"prompt": ids, "max_tokens": 4, "temperature": 0})
    check("flat_ids", flat["choices"][0]["text"] == lists["choices"][0]["text"], flat)
    many = s.good(COMPLETIONS, {"prompt": ["A b c"] * 9, "max_tokens": 2, "temperature": 0})
    check("many_prompts", len(many["choices"]) == 9 and len({c["text"] for c in many["choices"]}) == 1, many)
    check("default_limit", s.good(COMPLETIONS, {"prompt": "1 2 3", "ignore_eos": True})["usage"]["completion_tokens"] == 16)
    ok("prompts of every shape")


def test_stops(s):
    full = s.good(CHAT, FRANCE)["choices"][0]["message"]["content"]
    for stop in (" Par", ["zzz", "is Paris"], "of", full[:1], full[-1:], ""):
        whole = s.good(CHAT, {**FRANCE, "stop": stop})["choices"][0]
        first = min([full.find(t) for t in ([stop] if isinstance(stop, str) else stop) if t and t in full], default=None)
        check(f"stop {stop!r}", whole["message"]["content"] == full[:first] and whole["finish_reason"] == "stop", whole)
        chunks = s.stream(CHAT, {**FRANCE, "stop": stop, "logprobs": True})
        check(f"stream stop {stop!r}", chat_text(chunks) == full[:first], chunks)
        scored = [t["token"] for k in chunks for c in k["choices"] for t in (c["logprobs"] or {"content": []})["content"]]
        check(f"scores at stop {stop!r}", "".join(scored).startswith(full[:first]), scored)
    ok("stop texts")
    # tokens that are parts of characters, in any order: some meet, the others become U+FFFD
    parts = {str(t): 100 for t in s.good("/tokenize", {"content": "😀日本語é"})["tokens"]}
    for seed in range(2 if SANITIZED else 4):
        body = {"prompt": "a", "max_tokens": 40, "temperature": 2, "seed": seed, "logit_bias": parts}
        whole, chunks = s.good(COMPLETIONS, body)["choices"][0]["text"], s.stream(COMPLETIONS, body)
        check("characters", text_of(chunks) == whole and max(map(ord, whole)) > 0x7f, (whole, text_of(chunks)))
        check("fewer_chunks", len(chunks) < 41, len(chunks))
    ok("characters are never split")


def test_scores(s):
    body = {**FRANCE, "logprobs": True, "top_logprobs": 5}
    choice = s.good(CHAT, body)["choices"][0]
    tokens = choice["logprobs"]["content"]
    check("joined", "".join(t["token"] for t in tokens) == choice["message"]["content"], tokens)
    for t in tokens:
        tops = [x["logprob"] for x in t["top_logprobs"]]
        check("tops", len(tops) == 5 and tops == sorted(tops, reverse=True) and sum(map(math.exp, tops)) < 1 + 1e-6
              and t["logprob"] == tops[0] and t["bytes"] == list(t["token"].encode()), t)
    chunks = s.stream(CHAT, body)
    streamed = [t for k in chunks for c in k["choices"] if c["logprobs"] for t in c["logprobs"]["content"]]
    check("streamed_scores", streamed == tokens, streamed)
    ok("logprobs of a chat")
    prompt = "The capital of France is"
    body = {"prompt": prompt, "max_tokens": 3, "temperature": 0, "logprobs": 2, "echo": True}
    echo = s.good(COMPLETIONS, body)["choices"][0]
    scores = echo["logprobs"]
    check("echo", echo["text"].startswith(prompt) and len(echo["text"]) > len(prompt), echo)
    check("echo_scores", "".join(scores["tokens"]) == echo["text"] and scores["token_logprobs"][0] is None
          and scores["top_logprobs"][0] is None and all(x <= 0 for x in scores["token_logprobs"][1:])
          and len({len(scores[k]) for k in scores}) == 1, scores)
    check("offsets", all(echo["text"][o:].startswith(t) for o, t in zip(scores["text_offset"], scores["tokens"])), scores)
    check("top_and_own", all(t in tops and 2 <= len(tops) <= 3 for t, tops in
                             zip(scores["tokens"][1:], scores["top_logprobs"][1:])), scores)
    only = s.good(COMPLETIONS, {**body, "max_tokens": 0})["choices"][0]
    count = len(only["logprobs"]["tokens"])
    check("prompt_alone", only["text"] == prompt and only["finish_reason"] == "length"
          and only["logprobs"]["token_logprobs"] == scores["token_logprobs"][:count], only)
    chunks = s.stream(COMPLETIONS, body)
    check("streamed_echo", text_of(chunks) == echo["text"], chunks)
    names = [t for k in chunks for c in k["choices"] if c["logprobs"] for t in c["logprobs"]["tokens"]]
    check("streamed_echo_scores", names == scores["tokens"], names)
    check("zero_tops", s.good(COMPLETIONS, {**body, "logprobs": 0})["choices"][0]["logprobs"]["top_logprobs"] is None)
    ok("logprobs and echo of a completion")


def test_sampling(s):
    body = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    plain = s.good(COMPLETIONS, body)["choices"][0]["text"]
    token = s.good("/tokenize", {"content": " banana"})["tokens"][0]
    forced = s.good(COMPLETIONS, {**body, "logit_bias": {str(token): 100}})["choices"][0]["text"]
    check("bias_forces", forced == s.good("/detokenize", {"tokens": [token] * 4})["content"], forced)
    first = s.good("/tokenize", {"content": plain})["tokens"][0]
    check("bias_forbids", s.good(COMPLETIONS, {**body, "logit_bias": {str(first): -100}})["choices"][0]["text"] != plain)
    check("top_k", s.good(COMPLETIONS, {**body, "temperature": 2, "top_k": 1})["choices"][0]["text"] == plain)
    check("top_p", s.good(COMPLETIONS, {**body, "temperature": 2, "top_p": 0})["choices"][0]["text"] == plain)
    check("min_p", s.good(COMPLETIONS, {**body, "temperature": 2, "min_p": 1})["choices"][0]["text"] == plain)
    again = {"prompt": "a a a a a a a a", "max_tokens": 6, "temperature": 0}
    for penalty in ("frequency_penalty", "presence_penalty"):
        a, b = (s.good(COMPLETIONS, {**again, **x})["choices"][0]["text"] for x in ({}, {penalty: 2}))
        check(penalty, a == " a" * 6 or a != b, (a, b))
    seeded = [s.good(COMPLETIONS, {**body, "temperature": 1.5, "seed": 9})["choices"][0]["text"] for _ in range(2)]
    check("seed", seeded[0] == seeded[1], seeded)
    unseeded = {s.good(COMPLETIONS, {**body, "temperature": 2})["choices"][0]["text"] for _ in range(5)}
    check("no_seed", len(unseeded) > 1, unseeded)
    for name, spec in ("attention", "sinkwin:sink=1,window=4"), ("cache", "sinkring:window=20"), ("cache", "full:k=q8_0"):
        answer = s.good(CHAT, {**FRANCE, name: spec, "max_tokens": 8})
        check(name, answer["fovea"][name] == spec, answer)
    check("cache_prompt", s.good(CHAT, {**FRANCE, "cache_prompt": False})["usage"]["prompt_tokens_details"] ==
          {"cached_tokens": 0})
    cut = s.good(CHAT, {"messages": [{"role": "user", "content": "word " * 420}], "max_tokens": 100000, "ignore_eos": True})
    check("cut", cut["choices"][0]["finish_reason"] == "length" and 500 < cut["usage"]["total_tokens"] <= 513, cut["usage"])
    ok("sampling and extensions")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: s.good(CHAT, FRANCE)["choices"][0]["message"], range(4)))
    check("together", together == [s.good(CHAT, FRANCE)["choices"][0]["message"]] * 4, together)
    ok("the same answer in company")


def test_rest(s):
    lists = s.good(EMBEDDINGS, {"input": ["a cat", "a dog", "x"]})
    first = lists["data"][0]["embedding"]
    check("embeddings", [d["index"] for d in lists["data"]] == [0, 1, 2] and lists["object"] == "list"
          and lists["data"][0]["object"] == "embedding" and len(first) == 576
          and abs(sum(x * x for x in first) - 1) < 1e-4 and lists["data"][1]["embedding"] != first
          and lists["usage"]["prompt_tokens"] == lists["usage"]["total_tokens"] > 0, lists["usage"])
    coded = s.good(EMBEDDINGS, {"input": "a cat", "encoding_format": "base64"})["data"][0]["embedding"]
    numbers = struct.unpack("<576f", base64.b64decode(coded, validate=True))
    check("base64", all(abs(a - b) < 1e-7 for a, b in zip(numbers, first)), numbers[:4])
    ok("embeddings")
    text = "Zażółć 😀 <|im_end|>\n"
    plain = s.good("/tokenize", {"content": text, "parse_special": False})["tokens"]
    special = s.good("/tokenize", {"content": text})["tokens"]
    check("special", len(plain) > len(special), (plain, special))
    check("round_trip", s.good("/detokenize", {"tokens": plain})["content"] == text)
    check("empty", s.good("/tokenize", {"content": ""}) == {"tokens": []}
          and s.good("/detokenize", {"tokens": []}) == {"content": ""})
    ok("tokens and back")
    status, headers, data = s.request("GET", "/metrics")
    text = data.decode()
    check("metrics_type", headers["Content-Type"].startswith("text/plain; version=0.0.4"), headers)
    for name, kind in [("requests_total", "counter"), ("requests_running", "gauge"), ("requests_waiting", "gauge"),
                       ("requests_cancelled_total", "counter"), ("prompt_tokens_total", "counter"),
                       ("cached_prompt_tokens_total", "counter"), ("generated_tokens_total", "counter"),
                       ("kv_bytes", "gauge"), ("kv_committed_bytes", "gauge"), ("kv_memory_bytes", "gauge"),
                       ("requests_sent_back_total", "counter"), ("prompts_given_back_total", "counter"),
                       ("time_to_first_token_seconds", "histogram"), ("time_per_token_seconds", "histogram"),
                       ("queue_seconds", "histogram")]:
        check(name, f"# TYPE fovea_{name} {kind}\n" in text, text)
    for line in text.splitlines():
        check("metrics_line", re.fullmatch(r'# (HELP|TYPE) .*|\w+(\{(\w+="[^"]*",?)+\})? [0-9.e+-]+', line), line)
    buckets = [float(x) for x in re.findall(r'^fovea_time_per_token_seconds_bucket\{le="[^"]+"\} (\d+)', text, re.M)]
    check("buckets", buckets == sorted(buckets) and buckets[-1] > 0, buckets)
    before = s.metric('fovea_requests_total{path="/tokenize",code="200"}')
    s.good("/tokenize", {"content": "a"})
    check("counted", s.metric('fovea_requests_total{path="/tokenize",code="200"}') == before + 1)
    ok("metrics")
    looked = s.good("/attention", {"messages": FRANCE["messages"] + [{"role": "assistant", "content": "It is Paris."}]})
    check("attention", looked["layers"] == 30 and looked["heads"] == 9 and looked["steps"] > 0
          and looked["bins"] == looked["tokens"] + looked["steps"] == len(looked["text"]) < 128
          and len(looked["weights"]) == 270 and {len(row) for row in looked["weights"]} == {looked["bins"]}
          and looked["text"].count("the answer") == looked["steps"] and looked["text"][-1] == "the answer"
          and all(0.99 < sum(x or 0 for x in row) < 1.01 for row in looked["weights"]), str(looked)[:300])
    long = [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "It is Paris."}]
    looked = s.good("/attention", {"messages": long})
    check("attention_in_bins", looked["bins"] == len(looked["text"]) == 128 and looked["tokens"] > 300
          and all(len(row) == 128 and 0.99 < sum(x or 0 for x in row) < 1.01 for row in looked["weights"]), str(looked)[:300])
    s.refuses("nothing_to_look_at", 400, "/attention", FRANCE, "messages")
    ok("what the answer looked at")


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_bodies(s):
    bad = "invalid_json"
    for name, body in [("cut", b'{"messages":['), ("empty", b""), ("array", b"[]"), ("text", b'"a"'), ("nan", b'{"seed":NaN}'),
                       ("bytes", b'{"prompt":"\xff"}'), ("surrogate", b'{"prompt":"\xed\xa0\x80"}'),
                       ("zero", b'{"prompt":"\\u0000"}'), ("huge", b'{"prompt":"a","seed":1e999}'),
                       ("deep", b'{"prompt":' + b"[" * 65 + b"]" * 65 + b"}"), ("deeper", b"[" * 60000), ("more", b"{} {}"),
                       ("lone", b'{"prompt":"\\ud800"}')]:
        s.refuses(f"json {name}", 400, COMPLETIONS, body, None, bad)
    check("deep_enough", s.post("/tokenize", b'{"content":"a","x":' + b"[" * 63 + b"]" * 63 + b"}")[0] == 200)
    ok("bodies that are no JSON objects")
    chat, text = FRANCE, {"prompt": "a"}
    message = lambda **fields: {"messages": [{"role": "user", "content": "a", **fields}]}
    cases = [
        (CHAT, {}, "messages"), (CHAT, {"messages": None}, "messages"), (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "a"}, "messages"), (CHAT, {"messages": ["a"]}, "messages[0]"),
        (CHAT, {"messages": [{"content": "a"}]}, "messages[0].role"), (CHAT, message(role="king"), "messages[0].role"),
        (CHAT, message(role=3), "messages[0].role"), (CHAT, message(content=None), "messages[0].content"),
        (CHAT, message(content=7), "messages[0].content"), (CHAT, message(tool_calls=[{}]), "messages[0].tool_calls"),
        (CHAT, message(content=[{"type": "image_url", "image_url": {"url": "x"}}]), "messages[0].content"),
        (CHAT, message(content=[{"type": "input_audio"}]), "messages[0].content"),
        (CHAT, message(content=["a"]), "messages[0].content"), (CHAT, message(content=[{"type": "text"}]), "messages[0].content"),
        (CHAT, {**chat, "tools": [{"type": "function"}]}, "tools"), (CHAT, {**chat, "functions": [{}]}, "functions"),
        (CHAT, {**chat, "tool_choice": "required"}, "tool_choice"), (CHAT, {**chat, "modalities": ["audio"]}, "modalities"),
        (CHAT, {**chat, "response_format": {"type": "json_object"}}, "response_format"),
        (CHAT, {**chat, "audio": {"voice": "x"}}, "audio"),
        (CHAT, {**chat, "temperature": -0.1}, "temperature"), (CHAT, {**chat, "temperature": 2.1}, "temperature"),
        (CHAT, {**chat, "temperature": "1"}, "temperature"), (CHAT, {**chat, "temperature": True}, "temperature"),
        (CHAT, {**chat, "top_p": 1.5}, "top_p"), (CHAT, {**chat, "min_p": -1}, "min_p"), (CHAT, {**chat, "top_k": 1.5}, "top_k"),
        (CHAT, {**chat, "top_k": -1}, "top_k"), (CHAT, {**chat, "repeat_penalty": 0}, "repeat_penalty"),
        (CHAT, {**chat, "seed": 2**53 + 2}, "seed"), (CHAT, {**chat, "seed": 10**30}, "seed"),
        (CHAT, {**chat, "seed": 0.5}, "seed"), (CHAT, {**chat, "n": 0}, "n"), (CHAT, {**chat, "n": 17}, "n"),
        (CHAT, {**chat, "max_tokens": 0}, "max_tokens"), (CHAT, {**chat, "max_tokens": -1}, "max_tokens"),
        (CHAT, {**chat, "max_tokens": 2**60}, "max_tokens"), (CHAT, {**chat, "max_completion_tokens": "9"}, "max_completion_tokens"),
        (CHAT, {**chat, "stop": ["a"] * 5}, "stop"), (CHAT, {**chat, "stop": [1]}, "stop"), (CHAT, {**chat, "stop": {}}, "stop"),
        (CHAT, {**chat, "presence_penalty": 3}, "presence_penalty"), (CHAT, {**chat, "frequency_penalty": -3}, "frequency_penalty"),
        (CHAT, {**chat, "logit_bias": []}, "logit_bias"), (CHAT, {**chat, "logit_bias": {"x": 1}}, "logit_bias"),
        (CHAT, {**chat, "logit_bias": {"49152": 1}}, "logit_bias"), (CHAT, {**chat, "logit_bias": {"1": 101}}, "logit_bias"),
        (CHAT, {**chat, "logit_bias": {"-1": 1}}, "logit_bias"), (CHAT, {**chat, "logit_bias": {"9" * 40: 1}}, "logit_bias"),
        (CHAT, {**chat, "logprobs": 3}, "logprobs"), (CHAT, {**chat, "top_logprobs": 3}, "top_logprobs"),
        (CHAT, {**chat, "logprobs": True, "top_logprobs": 21}, "top_logprobs"), (CHAT, {**chat, "stream": 1}, "stream"),
        (CHAT, {**chat, "stream": True, "stream_options": 1}, "stream_options"),
        (CHAT, {**chat, "stream_options": {"include_usage": "x"}}, "stream_options.include_usage"),
        (CHAT, {**chat, "ignore_eos": 1}, "ignore_eos"), (CHAT, {**chat, "cache_prompt": "no"}, "cache_prompt"),
        (CHAT, {**chat, "model": 1}, "model"), (CHAT, {**chat, "attention": 1}, "attention"),
        (CHAT, {**chat, "attention": "nosuch"}, "attention"), (CHAT, {**chat, "cache": "nosuch"}, "cache"),
        (CHAT, {**chat, "cache": "sinkring:windo=3"}, "cache"), (CHAT, {**chat, "cache": "0-99/full"}, "cache"),
        (CHAT, {**chat, "cache": "full", "attention": "nosuch"}, "attention"),
        (CHAT, {**chat, "cache": "nosuch", "attention": "dense"}, "cache"), (CHAT, {**chat, "cache": "x" * 5000}, "cache"),
        (COMPLETIONS, {}, "prompt"), (COMPLETIONS, {"prompt": 1}, "prompt"), (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": [[]]}, "prompt"), (COMPLETIONS, {"prompt": [1, "a"]}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", 1]}, "prompt"), (COMPLETIONS, {"prompt": [49152]}, "prompt"),
        (COMPLETIONS, {"prompt": [-1]}, "prompt"), (COMPLETIONS, {"prompt": [1.5]}, "prompt"),
        (COMPLETIONS, {"prompt": ["a"] * 2049}, "prompt"), (COMPLETIONS, {**text, "suffix": "b"}, "suffix"),
        (COMPLETIONS, {**text, "best_of": 2}, "best_of"), (COMPLETIONS, {**text, "echo": 1}, "echo"),
        (COMPLETIONS, {**text, "logprobs": 21}, "logprobs"), (COMPLETIONS, {**text, "logprobs": -1}, "logprobs"),
        (COMPLETIONS, {**text, "max_tokens": 0}, "max_tokens"),
        (EMBEDDINGS, {}, "input"), (EMBEDDINGS, {"input": "a", "encoding_format": "int8"}, "encoding_format"),
        (EMBEDDINGS, {"input": "a", "dimensions": 8}, "dimensions"), (EMBEDDINGS, {"input": {}}, "input"),
        ("/tokenize", {}, "content"), ("/tokenize", {"content": 1}, "content"),
        ("/tokenize", {"content": "a", "add_special": 1}, "add_special"),
        ("/detokenize", {}, "tokens"), ("/detokenize", {"tokens": "a"}, "tokens"), ("/detokenize", {"tokens": [99999999]}, "tokens"),
    ]
    for path, body, param in cases:
        s.refuses(f"{path} {str(body)[-80:]}", 400, path, body, param)
    ok("fields out of range, of the wrong type or missing")
    for body in (text, {"prompt": "a " * 40}, {"prompt": [5] * 511}):
        check("fits", s.post(COMPLETIONS, {**body, "max_tokens": 1})[0] == 200)
    for path, body, param in [(COMPLETIONS, {"prompt": [5] * 512}, "prompt"), (COMPLETIONS, {"prompt": "a " * 9000}, "prompt"),
                              (CHAT, message(content="a " * 600), "messages"), (EMBEDDINGS, {"input": "a " * 600}, "input")]:
        s.refuses(f"too long {path}", 400, path, body, param, "context_length_exceeded")
    ok("prompts past the context")
    check("unknown_fields", s.post(CHAT, {**chat, "user": "u", "store": False, "metadata": {"a": [1]}, "max_tokens": 1})[0] == 200)
    nulls = {k: None for k in ("stop", "seed", "n", "logprobs", "tools", "stream", "max_tokens", "response_format", "cache")}
    check("nulls", s.post(CHAT, {**nulls, **chat})[0] == 200)
    check("harmless", s.post(CHAT, {**chat, "tools": [], "response_format": {"type": "text"}, "max_tokens": 1})[0] == 200)
    ok("what is ignored")


def test_http(s):
    status, headers, data = s.request("GET", "/nothing")
    check("unknown_path", status == 404 and json.loads(data)["error"]["code"] == "not_found", data)
    for method, path, allow in [("GET", CHAT, "POST"), ("PUT", CHAT, "POST"), ("DELETE", "/health", "GET, HEAD"),
                                ("OPTIONS", CHAT, "POST"), ("HEAD", COMPLETIONS, "POST")]:
        status, headers, data = s.request(method, path)
        check(f"{method} {path}", status == 405 and headers["Allow"] == allow, (status, headers, data))
        check("no_cors", not [h for h in headers if h.lower().startswith("access-control")], headers)
    status, headers, data = s.request("POST", "/health", {})
    check("post_health", status == 405 and headers["Allow"] == "GET, HEAD", (status, data))
    ok("paths and methods")
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""):
        s.refuses(f"type {kind}", 415, "/tokenize", {"content": "a"}, headers={"Content-Type": kind})
    s.refuses("encoding", 415, "/tokenize", {"content": "a"}, headers={"Content-Encoding": "gzip"})
    for kind in ("application/json; charset=utf-8", "Application/JSON"):
        check(kind, s.post("/tokenize", {"content": "a"}, {"Content-Type": kind})[0] == 200)
    ok("types")
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil", "[::2]", "10.0.0.1"):
        s.refuses(f"host {host}", 403, "/tokenize", {"content": "a"}, code="forbidden_host", headers={"Host": host})
        check("health_too", s.request("GET", "/health", headers={"Host": host})[0] == 403)
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:9", "127.3.2.1", "[::1]:80", "friend.example"):
        check(f"host {host}", s.post("/tokenize", {"content": "a"}, {"Host": host})[0] == 200)
    ok("hosts")
    body, json_type = b'{"content":"a"}', "Content-Type: application/json"
    length = f"Content-Length: {len(body)}"
    cases = [
        ("two lengths", head("/tokenize", json_type, length, length) + body, 400),
        ("two other lengths", head("/tokenize", json_type, length, "Content-Length: 3") + body, 400),
        ("length and chunks", head("/tokenize", json_type, length, "Transfer-Encoding: chunked") + body, 400),
        ("odd encoding", head("/tokenize", json_type, "Transfer-Encoding: gzip, chunked") + body, 400),
        ("odd length", head("/tokenize", json_type, "Content-Length: 15, 15") + body, 400),
        ("length of letters", head("/tokenize", json_type, "Content-Length: abc") + body, 400),
        ("signed length", head("/tokenize", json_type, "Content-Length: +15") + body, 400),
        ("negative length", head("/tokenize", json_type, "Content-Length: -1") + body, 400),
        ("space before a colon", head("/tokenize", json_type, "Content-Length : 15") + body, 400),
        ("no colon", head("/health", "X", method="GET"), 400),
        ("folded header", head("/health", "X: a", " b", method="GET"), 400),
        ("zero in a header", head("/health", "X: a\0b", method="GET"), 400),
        ("space in the target", head("/he alth", method="GET"), 400),
        ("no version", b"GET /health\r\n\r\n", 400),
        ("no request", b"hello\r\n\r\n", 400),
        ("other version", head("/health", method="GET", version="2.0"), 505),
        ("flood of headers", head("/health", *["X: " + "a" * 1000] * 2000, method="GET"), 431),
        ("flood without an end", b"GET /health HTTP/1.1\r\n" + b"X: a\r\n" * 200000, 431),
        ("flood in a line", b"GET /" + b"a" * 2_000_000, 414),
        ("two hosts", head("/health", "Host: localhost", method="GET"), 400),
        ("long line", head("/health?" + "a" * 9000, method="GET"), 414),
        ("longer line", head("/health?" + "a" * 40000, method="GET"), 414),
        ("big headers", head("/health", "X: " + "a" * 17000, method="GET"), 431),
        ("bigger headers", head("/health", *["X: " + "a" * 1000] * 50, method="GET"), 431),
        ("many headers", head("/health", *["X: a"] * 101, method="GET"), 431),
        ("many arguments", head("/health?" + "&" * 8000, method="GET"), 414),
        ("many cookies", head("/health", "Cookie: " + "a=;" * 5400, method="GET"), 431),
        ("encoding of 1.0", head("/tokenize", json_type, "Transfer-Encoding: chunked", version="1.0"), 400),
        ("two encodings", head("/tokenize", *["Transfer-Encoding: chunked"] * 2), 400),
        ("return alone", b"GET /health HTTP/1.1\r\nHost: localhost\rX: a\r\n\r\n", 400),
        ("big body", head("/tokenize", json_type, "Content-Length: 65537"), 413),
        ("huge body", head("/tokenize", json_type, "Content-Length: 999999999999999999999"), 413),
        ("big chunks", head("/tokenize", json_type, "Transfer-Encoding: chunked") + (b"8000\r\n" + b" " * 0x8000 + b"\r\n") * 3, 413),
    ]
    chunks = head("/tokenize", json_type, "Transfer-Encoding: chunked") + b'4\r\n{"co\r\n'
    for name, rest, status in [("size", b"zz\r\n", 400), ("size of nothing", b"\r\n", 400), ("signed size", b"-1\r\n", 400),
                               ("huge size", b"f" * 16 + b"\r\n", 400), ("size with a space", b" 4\r\n", 400),
                               ("size before a feed", b"4\n", 400), ("longer chunk", b"4\r\nntent", 400),
                               ("endless extension", b"4;" + b"a" * 100000, 400), ("trailer", b"0\r\nX\r\n\r\n", 400),
                               ("endless trailer", b"0\r\n" + b"X: a\r\n" * 10000, 431)]:
        cases.append((f"chunks: {name}", chunks + rest, status))
    fine = head("/health", method="GET")
    for name, data, status in cases:
        # alone, behind others at once, and behind others that have been answered: the same, in order, and then the end
        for many, raw in (0, s.raw(data)), (2, s.raw(fine * 2 + data)), (9, s.raw_in_turn([fine] * 9 + [data])):
            answers = answers_of(raw)
            check(f"{name}: order", len(answers) == many + 1 and b"".join(answers) == raw
                  and all(a.startswith(b"HTTP/1.1 200 ") for a in answers[:-1]), raw[-900:])
            got, code = error_of(answers[-1])
            check(name, got == status and isinstance(code, str) and b"\r\nConnection: close\r\n" in answers[-1], answers[-1][:600])
    check("line_fits", s.raw(head("/health?" + "a" * 8000, "Connection: close", method="GET")).startswith(b"HTTP/1.1 200"))
    check("headers_fit", s.raw(head("/health", "Connection: close", *["X: a"] * 98, method="GET")).startswith(b"HTTP/1.1 200"))
    ok("heads and framing")
    # a client that sends all of a large body before it reads gets the answer all the same
    status, answer = s.post("/tokenize", b'{"content":"' + b"a" * 10_000_000 + b'"}')
    check("ten megabytes", status == 413 and answer["error"]["code"] == "body_too_large", (status, answer))
    ok("bodies that are too large")
    for garbage in (b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"GET /\x80 HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b":\r\n\r\n"):
        s.raw(garbage, wait=0.3)
    check("still_there", s.request("GET", "/health")[0] == 200)
    ok("garbage does no harm")


def test_connections(s):
    c = s.connect()
    for i in range(3):
        check("keep_alive", s.request("POST", "/tokenize", {"content": "a"}, connection=c)[0] == 200)
        check("keep_alive_error", s.request("POST", "/tokenize", {}, connection=c)[0] == 400)
    local = c.sock.getsockname()
    s.request("GET", "/health", connection=c)
    check("one_connection", c.sock.getsockname() == local)
    c.close()
    bodies = [json.dumps({"content": "a " * n}).encode() for n in (3, 1, 2)]
    data = b"".join(head("/tokenize", "Content-Type: application/json", f"Content-Length: {len(b)}") + b for b in bodies)
    chat = json.dumps({**FRANCE, "max_tokens": 2}).encode()
    data += head(CHAT, "Content-Type: application/json", f"Content-Length: {len(chat)}") + chat
    data += head("/health", "Connection: close", method="GET")
    raw = s.raw(data)
    answers = [json.loads(a.partition(b"\r\n\r\n")[2]) for a in raw.split(b"HTTP/1.1 200")[1:]]
    check("pipelined", len(answers) == 5 and [len(a["tokens"]) for a in answers[:3]] ==
          [len(s.good("/tokenize", json.loads(b))["tokens"]) for b in bodies] and "choices" in answers[3]
          and answers[4] == {"status": "ok"}, raw)
    ok("keep-alive and pipelining")
    page = s.request("GET", "/")[2]
    with socket.create_connection(("127.0.0.1", s.port), timeout=120) as k:
        k.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)  # what comes back fills every buffer on its way
        sender = threading.Thread(target=k.sendall, args=(head("/", method="GET") * 400 + head("/health", "Connection: close", method="GET"),))
        sender.start()
        raw = read_all(k)
        sender.join()
    answers = answers_of(raw)
    check("back_pressure", len(answers) == 401 and all(a.endswith(page) for a in answers[:400])
          and answers[400].endswith(b'{"status":"ok"}'), (len(answers), raw[-300:]))
    ok("more answers than buffers hold")
    raw = s.raw(b"GET /health HTTP/1.0\r\n\r\n")
    check("http10", raw.endswith(b'{"status":"ok"}') and b"chunked" not in raw, raw)
    body = json.dumps({**FRANCE, "stream": True}).encode()
    raw = s.raw(head(CHAT, "Content-Type: application/json", f"Content-Length: {len(body)}", version="1.0") + body)
    check("http10_stream", raw.endswith(b"data: [DONE]\n\n") and b"chunked" not in raw, raw[-200:])
    with socket.create_connection(("127.0.0.1", s.port), timeout=120) as k:
        k.sendall(head("/tokenize", "Content-Type: application/json", "Content-Length: 15", "Expect: 100-continue"))
        check("expect", k.recv(100).startswith(b"HTTP/1.1 100 "), "no 100")
        k.sendall(b'{"content":"a"}')
        check("expected", k.recv(1000).startswith(b"HTTP/1.1 200 "))
    raw = s.raw(head("/tokenize", "Content-Type: application/json", "Content-Length: 70000", "Expect: 100-continue"))
    check("expect_413", raw.startswith(b"HTTP/1.1 413 "), raw)
    chunks = b'4\r\n{"co\r\n5;x=y\r\nntent\r\n6\r\n":"a"}\r\n0\r\nTrailer: x\r\n\r\n'
    raw = s.raw(head("/tokenize", "Content-Type: application/json", "Transfer-Encoding: chunked", "Connection: close") + chunks)
    check("chunks", raw.startswith(b"HTTP/1.1 200 ") and b'"tokens"' in raw, raw)
    ok("HTTP/1.0, Expect and chunks")
    with socket.create_connection(("127.0.0.1", s.port), timeout=120) as k:
        k.sendall(b"POST /tokenize HTTP/1.1\r\nHost: loc")
        raw = read_all(k)
        check("slow_head", error_of(raw) == (408, "request_timeout"), raw)
    with socket.create_connection(("127.0.0.1", s.port), timeout=120) as k:
        k.sendall(head("/tokenize", "Content-Type: application/json", "Content-Length: 15") + b"{")
        raw = read_all(k)
        check("slow_body", error_of(raw) == (408, "request_timeout"), raw)
    with socket.create_connection(("127.0.0.1", s.port), timeout=120) as k:
        k.sendall(head("/health", method="GET"))
        check("first", k.recv(1000).startswith(b"HTTP/1.1 200 "))
        k.sendall(b"GET /hea")
        raw = read_all(k)
        check("slow_later_head", error_of(raw) == (408, "request_timeout"), raw)
    with socket.create_connection(("127.0.0.1", s.port), timeout=120) as k:
        k.settimeout(0.2)
        got = b""
        for byte in (b"GET /health HTTP/1.1\r\n" + b"X: a\r\n" * 50):  # a byte now and then is no progress
            try:
                k.send(bytes([byte]))
                got += k.recv(1000)
            except socket.timeout:
                continue
            except OSError:
                break
            if got:
                break
        check("trickle", got.startswith(b"HTTP/1.1 408 ") or got == b"", got)
    ok("clients that are too slow")


def test_disconnect(s):
    long = {"messages": FRANCE["messages"], "max_tokens": 400, "ignore_eos": True, "temperature": 0}
    for name, extra in [("whole", {}), ("stream", {"stream": True})]:
        before = s.metric("fovea_requests_cancelled_total")
        c = s.connect()
        c.request("POST", CHAT, json.dumps({**long, **extra}), {"Content-Type": "application/json"})
        s.wait_metric("fovea_requests_running", lambda n: n >= 1)
        c.sock.close() if not extra else (c.getresponse().read(10), c.close())
        c.close()
        s.wait_metric("fovea_requests_cancelled_total", lambda n: n == before + 1)
        s.wait_metric("fovea_requests_running", lambda n: n == 0)
        ok(f"a client that leaves: {name}")
    before = s.metric("fovea_requests_cancelled_total")
    body = json.dumps({**long, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", s.port), timeout=120) as k:
        k.sendall(head(CHAT, "Content-Type: application/json", f"Content-Length: {len(body)}") + body)
        check("begins", k.recv(100).startswith(b"HTTP/1.1 200 "))
        k.setblocking(False)
        try:  # more requests than anybody takes while the first one is answered
            while True:
                k.send(head("/health", method="GET") * 1000)
        except BlockingIOError:
            pass
    s.wait_metric("fovea_requests_cancelled_total", lambda n: n == before + 1)
    ok("a client that leaves: many more requests")


def test_many_connections(s):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2200:
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (2200, hard))
    open_ones = []
    for _ in range(1100):
        k = socket.create_connection(("127.0.0.1", s.port), timeout=120)
        open_ones.append(k)
    closed = 0
    end = time.time() + 120
    while time.time() < end and closed < 76:
        closed = 0
        for k in open_ones:
            k.setblocking(False)
            try:
                closed += k.recv(1, socket.MSG_PEEK) == b""
            except BlockingIOError:
                pass
            except OSError:
                closed += 1
    for k in open_ones:
        k.close()
    check("connections", 76 <= closed < 200, closed)
    end = time.time() + 120
    while True:
        try:
            if s.request("GET", "/health")[0] == 200:
                break
        except OSError:
            check("room_again", time.time() < end)
    ok("connections past the limit are closed")


with Server("--ctx", "512", "--max-body", "65536", "--timeout", "1", "--allow-host", "friend.example") as server:
    for test in (test_lists, test_chat, test_choices, test_stops, test_scores, test_sampling, test_rest, test_bodies,
                 test_http, test_connections, test_disconnect, test_many_connections):
        test(server)
ok("a server that was idle ends at once")
