"""More clients than there is room for, and clients that take their time: all are answered or told to come back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from faults.probe import Probe
from faults.scale import PATIENCE, figure, sized
from faults.servers import Server, resident, settles, settling
from faults.shapes import is_error
from faults.wire import JSON, Connection, Reply, call, head, part_of

CROWD, SLOW = "overload", "slow clients"
_QUEUE = 256
_MAX_GROWTH = 200 << 20
_HEAD_SECONDS = 10.0
"""The server's limit for a request's head."""


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """Its queue is short."""
    flags = ("--max-queued-requests", str(_QUEUE), "--max-total-tokens", "32768", "--max-running-requests", "32")
    server = Server(folder, *flags)
    yield server
    server.close()


def asked(number: int, tokens: int) -> tuple[str, dict[str, Any]]:
    """A request of one kind or another."""
    if number % 3 == 0:
        return "/generate", {"text": f"Number {number}", "sampling_params": {"max_new_tokens": tokens}, "stream": True}
    if number % 3 == 1:
        return "/v1/completions", {"prompt": f"Number {number}", "max_tokens": tokens, "ignore_eos": True}
    talk = [{"role": "user", "content": f"Number {number}"}]
    return "/v1/chat/completions", {"messages": talk, "max_tokens": tokens, "stream": number % 2 == 0}


async def crowd(port: int, count: int) -> list[tuple[str, Reply]]:
    """All at once, each on a connection of its own."""

    async def one(number: int) -> tuple[str, Reply]:
        path, body = asked(number, 24)
        return path, await call(port, "POST", path, body, timeout=240)

    return await asyncio.gather(*map(one, range(count)))


def test_a_crowd_is_served_or_told_to_come_back(server: Server) -> None:
    asyncio.run(crowd(server.port, 200))
    before = {pid: resident(pid) for pid in (server.pid, server.engine_pid)}
    count = sized(2000, 2000)
    began = time.monotonic()
    with Probe(server.port) as probe:
        replies = asyncio.run(crowd(server.port, count))
    took = time.monotonic() - began
    statuses = Counter(reply.status for _, reply in replies)
    refused = [reply.seconds for _, reply in replies if reply.status == 429]
    figure(CROWD, "clients, seconds, statuses", f"{count}, {took:.0f}, {dict(statuses)}")
    figure(CROWD, "429 after, s (p50, worst)", [round(part_of(refused, q), 2) for q in (0.5, 1)])
    grown = {pid: resident(pid) - size for pid, size in before.items()}
    figure(CROWD, "memory grew by, MB (API, engine)", [size >> 20 for size in grown.values()])
    figure(CROWD, "/health meanwhile", probe.seen)
    assert set(statuses) == {200, 429}, [reply.body for _, reply in replies if reply.status not in (200, 429)][:5]
    for path, reply in replies:
        if reply.status == 429:
            assert int(reply.headers["retry-after"]) >= 1 and is_error(path, reply.json())
        elif reply.streamed:
            assert reply.events()[-1] == "[DONE]"
    assert max(grown.values()) < _MAX_GROWTH
    assert settling(server.is_idle, 10) < 2 * PATIENCE, server.open_work()


# --- slow clients -------------------------------------------------------------------------------------------------


async def customers(port: int, seconds: float) -> list[float]:
    """Those who behave: seconds that each of their short requests took."""
    connection, found, end = Connection(port), [], time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        number += 1
        body = {"text": f"Customer {number}", "sampling_params": {"max_new_tokens": 4, "ignore_eos": True}}
        reply = await connection.call("POST", "/generate", body)
        assert reply.status == 200, reply
        found.append(reply.seconds)
        await asyncio.sleep(0.01)
    connection.close()
    return found


@asynccontextmanager
async def loiterers(port: int, count: int) -> AsyncIterator[list[Connection]]:
    """Connections that say nothing, half a head, half a body, or their body a byte at a time; for ever."""
    found = [await Connection(port).open() for _ in range(count)]
    full = head("POST", "/generate", 1000, JSON)
    stop = asyncio.Event()

    async def drip(connection: Connection, at: int) -> None:
        while not stop.is_set() and connection.writer is not None:
            connection.writer.write(full[at : at + 1] if at < len(full) - 5 else b"X-Slow: 1\r\n" if at % 2 else b" ")
            at += 1
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), 1)

    drips = []
    for number, connection in enumerate(found):
        assert connection.writer is not None
        if number % 4 == 1:
            connection.writer.write(full[:40])
            drips.append(asyncio.ensure_future(drip(connection, 40)))
        elif number % 4 == 2:
            connection.writer.write(full + b'{"text": ')
        elif number % 4 == 3:
            connection.writer.write(b"POST /generate HTTP/1.1\r\nHost: localhost\r\n")
    try:
        yield found
    finally:
        stop.set()
        await asyncio.gather(*drips)
        for connection in found:
            connection.close()


async def is_out(connection: Connection) -> bool:
    """Whether the server has closed a connection."""
    try:
        return not await asyncio.wait_for(connection.reader.read(1), 0.001)
    except asyncio.TimeoutError:
        return False
    except OSError:
        return True


async def slow_heads(
    server: Server, count: int, seconds: float
) -> tuple[list[float], list[float], int, dict[str, int]]:
    """Others' times before and beside loiterers; how many of those were shown out; what the server holds with them."""
    before = await customers(server.port, seconds)
    async with loiterers(server.port, count) as found:
        beside = await customers(server.port, _HEAD_SECONDS + 3)
        held = server.resources()
        out = 0
        for connection in found:
            out += await is_out(connection)
    return before, beside, out, held


def test_a_thousand_who_loiter_are_in_nobodys_way(server: Server) -> None:
    at_rest = server.resources()
    count = 1000
    with Probe(server.port) as probe:
        before, beside, out, held = asyncio.run(slow_heads(server, count, sized(5, 15)))
    back = settling(lambda: server.resources()["api fds"] <= at_rest["api fds"] + 2, 10)
    for name, times in (("before", before), ("beside", beside)):
        shown = [round(1000 * part_of(times, q)) for q in (0.5, 0.99, 1)]
        figure(SLOW, f"others {name} (p50, p99, worst ms)", f"{shown} of {len(times)}")
    figure(SLOW, "loiterers, shown out after 13 s", f"{count}, {out}")
    figure(SLOW, "at rest, with them", f"{at_rest}, {held}")
    figure(SLOW, "descriptors back after, s", round(back, 2))
    figure(SLOW, "/health meanwhile", probe.seen)
    assert out >= count * 3 // 4  # all but those whose body is on its way
    assert part_of(beside, 0.99) < (2 * part_of(before, 0.99) + 0.05) * PATIENCE
    assert held["api MB"] - at_rest["api MB"] < 100 and back < 5 * PATIENCE


async def reads_nothing(port: int) -> Connection:
    """A long stream whose reader does not read."""
    connection = await Connection(port).open()
    assert connection.writer is not None
    connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
    body = {"text": "Once", "sampling_params": {"max_new_tokens": 1900, "ignore_eos": True}, "stream": True}
    data = json.dumps(body).encode()
    connection.writer.write(head("POST", "/generate", len(data), JSON) + data)
    return connection


async def slow_readers(server: Server, count: int) -> tuple[list[float], bool, dict[str, int]]:
    """Others' times beside readers that do not read; whether all that was asked for was computed; memory with them."""
    readers = [await reads_nothing(server.port) for _ in range(count)]
    await asyncio.sleep(1)
    times = await customers(server.port, 8)
    idle = await asyncio.to_thread(lambda: settles(lambda: server.info()["num_running"] == 0, 120))
    held = server.resources()
    for connection in readers:
        connection.reset()
    return times, idle, held


def test_readers_that_do_not_read_hold_nothing_but_their_answer(server: Server) -> None:
    before = server.resources()
    count = 16
    times, computed, held = asyncio.run(slow_readers(server, count))
    back = settling(server.is_idle, 10)
    figure(
        SLOW, "readers that do not read: others (p50, p99 ms)", [round(1000 * part_of(times, q)) for q in (0.5, 0.99)]
    )
    figure(SLOW, f"at rest, with {count} of them", f"{before}, {held}")
    figure(SLOW, "given back after, s", round(back, 2))
    assert computed, server.open_work()
    assert held["api MB"] - before["api MB"] < 100 and back < 2 * PATIENCE
