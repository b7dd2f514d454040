"""What several requests want scored at the same place is computed once."""

from __future__ import annotations

import random
from typing import Any

import pytest
from engines import Bench, toy_logprobs

from sglite.runtime.protocol import LogprobOptions

PROMPT = [3, 1, 4, 1, 0, 2, 2, 3, 4, 1, 3]


def choices_of(rng: random.Random) -> list[list[int]]:
    return [[rng.randrange(5) for _ in range(rng.randrange(1, 5))] for _ in range(rng.randrange(2, 6))]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("cached", [False, True])
def test_choices_compute_what_they_share_once(overlap: bool, page_size: int, cached: bool) -> None:
    choices = [[0, 1], [0, 2], [4], [3, 3, 3]]
    b = Bench(overlap=overlap, page_size=page_size)
    if cached:
        b.add("before", PROMPT, 0)
        b.run()
    for i, choice in enumerate(choices):
        b.add(f"c{i}", PROMPT + choice, 0, logprobs=LogprobOptions(start_len=len(PROMPT)))
    done = b.run()
    replayed = 0
    for i, choice in enumerate(choices):
        last = done[f"c{i}"].last
        assert last is not None
        assert done[f"c{i}"].prompt_logprobs == toy_logprobs(b.worker, PROMPT + choice, len(PROMPT))
        replayed += last.accounting.replayed_tokens
    assert replayed <= cached + 1  # the last position of a cached prompt, and the 0 that two choices begin with


@pytest.mark.parametrize("seed", range(60))
def test_random_choices_score_as_they_do_alone(seed: int) -> None:
    rng = random.Random(seed)
    options: dict[str, Any] = {
        "overlap": rng.random() < 0.5,
        "page_size": rng.choice([1, 2, 4, 8]),
        "max_step_tokens": rng.choice([4, 9, 200]),
        "chunk_size": rng.choice([None, 1, 5]),
    }
    b = Bench(**options)
    prompt = PROMPT[: rng.randrange(1, len(PROMPT))]
    choices, starts = choices_of(rng), []
    for i, choice in enumerate(choices):
        starts.append(rng.choice([len(prompt), len(prompt), 0, 1]))
        b.add(f"c{i}", prompt + choice, rng.choice([0, 0, 2]), logprobs=LogprobOptions(start_len=starts[-1]))
        if rng.random() < 0.3:
            b.step()
        if rng.random() < 0.1:
            b.core.abort(f"c{rng.randrange(i + 1)}")
    done = b.run()
    for i, choice in enumerate(choices):
        last = done[f"c{i}"].last
        assert last is not None and last.finish_reason is not None
        if last.finish_reason.type == "abort":
            continue
        rows = [row for row in done[f"c{i}"].prompt_logprobs if row.logprob is not None]
        assert rows == toy_logprobs(b.worker, prompt + choice, max(1, starts[i])), (seed, i)
