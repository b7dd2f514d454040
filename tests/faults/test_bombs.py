"""Constraints made to hurt, sent while others stream: each is served or refused in time, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from faults.bombs import Bomb, bombs
from faults.probe import Probe
from faults.scale import PATIENCE, figure, sized
from faults.servers import Server, children, resident, settles
from faults.shapes import wrong_with
from faults.wire import JSON, Connection, Reply, part_of

ATTACK = "grammar bombs"
_BYSTANDERS = 2
_GRAMMAR_SECONDS = 5
_LONG = 0.1
MAX_GROWTH = 640 << 20
"""Bytes that the engine's memory may grow by."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The bundled model: masks over a vocabulary of some size."""
    server = Server(None, "--grammar-timeout-s", str(_GRAMMAR_SECONDS), "--max-total-tokens", "32768")
    yield server
    server.close()


@dataclass
class Waits:
    """Seconds of other people's streams."""

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    blamed: list[tuple[float, list[str]]] = field(default_factory=list)
    """Long gaps, and which bombs were there meanwhile."""

    def __str__(self) -> str:
        first = [round(1000 * part_of(self.first, share)) for share in (0.5, 0.99, 1)]
        gaps = [round(1000 * part_of(self.gaps, share)) for share in (0.5, 0.99, 1)]
        return f"first token {first}, gaps {gaps} ms (p50, p99, worst) of {len(self.first)}, {len(self.gaps)}"


async def bystander(port: int, stop: asyncio.Event, waits: Waits, beside: list[str]) -> None:
    """Streams short answers, one after another. ``beside``: the bombs that are being dealt with."""
    connection = Connection(port)
    number = 0
    while not stop.is_set():
        number += 1
        sampling = {"max_new_tokens": 24, "ignore_eos": True, "temperature": 1, "sampling_seed": number}
        began = time.perf_counter()
        body = {"text": f"Number {number}:", "sampling_params": sampling, "stream": True}
        await connection.send("POST", "/generate", json.dumps(body).encode())
        status, headers = await connection.begin()
        assert status == 200
        last = None
        async for _ in connection.parts(headers):
            now = time.perf_counter()
            (waits.first.append(now - began) if last is None else waits.gaps.append(now - last))
            if last is not None and now - last > _LONG:
                waits.blamed.append((round(now - last, 1), list(beside)))
            last = now
    connection.close()


async def throw(port: int, work: list[Bomb], spent: list[tuple[float, str, Reply]], thrown: list[str]) -> None:
    """Sends bombs, one after another."""
    connection = Connection(port)
    while work:
        name, kind, value = work.pop()
        thrown.append(name)
        body = {"text": "x", "sampling_params": {"max_new_tokens": 6, kind: value}}
        reply = await connection.call("POST", "/generate", body, headers=JSON, timeout=120)
        spent.append((reply.seconds, name, reply))
        thrown.remove(name)
    connection.close()


async def attack(
    server: Server, work: list[Bomb], idle_s: float
) -> tuple[Waits, Waits, list[tuple[float, str, Reply]]]:
    """Others' waits before and during the attack, and what became of each bomb."""
    before, during = Waits(), Waits()
    thrown: list[str] = []
    for waits, seconds in ((Waits(), 2.0), (before, idle_s)):
        stop = asyncio.Event()
        streams = [asyncio.ensure_future(bystander(server.port, stop, waits, [])) for _ in range(_BYSTANDERS)]
        await asyncio.sleep(seconds)
        stop.set()
        await asyncio.gather(*streams)
    stop = asyncio.Event()
    streams = [asyncio.ensure_future(bystander(server.port, stop, during, thrown)) for _ in range(_BYSTANDERS)]
    spent: list[tuple[float, str, Reply]] = []
    await asyncio.gather(*(throw(server.port, work, spent, thrown) for _ in range(2)))
    stop.set()
    await asyncio.gather(*streams)
    return before, during, spent


def test_bombs_hurt_nobody(server: Server) -> None:
    work = bombs()[::-1]
    assert len(work) >= 200
    memory = resident(server.engine_pid)
    server.costliest()
    with Probe(server.port) as probe:
        before, during, spent = asyncio.run(attack(server, work, 10.0))
    grown = resident(server.engine_pid) - memory
    late = sorted(((seconds, name, reply.status) for seconds, name, reply in spent), reverse=True)
    figure(ATTACK, "kinds, statuses", f"{len(spent)}, {dict(Counter(reply.status for _, _, reply in spent))}")
    figure(ATTACK, "slowest answers", [(name, status, round(seconds, 1)) for seconds, name, status in late[:12]])
    figure(ATTACK, "others, before", before)
    figure(ATTACK, "others, during", during)
    figure(ATTACK, "longest gaps, and the bombs beside them", sorted(during.blamed, reverse=True)[:6])
    figure(ATTACK, "engine's memory grew by, MB", grown >> 20)
    figure(ATTACK, "/health meanwhile", probe.seen)
    figure(ATTACK, "costliest on the loop, ms of processor", [(round(1000 * s), n) for s, n in server.costliest()])
    faults = [f"{name}: {fault}" for _, name, reply in spent if (fault := wrong_with("/generate", reply))]
    assert not faults, "\n".join(faults)
    assert not server.errors(), server.errors()[:5]
    assert late[0][0] < (_GRAMMAR_SECONDS + 1) * PATIENCE, late[:10]
    assert part_of(during.gaps, 0.99) < 0.15 * PATIENCE
    assert max(during.gaps) < 0.5 * PATIENCE
    assert grown < MAX_GROWTH
    assert settles(server.is_idle, 20 * PATIENCE), server.open_work()


def test_compile_processes_that_are_killed_cost_nobody_else_anything(server: Server) -> None:
    """Whichever is there is killed, ten times a second, while bombs and everyday schemas are sent."""
    work = [bomb for bomb in bombs() if bomb[1] != "stop_regex"][:: sized(6, 2)]
    simple = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}})
    work += [(f"simple {i}", "json_schema", simple + " " * i) for i in range(50)]
    engine, stop, killed = server.engine_pid, threading.Event(), list[int]()

    def kill() -> None:
        while not stop.wait(0.1):
            for pid in children(engine):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        _, during, spent = asyncio.run(attack(server, work, 1.0))
    finally:
        stop.set()
        killer.join()
    figure(ATTACK, "compile processes killed", len(set(killed)))
    figure(ATTACK, "others, while they were", during)
    figure(ATTACK, "statuses meanwhile", dict(Counter(reply.status for _, _, reply in spent)))
    faults = [f"{name}: {fault}" for _, name, reply in spent if (fault := wrong_with("/generate", reply))]
    assert not faults, "\n".join(faults)
    assert len(set(killed)) > 10 and server.engine_pid == engine and not server.errors()
    body = {"text": "x", "sampling_params": {"max_new_tokens": 6, "regex": "[a-e]{3}"}}
    assert server.http.post("/generate", json=body).json()["meta_info"]["completion_tokens"] > 0
    assert settles(server.is_idle, 20 * PATIENCE), server.open_work()
