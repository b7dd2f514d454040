"""Answers: JSON, streams whose resources are given back whatever happens, and clients that go away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from sglite.runtime.serve.errors import Refused

T = TypeVar("T")
SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
_CLIENT_GONE = 499


def json_response(value: Any, status: int = 200) -> Response:
    """``value`` as JSON; NaN and infinities, which JSON lacks, as null."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def sse(event: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


def ndjson(value: Any) -> bytes:
    """One line of JSON."""
    return msgspec.json.encode(value) + b"\n"


class EventStream(StreamingResponse):
    """A streamed answer, over when its events are or when the client goes away.

    Args:
        events: what is sent.
        end: called when it is over, complete or not.
        media_type: of the whole.
        idle: sent when nothing else was for ``idle_s`` seconds; nothing: never.
        gone: done when the client has gone away, where somebody waits for that already.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        end: Callable[[], None],
        media_type: str = SSE,
        *,
        idle: bytes = b"",
        idle_s: float = 15.0,
        gone: asyncio.Future[None] | None = None,
    ) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type=media_type, headers=headers)
        self._events = events
        self._end = end
        self._idle = idle
        self._idle_s = idle_s
        self._gone = gone
        self._sending = False
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See Response."""
        writing = asyncio.ensure_future(self._write(send))
        gone = self._gone or asyncio.ensure_future(client_gone(receive))
        try:
            while not (writing.done() or gone.done()):
                await asyncio.wait({writing, gone}, timeout=self._patience(), return_when=asyncio.FIRST_COMPLETED)
                if self._patience() == 0 and not (writing.done() or gone.done()):
                    await self._keep_alive(send)
            if writing.done():
                writing.result()
        finally:
            self._end()
            gone.cancel()
            writing.cancel()
            await asyncio.wait({writing})
            await self._events.aclose()

    async def _write(self, send: Send) -> None:
        self._sent_at = time.monotonic()
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for line in self._events:
            self._sending = True
            await send({"type": "http.response.body", "body": line, "more_body": True})
            self._sending, self._sent_at = False, time.monotonic()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _patience(self) -> float | None:
        """Seconds until something must be said; ``None``: any number of them."""
        return max(0.0, self._sent_at + self._idle_s - time.monotonic()) if self._idle else None

    async def _keep_alive(self, send: Send) -> None:
        """Say that nothing happens; a client that does not read what did happen is not told."""
        if not self._sending:
            await send({"type": "http.response.body", "body": self._idle, "more_body": True})
        self._sent_at = time.monotonic()


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled if the client goes away before. The body must have been read."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(client_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise nobody_there()
    finally:
        task.cancel()
        gone.cancel()


async def client_gone(receive: Receive) -> None:
    """Waits until the client has closed the connection. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def nobody_there() -> Refused:
    """What a client that went away would be told."""
    return Refused(_CLIENT_GONE, "the client closed the connection")
