"""An HTTP/1.1 connection that nobody can hold open by saying nothing, or fill memory with headers.

Requests are parsed by llhttp, strictly. There are limits on the time that the head of a request may take and its body
may pause, and on what a head, the frame of a body and pieces behind it may hold; errors have the JSON shape of all
others. Requests that come before the last was answered wait unread for their turn.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from collections import deque
from enum import Enum, auto
from typing import Any

import httptools
import msgspec
from uvicorn.config import Config
from uvicorn.server import ServerState

from sglite.runtime.serve.cycle import Cycle
from sglite.runtime.serve.errors import Refused

HEAD_SECONDS = 10.0
"""How long the head of a request may take, from the beginning of the connection or from its first byte."""
BODY_SECONDS = 60.0
"""How long nothing may come of a body that is not complete."""
BODY_RATE = 1000
"""Bytes a second that a body has to have come with, beyond ``BODY_SECONDS``."""
MAX_HEAD_BYTES = 64 * 1024
"""Of request line and headers."""
_FRAMING = (b"content-length", b"transfer-encoding")
_FRAME_BYTES = 16
"""Of a body's framing for each of its bytes, beyond ``MAX_HEAD_BYTES`` in all."""
_GATHERED = 64 * 1024
"""Bytes that are not kept back for others to join them."""


class _At(Enum):
    """Where in a request the client is."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()


class Connection(asyncio.Protocol):
    """One connection; made by uvicorn. See ``cycle.Line`` for what it is to its requests."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._config = config
        self._server = server_state
        self._app_state = app_state
        self._asgi = {"version": config.asgi_version, "spec_version": "2.3"}
        self._loop = _loop or asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # from connection_made on
        self._ends: dict[str, Any] = {}
        self._at = _At.HEAD
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = self._frame_bytes = 0
        self._body_since, self._body_bytes = 0.0, 0
        """When the body began, without the time for which it was not read, and what has come of it."""
        self._incoming: Cycle | None = None
        """Whose body comes."""
        self._cycle: Cycle | None = None
        """Which is being answered, or was last."""
        self._waiting: deque[Cycle] = deque()
        self._is_paused = False
        self._paused_at = 0.0
        self._may_write: asyncio.Event | None = None
        """While the peer does not read."""
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._flushing = False
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    # --- asyncio ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first request must come soon."""
        self._transport = transport
        self._server.connections.add(self)  # type: ignore[arg-type]  # all it wants of them is ``shutdown``
        client, server = (transport.get_extra_info(name) for name in ("peername", "sockname"))
        self._ends = {"client": client and tuple(client[:2]), "server": server and tuple(server[:2])}
        self._expect(HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        """A request that has begun must have its head soon."""
        self._feed(data)
        if self._transport.is_closing():
            return
        if self._at is _At.BODY:
            left = self._body_since + self._body_bytes / BODY_RATE - self._loop.time()
            self._expect(BODY_SECONDS + min(left, 0.0))
        elif self._is_answering:
            self._deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._server.connections.discard(self)
        for cycle in (self._cycle, *self._waiting):
            if cycle is not None:
                cycle.lost()
        self._waiting.clear()
        self._cycle = self._incoming = None
        del self._parser  # it and its connection hold each other
        self.resume_writing()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause_writing(self) -> None:
        """The peer does not read."""
        self._may_write = asyncio.Event()

    def resume_writing(self) -> None:
        """It does again."""
        if self._may_write is not None:
            self._may_write.set()
            self._may_write = None

    def shutdown(self) -> None:
        """End the connection, after the answer that is under way."""
        if self._is_answering:
            assert self._cycle is not None
            self._cycle.keep_alive = False
        else:
            self._transport.close()

    # --- reading ----------------------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        """Have ``data`` parsed, with ``on_message_begin`` and so on called for what it holds."""
        if self._at is _At.BODY:
            self._frame_bytes += len(data)
        else:
            self._head_bytes += len(data)
        try:
            while data:
                data = self._parsed(data)
        except httptools.HttpParserError:
            self._refuse(Refused(400, "this is no valid HTTP request"))
            return
        if self._at is _At.HEAD and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(Refused(431, f"the request's head has more than {MAX_HEAD_BYTES} bytes; send less"))
        if self._at is _At.BODY and self._frame_bytes > MAX_HEAD_BYTES:
            self._refuse(Refused(400, "the body of this request is in pieces that hold more than the body"))

    def _parsed(self, data: bytes) -> bytes:
        """Have ``data`` parsed; what is left of it behind a wish to speak something else, which is not heeded."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            if self._at is _At.BODY:  # for this parser the body is something else already
                self._parser = httptools.HttpRequestParser(self)
                self._parser.feed_data(b"POST / HTTP/1.1\r\n" + self._framing() + b"\r\n")
            return data[error.args[0] :]
        return b""

    def _framing(self) -> bytes:
        """The headers that say how long the body is."""
        return b"".join(name + b": " + value + b"\r\n" for name, value in self._headers if name in _FRAMING)

    def on_message_begin(self) -> None:
        """A request begins, if not only its body does."""
        if self._at is _At.BODY:
            return
        if self._at is not _At.HEAD and not self._is_answering:
            self._expect(HEAD_SECONDS)
        self._at = _At.HEAD
        self._url = b""
        self._headers = []

    def on_url(self, url: bytes) -> None:
        """More of the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or behind a body a trailer, which nobody reads."""
        if self._at is _At.HEAD:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is there: the request can be answered."""
        if self._at is _At.BODY:
            return
        self._at = _At.BODY
        self._head_bytes, self._frame_bytes = 0, 0
        self._body_since, self._body_bytes = self._loop.time(), 0
        version = self._parser.get_http_version()
        url = httptools.parse_url(self._url)
        path = url.path.decode("ascii")
        hosts, expects = 0, False
        for name, value in self._headers:
            hosts += name == b"host"
            expects |= name == b"expect" and value.lower() == b"100-continue"
        if version not in ("1.0", "1.1") or hosts > 1 or (version == "1.1" and not hosts):
            raise ValueError("this version is not spoken, or which host is meant is not known")
        scope = {
            "type": "http",
            "asgi": self._asgi,
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "scheme": "http",
            "path": urllib.parse.unquote(path) if "%" in path else path,
            "raw_path": url.path,
            "query_string": url.query or b"",
            "root_path": "",
            "headers": self._headers,
            "state": self._app_state.copy(),
            **self._ends,
        }
        keep_alive = version == "1.1" and self._parser.should_keep_alive()
        self._incoming = Cycle(self, scope, self._default_headers, keep_alive=keep_alive, expects=expects)
        if self._is_answering:
            self._waiting.append(self._incoming)
            self._pause()
        else:
            self._answer(self._incoming)

    def on_body(self, body: bytes) -> None:
        """More of the body."""
        assert self._incoming is not None
        self._frame_bytes -= len(body) * (1 + _FRAME_BYTES)
        self._body_bytes += len(body)
        if self._incoming.came(body):
            self._pause()

    def on_message_complete(self) -> None:
        """The request is complete."""
        if self._parser.should_upgrade() and self._framing():
            return
        assert self._incoming is not None
        self._at = _At.IDLE
        self._head_bytes = 0
        self._incoming.came_whole()
        self._incoming = None

    def _refuse(self, refused: Refused) -> None:
        """Say what is wrong with what came, unless that would stand in the middle of an answer, and end it all."""
        if self._cycle is None or self._cycle.complete or not self._cycle.started:
            body = msgspec.json.encode(refused.body())
            reason = b"Bad Request" if refused.status == 400 else b"Request Header Fields Too Large"
            head = [
                b"HTTP/1.1 %d %b" % (refused.status, reason),
                b"content-type: application/json",
                b"content-length: %d" % len(body),
                b"connection: close",
            ]
            self.write(b"\r\n".join([*head, b"", body]), now=True)
        self.close()

    def _pause(self) -> None:
        if not self._is_paused and not self._transport.is_closing():
            self._is_paused = True
            self._paused_at = self._loop.time()
            self._transport.pause_reading()

    def read_on(self) -> None:
        """See ``cycle.Line``."""
        if self._is_paused and not self._waiting and not self._transport.is_closing():
            self._is_paused = False
            self._body_since += self._loop.time() - self._paused_at
            self._transport.resume_reading()

    # --- answering --------------------------------------------------------------------------------------------

    @property
    def _is_answering(self) -> bool:
        return self._cycle is not None and not self._cycle.complete

    def _default_headers(self) -> list[tuple[bytes, bytes]]:
        return self._server.default_headers

    def _answer(self, cycle: Cycle) -> None:
        self._cycle = cycle
        task = self._loop.create_task(cycle.run(self._config.loaded_app))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    def answered(self) -> None:
        """See ``cycle.Line``."""
        assert self._cycle is not None
        self._server.total_requests += 1
        if not self._cycle.keep_alive:
            self.close()
        elif self._waiting:
            self._answer(self._waiting.popleft())
        else:
            self.read_on()
            if self._at is not _At.BODY:
                self._expect(HEAD_SECONDS if self._at is _At.HEAD else self._config.timeout_keep_alive)

    def write(self, data: bytes, now: bool = False) -> None:
        """See ``cycle.Line``."""
        self._out.append(data)
        self._out_bytes += len(data)
        if now or self._out_bytes > _GATHERED:
            self._flush()
        elif not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._flushing = False
        self._flush()

    def _flush(self) -> None:
        data, self._out, self._out_bytes = b"".join(self._out), [], 0
        if data and not self._transport.is_closing():
            self._transport.write(data)

    @property
    def is_full(self) -> bool:
        """See ``cycle.Line``."""
        return self._may_write is not None

    async def writable(self) -> None:
        """See ``cycle.Line``."""
        while self._may_write is not None:
            await self._may_write.wait()

    def close(self) -> None:
        """See ``cycle.Line``."""
        self._flush()
        self._transport.close()

    # --- time -------------------------------------------------------------------------------------------------

    def _expect(self, seconds: float) -> None:
        """Something must come within so many seconds. One timer does for all, which is set again only if it has to be
        earlier."""
        self._deadline = self._loop.time() + seconds
        if self._timer is not None and self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._look)

    def _look(self) -> None:
        """Closes the connection if it is too late, unless it is this side that does not read."""
        self._timer = None
        if self._deadline is None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._look)
        elif self._is_paused:
            self._expect(BODY_SECONDS)
        else:
            self._transport.close()
