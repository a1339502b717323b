"""Checks how `fovea serve` starts, with flags of many kinds, and how it ends.  Run as serve.py is."""
import concurrent.futures
import json
import signal
import socket
import subprocess

from serving import (
    CHAT, COMPLETIONS, FOVEA, FRANCE, MODEL, PLAIN_MODEL, SANITIZED, Server, check, ok,
)


def test_queue():
    long = {"messages": FRANCE["messages"], "max_tokens": 8000, "ignore_eos": True, "temperature": 0, "stream": True}
    headers = {"Content-Type": "application/json"}
    with Server("--parallel", "1", "--queue", "1", "--drain", "600", "--quiet") as s:
        running, waiting = s.connect(), s.connect()
        running.request("POST", CHAT, json.dumps({**long, "max_tokens": 150 if SANITIZED else 600}), headers)
        s.wait_metric("fovea_requests_running", lambda n: n == 1)
        waiting.request("POST", CHAT, json.dumps({**long, "stream": False}), headers)
        s.wait_metric("fovea_requests_waiting", lambda n: n == 1)
        status, got, data = s.request("POST", CHAT, FRANCE)
        error = json.loads(data)["error"]
        check("queue_full", status == 429 and int(got["Retry-After"]) > 0 and error["type"] == "rate_limit_error", data)
        ok("a full queue")
        idle = s.connect()
        s.request("GET", "/health", connection=idle)
        s.process.send_signal(signal.SIGTERM)
        status, _, data = waiting.getresponse().status, 0, b""
        check("queued_at_drain", status == 503, status)
        answer = running.getresponse().read().decode()
        check("running_at_drain", answer.endswith("data: [DONE]\n\n") and '"finish_reason":"length"' in answer, answer[-300:])
        check("drained", s.process.wait(120) == 0, s.process.returncode)
        lines = s.read_log().splitlines()
        check("quiet", len(lines) == 1, lines)
    ok("SIGTERM lets running requests finish")
    with Server("--drain", "0.2") as s:
        c = s.connect()
        c.request("POST", CHAT, json.dumps(long), headers)
        s.wait_metric("fovea_requests_running", lambda n: n == 1)
        s.process.send_signal(signal.SIGINT)
        check("drain_ends", s.process.wait(120) == 0, s.process.returncode)
        check("told", '"error"' in c.getresponse().read().decode())
    ok("draining has an end")
    with Server() as s:
        c = s.connect()
        c.request("POST", CHAT, json.dumps(long), headers)
        s.wait_metric("fovea_requests_running", lambda n: n == 1)
        s.process.send_signal(signal.SIGTERM)
        s.wait_log("shutting down")  # two signals at once are one
        s.process.send_signal(signal.SIGTERM)
        check("second_signal", s.process.wait(120) == 1, s.process.returncode)
        s.process.returncode = 0
    ok("a second signal ends it")


def test_memory():
    length, most = (80, 6) if SANITIZED else (300, 24)
    bodies = [{"prompt": [100 + i] * length, "max_tokens": most, "temperature": 0, "ignore_eos": True} for i in range(6)]
    ask = lambda s, body: s.good(COMPLETIONS, body)["choices"][0]["text"]
    with Server("--ctx", "512", "--kv-memory", "0") as s:
        expected = [ask(s, body) for body in bodies]
        check("no_limit", s.metric("fovea_kv_memory_bytes") == 0 and s.metric("fovea_prompts_given_back_total") == 0)
    limit = 60_000 * (length + most)  # two and a half of the requests
    with Server("--ctx", "512", "--parallel", "6", "--kv-memory", str(limit)) as s:
        for _ in range(2):
            with concurrent.futures.ThreadPoolExecutor(6) as pool:
                got = list(pool.map(lambda body: ask(s, body), bodies))
            check("limited", got == expected, (got, expected))
        s.wait_metric("fovea_prompts_given_back_total", lambda n: n > 0)
        s.wait_metric("fovea_requests_running", lambda n: n == 0)
        s.wait_metric("fovea_kv_committed_bytes", lambda n: 0 < n <= limit)
        check("limit", s.metric("fovea_kv_memory_bytes") == limit and s.metric("fovea_requests_sent_back_total") >= 0)
    ok("memory with a limit")


def test_keys():
    with Server("--alias", "mine", "--cors", "https://app.example", env={"FOVEA_API_KEY": "sesame"}) as s:
        key = {"Authorization": "Bearer sesame"}
        check("health_open", s.request("GET", "/health")[0] == 200)
        for wrong in ({}, {"Authorization": "Bearer sesam"}, {"Authorization": "Bearer sesame "}, {"Authorization": "sesame"},
                      {"Authorization": "Bearer "}, {"Authorization": "Bearer sesamesesame"}):
            for method, path in ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/nothing"), ("POST", CHAT):
                status, headers, data = s.request(method, path, None if method == "GET" else FRANCE, wrong)
                error = json.loads(data)["error"]
                check(f"{wrong} {path}", status == 401 and headers["WWW-Authenticate"] == "Bearer"
                      and error["type"] == "authentication_error" and error["code"] == "invalid_api_key", (status, data))
        check("key", json.loads(s.request("GET", "/v1/models", headers=key)[2])["data"][0]["id"] == "mine")
        check("alias", s.post("/tokenize", {"content": "a", "model": "mine"}, key)[0] == 200)
        ok("API keys and aliases")
        page = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        status, headers, _ = s.request("OPTIONS", CHAT, headers=page)
        check("preflight", status == 204 and headers["Access-Control-Allow-Origin"] == "https://app.example"
              and "Authorization" in headers["Access-Control-Allow-Headers"], headers)
        check("cors", s.request("GET", "/health", headers=page)[1]["Access-Control-Allow-Origin"] == "https://app.example")
        other = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        status, headers, _ = s.request("OPTIONS", CHAT, headers=other)
        check("other_origin", status in (401, 405) and "Access-Control-Allow-Origin" not in headers, headers)
        ok("other origins")
        log = [json.loads(line) for line in s.read_log().splitlines() if line.startswith("{")]
        check("log", log and all(entry["status"] and entry["path"] and "sesame" not in json.dumps(entry) for entry in log))
        ok("one line of JSON for each request")


def test_plain_model():
    with Server(model=PLAIN_MODEL) as s:
        s.refuses("no_template", 400, CHAT, FRANCE, "messages", "no_chat_template")
        empty = s.good(COMPLETIONS, {"prompt": "", "max_tokens": 2, "temperature": 0})
        check("begin_token", empty["usage"]["prompt_tokens"] == 1, empty)
        check("begin_once", s.good("/tokenize", {"content": "a", "add_special": True})["tokens"][1:] ==
              s.good("/tokenize", {"content": "a"})["tokens"])
    ok("a model without a chat template")


def test_dense_last():
    def first(s, **more):  # the likeliest first token of an answer, and how likely it is
        body = {**FRANCE, "max_tokens": 1, "logprobs": True, "top_logprobs": 1, **more}
        top = s.good(CHAT, body)["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]
        return top["token"], top["logprob"]

    narrow = ("--precision", "f32", "--attention", "sinkwin:sink=1,window=8")
    with Server(*narrow, "--dense-last", "512") as s:
        all_read, dense = first(s), first(s, attention="dense")
        check("dense_last", all_read[0] == dense[0] and abs(all_read[1] - dense[1]) < 1e-3, (all_read, dense))
        s.refuses("dense_last_needs_keys", 400, CHAT, {**FRANCE, "attention": "hedgehog"}, "attention", "invalid_value")
    with Server(*narrow) as s:
        check("not_dense_last", abs(first(s)[1] - dense[1]) > 0.1, (first(s), dense))
    ok("the end of a prompt reads everything")


def test_start():
    def fails(name, status, words, *flags):
        got = subprocess.run([FOVEA, "serve", *flags], stderr=subprocess.PIPE, text=True, timeout=120)
        check(name, got.returncode == status and words in got.stderr and got.stderr.count("fovea: ") == 1, got)

    fails("bad_cache", 2, "nosuch", "-m", MODEL, "--port", "0", "--cache", "nosuch")
    fails("bad_attention", 2, "nosuch", "-m", MODEL, "--port", "0", "--attention", "nosuch")
    fails("dense_last_of_states", 2, "a state in place of keys", "-m", MODEL, "--port", "0", "--attention", "hedgehog",
          "--dense-last", "64")
    fails("bad_dense_last", 2, "dense-last", "-m", MODEL, "--port", "0", "--dense-last", "-1")
    fails("no_model", 1, "cannot be opened", "-m", "none.gguf", "--port", "0")
    fails("bad_port", 2, "65535", "-m", MODEL, "--port", "70000")
    fails("bad_host", 1, "nowhere.invalid", "-m", MODEL, "--port", "0", "--host", "nowhere.invalid")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        fails("port_taken", 1, "in use", "-m", MODEL, "--port", str(taken.getsockname()[1]))
    ok("reasons not to start")


for test in (test_queue, test_memory, test_keys, test_plain_model, test_dense_last, test_start):
    test()
