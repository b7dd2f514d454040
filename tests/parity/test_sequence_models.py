"""Chained generations on a real, tiny model: what single calls give, seeds, constraints and all."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sequence_engines import result_of, some_ids
from tiny_engines import is_idle, settles, tiny_engine
from tiny_models import make_checkpoint

from sglite import Engine

KINDS: list[dict[str, Any]] = [
    {"max_new_tokens": 6, "temperature": 0, "ignore_eos": True},
    {"max_new_tokens": 9, "temperature": 1.3, "seed": 5},
    {"max_new_tokens": 5, "temperature": 0.9, "seed": 6, "n": 2, "ignore_eos": True},
    {"max_new_tokens": 20, "temperature": 0, "stop_regex": "[aeiou]"},
    {"max_new_tokens": 20, "temperature": 0.7, "seed": 1, "stop": ["t", "s"]},
    {"max_new_tokens": 20, "temperature": 0.8, "seed": 2, "regex": "(yes|no), [a-z]{3}"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("chains") / "model", seed=2)


@pytest.fixture(params=[True, False], ids=["overlap", "sync"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with tiny_engine(folder, disable_overlap_schedule=not request.param) as engine:
        yield engine


def test_chained_calls_on_a_model_give_what_single_calls_give(engine: Engine) -> None:
    for seed in range(12):
        rng = random.Random(seed)
        calls = [(some_ids(rng), rng.choice(KINDS)) for _ in range(rng.randrange(2, 6))]
        found = []
        for chained in (False, True):
            assert settles(lambda: is_idle(engine))
            engine.flush_cache()
            sequence = engine.open_sequence("program", [40, 41, 42])
            results, started = [], []
            for ids, params in calls:
                started.append(sequence.chain(ids, params))
                if not chained:
                    results.append(result_of(started[-1]))
            results = results or [result_of(generation) for generation in started]
            sequence.close()
            found.append((results, sequence.token_ids))
        assert found[0] == found[1], seed
