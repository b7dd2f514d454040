"""One request and its answer on a connection, as ASGI has them: ``receive`` and ``send``.

What an answer says without pausing goes out as one piece, head included. A peer that does not read is waited for, and
what is not wanted any more because it has gone is dropped.
"""

from __future__ import annotations

import asyncio
import http
import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from starlette.types import ASGIApp, Message

from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.gone import WATCH

logger = logging.getLogger(__name__)
HIGH_WATER = 64 * 1024
"""Bytes of a body that may wait to be read by the application."""
LARGE = 2**20
"""Bytes from which on a body counts among those that are bounded together."""
MAX_HELD = 512 * 2**20
"""Bytes of all large bodies of requests that are not answered yet."""
_STATUS = {int(status): b"HTTP/1.1 %d " % status + status.phrase.encode() for status in http.HTTPStatus}
_BODILESS = (204, 304)
_FAILED: list[Message] = [
    {"type": "http.response.start", "status": 500, "headers": [(b"content-type", b"text/plain; charset=utf-8")]},
    {"type": "http.response.body", "body": b"Internal Server Error"},
]


class _Held:
    """Bytes of large bodies in this process, whatever server they came to."""

    total = 0


class Line(Protocol):
    """What a cycle needs of its connection."""

    def write(self, data: bytes, now: bool = False) -> None:
        """Send ``data`` soon, together with what else comes by then; ``now``: at once."""

    @property
    def is_full(self) -> bool:
        """The peer reads too slowly for more to be written."""

    async def writable(self) -> None:
        """Wait until the peer has read enough for more."""

    def read_on(self) -> None:
        """The application has taken what has come of the body."""

    def close(self) -> None:
        """End the connection when what was written has been sent."""

    def answered(self) -> None:
        """The answer is complete."""


class Cycle:
    """See the module.

    Args:
        default_headers: of every answer; asked when it begins.
        keep_alive: whether the client goes on with the connection afterwards.
        expects: the client waits to be told to send its body.
    """

    def __init__(
        self,
        line: Line,
        scope: dict[str, Any],
        default_headers: Callable[[], Iterable[tuple[bytes, bytes]]],
        *,
        keep_alive: bool,
        expects: bool,
    ) -> None:
        self.keep_alive = keep_alive
        self.started = False
        """The answer has begun."""
        self.complete = False
        """The answer is over."""
        self._line = line
        self._scope = scope
        scope[WATCH] = self._watched
        self._default_headers = default_headers
        self._expects = expects
        self._news = False
        """Something has come since it was asked for."""
        self._asking: asyncio.Future[None] | None = None
        self._body = bytearray()
        self._taken = self._held = 0
        """Bytes of the body that the application has been given, and those of them that count as held."""
        self._whole = False
        self._gone = False
        self._chunked = self._silent = False
        self._left: int | None = None
        """Bytes that the answer's head has announced and that are still to come."""
        self._watchers: list[asyncio.Future[None]] = []
        """Of the client's going away."""

    # --- what the connection says -----------------------------------------------------------------------------

    def came(self, part: bytes) -> bool:
        """More of the body, which nobody wants once the answer is over; whether it is enough for now."""
        if self.complete:
            return False
        self._body += part
        self._tell()
        return len(self._body) > HIGH_WATER

    def came_whole(self) -> None:
        """The body is complete."""
        self._whole = True
        self._tell()

    def lost(self) -> None:
        """The client has gone."""
        self._gone = not self.complete
        self._tell()
        for watcher in self._watchers if self._gone else ():
            if not watcher.done():
                watcher.set_result(None)

    def _tell(self) -> None:
        self._news = True
        if self._asking is not None and not self._asking.done():
            self._asking.set_result(None)

    async def run(self, app: ASGIApp) -> None:
        """The application's answer; one that fails is told so if that can be said, and cut off if not."""
        failed = None
        try:
            await app(self._scope, self.receive, self.send)
        except Exception as error:
            logger.error("a request failed", exc_info=error)
            failed = error
        finally:
            self._scope.pop(WATCH, None)  # else the two would hold each other
            _Held.total -= self._held
            self._held = 0
        if self._gone or self.complete:
            return
        if failed is None:
            logger.error("%s %s was not answered", self._scope["method"], self._scope["path"])
        self.keep_alive = False
        if self.started:
            self._line.close()
            return
        for message in _FAILED:
            await self.send(message)

    # --- ASGI -------------------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """See ASGI. Raises ``Refused``."""
        if self._expects:
            self._expects = False
            self._line.write(b"HTTP/1.1 100 Continue\r\n\r\n", now=True)
        if not (self._gone or self.complete):
            self._line.read_on()
            if not self._news:
                self._asking = asyncio.get_running_loop().create_future()
                try:
                    await self._asking
                finally:
                    self._asking = None
            self._news = False
        if self._gone or self.complete:
            return {"type": "http.disconnect"}
        body, self._body = bytes(self._body), bytearray()
        self._hold(len(body))
        return {"type": "http.request", "body": body, "more_body": not self._whole}

    def _hold(self, more: int) -> None:
        """Small bodies always; ``Refused`` where those of others leave no room for a large one."""
        self._taken += more
        if self._taken <= LARGE:
            return
        if _Held.total - self._held + self._taken > MAX_HELD:
            told = f"large bodies of open requests have {MAX_HELD} bytes together; try again later"
            raise Refused(429, told, code="overloaded", retry_after=1)
        _Held.total += self._taken - self._held
        self._held = self._taken

    def _watched(self) -> asyncio.Future[None]:
        """See ``gone.WATCH``."""
        self._line.read_on()
        watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._gone:
            watcher.set_result(None)
        self._watchers.append(watcher)
        return watcher

    async def send(self, message: Message) -> None:
        """See ASGI. Raises ``RuntimeError`` for messages that make no answer."""
        if self._line.is_full:
            await self._line.writable()
        kind = message["type"]
        if self._gone:
            return
        if kind == "http.response.start" and not self.started:
            self._line.write(self._head(message["status"], message.get("headers", ())))
            self.started, self._expects = True, False
        elif kind == "http.response.body" and self.started and not self.complete:
            self._part(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError(f"{kind} makes no sense here")

    def _head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        parts = [_STATUS[status]] if status in _STATUS else [b"HTTP/1.1 %d " % status]
        for name, value in (*self._default_headers(), *headers):
            parts.append(name + b": " + value)
            lower = name.lower()
            if lower == b"content-length":
                self._left = int(value)
            elif lower == b"connection" and value.lower() == b"close":
                self.keep_alive = False
        self._silent = self._scope["method"] == "HEAD" or status in _BODILESS
        if self._left is None and not self._silent:
            self._chunked = self._scope["http_version"] == "1.1"
            self.keep_alive &= self._chunked  # else the end of the connection is that of the answer
        if self._chunked:
            parts.append(b"transfer-encoding: chunked")
        if not self.keep_alive:
            parts.append(b"connection: close")
        block = b"\r\n".join(parts)
        if block.count(b"\n") != len(parts) - 1 or block.count(b"\r") != len(parts) - 1 or b"\0" in block:
            raise RuntimeError("a header of the answer has line ends in it")
        return block + b"\r\n\r\n"

    def _part(self, body: bytes, more: bool) -> None:
        if self._silent:
            body = b""
        elif self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("the answer is not as long as its head says")
        if self._chunked:
            framed = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body = framed if more else framed + b"0\r\n\r\n"
        self._line.write(body, now=not more)
        if not more:
            self.complete = True
            self._tell()
            self._line.answered()
