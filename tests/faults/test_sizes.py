"""Bodies and prompts that are far too large: refused at once, and nobody waits for that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.probe import Probe
from faults.scale import PATIENCE, figure
from faults.servers import Server, resident, settles
from faults.shapes import is_error
from faults.wire import call

ATTACK = "huge requests"
_MB = 2**20
MANY = 5.0
"""Seconds for what is millions of values, of which the body has to be read before anything else."""
OF_MANY = ("20 MB lists", "20 MB turns", "20 MB fields")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """A small context."""
    server = Server(folder, "--context-length", "512", "--max-total-tokens", "8192")
    yield server
    server.close()


def _prompts(text: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """The text, as a prompt of each route."""
    talk, turn = [{"role": "user", "content": text}], [{"role": "user", "content": text[:100]}]
    return {
        "chat": ("/v1/chat/completions", {"messages": talk}),
        "many turns": ("/v1/chat/completions", {"messages": turn * (len(text) // 100)}),
        "completions": ("/v1/completions", {"prompt": text}),
        "responses": ("/v1/responses", {"input": text}),
        "messages": ("/v1/messages", {"model": "default", "max_tokens": 9, "messages": talk}),
        "ollama chat": ("/api/chat", {"model": "default", "messages": talk}),
        "ollama generate": ("/api/generate", {"model": "default", "prompt": text}),
        "generate": ("/generate", {"text": text}),
        "ids": ("/generate", {"input_ids": [41] * (len(text) // 4)}),
        "batch": ("/generate", {"text": [text[:1000]] * max(1, len(text) // 1000)}),
        "program": ("/program", {"version": 1, "program": "p", "nodes": [
            {"op": "open", "seq": "0"}, {"op": "extend", "seq": "0", "text": text},
            {"op": "generate", "seq": "0", "id": "a", "sampling_params": {"max_new_tokens": 2}},
            {"op": "close", "seq": "0"}]}),
        "tool": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "tools": [
            {"type": "function", "function": {"name": "f", "description": text, "parameters": {}}}]}),
    }  # fmt: skip


def _bodies() -> dict[str, tuple[str, bytes]]:
    """20 MB and more of other things."""
    many = b",".join([b'{"role": "user", "content": "x"}'] * 600_000)
    return {
        "numbers": ("/generate", b'{"input_ids": [' + b",".join([b"41"] * 6_000_000) + b"]}"),
        "lists": ("/generate", b'{"input_ids": [' + b",".join([b"[41]"] * 4_000_000) + b"]}"),
        "turns": ("/v1/chat/completions", b'{"messages": [' + many + b"]}"),
        "fields": ("/v1/chat/completions", b"{" + b",".join(b'"f%d": 1' % i for i in range(1_500_000)) + b"}"),
        "one number": ("/generate", b'{"text": ' + b"9" * (20 * _MB) + b"}"),
        "deep": ("/generate", b'{"text": ' + b"[" * (20 * _MB)),
        "spaces": ("/v1/messages", b"{" + b" " * (20 * _MB) + b"}"),
        "schema": ("/generate", b'{"text": "x", "sampling_params": {"json_schema": "' + b"{" * (20 * _MB) + b'"}}'),
        "tokenize": ("/tokenize", json.dumps({"prompt": "word " * (4 * _MB)}).encode()),
        "too large": ("/generate", b'{"text": "' + b"x" * (40 * _MB) + b'"}'),
        "parse": ("/parse_function_call", json.dumps({"text": "<tool_call>" * (2 * _MB), "tools": []}).encode()),
        "reasoning": ("/separate_reasoning", json.dumps({"text": "<think></think>" * _MB}).encode()),
    }  # fmt: skip


async def attack(port: int) -> list[tuple[str, str, int, float, bytes]]:
    """What became of each: name, path, status, seconds, answer."""
    work = [(f"10x {name}", path, json.dumps(body).encode()) for name, (path, body) in _prompts("word " * 5120).items()]
    work += [
        (f"20 MB {name}", path, json.dumps(body).encode()) for name, (path, body) in _prompts("word " * 4 * _MB).items()
    ]
    work += [(f"20 MB {name}", path, body) for name, (path, body) in _bodies().items()]
    found = []
    for name, path, body in work:
        reply = await call(port, "POST", path, body, timeout=120)
        found.append((name, path, reply.status, reply.seconds, reply.body))
    return found


def test_what_is_too_large_is_refused_at_once(server: Server) -> None:
    memory = resident(server.pid)
    server.costliest()
    with Probe(server.port) as probe:
        found = asyncio.run(attack(server.port))
    slow = sorted(((round(seconds, 2), name, status) for name, _, status, seconds, _ in found), reverse=True)
    figure(ATTACK, "slowest", slow[:8])
    figure(ATTACK, "/health meanwhile", probe.seen)
    figure(ATTACK, "costliest on the loop, ms of processor", [(round(1000 * s), n) for s, n in server.costliest()])
    figure(ATTACK, "API's memory grew by, MB", (resident(server.pid) - memory) >> 20)
    allowed = {"20 MB parse": 200, "20 MB reasoning": 200, "10x program": 200, "20 MB program": 200}
    for name, path, status, _, body in found:
        assert status in (400, 413, allowed.get(name, 400)), (name, status, body[:300])
        assert status == 200 or is_error(path, json.loads(body)), (name, body[:300])
    assert not server.errors(), server.errors()[:5]
    assert settles(server.is_idle, 10), server.open_work()
    late = [(seconds, name) for seconds, name, _ in slow if seconds > (MANY if name in OF_MANY else 1.0) * PATIENCE]
    assert not late
