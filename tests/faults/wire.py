"""An HTTP client that does as little as possible, so that what is measured is the server; and that can misbehave."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reply:
    """An answer. ``status`` 0: the connection ended without one. ``first``: seconds until its first byte."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float
    first: float

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def streamed(self) -> bool:
        return self.headers.get("content-type", "").startswith(("text/event-stream", "application/x-ndjson"))

    def events(self) -> list[Any]:
        """Of a stream: its JSON values, and ``[DONE]``. Raises ``ValueError`` for what is none."""
        if self.headers["content-type"].startswith("application/x-ndjson"):
            return [json.loads(line) for line in self.body.splitlines() if line]
        lines = [line[5:].strip() for line in self.body.decode().split("\n") if line.startswith("data:")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


def head(method: str, path: str, length: int | None, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """A request's head."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers)]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


JSON = (("Content-Type", "application/json"),)


class Connection:
    """One connection, kept open between calls."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter | None = None

    async def open(self) -> Connection:
        """Connects, unless it is connected."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**26)
        return self

    async def send(self, method: str, path: str, body: bytes = b"", headers: Sequence[tuple[str, str]] = JSON) -> None:
        """A whole request."""
        await self.open()
        assert self.writer is not None
        self.writer.write(head(method, path, len(body), headers) + body)
        await self.writer.drain()

    async def begin(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the answer."""
        raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def parts(self, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
        """The body, as it comes."""
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                yield (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        elif length := int(headers.get("content-length", 0)):
            yield await self.reader.readexactly(length)

    async def call(
        self, method: str, path: str, body: Any = None, headers: Sequence[tuple[str, str]] = JSON, timeout: float = 60
    ) -> Reply:
        """One request and its answer, in any case. ``body``: bytes, or what is sent as JSON."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        began = time.perf_counter()
        try:
            return await asyncio.wait_for(self._call(method, path, data, headers, began), timeout)
        except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
            self.close()
            spent = time.perf_counter() - began
            return Reply(0, {}, repr(error).encode(), spent, spent)

    async def _call(self, method: str, path: str, body: bytes, headers: Any, began: float) -> Reply:
        await self.send(method, path, body, headers)
        status, found = await self.begin()
        first, parts = 0.0, []
        if method != "HEAD":
            async for part in self.parts(found):
                first = first or time.perf_counter() - began
                parts.append(part)
        if found.get("connection") == "close":
            self.close()
        spent = time.perf_counter() - began
        return Reply(status, found, b"".join(parts), spent, first or spent)

    def close(self) -> None:
        """The polite end."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def reset(self) -> None:
        """The rude one: the other side sees ECONNRESET."""
        if self.writer is not None:
            sock = self.writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
            self.writer = None


async def call(port: int, method: str, path: str, body: Any = None, **options: Any) -> Reply:
    """One request on a connection of its own."""
    connection = Connection(port)
    try:
        return await connection.call(method, path, body, **options)
    finally:
        connection.close()


def part_of(values: Sequence[float], share: float) -> float:
    """A quantile."""
    found = sorted(values)
    return found[min(len(found) - 1, int(len(found) * share))] if found else 0.0
