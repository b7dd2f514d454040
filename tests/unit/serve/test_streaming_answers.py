"""Streams: what is wrong before their first line is an HTTP error, what goes wrong later is said, silence is filled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import Request

from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.streaming import LINES, OPENAI, stream


class Client:
    """A client that reads everything, or goes away after some parts."""

    def __init__(self, stays_for: int = 10**6) -> None:
        self.parts: list[bytes] = []
        self.status = 0
        self._stays_for = stays_for
        self._gone = asyncio.Event()

    async def receive(self) -> Any:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message.get("body"):
            self.parts.append(message["body"])
            if len(self.parts) >= self._stays_for:
                self._gone.set()

    @property
    def request(self) -> Request:
        scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "asgi": {"spec_version": "2.3"}}
        return Request(scope, self.receive)


def run(lines: AsyncGenerator[bytes, None], client: Client | None = None, **options: Any) -> tuple[list[bytes], int]:
    """What the client got, and how often the stream was ended."""
    ended: list[None] = []

    async def go() -> list[bytes]:
        reader = client or Client()
        response = stream(lines, lambda: ended.append(None), **options)
        await response(reader.request.scope, reader.receive, reader.send)
        assert reader.status == 200
        return reader.parts

    try:
        return asyncio.run(asyncio.wait_for(go(), 10)), len(ended)
    finally:
        assert len(ended) == 1, "what a stream holds is given back once, whatever happens"


async def some(*parts: Any) -> AsyncGenerator[bytes, None]:
    for part in parts:
        if isinstance(part, Exception):
            raise part
        if isinstance(part, float):
            await asyncio.sleep(part)
        else:
            yield part


def test_lines_go_out_as_they_come() -> None:
    assert run(some(b"a\n", b"b\n"), wire=LINES) == ([b"a\n", b"b\n"], 1)
    assert run(some(b"data: 1\n\n"))[0] == [b"data: 1\n\n", b"data: [DONE]\n\n"]
    assert run(some())[0] == [b"data: [DONE]\n\n"]


def test_a_failure_before_the_first_line_is_the_answer() -> None:
    with pytest.raises(Refused, match="no such thing"):
        run(some(Refused(400, "no such thing"), b"never"))


def test_a_failure_later_is_an_event_and_the_end() -> None:
    parts, _ = run(some(b"data: 1\n\n", Refused(400, "no such thing"), b"never"))
    assert parts[0] == b"data: 1\n\n" and parts[-1] == b"data: [DONE]\n\n"
    assert b"no such thing" in parts[1] and len(parts) == 3
    hidden, _ = run(some(b"1", KeyError("a secret")), wire=LINES)
    assert b"internal error" in hidden[1] and b"secret" not in hidden[1]


def test_silence_is_filled_with_comments() -> None:
    parts, _ = run(some(b"data: 1\n\n", 0.35, b"data: 2\n\n"), keep_alive_s=0.1)
    comments = [part for part in parts if part.startswith(b":")]
    assert 2 <= len(comments) <= 4 and [p for p in parts if p not in comments][1] == b"data: 2\n\n"
    assert not [part for part in run(some(b"1\n", 0.3, b"2\n"), wire=LINES, keep_alive_s=0.1)[0] if part[:1] == b":"]


def test_a_stream_that_is_slow_to_begin_is_answered_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglite.runtime.serve.streaming.FIRST_LINE_SECONDS", 0.05)
    parts, _ = run(some(0.3, Refused(400, "too late")), wire=OPENAI, keep_alive_s=0.1)
    assert parts[0].startswith(b":") and b"too late" in parts[-2]


def test_a_reader_that_goes_away_ends_the_stream() -> None:
    closed: list[bool] = []

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0.01)
        finally:
            closed.append(True)

    async def go() -> int:
        client, ended = Client(stays_for=3), []
        response = stream(endless(), lambda: ended.append(None))
        await asyncio.wait_for(response(client.request.scope, client.receive, client.send), 5)
        return len(ended)

    assert asyncio.run(go()) == 1 and closed == [True]
