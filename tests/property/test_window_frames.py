"""Windows on the scripted worker: any mix of requests, under any pressure, gives what it must; every row sees its
window, which the worker checks cell by cell."""

from __future__ import annotations

import random

import pytest
from engines import Bench, Guesser, program, toy_reference

from sglite.runtime.cache.frames import WindowSpec


def fewest(window: int, page_size: int) -> int:
    """Frames without which not even one request could run."""
    return -(-(window - 1) // page_size) + 3


@pytest.mark.parametrize("overlap", [False, True], ids=["sync", "overlap"])
@pytest.mark.parametrize("drafts", [False, True], ids=["plain", "drafts"])
@pytest.mark.parametrize("seed", range(40))
def test_random_programs_under_pressure(seed: int, overlap: bool, drafts: bool) -> None:
    rng = random.Random(seed)
    window, page_size = rng.choice([1, 2, 5, 9, 30]), rng.choice([1, 3, 4])
    bench = Bench(
        num_pages=rng.choice([40, 80, 200]),
        page_size=page_size,
        max_step_tokens=rng.choice([3, 8, 64]),
        max_running=rng.choice([1, 2, 5]),
        chunk_size=rng.choice([None, 1, 3]),
        overlap=overlap,
        window=WindowSpec(window, fewest(window, page_size) + rng.choice([0, 0, 3, 20])),
        proposer=Guesser(rng) if drafts else None,
        config={"radix_cache": rng.random() < 0.8},
    )
    wanted = {}
    for round_ in range(3):
        for i, prompt in enumerate(program(rng)):
            name, n = f"{round_}.{i}", rng.randrange(0, 9)
            if len(prompt) + n > bench.core.capacity:
                continue
            bench.add(name, prompt, n, priority=rng.randrange(-1, 2))
            wanted[name] = toy_reference(prompt, n)
            for _ in range(rng.randrange(4)):
                bench.step()
        bench.run()
    assert {name: done.tokens for name, done in bench.done.items()} == wanted
