"""A body that stops coming, or hardly comes, ends its connection; one that is slow, and an answer that takes long, do
not. Large bodies are bounded together."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from served import listening

from sglite.runtime.serve import connection, cycle
from sglite.runtime.serve.errors import Refused

PATIENCE = 0.5
RATE = 10
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


async def refusing(scope: Any, receive: Any, send: Any) -> None:
    """``app``, told as the server would what it cannot have."""
    try:
        await app(scope, receive, send)
    except Refused as refused:
        await send({"type": "http.response.start", "status": refused.status, "headers": []})
        await send({"type": "http.response.body", "body": str(refused).encode()})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(connection, "BODY_SECONDS", PATIENCE)
    monkeypatch.setattr(connection, "BODY_RATE", RATE)
    with listening(app, http=connection.Connection, lifespan="off", ws="none") as port:
        yield port


def all_of(peer: socket.socket) -> bytes:
    """What comes until the other side closes."""
    return b"".join(iter(lambda: peer.recv(4096), b""))


def until_told(peer: socket.socket) -> bytes:
    """What comes until there is a number of bytes in it."""
    found = b""
    while b" bytes" not in found:
        part = peer.recv(4096)
        assert part, found
        found += part
    return found


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


def test_a_body_that_hardly_comes_ends_the_connection(port: int) -> None:
    """Although it never stops for long."""
    with socket.create_connection(("127.0.0.1", port), 10) as peer:
        peer.sendall(HEAD.replace(b"10", b"99"))
        began = time.monotonic()
        with pytest.raises(OSError):
            for _ in range(60):
                peer.sendall(b"x")
                time.sleep(2 / RATE)
        assert 1.5 * PATIENCE < time.monotonic() - began < 10


def test_time_in_which_a_body_is_not_read_is_not_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BODY_SECONDS", PATIENCE)
    monkeypatch.setattr(connection, "BODY_RATE", 4 * 2**20)

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(3 * PATIENCE)
        await app(scope, receive, send)

    size = 2**20
    with (
        listening(late, http=connection.Connection, lifespan="off", ws="none") as port,
        socket.create_connection(("127.0.0.1", port), 10) as peer,
    ):
        peer.sendall(HEAD.replace(b"10", b"%d" % (size + 1)) + b"x" * size)
        time.sleep(PATIENCE / 5)
        peer.sendall(b"x")
        assert b"%d bytes" % (size + 1) in all_of(peer)


def test_large_bodies_are_bounded_together_and_small_ones_always_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycle, "MAX_HELD", 5 * 2**20)

    def post(peer: socket.socket, size: int) -> None:
        peer.sendall(HEAD.replace(b"10", b"%d" % size) + b"x" * size)

    with listening(refusing, http=connection.Connection, lifespan="off", ws="none") as port:
        peers = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(5)]
        for peer, size in zip(peers, (2 * 2**20, 2 * 2**20, 2 * 2**20, 2**20, 10), strict=True):
            post(peer, size)
            time.sleep(0.1)
        said = [until_told(peer) for peer in peers]
        for peer in peers:
            peer.close()
        refused = [b"429" in one for one in said]
        assert sum(refused) == 1 and not any(refused[3:]) and b"5242880 bytes together" in said[refused.index(True)]
        assert sum(b" bytes" in one for one in said) == 5
        assert cycle._Held.total == 0
        with socket.create_connection(("127.0.0.1", port), 10) as peer:
            post(peer, 4 * 2**20)
            assert b"4194304 bytes" in until_told(peer)
