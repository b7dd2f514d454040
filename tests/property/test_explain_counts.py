"""``explain()`` predicts what a real engine counts: random small programs, run greedily on the bundled model.

What the engine reports for a program, the prefixes of its forks included, equals the prediction: prompt tokens, tokens
it generated, and distinct positions computed (its computed prompt tokens without its replays). Where branches that do
not wait for each other write the same tokens, the prediction says so and gives bounds, which hold; the engine then
counts replays of output tokens among the others.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

import sglite as sgl

WORDS = ["river", "stone", "green", "seven", "cloud", "paper", "north", "candle", "orbit", "velvet", "harbour", "flint"]

KINDS = ["lit", "gen", "gen", "gen", "select", "turn", "scope", "again", "fork", "fork", "back", "rule", "stop"]


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    with sgl.Engine() as made:
        yield made


class Program:
    """A random program: the same calls in every run of one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.names = 0

    def text(self) -> str:
        words = self.rng.choices(WORDS, k=self.rng.randint(1, 6))
        return " " + " ".join(words) + self.rng.choice(["", ":", ".\n"])

    def name(self) -> str:
        self.names += 1
        return f"v{self.names}"

    def write(self, s: Any, depth: int) -> None:
        for _ in range(self.rng.randint(1, 4)):
            self.step(s, depth)

    def step(self, s: Any, depth: int) -> None:
        kind = self.rng.choice(KINDS)
        name = self.name()
        if kind == "lit":
            s += self.text()
        elif kind == "gen":
            s += self.text() + sgl.gen(name, max_tokens=self.rng.randint(1, 6), ignore_eos=self.rng.random() < 0.5)
        elif kind == "rule":
            s += self.text() + sgl.gen(
                name, max_tokens=9, regex=self.rng.choice(["[a-f]{2,4}", "yes|no", "item [0-9]{2}"])
            )
        elif kind == "stop":
            s += self.text() + sgl.gen(name, max_tokens=9, stop=["e", "\n"])
        elif kind == "select":
            method = self.rng.choice([sgl.token_length_normalized, sgl.unconditional_likelihood_normalized])
            s += self.text() + sgl.select(name, [" yes", " no", " perhaps"], choices_method=method)
        elif kind == "turn" and depth == 2:
            s.user(self.text())
            s.assistant(sgl.gen(name, max_tokens=3))
        elif kind == "scope":
            with s.var_scope(name):
                s += self.text() + sgl.gen(name + "i", max_tokens=2)
            s += self.text() + s.var(name)
        elif kind == "again":
            s += self.text() + sgl.gen(name, n=2, max_tokens=self.rng.randint(1, 2))
        elif kind == "fork" and depth:
            self.fork(s, depth)
        elif kind == "back":
            place = s.checkpoint()
            s += self.text() + sgl.gen(name, max_tokens=2)
            s.rollback(place)

    def fork(self, s: Any, depth: int) -> None:
        s += self.text()
        branches = s.fork(self.rng.randint(1, 4))
        same = self.text()
        for branch in branches:
            branch += same if self.rng.random() < 0.2 else self.text()
            self.write(branch, depth - 1)
        if self.rng.random() < 0.4:
            branches.join("concate_and_append")


def settle(engine: Any) -> None:
    """Waits until nothing runs: nobody waits for the prefix of a fork whose branches ask for nothing."""
    for _ in range(2000):
        now = engine.get_server_info()
        if not now["num_running"] and not now["num_waiting"]:
            return
        time.sleep(0.005)
    raise AssertionError("the engine is still busy after ten seconds")


def check(engine: Any, seed: int) -> bool:
    """Whether the prediction was exact; it holds either way."""
    engine.flush_cache()
    body = sgl.function(lambda s: Program(seed).write(s, 2))
    state = body.run(backend=engine, temperature=0)
    assert state.error() is None, (seed, state.error())
    state.run.finished.result(30)
    graph = state.graph()
    if not any(record.metas for record in graph.records.values()):
        return True
    settle(engine)
    info = engine.get_program_info(graph.graph.program_id)
    said = graph.explain(backend=engine)
    computed = info["computed_prompt_tokens"] - info["replayed_tokens"]
    low, high = said.computed_bounds
    context = f"seed {seed}: {info}\n{graph}\n{said}"
    assert low - said.rewritten_tokens <= computed <= high or said.notes, context
    assert said.completion_tokens == info["completion_tokens"], context
    if not said.notes:
        assert said.prompt_tokens == info["prompt_tokens"], context
    if said.exact:
        assert said.computed_tokens == computed, context
        assert said.cached_tokens == info["prompt_tokens"] - computed, context
    return said.exact


def test_predicted_counts_equal_the_runs(engine: Any) -> None:
    exact = [check(engine, seed) for seed in range(20)]
    assert sum(exact) >= 9, exact


@pytest.mark.slow
def test_predicted_counts_equal_the_runs_of_many_programs(engine: Any) -> None:
    exact = [check(engine, seed) for seed in range(1000, 1300)]
    assert sum(exact) >= 130
