"""Bodies that nobody should send: each is answered, with a reason where it is refused, and none does any harm."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.bodies import BODIES, spoiled
from faults.probe import Probe
from faults.scale import FULL, PATIENCE, figure, sized
from faults.servers import Server, settles
from faults.shapes import wrong_with
from faults.wire import Connection, Reply, part_of

ATTACK = "fuzzed bodies"
_AT_ONCE = 4
ADMIN_KEY = "opens everything"
KEYED = (("Content-Type", "application/json"), ("x-api-key", ADMIN_KEY))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """Its admin routes are open."""
    flags = ("--context-length", "256", "--max-total-tokens", "16384", "--admin-key", ADMIN_KEY)
    server = Server(folder, *flags)
    yield server
    server.close()


def paths_of(server: Server) -> list[str]:
    """Every path that takes a POST, parameters filled in."""
    found = server.http.get("/openapi.json").json()["paths"]
    return [path.replace("{name}", "x").replace("{digest}", "sha256:00") for path in found if "post" in found[path]]


async def attack(port: int, paths: list[str], count: int, seed: int) -> tuple[list[Reply], list[str]]:
    """``count`` spoiled bodies; the answers, and what was wrong with any of them."""
    rng = random.Random(seed)
    work = [(path, spoiled(rng, rng.choice(BODIES.get(path, [{}])))) for path in rng.choices(paths, k=count)]
    work.reverse()
    replies: list[Reply] = []
    faults: list[str] = []

    async def worker() -> None:
        connection = Connection(port)
        while work:
            path, body = work.pop()
            reply = await connection.call("POST", path, body, headers=KEYED)
            if path == "/pause_generation" and reply.status == 200:
                await connection.call("POST", "/continue_generation", {}, headers=KEYED)
            replies.append(reply)
            fault = wrong_with(path, reply)
            if fault is not None:
                faults.append(f"POST {path} {body[:600]!r} -> {fault}")
        connection.close()

    await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))
    return replies, faults


def test_spoiled_bodies_are_answered(server: Server) -> None:
    paths = paths_of(server)
    assert len(paths) > 40
    count = sized(10_000, 50_000)
    server.costliest()
    began = time.monotonic()
    with Probe(server.port) as probe:
        replies, faults = asyncio.run(attack(server.port, paths, count, seed=5))
    took = time.monotonic() - began
    refused = [reply.seconds for reply in replies if 400 <= reply.status < 500]
    figure(ATTACK, "bodies, seconds", f"{count}, {took:.0f}")
    figure(ATTACK, "statuses", dict(sorted(Counter(reply.status for reply in replies).items())))
    figure(ATTACK, "refusals: p50, p99, worst ms", [round(1000 * part_of(refused, q), 1) for q in (0.5, 0.99, 1)])
    figure(ATTACK, "/health meanwhile", probe.seen)
    figure(ATTACK, "costliest on the loop, ms of processor", [(round(1000 * s), n) for s, n in server.costliest()])
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults[:10])
    assert not server.errors(), server.errors()[:5]
    assert settles(server.is_idle, 20 * PATIENCE), server.open_work()


def test_schemathesis_finds_nothing(server: Server, tmp_path: Path) -> None:
    """Requests made from ``/openapi.json``: no answer is a 5xx (501 aside) and each fits the description."""
    program = shutil.which("schemathesis") or shutil.which("st")
    if program is None:
        pytest.skip("schemathesis is not on the PATH; install it in an environment of its own")
    config = tmp_path / "schemathesis.toml"
    config.write_text("[checks]\n")
    command = [
        program, "run", f"{server.url}/openapi.json", "--checks", "not_a_server_error,response_schema_conformance",
        "--max-examples", str(sized(4, 40)), "--seed", "7", "--workers", "2", "--phases", "fuzzing",
        "--exclude-path-regex", "^/(api/(embed|pull|push|create|copy|delete|blobs)|v1/embeddings|pause_generation)",
        "--header", f"x-api-key: {ADMIN_KEY}", "--no-color",
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1800 if FULL else 500, cwd=tmp_path)
    figure(ATTACK, "schemathesis", [line.strip() for line in ended.stdout.splitlines() if "generated" in line])
    assert ended.returncode == 0, ended.stdout[-6000:]
    assert settles(server.is_idle, 20 * PATIENCE), server.open_work()
