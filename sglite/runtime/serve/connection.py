"""An HTTP/1.1 connection that nobody can hold open by saying nothing, or fill memory with headers.

uvicorn's own, with limits on the time that the head of a request may take and its body may pause, and errors in the
JSON shape of all others.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from sglite.runtime.serve.errors import Refused

HEAD_SECONDS = 10.0
"""How long the head of a request may take, from the beginning of the connection or from its first byte."""
BODY_SECONDS = 60.0
"""How long nothing may come of a body that is not complete."""
MAX_HEAD_BYTES = 64 * 1024
"""Of request line and headers."""


class Connection(H11Protocol):
    """One connection; made by uvicorn."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._body_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first request must come soon."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """A request that has begun must have its head soon. Between requests uvicorn's keep-alive limit counts."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE or not self.conn.trailing_data[0]:
            self._forget_head()
        elif self._head_timer is None:
            self._expect_head()
        self._forget_body()
        if self.conn.their_state is h11.SEND_BODY:
            self._expect_body()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._forget_head()
        self._forget_body()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Called where something is no HTTP; the exception being handled says what is wrong."""
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        long = f"the request's head has more than {MAX_HEAD_BYTES} bytes; send less"
        refused = Refused(431, long) if status == 431 else Refused(status, "this is no valid HTTP request")
        body = msgspec.json.encode(refused.body())
        head = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        answer = h11.Response(status_code=refused.status, headers=head)
        with contextlib.suppress(h11.LocalProtocolError):  # in the middle of another answer, which ends here
            parts = [self.conn.send(event) or b"" for event in (answer, h11.Data(body), h11.EndOfMessage())]
            self.transport.write(b"".join(parts))
        self.transport.close()

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _expect_body(self) -> None:
        self._body_timer = self.loop.call_later(BODY_SECONDS, self._no_body)

    def _no_body(self) -> None:
        """Closes the connection, unless it is this side that does not read."""
        if self.flow.read_paused:
            self._expect_body()
        else:
            self.transport.close()

    def _forget_body(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
