"""Back ends for the tests of the language: one that computes its answers from the prompt, and a small HTTP server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sglite.lang.backends.base import Backend, GenCall, Output, Stream
from sglite.lang.choices import ChoiceScores
from sglite.lang.errors import BackendError
from sglite.lang.formats import PLAIN, ChatFormat


class Echo(Backend):
    """Answers with a digest of the prompt, so that an output says exactly what it was generated from.

    Records ``appended`` texts, ``calls`` (prompt, call), open and closed streams. ``gate``: when set, requests wait
    for it if their prompt is ``held``. ``answers``: other answers than digests. ``meta``: more of it. A prompt that
    ends in ``!`` is refused.
    """

    def __init__(self, chat_format: ChatFormat = PLAIN) -> None:
        self.appended: list[str] = []
        self.calls: list[tuple[str, GenCall | None]] = []
        self.prefilled: list[str] = []
        self.opened = 0
        self.closed = 0
        self.meta: dict[str, Any] = {}
        self.rewound: list[str] = []
        self.answers: Callable[[str, GenCall], str | None] = lambda prompt, call: None
        self.running = 0
        self.peak = 0
        self.cancelled = 0
        self.gate: threading.Event | None = None
        self.held: Callable[[str], bool] = lambda prompt: True
        self._format = chat_format

    def chat_format(self) -> ChatFormat:
        return self._format

    def open(self, program_id: str) -> Stream:
        self.opened += 1
        return EchoStream(self, "")

    async def prefill(self, text: str) -> None:
        self.prefilled.append(text)

    @staticmethod
    def answer(prompt: str, index: int = 0) -> str:
        return hashlib.sha256(f"{index}|{prompt}".encode()).hexdigest()[:6]

    async def serve(self, prompt: str, call: GenCall | None) -> None:
        self.calls.append((prompt, call))
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            while self.gate is not None and self.held(prompt) and not self.gate.is_set():
                await asyncio.sleep(0.002 + self.running / 10_000)  # many of them leave the loop some time
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if prompt.endswith("!"):
            raise BackendError("refused: the prompt ends in an exclamation mark")


class EchoStream(Stream):
    def __init__(self, echo: Echo, text: str) -> None:
        self.echo = echo
        self.text = text

    def append(self, text: str) -> None:
        self.echo.appended.append(text)
        self.text += text

    async def generate(self, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        await self.echo.serve(self.text, call)
        given = self.echo.answers(self.text, call)
        answers = [given or self.echo.answer(self.text, i) for i in range(call.sampling.n or 1)]
        meta = {"prompt": self.text, "completion_tokens": len(answers[0]), **self.echo.meta}
        if call.stream:
            for end in range(1, len(answers[0])):
                yield tuple(Output(answer[:end], meta) for answer in answers)
        yield tuple(Output(answer, meta) for answer in answers)
        self.text += answers[0]

    def mark(self) -> object:
        return self.text

    def rewind(self, mark: object) -> None:
        self.echo.rewound.append(self.text)
        self.text = str(mark)

    async def score(self, name: str | None, choices: Sequence[str], *, unconditional: bool, **_: Any) -> ChoiceScores:
        await self.echo.serve(self.text, None)
        inputs = [[[-float(int(self.echo.answer(self.text + c), 16)), i, c]] for i, c in enumerate(choices)]
        alone = [[[None, i, c]] for i, c in enumerate(choices)]
        return ChoiceScores(inputs, [[] for _ in choices], alone if unconditional else None)

    async def fork(self, n: int) -> list[Stream]:
        self.echo.opened += n
        return [EchoStream(self.echo, self.text) for _ in range(n)]

    async def aclose(self) -> None:
        self.echo.closed += 1


@pytest.fixture
def echo() -> Echo:
    return Echo()


class NativeServer:
    """``answers``: what ``POST /generate`` returns, a function of the body; ``seen``: (path, body, authorization).

    A list of events is sent as a stream. An int is sent as status with an error body.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any, str | None]] = []
        self.model_info: dict[str, Any] = {"model_path": "m"}
        self.answers: Any = lambda body: {"text": "ok", "meta_info": {"prompt_tokens": 3}}
        handler = type("Handler", (_Handler,), {"native": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def generate_bodies(self) -> list[Any]:
        return [body for path, body, _ in self.seen if path == "/generate"]


class _Handler(BaseHTTPRequestHandler):
    native: NativeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._serve(json.loads(raw) if raw else None)

    def _serve(self, body: Any) -> None:
        self.native.seen.append((self.path, body, self.headers.get("Authorization")))
        if self.path == "/get_model_info":
            return self._send(self.native.model_info)
        if self.path == "/get_server_info":
            return self._send({"version": "old"})
        if self.path == "/flush_cache":
            return self._send({})
        if self.path != "/generate":
            return self._send({"detail": "Not Found"}, 404)
        answer = self.native.answers(body)
        if isinstance(answer, int):
            return self._send({"error": {"message": "top_p must be in (0, 1]"}}, answer)
        if body.get("stream"):
            lines = (
                "".join(f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in answer) + "data: [DONE]\n\n"
            )
            return self._send_bytes(lines.encode(), 200, "text/event-stream")
        return self._send(answer)

    def _send(self, body: Any, status: int = 200) -> None:
        self._send_bytes(json.dumps(body).encode(), status, "application/json")

    def _send_bytes(self, raw: bytes, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@pytest.fixture
def native() -> Iterator[NativeServer]:
    server = NativeServer()
    yield server
    server.http.shutdown()
    server.http.server_close()
