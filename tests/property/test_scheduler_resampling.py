"""Constraints that take tokens back, force them and close in time, in random engines: output follows from the laws.

Values whose rightness shows at their end are taken back and tried again while other requests share their prefixes,
are preempted, chunked, aborted. Output, end and accounting are those of ``toy_outcome``, which knows no engine.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from engines import Bench, Outcome, ToyCompiler, toy_logprobs, toy_outcome

from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.protocol import LogprobOptions

TOKEN_BYTES = [b"ab", b"b", b"a", b"c", b"bc", *[b"?"] * 59]
ELEMENTS = ["*", "*", "+", "+", "1", "2|4", "0|3", "1|2|3"]


def some_constraint(rng: random.Random) -> str:
    """Guarded values, forced runs, choices, texts without end."""
    words: list[str] = []
    for _ in range(rng.randrange(1, 6)):
        elements = [rng.choice(ELEMENTS) for _ in range(rng.randrange(1, 5))]
        if rng.random() < 0.5:
            words += ["<", *elements, f">{rng.choice([2, 3, 5, 7])}"]
        else:
            words += ["~"] if rng.random() < 0.2 else elements
    return " ".join(words)


def some_engine(rng: random.Random) -> Bench:
    """Roomy or under pressure."""
    page_size = rng.choice([1, 3, 4, 16])
    eos_ids = rng.choice([(), (9,)])
    return Bench(
        num_pages=max(60 // page_size, 4) if rng.random() < 0.5 else 2048 // page_size,
        page_size=page_size,
        max_step_tokens=rng.choice([3, 16, 64]),
        max_running=rng.choice([1, 2, 8]),
        chunk_size=rng.choice([None, 1, 3, 7]),
        overlap=rng.random() < 0.5,
        states=rng.choice([None, None, None, {"ssm": 9}]),
        policy=rng.choice(["fcfs", "lpm", "dfs-weight"]),
        compiler=ToyCompiler(eos_ids),
        eos_ids=eos_ids,
        token_bytes=TOKEN_BYTES,
        config={"jump_forward": rng.random() < 0.6, "radix_cache": rng.random() < 0.8},
    )


class Asked:
    """A random request, and what must become of it."""

    def __init__(self, rng: random.Random, trunk: list[int], constraint: str, eos_ids: tuple[int, ...]) -> None:
        tail = [rng.randrange(5) for _ in range(rng.randrange(3))]
        self.prompt = trunk[: rng.randrange(1, len(trunk) + 1)] + tail if rng.random() < 0.6 else list(trunk)
        self.n = rng.choice([4, 12, 30])
        self.constraint = constraint
        least = sum(word not in "<" and not word.startswith(">") for word in constraint.split())
        close = rng.random() < 0.4 and least <= self.n
        self.scored = rng.random() < 0.4
        self.aborted = False
        stop = rng.choice([None, None, "abc", "cbc"])
        self.sampling: dict[str, Any] = {"ignore_eos": False}
        self.sampling |= {"on_limit": "close"} if close else {}
        self.sampling |= {"repetition_penalty": 1.5} if rng.random() < 0.3 else {}
        self.sampling |= {"stop": (stop,)} if stop else {}

        def stops(tokens: list[int]) -> bool:
            pieces = [TOKEN_BYTES[token] if token not in eos_ids else b"?" for token in tokens]
            return stop is not None and stop.encode() in b"".join(pieces)

        self.outcome: Outcome = toy_outcome(
            self.prompt, self.n, constraint=constraint, eos_ids=eos_ids, close=close, stops=stops
        )

    def add_to(self, b: Bench, name: str, rng: random.Random) -> None:
        fields: dict[str, Any] = {"priority": rng.choice([0, 0, 1])}
        if self.scored:
            fields["logprobs"] = LogprobOptions(start_len=rng.choice([None, 0]))
        b.add(
            name,
            self.prompt,
            self.n,
            constraint=ConstraintSpec.regex(self.constraint),
            sampling=self.sampling,
            **fields,
        )

    def check(self, b: Bench, name: str) -> str:
        """How it ended; every figure is what the laws say."""
        done, want = b.done[name], self.outcome
        last = done.last
        assert last is not None and last.finish_reason is not None
        end = last.finish_reason.code if last.finish_reason.type == "error" else last.finish_reason.type
        if self.aborted:
            assert end in ("abort", want.end)
            if end == "abort":
                assert done.tokens == want.tokens[: len(done.tokens)]
                return "abort"
        assert done.tokens == want.tokens and end == want.end
        accounting = last.accounting
        assert last.constraint_complete == (want.complete and end in ("stop", "length"))
        assert (accounting.resampled_tokens, accounting.completion_tokens) == (want.resampled, len(want.tokens))
        if not b.core.config.jump_forward:
            assert accounting.forced_tokens == 0
        if self.scored:
            assert done.logprobs == toy_logprobs(b.worker, self.prompt + want.tokens, len(self.prompt))
        return str(end)


@pytest.mark.parametrize("first", [0, 50, 1050])  # in the last one a request gets scores, but no pages
def test_random_constraints_in_random_engines(first: int) -> None:
    run(range(first, first + 50))


@pytest.mark.slow
def test_many_random_constraints_in_random_engines() -> None:
    seen = run(range(1000, 6000))
    assert (
        min(seen[end] for end in ("stop", "length", "constraint_unsatisfied", "abort", "resampled", "preempted")) > 200
    )


def run(seeds: range) -> Counter[str]:
    """One engine a seed; how the requests ended."""
    seen: Counter[str] = Counter()
    for seed in seeds:
        rng = random.Random(seed)
        b = some_engine(rng)
        asked: dict[str, Asked] = {}
        trunk = [rng.randrange(5) for _ in range(rng.randrange(1, 12))]
        constraint = some_constraint(rng)
        for i in range(rng.randrange(1, 6)):
            constraint = some_constraint(rng) if rng.random() < 0.5 else constraint
            asked[f"r{i}"] = Asked(rng, trunk, constraint, b.core.config.eos_ids)
            asked[f"r{i}"].add_to(b, f"r{i}", rng)
            for _ in range(rng.choice([0, 0, 1, 3])):
                b.step()
            if rng.random() < 0.1:
                asked[f"r{i}"].aborted = b.core.abort(f"r{i}")
        b.run()
        for name, one in asked.items():
            try:
                seen[one.check(b, name)] += 1
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, {name}: {one.constraint}: {b.done[name]}") from error
            seen["resampled"] += one.outcome.resampled > 0
        seen["preempted"] += b.core.scheduler.preemptions > 0
        b.core.flush_cache()
        b.check()
        counts = b.core.cache.allocator.counts()
        assert counts.free == counts.total, f"seed {seed}"
    return seen
