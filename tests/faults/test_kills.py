"""Processes that are killed or told to stop while they work: whoever waits is told, once, and nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from faults.bodies import TALK
from faults.scale import PATIENCE, figure, sized
from faults.servers import Server, children, is_alive, settles, settling
from faults.wire import Reply, call

KILLED, STOPPED = "killed engine", "SIGTERM"
_SECONDS = 2.0
LONG = 1500


def asked(number: int, tokens: int = LONG) -> tuple[str, dict[str, Any]]:
    """A long request, of each API in turn, streamed or not."""
    prompt = f"Number {number}"
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("/generate", {"text": prompt, "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}}),
        ("/v1/completions", {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True}),
        ("/v1/chat/completions", {"messages": TALK, "max_tokens": tokens, "ignore_eos": True}),
        ("/v1/responses", {"input": prompt, "max_output_tokens": tokens}),
        ("/v1/messages", {"model": "default", "messages": TALK[1:], "max_tokens": tokens}),
        ("/api/generate", {"model": "default", "prompt": prompt, "options": {"num_predict": tokens}}),
    ]
    path, body = kinds[number % len(kinds)]
    return path, {**body, "stream": number // len(kinds) % 2 == 0}


def ends_of(path: str, reply: Reply) -> int:
    """Final events of a stream."""
    events = [event for event in reply.events() if isinstance(event, dict)]
    return sum(map(_is_end, events))


def _is_end(event: dict[str, Any]) -> bool:
    """Whether it is the one after which no other says anything about the answer."""
    if "error" in event and event["error"] is not None and "response" not in event:
        return True
    if event.get("type") in ("response.failed", "response.completed", "response.incomplete", "message_stop"):
        return True
    if event.get("done") or (event.get("meta_info") or {}).get("finish_reason"):
        return True
    return any(choice.get("finish_reason") for choice in event.get("choices", ()))


async def beside(port: int, count: int, tokens: int, act: Any) -> tuple[list[tuple[str, Reply, float]], float]:
    """Requests that are under way while ``act`` happens: path, answer, and when it came; when it happened."""

    async def one(number: int) -> tuple[str, Reply, float]:
        path, body = asked(number, tokens)
        reply = await call(port, "POST", path, body, timeout=60)
        return path, reply, time.monotonic()

    tasks = [asyncio.ensure_future(one(number)) for number in range(count)]
    at = await act(tasks)
    return await asyncio.gather(*tasks), at


async def at_work(server: Server) -> None:
    """Some of what was asked for is being computed."""
    end = time.monotonic() + 10
    while (await asyncio.to_thread(server.info))["num_running"] < 4:
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("seed", range(sized(2, 10)))
def test_whoever_waits_for_a_killed_engine_is_told(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    server = Server(folder, "--restart-engine", "--max-total-tokens", "32768", watch=False)
    try:
        for _ in range(2):
            _kill_once(server, rng)
    finally:
        pid = server.engine_pid
        assert server.close() == 0
    assert not is_alive(pid)


def _kill_once(server: Server, rng: random.Random) -> None:
    pid, seen = server.engine_pid, {}

    async def act(_: Any) -> float:
        await asyncio.sleep(rng.random() * 0.8)
        os.kill(pid, signal.SIGKILL)
        at = time.monotonic()
        while (await call(server.port, "GET", "/health")).status != 503 and time.monotonic() - at < 5:
            await asyncio.sleep(0.005)
        seen["health"] = time.monotonic() - at
        return at

    replies, at = asyncio.run(beside(server.port, 36, LONG, act))
    last = max(came - at for _, _, came in replies)
    back = settling(lambda: server.http.get("/health").status_code == 200, 60)
    figure(KILLED, "/health 503 after, last answer after, back after (load), s",
           f"{seen['health']:.2f}, {last:.2f}, {time.monotonic() - at:.1f} ({server.load_seconds:.1f})")  # fmt: skip
    figure(KILLED, "answers", dict(Counter(reply.status for _, reply, _ in replies)))
    assert seen["health"] < _SECONDS * PATIENCE and last < _SECONDS * PATIENCE
    assert back < (server.load_seconds + 5) * PATIENCE
    for path, reply, came in replies:
        if reply.status == 200 and reply.streamed:
            assert ends_of(path, reply) == 1, (path, reply.body[-600:])
        else:
            # What was computed before may be on its way yet.
            assert reply.status == 503 or (reply.status == 200 and came - at < 0.2), (
                path,
                reply.status,
                reply.body[-300:],
            )
    again = server.http.post("/generate", json={"text": "x", "sampling_params": {"max_new_tokens": 2}})
    assert again.status_code == 200 and server.engine_pid != pid
    assert settles(server.is_idle, 5), server.open_work()


def test_without_restarts_it_stays_down_and_says_why(folder: Path) -> None:
    server = Server(folder, watch=False)
    os.kill(server.engine_pid, signal.SIGKILL)
    assert settles(lambda: server.http.get("/health").status_code == 503, _SECONDS * PATIENCE)
    for number in range(12):
        path, body = asked(number)
        reply = server.http.post(path, json=body)
        assert reply.status_code == 503 and "SIGKILL" in reply.text, (path, reply.text)
    assert server.close() == 0


def test_what_has_begun_is_finished(folder: Path) -> None:
    """SIGTERM under load."""
    server = Server(folder, "--max-total-tokens", "32768", watch=False)
    pid, late = server.engine_pid, []

    async def act(tasks: list[Any]) -> float:
        await at_work(server)
        os.kill(server.pid, signal.SIGTERM)
        at = time.monotonic()
        await asyncio.sleep(0.1)
        while not all(task.done() for task in tasks):
            late.append(await call(server.port, "POST", "/generate", {"text": "late"}, timeout=5))
            await asyncio.sleep(0.05)
        return at

    replies, at = asyncio.run(beside(server.port, 24, 300, act))
    code = server.process.wait(20)
    statuses = Counter(reply.status for reply in late)
    figure(STOPPED, "under way, finished", f"{len(replies)}, {sum(reply.status == 200 for _, reply, _ in replies)}")
    figure(STOPPED, "late ones, statuses", dict(statuses))
    figure(STOPPED, "exit code, after s", f"{code}, {time.monotonic() - at:.1f}")
    assert all(reply.status == 200 for _, reply, _ in replies), [r.body[:200] for _, r, _ in replies if r.status != 200]
    assert all(ends_of(path, reply) == 1 for path, reply, _ in replies if reply.streamed)
    assert statuses[503] and set(statuses) <= {503, 0} and code == 0  # 0: the very last, when nobody listens any more
    assert not is_alive(pid)
    server.close()


def test_a_second_sigterm_ends_it_at_once(folder: Path) -> None:
    server = Server(folder, "--max-total-tokens", "32768", watch=False)
    pid = server.engine_pid

    async def act(_: Any) -> float:
        await at_work(server)
        os.kill(server.pid, signal.SIGTERM)
        await asyncio.sleep(0.2)
        os.kill(server.pid, signal.SIGTERM)
        return time.monotonic()

    _, at = asyncio.run(beside(server.port, 6, LONG, act))
    code = server.process.wait(5)
    took = time.monotonic() - at
    figure(STOPPED, "a second one: exit code, after s", f"{code}, {took:.2f}")
    assert code == 128 + signal.SIGTERM and took < 1 * PATIENCE
    assert settles(lambda: not is_alive(pid), _SECONDS)
    server.close()


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_server_takes_its_engine_along(folder: Path, busy: bool) -> None:
    server = Server(folder, watch=False)
    pids = children(server.pid)

    async def act(_: Any) -> float:
        await asyncio.sleep(0.4)
        os.kill(server.pid, signal.SIGKILL)
        return time.monotonic()

    _, at = asyncio.run(beside(server.port, 12 if busy else 0, LONG, act))
    assert settles(lambda: not any(map(is_alive, pids)), 5)
    figure("killed server", "engine gone after, s", round(time.monotonic() - at, 2))
    assert time.monotonic() - at < _SECONDS * PATIENCE
    with pytest.raises(httpx.HTTPError):
        server.http.get("/health")
    server.close()
