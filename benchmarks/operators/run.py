"""Lab reports for operators: a server, a load that moves one thing, and what its metrics say of it.

    python benchmarks/operators/run.py [cache] [queue] [schema] [chunk]

Prints one table a lab. Counters come first: they are the same in every run; times are medians of this machine, whatever
else it does. ``docs/operators.md`` says what to read from them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import httpx

_READY = re.compile(r"sglite is ready at (http://\S+)")


class Lab:
    """A running server. ``grown``: what a counter has grown by since the last ``mark``."""

    def __init__(self, url: str) -> None:
        self.client = httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None))
        self._before: dict[str, float] = {}

    async def metrics(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for line in (await self.client.get("/metrics")).text.splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                short = name.removeprefix("sglite:").replace('{model_name="sglite-demo"}', "")
                found[re.sub(r'model_name="[^"]*",?', "", short)] = float(value)
        return found

    async def mark(self) -> None:
        """From here on, once the engine's own numbers have settled."""
        await asyncio.sleep(0.6)
        self._before = await self.metrics()

    async def grown(self) -> dict[str, float]:
        """Counters since ``mark``, once the engine's own have settled."""
        await asyncio.sleep(0.6)
        return {name: value - self._before.get(name, 0.0) for name, value in (await self.metrics()).items()}

    async def post(self, body: dict[str, Any]) -> int:
        """The status: 200, or 429 where there was no room."""
        reply = await self.client.post("/generate", json=body)
        assert reply.status_code in (200, 429), reply.text
        return reply.status_code


def mean(grown: dict[str, float], name: str) -> float:
    """Milliseconds of a histogram, over what has been observed since."""
    return 1000 * grown[f"{name}_sum"] / max(1.0, grown[f"{name}_count"])


@contextlib.contextmanager
def served(*flags: str) -> Iterator[str]:
    """A server of the bundled model on a free port, one thread."""
    command = [sys.executable, "-m", "sglite", "serve", "--port", "0", "--num-threads", "1", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := _READY.search(line):
                yield found[1]
                return
        raise RuntimeError(f"{' '.join(command)} did not start")
    finally:
        process.terminate()
        process.wait(30)


@contextlib.asynccontextmanager
async def lab(*flags: str) -> AsyncIterator[Lab]:
    with served(*flags) as url:
        one = Lab(url)
        async with one.client:
            await one.post({"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 4}})  # the first step is slow
            yield one


def table(head: list[str], rows: list[list[Any]]) -> None:
    print("| " + " | ".join(head) + " |\n|" + "---:|" * len(head))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)


async def cache_lab() -> None:
    """Prompts of 1,024 tokens that share their beginning, one after the other."""
    rows = []
    async with lab() as one:
        for at, shared in enumerate((0, 256, 512, 768, 992)):
            await one.client.post("/flush_cache")
            begin = [300 * at + i % 293 for i in range(shared)]
            runs = [begin + [2000 + n] + [2500 + i % 900 for i in range(1023 - shared)] for n in range(21)]
            await one.post({"input_ids": runs[0], "sampling_params": {"max_new_tokens": 1}})
            await one.mark()
            for ids in runs[1:]:
                await one.post({"input_ids": ids, "sampling_params": {"max_new_tokens": 1}})
            grown = await one.grown()
            rate = grown["cached_tokens_total"] / grown["prompt_tokens_total"]
            computed = int(grown["computed_tokens_total"])
            rows.append([shared, f"{rate:.3f}", f"{computed:,}", f"{mean(grown, 'time_to_first_token_seconds'):.0f}"])
    table(["shared tokens", "hit rate", "`computed_tokens`", "mean TTFT, ms"], rows)


async def queue_lab() -> None:
    """200 requests of 32 + 32 tokens at once, 8 running, by the length of the queue."""
    rows = []
    for queue in (32, 128, 512):
        async with lab("--max-running-requests", "8", "--max-queued-requests", str(queue)) as one:
            bodies = [
                {"input_ids": [n] * 32, "sampling_params": {"max_new_tokens": 32, "ignore_eos": True}}
                for n in range(10, 210)
            ]
            await one.mark()
            started = time.perf_counter()
            codes = await asyncio.gather(*map(one.post, bodies))
            took = time.perf_counter() - started
            grown = await one.grown()
            answered = codes.count(200)
            waits = mean(grown, "queue_time_seconds"), mean(grown, "e2e_request_latency_seconds")
            rows.append(
                [queue, answered, codes.count(429), *(f"{wait:,.0f}" for wait in waits), f"{answered / took:.1f}"]
            )
            assert codes.count(429) == grown.get('http_refused_total{reason="overloaded"}', 0)
    table(["queue", "200", "429", "mean queue, ms", "mean e2e, ms", "answered a second"], rows)


def schema_of(properties: int, tag: int) -> str:
    fields = {f"field_{tag}_{i}": {"enum": [f"v{i}", f"w{i}"]} for i in range(properties)}
    return json.dumps({"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False})


async def schema_lab() -> None:
    """New schemas of growing size, then the same ones again."""
    rows = []
    async with lab() as one:
        await one.post({"input_ids": [1], "sampling_params": {"max_new_tokens": 64, "json_schema": schema_of(1, 99)}})
        for size in (1, 10, 40):
            for name in ("new", "again"):
                await one.mark()
                for tag in range(8):
                    sampling = {"max_new_tokens": 900, "json_schema": schema_of(size, tag), "temperature": 0}
                    await one.post({"input_ids": [5, 6, 7], "sampling_params": sampling})
                grown = await one.grown()
                compiled = grown["grammar_compilation_time_seconds_count"]
                spent = 1000 * grown["grammar_compilation_time_seconds_sum"] / max(1.0, compiled)
                shares = grown["forced_tokens_total"] / grown["generation_tokens_total"]
                ttft = mean(grown, "time_to_first_token_seconds")
                counts = int(compiled), int(grown["num_grammar_cache_hit_total"])
                rows.append([size, name, *counts, f"{spent:.1f}", f"{ttft:.0f}", f"{shares:.2f}"])
    head = ["properties", "schemas", "compiled", "hits", "mean compile, ms", "mean TTFT, ms", "forced share"]
    table(head, rows)


async def chunk_lab() -> None:
    """Four streams decode while prompts of 1,536 new tokens come in, by the size of a chunk; best of three."""
    rows = []
    for chunk in (64, 256, 1024, 2048):
        async with lab("--chunked-prefill-size", str(chunk)) as one:
            rounds = [await chunk_round(one, at) for at in range(3)]
        passes, *times = zip(*rounds, strict=True)
        assert len(set(passes)) == 1
        rows.append([chunk, f"{passes[0]:g}", *(f"{min(values):,.0f}" for values in times)])
    head = ["chunk", "passes a long prompt", "median gap, ms", "99th percentile, ms", "TTFT of the long ones, ms"]
    table(head, rows)


async def chunk_round(one: Lab, at: int) -> tuple[float, float, float, float]:
    """Passes of a long prompt, median and 99th percentile of the gaps of the streams, time of a long prompt; in ms."""
    decoding = {"max_new_tokens": 400, "ignore_eos": True}
    await one.mark()
    bodies = [{"input_ids": [n + 4 * at] * 8, "sampling_params": decoding} for n in range(4)]
    streams = [asyncio.create_task(gaps(one, body)) for body in bodies]
    await asyncio.sleep(0.3)
    first = []
    for n in range(8):
        long = [(31 * i + 977 * n + 59 * at) % 4000 for i in range(1536)]
        began = time.perf_counter()
        await one.post({"input_ids": long, "sampling_params": {"max_new_tokens": 1}})
        first.append(1000 * (time.perf_counter() - began))
    waits = sorted(1000 * wait for found in await asyncio.gather(*streams) for wait in found)
    grown = await one.grown()
    passes = (grown["forward_passes_total"] - 4 * 400) / len(first)
    return passes, waits[len(waits) // 2], waits[int(0.99 * len(waits))], statistics.median(first)


async def gaps(one: Lab, body: dict[str, Any]) -> list[float]:
    """Seconds between the events of a stream, but for the first."""
    found, last = [], None
    async with one.client.stream("POST", "/generate", json={**body, "stream": True}) as reply:
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                now = time.perf_counter()
                found += [] if last is None else [now - last]
                last = now
    return found


LABS: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
    "cache": cache_lab,
    "queue": queue_lab,
    "schema": schema_lab,
    "chunk": chunk_lab,
}


def main() -> None:
    for name in sys.argv[1:] or LABS:
        print(f"## {name}: {LABS[name].__doc__}\n", flush=True)
        asyncio.run(LABS[name]())


if __name__ == "__main__":
    main()
