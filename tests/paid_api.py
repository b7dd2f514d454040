"""A stand-in for the servers of paid APIs, and a way to ask back ends one request at a time, without a program."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sglite.lang.backends.base import Backend, GenCall, Output, Stream
from sglite.lang.backends.deciding import last
from sglite.lang.ir import Sampling
from sglite.lang.messages import Message, ToolSpec


class PaidApi:
    """``answer(path, body)``: a dict is sent as JSON, a list as server-sent events, an ``Failure`` as it says.

    ``seen``: (path, body) of every request; ``headers``: the last one's, their names in lower case.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.headers: dict[str, str] = {}
        self.answer: Callable[[str, dict[str, Any]], Any] = lambda path, body: chat_answer("ok")
        handler = type("Handler", (_Handler,), {"api": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, body in self.seen]

    def in_turn(self, *answers: Any) -> None:
        """Gives ``answers`` one after the other; the last one goes on."""
        left = list(answers)
        self.answer = lambda path, body: left.pop(0) if len(left) > 1 else left[0]

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@dataclass(frozen=True)
class Failure:
    """An error response. Status 0: the connection is dropped instead."""

    status: int
    message: str = "no"
    headers: dict[str, str] = field(default_factory=dict)


class _Handler(BaseHTTPRequestHandler):
    api: PaidApi
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        self.api.seen.append((self.path, body))
        self.api.headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.api.answer(self.path, body)
        if isinstance(answer, Failure):
            if answer.status == 0:
                self.close_connection = True
                self.connection.close()
                return
            self._send({"error": {"message": answer.message, "type": "x"}}, answer.status, answer.headers)
        elif isinstance(answer, list):
            lines = "".join(_event(event) for event in answer) + "data: [DONE]\n\n"
            self._write(lines.encode(), 200, "text/event-stream", {})
        else:
            self._send(answer, 200, {})

    def _send(self, body: Any, status: int, headers: dict[str, str]) -> None:
        self._write(json.dumps(body).encode(), status, "application/json", headers)

    def _write(self, raw: bytes, status: int, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)


def _event(event: dict[str, Any]) -> str:
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event)}\n\n"


# --- answers ---

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 5}}


def chat_answer(text: str | None, *more: str, finish: str = "stop", **message: Any) -> dict[str, Any]:
    """An answer of OpenAI's chat API; ``more``: further choices."""
    choices = [
        {"index": i, "finish_reason": finish, "message": {"role": "assistant", "content": t, **message}}
        for i, t in enumerate((text, *more))
    ]
    return {"id": "c1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices, "usage": USAGE}


def completion_answer(*texts: str, finish: str = "stop", logprobs: Sequence[Any] = ()) -> dict[str, Any]:
    """An answer of OpenAI's completions API."""
    told = list(logprobs) or [None] * len(texts)
    choices = [
        {"index": i, "finish_reason": finish, "text": t, "logprobs": lp}
        for i, (t, lp) in enumerate(zip(texts, told, strict=True))
    ]
    return {"id": "t1", "object": "text_completion", "created": 0, "model": "m", "choices": choices, "usage": USAGE}


def chat_chunk(finish: str | None = None, usage: Any = None, **delta: Any) -> dict[str, Any]:
    choices = [] if usage else [{"index": 0, "delta": delta, "finish_reason": finish}]
    base = {"id": "c1", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    return {**base, "choices": choices, "usage": usage}


# --- asking ---


@dataclass
class Talk:
    """A conversation."""

    messages: list[Message] = field(default_factory=lambda: [{"role": "user", "content": "hi"}])
    role: str | None = "assistant"
    open_text: str = ""


def call_of(talk: Talk | None = None, tools: tuple[ToolSpec, ...] = (), **sampling: Any) -> GenCall:
    """A gen's request as the executor makes it, with SGLang's defaults."""
    stream = sampling.pop("stream", False)
    name, schema_of = sampling.pop("name", "v"), sampling.pop("schema_of", None)
    choice = sampling.pop("tool_choice", "auto")
    full = Sampling(**{**_DEFAULTS, **sampling})
    return GenCall(
        name=name,
        sampling=full,
        stream=stream,
        conversation=talk or Talk(),
        tools=tools,
        tool_choice=choice,
        schema_of=schema_of,
    )


_DEFAULTS: dict[str, Any] = {
    "stop": (),
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "ignore_eos": False,
}


def ask(backend: Backend, talk: Talk | None = None, text: str = "", **options: Any) -> tuple[Output, ...]:
    """The complete outputs of one gen."""
    return steps_of(backend, talk, text, **options)[-1]


def steps_of(backend: Backend, talk: Talk | None = None, text: str = "", **options: Any) -> list[tuple[Output, ...]]:
    """What one gen yields."""

    async def run() -> list[tuple[Output, ...]]:
        stream = backend.open("p")
        stream.append(text)
        return [outputs async for outputs in stream.generate(call_of(talk, **options))]

    return asyncio.run(run())


def with_stream(backend: Backend, use: Callable[[Stream], Any]) -> Any:
    """What the coroutine function ``use`` returns for a new stream."""
    return asyncio.run(use(backend.open("p")))


async def text_of(stream: Stream, call: GenCall) -> str:
    """The text of the first output."""
    return (await last(stream.generate(call)))[0].text
