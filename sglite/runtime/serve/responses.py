"""Answers: JSON, streams whose resources are given back whatever happens, and clients that go away."""

from __future__ import annotations

import asyncio
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
    """A streamed answer. ``end`` is called when it is over, complete or not, begun or not."""

    def __init__(self, events: AsyncGenerator[bytes, None], end: Callable[[], None], media_type: str = SSE) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type=media_type, headers=headers)
        self._events = events
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See Response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()
            await self._events.aclose()


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled if the client goes away before. The body must have been read."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Refused(_CLIENT_GONE, "the client closed the connection")
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
