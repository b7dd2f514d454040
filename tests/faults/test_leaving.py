"""Clients that go away, in every way there is: what they had asked for is given back within two seconds."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.bodies import TALK, TOOL
from faults.probe import Probe
from faults.scale import PATIENCE, figure, sized
from faults.servers import Server, settling
from faults.wire import JSON, Connection, head

ATTACK = "cancelled streams"
_AT_ONCE = 32
_BACK_SECONDS = 2.0
_MORE_MB = 40
"""What the memory of a process may grow by once it has seen everything."""


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """Answers would take long, if they were waited for."""
    server = Server(folder, "--max-total-tokens", "16384", "--max-queued-requests", "1000")
    yield server
    server.close()


def requests() -> list[tuple[str, dict[str, Any]]]:
    """One of each kind, far too long."""
    long: dict[str, Any] = {"max_new_tokens": 1500, "ignore_eos": True}
    return [
        ("/generate", {"text": "Once", "sampling_params": long, "stream": True}),
        ("/generate", {"text": ["One", "Two", "Three"], "sampling_params": {**long, "n": 2}, "stream": True}),
        ("/generate", {"text": "Once", "sampling_params": long}),
        ("/v1/chat/completions", {"messages": TALK, "max_tokens": 1500, "ignore_eos": True, "stream": True, "n": 2}),
        ("/v1/chat/completions", {"messages": TALK, "max_tokens": 1500, "tools": [TOOL], "tool_choice": "required"}),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 1500, "ignore_eos": True, "stream": True}),
        ("/v1/responses", {"input": "Once", "max_output_tokens": 1500, "stream": True}),
        ("/v1/messages", {"model": "default", "max_tokens": 1500, "messages": TALK[1:], "stream": True}),
        ("/api/chat", {"model": "default", "messages": TALK, "options": {"num_predict": 1500}}),
        ("/api/generate", {"model": "default", "prompt": "Once", "options": {"num_predict": 1500}}),
        ("/generate", {"text": "x", "stream": True, "sampling_params": {**long, "regex": "[a-z]{1500}"}}),
        ("/program", {"version": 1, "lease_s": 1, "nodes": [
            {"op": "open", "seq": "0"}, {"op": "extend", "seq": "0", "text": "Once"},
            {"op": "generate", "seq": "0", "id": "a", "sampling_params": long, "stream": True}]}),
    ]  # fmt: skip


async def leave(port: int, rng: random.Random, kind: tuple[str, dict[str, Any]], seen: Counter[str]) -> None:
    """One request, left: before its body is complete, before an answer, or after some of it; closed or reset."""
    path, body = kind
    if path == "/program":
        body = {**body, "program": f"p{rng.random()}"}
    data = json.dumps(body).encode()
    connection = await Connection(port).open()
    assert connection.writer is not None
    when = rng.choice(("half a body", "at once", "soon", "after some", "after some"))
    sent = rng.randrange(len(data)) if when == "half a body" else len(data)
    connection.writer.write(head("POST", path, len(data), JSON) + data[:sent])
    try:
        if when == "soon":
            await asyncio.sleep(rng.random() * 0.05)
        elif when == "after some":
            await asyncio.wait_for(_read_some(connection, rng.randrange(1, 6)), rng.random() * 2)
    except (OSError, EOFError, asyncio.TimeoutError):
        pass
    seen[when] += 1
    (connection.reset if rng.random() < 0.5 else connection.close)()


async def _read_some(connection: Connection, parts: int) -> None:
    _, headers = await connection.begin()
    async for _ in connection.parts(headers):
        parts -= 1
        if parts <= 0:
            return


async def attack(port: int, count: int, seed: int) -> Counter[str]:
    """Many who leave, some at a time."""
    rng, seen, left, kinds = random.Random(seed), Counter[str](), iter(range(count)), requests()

    async def worker() -> None:
        for _ in left:
            await leave(port, rng, rng.choice(kinds), seen)

    await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))
    return seen


def test_everything_comes_back(server: Server) -> None:
    asyncio.run(attack(server.port, sized(300, 500), seed=1))  # threads, pools and caches that stay
    settling(server.is_idle, 60)
    before = server.resources()
    server.costliest()
    count = sized(2000, 10_000)
    began = time.monotonic()
    with Probe(server.port) as probe:
        seen = asyncio.run(attack(server.port, count, seed=2))
        took = time.monotonic() - began
        back = settling(server.is_idle, 60)
        leases = server.info()["programs"]
    settled = settling(lambda: server.resources()["api fds"] <= before["api fds"], 5)
    after = server.resources()
    figure(ATTACK, "requests, seconds", f"{count}, {took:.0f}: {dict(seen)}")
    figure(ATTACK, "back to idle after, s", round(back, 2))
    figure(ATTACK, "descriptors back after, s", round(settled, 2))
    figure(ATTACK, "before, after", f"{before}, {after}")
    figure(ATTACK, "/health meanwhile", probe.seen)
    figure(ATTACK, "costliest on the loop, ms of processor", [(round(1000 * s), n) for s, n in server.costliest()])
    figure(ATTACK, "programs", leases)
    assert server.is_idle(), server.open_work()
    assert back < _BACK_SECONDS * PATIENCE
    for name, value in after.items():
        assert value <= before[name] + (_MORE_MB if name.endswith("MB") else 2), (name, before, after)
    assert not server.errors(), server.errors()[:5]
