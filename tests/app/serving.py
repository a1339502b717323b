"""A server under test, and ways to talk to it.  Standard library only."""
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

FOVEA, MODEL, PLAIN_MODEL = sys.argv[1:4]  # the last one's file has no chat template
SANITIZED = os.environ.get("FOVEA_SANITIZED", "0") != "0"  # twenty tokens a second: fewer walk through the same code
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
FRANCE = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}


def ok(name):
    print(f"ok {name}", flush=True)


def check(name, condition, got=""):
    if not condition:
        print(f"not ok {name}: got {str(got)[:1500]}", flush=True)
        sys.exit(1)


class Server:
    """A server with its own flags; its standard error goes to a file."""

    def __init__(self, *flags, env=None, model=MODEL):
        self.log = open("serve.log", "w+")
        self.process = subprocess.Popen(
            [FOVEA, "serve", "-m", model, "--port", "0", *flags], stderr=self.log, env={**os.environ, **(env or {})}
        )
        end = time.time() + 120
        while time.time() < end:
            found = re.search(r"^listening on http://(\S+):(\d+)$", self.read_log(), re.M)
            if found:
                self.port = int(found[2])
                return
            check("server_starts", self.process.poll() is None, self.read_log())
            time.sleep(0.02)
        check("server_starts", False, "nothing within 120 s")

    def read_log(self):
        with open("serve.log") as file:
            return file.read()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(300)
            except subprocess.TimeoutExpired:
                self.process.kill()
                check("server_ends", False, "nothing within 300 s")
        if kind is None:
            check("server_ends_with_0", self.process.returncode == 0, (self.process.returncode, self.read_log()[-500:]))

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)

    def request(self, method, path, body=None, headers=None, connection=None):
        """Status, headers, bytes."""
        own = connection or self.connect()
        headers = dict(headers or {})
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
            body = body if isinstance(body, (bytes, str)) else json.dumps(body)
        own.request(method, path, body, headers)
        answer = own.getresponse()
        data = answer.read()
        if not connection:
            own.close()
        return answer.status, answer.headers, data

    def post(self, path, body, headers=None):
        status, _, data = self.request("POST", path, body, headers)
        return status, json.loads(data)

    def good(self, path, body):
        status, answer = self.post(path, body)
        check(f"POST {path}", status == 200, answer)
        return answer

    def refuses(self, name, status, path, body, param=None, code=None, kind="invalid_request_error", headers=None):
        got, answer = self.post(path, body, headers)
        error = answer.get("error", {})
        check(name, got == status and set(error) == {"message", "type", "param", "code"} and error["type"] == kind
              and error["param"] == param and (code is None or error["code"] == code) and error["message"], (got, answer))

    def stream(self, path, body):
        """Chunks of a stream, which must end as streams do."""
        status, headers, data = self.request("POST", path, {**body, "stream": True})
        check("stream_status", status == 200 and headers["Content-Type"] == "text/event-stream", (status, data))
        events = data.decode().split("\n\n")
        check("stream_ends", events[-1] == "" and events[-2] == "data: [DONE]", events[-3:])
        events = [e for e in events[:-2] if not e.startswith(":")]
        check("stream_events", all(e.startswith("data: ") and "\n" not in e for e in events), events)
        return [json.loads(e[6:]) for e in events]

    def raw(self, data, wait=120, shut=False):
        """What comes back for bytes, until the server closes, or falls silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as s:
            try:
                s.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                pass
            if shut:
                s.shutdown(socket.SHUT_WR)
            return read_all(s)

    def raw_in_turn(self, pieces):
        """The same, each piece sent when the one before it has been answered."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=120) as s:
            out = b""
            for i, data in enumerate(pieces):
                while len(answers_of(out)) < i:
                    piece = s.recv(65536)
                    if not piece:
                        return out
                    out += piece
                try:
                    s.sendall(data)
                except (BrokenPipeError, ConnectionResetError):
                    pass
            return out + read_all(s)

    def metric(self, name):
        text = self.request("GET", "/metrics")[2].decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))

    def wait_log(self, words, seconds=300):
        end = time.time() + seconds
        while words not in self.read_log():
            check(f"log {words}", time.time() < end, self.read_log())
            time.sleep(0.02)

    def wait_metric(self, name, holds, seconds=300):
        end = time.time() + seconds
        while not holds(self.metric(name)):
            check(f"metric {name}", time.time() < end, self.metric(name))
            time.sleep(0.05)


def read_all(s):
    out = b""
    try:
        while True:
            piece = s.recv(65536)
            if not piece:
                return out
            out += piece
    except (socket.timeout, ConnectionResetError):
        return out


def answers_of(raw):
    """Whole answers in bytes, each with its head."""
    out = []
    while True:
        first, gap, rest = raw.partition(b"\r\n\r\n")
        length = re.search(rb"^content-length: (\d+)", first, re.M | re.I)
        if not gap or not length or len(rest) < int(length[1]):
            return out
        out.append(first + gap + rest[:int(length[1])])
        raw = rest[int(length[1]):]


def chat_text(chunks, index=0):
    return "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"] if c["index"] == index)


def text_of(chunks, index=0):
    return "".join(c["text"] for chunk in chunks for c in chunk["choices"] if c["index"] == index)


def head(path, *lines, method="POST", version="1.1"):
    return f"{method} {path} HTTP/{version}\r\nHost: localhost\r\n".encode() + b"".join(
        line.encode() + b"\r\n" for line in lines) + b"\r\n"


def error_of(raw):
    """Status and code of the first answer in bytes."""
    first, _, body = raw.partition(b"\r\n\r\n")
    status = int(first.split(b" ")[1]) if first.startswith(b"HTTP/1.1 ") else 0
    try:
        return status, json.loads(body)["error"]["code"]
    except (ValueError, KeyError):
        return status, body
