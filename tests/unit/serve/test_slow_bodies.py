"""A body that stops coming ends its connection; one that comes slowly, and an answer that takes long, do not."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from served import listening

from sglite.runtime.serve import connection

PATIENCE = 0.5
HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body, thinks for longer than a body may pause, and says how many bytes it was."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    await asyncio.sleep(2 * PATIENCE)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": b"%d bytes" % size})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(connection, "BODY_SECONDS", PATIENCE)
    with listening(app, http=connection.Connection, lifespan="off", ws="none") as port:
        yield port


def all_of(peer: socket.socket) -> bytes:
    """What comes until the other side closes."""
    return b"".join(iter(lambda: peer.recv(4096), b""))


@pytest.mark.parametrize("sent", [b"", b"12345"])
def test_a_body_that_stops_ends_the_connection(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), 10) as peer:
        peer.sendall(HEAD + sent)
        began = time.monotonic()
        assert all_of(peer) == b""
        assert PATIENCE * 0.9 < time.monotonic() - began < 10 * PATIENCE


def test_a_slow_body_and_a_late_answer_are_waited_for(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 10) as peer:
        peer.sendall(HEAD)
        for _ in range(10):
            peer.sendall(b"x")
            time.sleep(PATIENCE / 5)
        assert b"10 bytes" in all_of(peer)
