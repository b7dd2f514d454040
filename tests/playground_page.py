"""The playground as tests use it: what is done on the page, and answers that a test has written."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from browser import Page
from fastapi import FastAPI
from served import settles
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from sglite.runtime.serve.options import ServeOptions
from sglite.runtime.serve.playground import Playground

EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>&lt;'
"""Text that would do something if it were taken for markup."""
ERROR = "document.querySelector('.error')"
CALL = {"index": 0, "id": "c1", "function": {"name": "add", "arguments": ""}}
"""The first chunk of a call."""


def say(page: Page, text: str) -> None:
    page.type("#prompt", text)
    page.press("Enter")


def answered(page: Page, count: int = 1) -> None:
    page.until(f"document.querySelectorAll('.assistant[aria-busy=false]').length === {count} || {ERROR}")
    assert page.text(".error") == ""


class Script:
    """A server whose answers are written by the test: pieces of bytes; an event in between is waited for."""

    def __init__(self) -> None:
        self.pieces: list[bytes | asyncio.Event] = []
        self.bodies: list[dict[str, Any]] = []
        self.gone = 0
        self.url = ""

    def app(self) -> FastAPI:
        app = FastAPI()
        for route in Playground(ServeOptions()).routes():
            app.add_api_route(route.path, route.handler, methods=list(route.methods), response_model=None)
        app.add_api_route("/v1/models", self.models, response_model=None)
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"], response_model=None)
        return app

    async def models(self) -> Response:
        return JSONResponse({"data": [{"id": EVIL}]})

    async def chat(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        return StreamingResponse(self.answer(list(self.pieces)), media_type="text/event-stream")

    async def answer(self, pieces: list[bytes | asyncio.Event]) -> AsyncGenerator[bytes, None]:
        try:
            for piece in pieces:
                if isinstance(piece, bytes):
                    yield piece
                    await asyncio.sleep(0)
                else:
                    await piece.wait()
        except asyncio.CancelledError:
            self.gone += 1
            raise

    def says(self, *chunks: dict[str, Any] | bytes | asyncio.Event, done: bool = True) -> None:
        """What the next answers are: deltas, and what is not one as it stands."""
        made = [self.chunk(part) if isinstance(part, dict) else part for part in chunks]
        self.pieces = [*made, b"data: [DONE]\n\n"] if done else made

    @staticmethod
    def chunk(delta: dict[str, Any]) -> bytes:
        finish = delta.pop("finish", None)
        return (
            b"data: %s\n\n" % json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).encode()
        )


@contextmanager
def serving(script: Script) -> Iterator[Script]:
    """``script`` as a server."""
    server = uvicorn.Server(uvicorn.Config(script.app(), port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert settles(lambda: server.started)
    script.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield script
    server.should_exit = True
    thread.join(10)
