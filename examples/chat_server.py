"""A small OpenAI-compatible chat server: a Hugging Face model, or scripted replies, on this machine.

    python examples/chat_server.py --model runs/toy/final --port 8000
    python examples/chat_server.py --script replies.json          # ["first reply", "second reply", …], then again
    python examples/chat_server.py                                # says back what it hears

It prints its address. Use it as `{"llm": {"base_url": "http://127.0.0.1:8000/v1", "model": "any"}}` for an opponent,
a judge or a simulated user. One request at a time goes through the model: for real loads take vLLM or
`transformers serve`, which speak the same protocol. In Python:

    with ChatServer(lambda request: "hello") as server:
        ChatClient(server.url).ask([{"role": "user", "content": "hi"}])
"""

import argparse
import itertools
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Request = dict[str, Any]
Replier = Callable[[Request], str]
MAX_BODY = 16 * 2**20  # bytes


class HTTPFailure(Exception):
    """Raised by a replier to answer with an HTTP error.

    Args:
        status: The HTTP status.
        message: Goes into the body as OpenAI's error object.
        headers: Further headers, such as `Retry-After`.
    """

    def __init__(self, status: int, message: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


class ChatServer(ThreadingHTTPServer):
    """Serves `POST /v1/chat/completions` and `GET /v1/models` from a background thread while its context is open.

    Args:
        reply: Makes the answer's text from the request's JSON body; it is called from several threads.
        port: 0 takes a free one.

    Attributes:
        requests: The bodies received so far.
        most_at_once: The most requests that were being answered at the same time.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, reply: Replier, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.reply = reply
        self.requests: list[Request] = []
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The base URL for clients."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self) -> "ChatServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def answer(self, request: Request) -> Request:
        """The body of the answer to one request."""
        with self._lock:
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            number = len(self.requests)
        try:
            text = self.reply(request)
        finally:
            with self._lock:
                self._at_once -= 1
        read = sum(len(str(message.get("content") or "").split()) for message in request["messages"])
        written = len(text.split())
        return {
            "id": f"chat-{number}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.get("model", ""),
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ChatServer

    def do_GET(self) -> None:
        if self.path.rstrip("/") == "/v1/models":
            self._send(200, {"object": "list", "data": [{"id": "default", "object": "model", "owned_by": "local"}]})
        else:
            self._send(404, {"error": {"message": f"no such path: {self.path}"}})

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        if size > MAX_BODY:
            self.close_connection = True
            return self._send(413, {"error": {"message": f"the body is over {MAX_BODY} bytes"}})
        body = self.rfile.read(size)
        if self.path.rstrip("/") != "/v1/chat/completions":
            return self._send(404, {"error": {"message": f"no such path: {self.path}"}})
        try:
            request = json.loads(body)
            if not isinstance(request["messages"], list):
                raise TypeError("messages must be a list")
        except (ValueError, KeyError, TypeError) as error:
            return self._send(400, {"error": {"message": f"not a chat request: {error}"}})
        try:
            self._send(200, self.server.answer(request))
        except HTTPFailure as failure:
            self._send(failure.status, {"error": {"message": failure.message}}, failure.headers)

    def _send(self, status: int, body: Request, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        try:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except ConnectionError:
            self.close_connection = True  # the client has given up waiting

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: a judge asks thousands of questions."""


def model_replier(path: str, max_tokens: int = 256) -> Replier:
    """A replier that samples from the Hugging Face causal LM at `path`, with its own chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    model: Any = AutoModelForCausalLM.from_pretrained(path).eval()
    if torch.cuda.is_available():
        model.to("cuda")
    lock = threading.Lock()

    def reply(request: Request) -> str:
        inputs = tokenizer.apply_chat_template(
            request["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        temperature = float(request.get("temperature", 1.0))
        sampling = {"do_sample": True, "temperature": temperature, "top_p": float(request.get("top_p", 1.0))}
        limit = request.get("max_completion_tokens") or request.get("max_tokens") or max_tokens
        with lock, torch.no_grad():
            output = model.generate(
                **inputs,
                **(sampling if temperature > 0 else {"do_sample": False}),
                max_new_tokens=int(limit),
                pad_token_id=tokenizer.pad_token_id,
            )
        return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return reply


def script_replier(path: str) -> Replier:
    """A replier that says the strings of a JSON list in turn, then starts again."""
    replies = itertools.cycle(json.loads(Path(path).read_text("utf-8")))
    return lambda _: next(replies)


def echo(request: Request) -> str:
    """Say back the last message."""
    return str(request["messages"][-1].get("content") or "")


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a chat model on 127.0.0.1.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", help="folder or name of a Hugging Face causal LM with a chat template")
    source.add_argument("--script", help="JSON file with a list of replies")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free port (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=256, help="tokens of a reply (default: %(default)s)")
    args = parser.parse_args()
    if args.model:
        reply = model_replier(args.model, args.max_tokens)
    else:
        reply = script_replier(args.script) if args.script else echo
    server = ChatServer(reply, args.port)
    print(server.url, flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
