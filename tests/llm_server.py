"""A real HTTP server on loopback that speaks OpenAI's protocol and answers with a transformers model; faults can be put in."""

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Fault = Callable[["Handler"], None]


class FaultyServer(ThreadingHTTPServer):
    """Remembers what it was asked; each request takes the next fault first, if one is left."""

    daemon_threads = True

    def __init__(self, handler: "type[Handler]") -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.faults: list[Fault] = []
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.running = self.most_running = 0
        self.delay_seconds = 0.0
        self.guard = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that gave up is no news."""


class ModelServer(FaultyServer):
    """Answers with the model of a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Handler)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)


class Handler(BaseHTTPRequestHandler):
    server: Any
    body: dict[str, Any]

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        self.body = body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        with self.server.guard:
            self.server.seen.append(body)
            self.server.keys.append(self.headers.get("Authorization"))
            self.server.times.append(time.monotonic())
            self.server.running += 1
            self.server.most_running = max(self.server.most_running, self.server.running)
            fault = self.server.faults.pop(0) if self.server.faults else None
        time.sleep(self.server.delay_seconds)
        answer = None if fault else {"/v1/completions": self.complete, "/v1/chat/completions": self.chat}[self.path](body)
        with self.server.guard:
            self.server.running -= 1  # before the client hears of it and asks again
        if fault:
            fault(self)
        else:
            self.send(200, answer)

    def send(self, status: int, value: Any, **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(data)

    # The protocol, written with the plainest means

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = self.server.tokenizer(body["prompt"])["input_ids"]
        written, first = self.write(ids, body["max_tokens"])
        text = self.decode(written)
        choice: dict[str, Any] = {"index": 0, "text": body["prompt"] + text if body.get("echo") else text}
        if body.get("logprobs"):
            choice["logprobs"] = self.echoed(ids, written) if body.get("echo") else {"top_logprobs": [top(first, body["logprobs"])]}
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": len(written)}}

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = self.server.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=False)
        written, first = self.write(ids, body["max_tokens"])
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": self.decode(written)}}
        if body.get("logprobs"):
            listed = [{"token": token, "logprob": value} for token, value in top(first, body["top_logprobs"]).items()]
            choice["logprobs"] = {"content": [{"token": listed[0]["token"], "logprob": listed[0]["logprob"], "top_logprobs": listed}]}
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": len(written)}}

    def write(self, ids: list[int], max_tokens: int) -> tuple[list[int], dict[str, float]]:
        """The likeliest tokens one by one, and the log-probabilities of all tokens for the first place."""
        written: list[int] = []
        first: dict[str, float] = {}
        while len(written) < max_tokens:
            values = self.log_probabilities([*ids, *written])[-1]
            first = first or {self.decode([token]): float(value) for token, value in reversed(list(enumerate(values)))}
            written.append(int(values.argmax()))
            if written[-1] == self.server.tokenizer.eos_token_id:
                break
        return written, first

    def echoed(self, ids: list[int], written: list[int]) -> dict[str, Any]:
        whole = [*ids, *written]
        values = self.log_probabilities(whole)
        texts = [self.server.tokenizer.decode([token], skip_special_tokens=False) for token in whole]
        offsets = [sum(map(len, texts[:place])) for place in range(len(texts))]
        chosen = [None, *(float(values[place - 1, token]) for place, token in enumerate(whole) if place)]
        return {"tokens": texts, "text_offset": offsets, "token_logprobs": chosen}

    def log_probabilities(self, ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return torch.log_softmax(self.server.model(torch.tensor([ids])).logits[0].float(), dim=-1)

    def decode(self, ids: list[int]) -> str:
        return str(self.server.tokenizer.decode(ids, skip_special_tokens=True))


def top(values: dict[str, float], count: int) -> dict[str, float]:
    """The likeliest, best first."""
    return dict(sorted(values.items(), key=lambda item: -item[1] if math.isfinite(item[1]) else 0.0)[:count])


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[ModelServer]:
    """A server with the model of a folder, for as long as the block runs."""
    with ModelServer(folder) as server, running(server):
        yield server


@contextlib.contextmanager
def running(server: FaultyServer) -> Iterator[None]:
    """Any server at work, for as long as the block runs."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
