"""Everything at once for a while: every API, good and bad requests, clients that stay and that leave; nothing grows."""

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
from faults.bodies import BODIES, spoiled
from faults.probe import Probe
from faults.scale import PATIENCE, figure, sized
from faults.servers import Server, resident, settling
from faults.shapes import wrong_with
from faults.wire import JSON, Connection, head, part_of

ATTACK = "soak"
_AT_ONCE = 6
_WARM_SECONDS = 20
_BETWEEN = 2.0
_MAX_PEAK = 128
"""MB by which memory may ever, for however short a time, exceed what it was after the first seconds."""
_GENERATING = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/api/chat", "/api/generate",
    "/generate", "/program",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """Small enough that its cache is full soon."""
    server = Server(folder, "--context-length", "512", "--max-total-tokens", "8192")
    yield server
    server.close()


def good(rng: random.Random, number: int) -> tuple[str, dict[str, Any]]:
    """A valid request of its own."""
    path = rng.choice(_GENERATING)
    body = json.loads(json.dumps(rng.choice(BODIES[path])))
    text = f"{number} " + "word " * rng.randrange(60)
    if path == "/program":
        body["program"] = f"program {number}"
        body["nodes"][1]["text"] = text
    elif path == "/generate" and isinstance(body.get("text"), str):
        body["text"] = text
        body.pop("rid", None)
    elif "prompt" in body and isinstance(body["prompt"], str):
        body["prompt"] = text
    elif path == "/v1/responses":
        body["input"] = text
    elif isinstance(body.get("messages"), list) and isinstance(body["messages"][-1].get("content"), str):
        body["messages"][-1]["content"] = text
    return path, body


async def worker(port: int, seed: int, end: float, seen: Counter[str], times: list[float], faults: list[str]) -> None:
    """One client after another."""
    rng, connection, number = random.Random(seed), Connection(port), 0
    while time.monotonic() < end:
        number += 1
        kind = rng.random()
        path, body = good(rng, seed * 10**6 + number)
        if kind < 0.15:
            await _leave(port, rng, path, body)
            seen["left"] += 1
            continue
        bad = kind < 0.3
        data = spoiled(rng, body) if bad else json.dumps(body).encode()
        reply = await connection.call("POST", path, data)
        seen[f"{'bad' if bad else 'good'} {reply.status}"] += 1
        times.append(reply.seconds)
        fault = wrong_with(path, reply)
        if fault is not None:
            faults.append(f"POST {path} {data[:500]!r} -> {fault}")
    connection.close()


async def _leave(port: int, rng: random.Random, path: str, body: dict[str, Any]) -> None:
    connection = await Connection(port).open()
    assert connection.writer is not None
    data = json.dumps(body).encode()
    connection.writer.write(head("POST", path, len(data), JSON) + data)
    await asyncio.sleep(rng.random() * 0.05)
    (connection.reset if rng.random() < 0.5 else connection.close)()


def forget_peak(pid: int) -> None:
    """``peak`` begins anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak(pid: int) -> float:
    """MB of memory that a process has occupied at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**10


def slope(samples: list[tuple[float, float]]) -> float:
    """Growth per minute, by least squares."""
    count = len(samples)
    mean_x = sum(x for x, _ in samples) / count
    mean_y = sum(y for _, y in samples) / count
    over = sum((x - mean_x) ** 2 for x, _ in samples)
    return 60 * sum((x - mean_x) * (y - mean_y) for x, y in samples) / over


def test_an_hour_like_any_other(server: Server) -> None:
    seconds = sized(60, 600)
    seen, times, faults = Counter[str](), [], []
    processes = {"API": server.pid, "engine": server.engine_pid}
    memory: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}

    async def attack() -> None:
        server.watched()
        began = time.monotonic()
        end = began + _WARM_SECONDS + seconds
        clients = [
            asyncio.ensure_future(worker(server.port, seed, end, seen, times, faults)) for seed in range(_AT_ONCE)
        ]
        await asyncio.sleep(_WARM_SECONDS)
        for pid in processes.values():
            forget_peak(pid)
        while time.monotonic() < end:
            for name, pid in processes.items():
                memory[name].append((time.monotonic() - began, resident(pid) / 2**20))
            await asyncio.sleep(_BETWEEN)
        await asyncio.gather(*clients)

    with Probe(server.port) as probe:
        asyncio.run(attack())
    back = settling(server.is_idle, 20)
    work = server.open_work()
    growth = {name: round(slope(samples), 2) for name, samples in memory.items()}
    sizes = {name: [round(samples[0][1]), round(samples[-1][1])] for name, samples in memory.items()}
    figure(ATTACK, "seconds, requests", f"{seconds}, {sum(seen.values())}")
    figure(ATTACK, "what became of them", dict(seen.most_common()))
    figure(ATTACK, "answers p50, p99, s", [round(part_of(times, share), 3) for share in (0.5, 0.99)])
    figure(ATTACK, "memory, MB: first, last; growth a minute", f"{sizes}, {growth}")
    tenths = {name: [round(samples[len(samples) * i // 10][1]) for i in range(10)] for name, samples in memory.items()}
    peaks = {name: round(peak(pid)) for name, pid in processes.items()}
    figure(ATTACK, "memory at each tenth; at most", f"{tenths}; {peaks}")
    figure(ATTACK, "held afterwards", work)
    figure(ATTACK, "/health meanwhile", probe.seen)
    costliest, collected = server.watched()
    figure(ATTACK, "costliest on the loop, ms of processor", [(round(1000 * s), n) for s, n in costliest])
    figure(ATTACK, "objects left to collections, API", collected)
    assert not faults, f"{len(faults)}:\n" + "\n".join(faults[:10])
    assert not server.errors(), server.errors()[:5]
    assert back < 10 * PATIENCE and not any(work.values()), work
    assert collected < sum(seen.values()) / 20, "requests that hold themselves"
    for name, samples in memory.items():
        assert samples[-1][1] - samples[0][1] < 30 + seconds / 60, (name, samples[0], samples[-1])
        assert peaks[name] - samples[0][1] < _MAX_PEAK, (name, samples[0], peaks)
