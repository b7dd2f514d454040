"""Answers: JSON, streams whose resources are given back whatever happens, and clients that go away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.gone import WhileThere, watch

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
        gone: done when the client has gone away, where somebody watches for that already.
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See Response."""
        filler = _Filler(send, self._idle, self._idle_s)
        try:
            with WhileThere(self._gone or watch(scope, receive)):
                await self._write(send, filler)
        finally:
            self._end()
            filler.stop()
            await self._events.aclose()

    async def _write(self, send: Send, filler: _Filler) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        filler.start()
        async for line in self._events:
            filler.sending = True
            await send({"type": "http.response.body", "body": line, "more_body": True})
            filler.sent()
        filler.stop()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Filler:
    """Says that nothing happens when nothing was said for a while; a client that does not read what did happen is not
    told. One timer does for all."""

    def __init__(self, send: Send, idle: bytes, idle_s: float) -> None:
        self._send = send
        self._idle = idle
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._filling: asyncio.Task[None] | None = None
        self._sent_at = 0.0
        self.sending = False

    def start(self) -> None:
        """The answer has begun."""
        self._sent_at = self._loop.time()
        if self._idle:
            self._timer = self._loop.call_later(self._idle_s, self._look)

    def sent(self) -> None:
        """Something has been said."""
        self.sending, self._sent_at = False, self._loop.time()

    def stop(self) -> None:
        """Nothing more is to be said."""
        for one in (self._timer, self._filling):
            if one is not None:
                one.cancel()

    def _look(self) -> None:
        due = self._sent_at + self._idle_s
        if self._loop.time() >= due:
            if not self.sending:
                message = {"type": "http.response.body", "body": self._idle, "more_body": True}
                self._filling = self._loop.create_task(self._fill(message))
            self._sent_at = self._loop.time()
            due = self._sent_at + self._idle_s
        self._timer = self._loop.call_at(due, self._look)

    async def _fill(self, message: Message) -> None:
        await self._send(message)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled if the client goes away before. The body must have been read."""
    with WhileThere(watch(request.scope, request.receive)):
        return await work
    raise nobody_there()


def nobody_there() -> Refused:
    """What a client that went away would be told."""
    return Refused(_CLIENT_GONE, "the client closed the connection")
