"""What a request costs in the server itself, and what of the engine's speed arrives at clients.

    python -m benchmarks.server.overhead [scripted] [model] [--rate 50] [--step-ms 0 5] [--route chat generate]

``scripted``: answers of 16 tokens, as streams and whole, and of one, from a server whose steps compute nothing, begun
at a fixed rate whether or not earlier ones have ended. Processor time is that of the processes as the system counts it:
the median of parts of two seconds and, as other work on the machine only adds to it, the least. ``model``: the bundled
model, so many streams at once through a server and in this process, in turns. Clients are bare sockets.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_READY = re.compile(r"sglite is ready at http://([\d.]+):(\d+)")
_TEXT = "Which planet is the largest of the solar system, and how many moons has it? Answer in a few words."
_TOKENS = 16
_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "generate": "/generate"}
_WARM_UP = 100
_PART_SECONDS = 2.0
_SHAPES = ((_TOKENS, True), (_TOKENS, False), (1, True))
"""Tokens of an answer, and whether it is a stream."""


@dataclass
class Reply:
    """One streamed answer: seconds to its first text and to its end, events with text, tokens as the server says."""

    first_s: float = 0.0
    whole_s: float = 0.0
    events: int = 0
    tokens: int = 0


@dataclass
class Server:
    """A running server, and connections to it that are open and free."""

    host: str
    port: int
    pid: int
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    def cpu(self) -> tuple[float, float]:
        """Processor seconds of the server's process and of its engine's."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        children = [child for task in tasks for child in (task / "children").read_text().split()]
        return _cpu(self.pid), sum(_cpu(int(child)) for child in children)

    async def ask(self, path: str, body: bytes) -> Reply:
        """Send a request and read the answer to its end."""
        reader, writer = self.idle.pop() if self.idle else await asyncio.open_connection(self.host, self.port)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        start = time.perf_counter()
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        status = await reader.readuntil(b"\r\n\r\n")
        assert status.startswith(b"HTTP/1.1 200"), status + await reader.read(2000)
        reply = Reply()
        async for chunk in _chunks(reader, status.lower()):
            texts = chunk.count(b'"content":"') + chunk.count(b'"text":"') - chunk.count(b'"content":""')
            if texts and not reply.events:
                reply.first_s = time.perf_counter() - start
            reply.events += texts
            if b'"completion_tokens":' in chunk:
                reply.tokens = int(re.split(b"[,}]", chunk.rpartition(b'"completion_tokens":')[2])[0])
        reply.whole_s = time.perf_counter() - start
        self.idle.append((reader, writer))
        return reply


async def _chunks(reader: asyncio.StreamReader, head: bytes) -> AsyncIterator[bytes]:
    """The body in the pieces that it was written in."""
    if b"content-length: " in head:
        yield await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r")[0]))
        return
    while size := int(await reader.readline(), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readline()


def _cpu(pid: int) -> float:
    """Processor seconds of a process: its threads' time as the scheduler counts it, which is exact."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


@contextlib.contextmanager
def served(*command: str) -> Iterator[Server]:
    """The server that ``python -m`` ``command`` starts."""
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := _READY.search(line):
                yield Server(found[1], int(found[2]), process.pid)
                return
        raise RuntimeError(f"{' '.join(command)} did not start")
    finally:
        process.terminate()
        process.wait(30)


def body_of(route: str, number: int, tokens: int, stream: bool = True) -> bytes:
    """A request for so many tokens; no two have the same prompt."""
    text = f"{number}: {_TEXT}"
    if route == "generate":
        sampling = {"max_new_tokens": tokens, "ignore_eos": True}
        return json.dumps({"text": text, "sampling_params": sampling, "stream": stream}).encode()
    prompt: dict[str, Any] = {"messages": [{"role": "user", "content": text}]} if route == "chat" else {"prompt": text}
    fields: dict[str, Any] = {"model": "default", "ignore_eos": True, "temperature": 0, "max_tokens": tokens}
    streamed = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    return json.dumps({**prompt, **fields, **streamed}).encode()


async def open_loop(server: Server, route: str, rate: float, count: int, shape: tuple[int, bool]) -> list[Reply]:
    """``count`` requests, one every ``1 / rate`` seconds."""
    loop = asyncio.get_running_loop()
    begin, tasks = loop.time(), []
    for number in range(count):
        await asyncio.sleep(begin + number / rate - loop.time())
        tasks.append(asyncio.ensure_future(server.ask(_PATHS[route], body_of(route, number, *shape))))
    return list(await asyncio.gather(*tasks))


def scripted(route: str, rate: float, seconds: float, step_ms: float) -> Iterator[str]:
    """Rows of the table, one a shape."""
    with served("benchmarks.server.scripted", "serve", "--step-ms", str(step_ms)) as server:

        async def measure(shape: tuple[int, bool]) -> tuple[list[Reply], list[tuple[float, float]]]:
            replies, costs = [], []
            await open_loop(server, route, rate, _WARM_UP, shape)
            for _ in range(max(1, int(seconds / _PART_SECONDS))):
                api, engine = server.cpu()
                part = await open_loop(server, route, rate, int(rate * _PART_SECONDS), shape)
                api_after, engine_after = server.cpu()
                costs.append(((api_after - api) / len(part), (engine_after - engine) / len(part)))
                replies += part
            server.idle.clear()  # they belong to this loop
            return replies, costs

        for shape in _SHAPES:
            name = f"{route}, {shape[0]} {'streamed' if shape[1] else 'whole'}, {step_ms:g} ms a step"
            yield _row(name, *asyncio.run(measure(shape)))


def _row(name: str, replies: list[Reply], costs: list[tuple[float, float]]) -> str:
    firsts = sorted(reply.first_s * 1000 for reply in replies)
    p50, p99 = statistics.median(firsts), firsts[int(len(firsts) * 0.99)]
    whole = statistics.median(reply.whole_s for reply in replies) * 1000
    shown = " | ".join(
        f"{1000 * statistics.median(of):.2f}, {1000 * min(of):.2f} ms" for of in zip(*costs, strict=True)
    )
    events = sum(reply.events for reply in replies) / len(replies)
    return f"| {name} | {p50:.2f} ms | {p99:.2f} ms | {whole:.1f} ms | {shown} | {events:.1f} |"


def throughput(route: str, streams: int, tokens: int, rounds: int, model: str | None) -> str:
    """Tokens a second of a model, and processor time a token: so many streams through a server, and one batch in this
    process."""
    import sglite

    room = streams * (tokens + 256)
    command = ("sglite", "serve", *([model] if model else []), "--port", "0", "--num-threads", "1")
    command += ("--max-total-tokens", str(room))
    here_too = sglite.Engine(model, num_threads=1, max_total_tokens=room, show_progress=False)
    with served(*command) as server, here_too as engine:
        template = engine.chat_template
        sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}

        async def through(first: int) -> None:
            bodies = [body_of(route, first + at, tokens) for at in range(streams)]
            for reply in await asyncio.gather(*(server.ask(_PATHS[route], body) for body in bodies)):
                assert reply.tokens in (0, tokens), reply

        def here(first: int) -> None:
            texts = [f"{first + at}: {_TEXT}" for at in range(streams)]
            if route == "chat":
                assert template is not None, "this model has none: give --route generate"
                texts = [template.render([{"role": "user", "content": text}]) for text in texts]
            engine.generate(texts, sampling)

        async def measure() -> list[tuple[float, ...]]:
            found: list[tuple[float, ...]] = []
            for number in range(rounds + 1):
                begin, api, apart = time.perf_counter(), *server.cpu()
                await through(number * streams)
                middle, api_after, apart_after = time.perf_counter(), *server.cpu()
                own = time.process_time()
                here(number * streams)
                costs = (api_after - api, apart_after - apart, time.process_time() - own)
                found.append((middle - begin, time.perf_counter() - middle, *costs))
            return found[1:]

        turns = asyncio.run(measure())
    medians = [statistics.median(column) for column in zip(*turns, strict=True)]
    ratio = statistics.median(turn[1] / turn[0] for turn in turns)
    total = streams * tokens
    costs = " | ".join(f"{1e6 * cost / total:.0f} us" for cost in medians[2:])
    rates = f"{total / medians[0]:,.0f} | {total / medians[1]:,.0f} | {ratio:.2f}"
    return f"| {route}, {streams} streams | {rates} | {costs} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", choices=["scripted", "model"], help="one of the two parts; default: both")
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--step-ms", type=float, nargs="+", default=[0.0, 5.0])
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", help="of the second part; default: the bundled one")
    parser.add_argument("--tokens", type=int, default=128, help="of each of its streams")
    parser.add_argument("--route", nargs="+", default=["chat"], choices=sorted(_PATHS))
    given = parser.parse_args()
    if given.what != "model":
        print("| | first text p50 | p99 | whole p50 | server, a request | engine, a request | events |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for route in given.route:
            for step_ms in given.step_ms:
                for row in scripted(route, given.rate, given.seconds, step_ms):
                    print(row, flush=True)
    if given.what != "scripted":
        print("| | tokens/s through the server | here | ratio | server, a token | its engine | engine here |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for route in given.route:
            print(throughput(route, given.streams, given.tokens, given.rounds, given.model), flush=True)
    print("load averages:", ", ".join(f"{load:.1f}" for load in os.getloadavg()))


if __name__ == "__main__":
    main()
