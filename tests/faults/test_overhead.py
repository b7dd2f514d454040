"""What the server itself costs: an engine whose steps take no time, requests that come whether it keeps up or not."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.probe import Probe
from faults.scale import PATIENCE, figure, sized
from faults.servers import cpu_seconds
from faults.wire import Connection, part_of
from scripted_server import Started
from sequence_engines import text_folder

ATTACK = "overhead"
_RATE = 50.0
_TOKENS = 16
P50_MS, P99_MS, CPU_MS = 4.0, 12.0, 2.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Started]:
    server = Started(text_folder(tmp_path))
    yield server
    server.close()


def bodies(number: int, tokens: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """A streamed request of each API."""
    talk = [{"role": "user", "content": f"Number {number}"}]
    return {
        "generate": ("/generate", {"text": f"Number {number}", "stream": True, "sampling_params": {
            "max_new_tokens": tokens, "ignore_eos": True}}),
        "chat": ("/v1/chat/completions", {"messages": talk, "max_tokens": tokens, "ignore_eos": True, "stream": True}),
    }  # fmt: skip


class Pool:
    """Connections that are used again, as clients do."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[Connection] = []

    async def first_byte(self, path: str, body: dict[str, Any], due: float) -> float:
        """Seconds from when a request was due to the first byte of its answer's body."""
        connection = self._free.pop() if self._free else Connection(self._port)
        began = time.perf_counter()
        reply = await connection.call("POST", path, body)
        assert reply.status == 200, reply
        self._free.append(connection)
        return began - due + reply.first


async def open_loop(port: int, kind: str, seconds: float, tokens: int) -> list[float]:
    """Times to the first byte, of requests that come at a fixed rate."""
    pool, tasks = Pool(port), []
    start = time.perf_counter()
    for number in range(int(seconds * _RATE)):
        due = start + number / _RATE
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        path, body = bodies(number, tokens)[kind]
        tasks.append(asyncio.ensure_future(pool.first_byte(path, body, due)))
    return await asyncio.gather(*tasks)


@pytest.mark.parametrize("kind", ["generate", "chat"])
def test_the_server_adds_little(server: Started, kind: str) -> None:
    port = int(server.url.rpartition(":")[2])
    asyncio.run(open_loop(port, kind, 3, _TOKENS))
    seconds = sized(20, 60)
    costs = {}
    for tokens in (_TOKENS, 4 * _TOKENS):
        before = [cpu_seconds(pid) for pid in (server.process.pid, server.engine_pid)]
        with Probe(port) as probe:
            times = asyncio.run(open_loop(port, kind, seconds, tokens))
        spent = [
            cpu_seconds(pid) - old for pid, old in zip((server.process.pid, server.engine_pid), before, strict=True)
        ]
        costs[tokens] = [1000 * one / len(times) for one in spent]
        shown = [round(1000 * part_of(times, share), 1) for share in (0.5, 0.9, 0.99, 1)]
        figure(ATTACK, f"{kind}, {tokens} tokens: first byte p50, p90, p99, worst ms", f"{shown} of {len(times)}")
        figure(ATTACK, f"{kind}, {tokens} tokens: ms of processor a request, API and engine",
               [round(one, 2) for one in costs[tokens]])  # fmt: skip
        figure(ATTACK, f"{kind}, {tokens} tokens: /health beside it; load", f"{probe.seen}; {os.getloadavg()[0]:.1f}")
        if tokens == _TOKENS:
            first, machine, load = times, probe.seen.still_worst, os.getloadavg()[0]
    each = [1000 * (costs[4 * _TOKENS][i] - costs[_TOKENS][i]) / (3 * _TOKENS) for i in (0, 1)]
    figure(ATTACK, f"{kind}: us of processor a token, API and engine", [round(one) for one in each])
    assert part_of(first, 0.5) * 1000 < P50_MS * PATIENCE
    if load < (os.cpu_count() or 1):  # else who waits longest has waited for others' turns
        # What a server that does nothing has had to wait for in the meantime, this one may have had to wait for too.
        assert (part_of(first, 0.99) - machine) * 1000 < P99_MS * PATIENCE
    assert costs[_TOKENS][0] < CPU_MS * PATIENCE * 1.5  # caches that others use make it a third more
