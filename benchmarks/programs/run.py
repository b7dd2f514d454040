"""The examples beside the same work without programs: ``make bench-programs``.

Each of the twelve runs, in turns, in one run of this command, on servers of this machine:

    program      the example, through ``RuntimeEndpoint``
    sequential   its requests as plain ``POST /generate`` with text prompts, one after the other, to the same server
    concurrent   the same calls, all at once that do not wait for another
    cache off    the example, on a server with ``disable_radix_cache``

Every turn starts with an empty cache. Times are medians over the repetitions; counters are the servers' own. The
clients of ``sequential`` and ``concurrent`` are given their prompts: they need no time to make them.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx

import sglite as sgl
from benchmarks.programs.work import Recorder, Request
from examples.pictures import EXAMPLES

DOCS = Path(__file__).parent.parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- bench-programs: begin -->", "<!-- bench-programs: end -->"
MODES = ("program", "sequential", "concurrent", "cache off")
SIZES: dict[str, dict[str, int]] = {
    "few_shot_mmlu": {"subjects": 4, "questions": 8, "shots": 15},
    "few_shot_hellaswag": {"n": 12, "shots": 25},
    "react_agent": {"steps": 6, "thought": 16},
    "generative_agents": {"people": 8, "events": 5, "length": 12},
    "tree_of_thought": {"depth": 3, "width": 3, "keep": 9, "length": 12},
    "skeleton_of_thought": {"least": 8, "most": 8, "length": 24},
    "llm_judge": {"essays": 2, "length": 500, "dimensions": 8},
    "json_decoding": {"names": 8},
    "multi_turn_chat": {"users": 8, "turns": 4, "words": 40, "length": 16},
    "rag_pipeline": {"questions": 4, "k": 4, "length": 24},
    "map_reduce_summarise": {"parts": 12, "words": 60, "length": 24},
    "tool_agent": {"questions": 3, "length": 48},
}


@dataclass
class Measured:
    """One example in one mode: seconds of every repetition, and what the server counted in the last."""

    seconds: list[float] = field(default_factory=list)
    calls: int = 0
    computed: int = 0
    steps: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Server:
    """A server of one's own, and what it has counted."""

    def __init__(self, **arguments: Any) -> None:
        self.runtime = sgl.Runtime(num_threads=1, **arguments)
        self.http = httpx.Client(base_url=self.runtime.url, timeout=600)

    def info(self) -> dict[str, Any]:
        """Its counters, once it has nothing to do."""
        while True:
            info: dict[str, Any] = self.http.get("/server_info").json()
            if not (info["num_running"] or info["num_waiting"] or info["open_sequences"]):
                return info
            time.sleep(0.005)

    def measure(self, found: Measured, work: Callable[[], Any]) -> None:
        """One turn of ``work``, with an empty cache."""
        self.info()
        self.http.post("/flush_cache").raise_for_status()
        before = self.info()
        started = time.perf_counter()
        work()
        found.seconds.append(time.perf_counter() - started)
        after = self.info()
        found.computed = after["totals"]["computed_prompt_tokens"] - before["totals"]["computed_prompt_tokens"]
        found.steps = after["num_steps"] - before["num_steps"]
        found.calls = _calls(after) - _calls(before)

    def close(self) -> None:
        self.http.close()
        self.runtime.shutdown()


def _calls(info: dict[str, Any]) -> int:
    """HTTP requests so far, without those of this benchmark itself."""
    return sum(count for path, count in info["http_requests"].items() if path not in ("/server_info", "/flush_cache"))


def run_program(example: Any, backend: Any, sizes: dict[str, int]) -> None:
    """Runs an example to the end of all its programs."""
    for state in example.run(backend, **sizes):
        state.run.finished.result(600)
        error = state.error()
        if error is not None:
            raise error


def send_in_order(url: str, requests: list[Request]) -> None:
    """Every call after the one before it, over one connection."""
    with httpx.Client(base_url=url, timeout=600) as http:
        for request in requests:
            for body in request.bodies:
                http.post("/generate", json=body).raise_for_status()


async def send_in_waves(url: str, requests: list[Request]) -> None:
    """All calls at once that do not wait for another; as many connections as calls."""
    limits = httpx.Limits(max_connections=256, max_keepalive_connections=256)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:

        async def send(body: dict[str, Any]) -> None:
            (await http.post("/generate", json=body)).raise_for_status()

        for _, wave in groupby(sorted(requests, key=lambda r: r.wave), key=lambda r: r.wave):
            await asyncio.gather(*(send(body) for request in wave for body in request.bodies))


def measure(name: str, sizes: dict[str, int], repeat: int, servers: tuple[Server, Server]) -> dict[str, Measured]:
    """One example in all modes, in turns; the first turn of each is not counted."""
    example = importlib.import_module(f"examples.{name}")
    with sgl.Engine(num_threads=1, show_progress=False) as engine:
        recorder = Recorder(engine)
        run_program(example, recorder, sizes)
    requests, (cached, uncached) = recorder.requests, servers
    url = cached.runtime.url
    work: dict[str, tuple[Server, Callable[[], Any]]] = {
        "program": (cached, lambda: run_program(example, cached.runtime, sizes)),
        "sequential": (cached, lambda: send_in_order(url, requests)),
        "concurrent": (cached, lambda: asyncio.run(send_in_waves(url, requests))),
        "cache off": (uncached, lambda: run_program(example, uncached.runtime, sizes)),
    }
    found = {mode: Measured() for mode in MODES}
    for _ in range(repeat + 1):
        for mode, (server, doing) in work.items():
            server.measure(found[mode], doing)
    for mode in MODES:
        del found[mode].seconds[0]
    return found


def row(name: str, found: dict[str, Measured]) -> str:
    """A line of the table."""
    base = found["program"].median
    times = [f"{base:.2f} s", *(f"{found[mode].median / base:.1f}x" for mode in MODES[1:])]
    cells = [f"{getattr(found[mode], what):,}" for what in ("calls", "computed", "steps") for mode in MODES]
    counts = [" / ".join(cells[i : i + len(MODES)]) for i in range(0, len(cells), len(MODES))]
    return f"| `{name}` | {' | '.join([*times, *counts])} |"


HEAD = """\
| example | program | sequential | concurrent | cache off | HTTP requests | prompt tokens computed | steps |
|---|---:|---:|---:|---:|---:|---:|---:|"""


def host(repeat: int, quick: bool) -> str:
    """What the numbers were taken on."""
    sizes = "small sizes" if quick else "the sizes of `benchmarks/programs/run.py`"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, sglite {sgl.__version__}, "
        f"bundled model, one thread a server; medians of {repeat}; {sizes}. Load averages at the end: {load}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the examples' own small sizes, one repetition")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions, the first of which is one more")
    parser.add_argument("--only", nargs="*", default=list(EXAMPLES), choices=EXAMPLES, help="some examples")
    parser.add_argument("--json", type=Path, help="also write seconds and counters there")
    parser.add_argument("--docs", action="store_true", help="put the table into docs/benchmarks.md")
    given = parser.parse_args()
    repeat = 1 if given.quick else given.repeat
    servers = Server(), Server(disable_radix_cache=True)
    lines, raw = [HEAD], {}
    try:
        print(HEAD)
        for name in given.only:
            found = measure(name, {} if given.quick else SIZES[name], repeat, servers)
            raw[name] = {mode: vars(one) for mode, one in found.items()}
            lines.append(row(name, found))
            print(lines[-1], flush=True)
    finally:
        for server in servers:
            server.close()
    lines += ["", host(repeat, given.quick)]
    print(lines[-1])
    if given.json is not None:
        given.json.write_text(json.dumps(raw, indent=1), encoding="utf-8")
    if given.docs:
        before, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
        text = "\n".join([before + BEGIN, *lines, END]) + rest.partition(END)[2]
        DOCS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
