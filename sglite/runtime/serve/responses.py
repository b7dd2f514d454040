"""Answers: JSON, streams whose resources are given back whatever happens, and clients that go away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.gone import WhileThere, watch

T = TypeVar("T")
SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
_CLIENT_GONE = 499
_STREAMED = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
_CONTENT_TYPES = {
    SSE: (b"content-type", f"{SSE}; charset=utf-8".encode()),
    NDJSON: (b"content-type", NDJSON.encode()),
}


def json_response(value: Any, status: int = 200) -> Response:
    """``value`` as JSON; NaN and infinities, which JSON lacks, as null."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def sse(event: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


def ndjson(value: Any) -> bytes:
    """One line of JSON."""
    return msgspec.json.encode(value) + b"\n"


class EventStream(Response):
    """A streamed answer, over when its events are or when the client goes away.

    It begins with its first event, so that what goes wrong before can be answered as an error: it is raised while
    ``begun`` is false. An answer that is slow to begin begins without.

    Args:
        events: what is sent.
        end: called when it is over, complete or not.
        media_type: of the whole.
        failed: what is sent for an exception of ``events``; none: the answer is cut off.
        last: sent behind the last event.
        idle: sent when nothing else was for ``idle_s`` seconds; nothing: never.
        first_s: seconds that the answer waits for its first event.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        end: Callable[[], None],
        media_type: str = SSE,
        *,
        failed: Callable[[Exception], bytes] | None = None,
        last: bytes = b"",
        idle: bytes = b"",
        idle_s: float = 15.0,
        first_s: float = 0.0,
    ) -> None:
        self.background = None
        self.status_code = 200
        self.raw_headers = [*_STREAMED, _CONTENT_TYPES[media_type]]
        self._events = events
        self._end = end
        self._failed = failed
        self._last = last
        self._idle = idle
        self._idle_s = idle_s
        self._first_s = first_s
        self._filler: _Filler | None = None

    @property
    def begun(self) -> bool:
        """Something was sent, or is about to be."""
        return self._filler is not None and self._filler.begun

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See Response."""
        head: Message = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        filler = self._filler = _Filler(send, head, self._idle, self._idle_s)
        try:
            with WhileThere(watch(scope, receive)):
                await self._write(send, filler)
            if not filler.begun:
                raise nobody_there()
        finally:
            self._end()
            filler.stop()
            await self._events.aclose()

    async def _write(self, send: Send, filler: _Filler) -> None:
        if self._first_s:
            filler.wait(self._first_s)
        else:
            await filler.begin()
        try:
            async for line in self._events:
                if not filler.ready:
                    await filler.begin()
                filler.sending = True
                await send({"type": "http.response.body", "body": line, "more_body": True})
                filler.sent()
        except Exception as error:
            if self._failed is None or not filler.begun:
                raise
            await filler.begin()
            await send({"type": "http.response.body", "body": self._failed(error), "more_body": True})
        await filler.begin()
        filler.stop()
        await send({"type": "http.response.body", "body": self._last, "more_body": False})


class _Filler:
    """Begins an answer that is slow to begin, and says that nothing happens when nothing was said for a while; a
    client that does not read what did happen is not told. One timer does for all.

    Args:
        head: what begins the answer.
    """

    def __init__(self, send: Send, head: Message, idle: bytes, idle_s: float) -> None:
        self._send = send
        self._head = head
        self._idle = idle
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._sent_at = 0.0
        self.begun = self.ready = False
        """The head is being sent; it has been."""
        self.sending = False

    def wait(self, seconds: float) -> None:
        """Begin by yourself after so long."""
        self._timer = self._loop.call_later(seconds, self._look)

    async def begin(self) -> None:
        """The answer begins, unless it has begun by itself."""
        if self._task is not None and not self.ready:
            await self._task
        elif not self.ready:
            await self._begin()

    async def _begin(self) -> None:
        self.begun = True
        self._sent_at = now = self._loop.time()
        if self._timer is not None and self._timer.when() > now + self._idle_s:
            self._timer.cancel()
            self._timer = None
        if self._idle and self._timer is None:
            self._timer = self._loop.call_later(self._idle_s, self._look)
        await self._send(self._head)
        self.ready = True

    def sent(self) -> None:
        """Something has been said."""
        self.sending, self._sent_at = False, self._loop.time()

    def stop(self) -> None:
        """Nothing more is to be said."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _look(self) -> None:
        self._timer = None
        if not self.begun:
            self.begun = True
            self._task = self._loop.create_task(self._begin())
            return
        if not self._idle:
            return
        due = self._sent_at + self._idle_s
        if self._loop.time() >= due:
            if self.ready and not self.sending:
                message = {"type": "http.response.body", "body": self._idle, "more_body": True}
                self._task = self._loop.create_task(self._fill(message))
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
