"""Prints what a request costs the thread of a program's loop, in seconds: the least median of some rounds of a hundred,
each on an engine of its own, for a sequence of each length given.

    python tests/request_cost.py FOLDER 20 8000

A process of its own, as what other tests have left in memory is none of that cost.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from sequence_engines import ScriptedEngine, scripted_engine

from sglite.lang.backends.base import GenCall
from sglite.lang.backends.engine_stream import EngineStream
from sglite.lang.ir import Sampling

ROUNDS, REQUESTS = 4, 100


async def times(engine: ScriptedEngine, length: int) -> list[float]:
    """Of requests for one token, after a piece of text each, on a sequence that begins with ``length`` tokens."""
    sequence = engine.open_sequence("program", [50] * length)
    assert engine.tokenizer is not None
    stream, found = EngineStream(engine, engine.tokenizer, "program", sequence, length), []
    for _ in range(REQUESTS):
        started = time.thread_time()
        stream.append("a")
        async for _ in stream.generate(GenCall(name=None, sampling=Sampling(max_new_tokens=1, ignore_eos=True))):
            pass
        found.append(time.thread_time() - started)
    await stream.aclose()
    return found


def main() -> None:
    folder, lengths = Path(sys.argv[1]), [int(length) for length in sys.argv[2:]]
    for length in lengths:
        medians = []
        for _ in range(ROUNDS):
            with scripted_engine(folder, context_length=10_000, max_total_tokens=20_000) as engine:
                medians.append(sorted(asyncio.run(times(engine, length)))[REQUESTS // 2])
        print(min(medians))


if __name__ == "__main__":
    main()
