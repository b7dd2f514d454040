"""Hidden states that requests ask for: that of the whole prompt, whatever else runs, is cached, shared or preempted."""

from __future__ import annotations

import random

import pytest
from engines import Bench, program, toy_reference

from sglite.runtime.executor.scripted import fingerprint_of


def bench(rng: random.Random) -> Bench:
    page_size = rng.choice([1, 3, 4, 16])
    return Bench(
        num_pages=rng.choice([24, 64, 1024]) * 4 // page_size + 4,
        page_size=page_size,
        max_step_tokens=rng.choice([5, 16, 64]),
        max_running=rng.choice([1, 3, 16]),
        chunk_size=rng.choice([None, 1, 3, 7, 16]),
        overlap=rng.random() < 0.5,
        policy=rng.choice(["program", "fcfs", "lpm", "dfs-weight"]),
        states={"state": 40} if rng.random() < 0.2 else None,
    )


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_the_hidden_state_is_that_of_the_whole_prompt(first: int) -> None:
    """Prompts with shared beginnings, each twice, some asking for text beside them; some are aborted on the way."""
    for seed in range(first, first + 50):
        rng = random.Random(seed)
        b = bench(rng)
        prompts = [prompt for prompt in program(rng) if len(prompt) < 60]
        prompts += rng.sample(prompts, len(prompts) // 2) + prompts[:2]
        kinds = [rng.choice(["pool", "pool", "text"]) for _ in prompts]
        gone = set()
        for i, (prompt, kind) in enumerate(zip(prompts, kinds, strict=True)):
            if kind == "pool":
                b.add(f"r{i}", prompt, 0, pool="last")
            else:
                b.add(f"r{i}", prompt, 4)
            for _ in range(rng.choice([0, 0, 1, 4])):
                b.step()
            if rng.random() < 0.1 and b.core.abort(f"r{i}"):
                gone.add(i)
        done = b.run()
        for i, (prompt, kind) in enumerate(zip(prompts, kinds, strict=True)):
            last = done[f"r{i}"].last
            assert last is not None and done[f"r{i}"].terminals == 1
            if i in gone:
                assert last.hidden is None
            elif kind == "pool":
                assert last.hidden == fingerprint_of(prompt).to_bytes(8, "little"), f"seed {seed}"
                costs = last.accounting
                assert costs.cached_tokens + costs.computed_prompt_tokens == costs.prompt_tokens, f"seed {seed}"
            else:
                assert last.hidden is None and done[f"r{i}"].tokens == toy_reference(prompt, 4)


def test_a_prompt_in_the_cache_is_replayed_by_one_token() -> None:
    b = Bench()
    prompt = list(range(3, 40))
    for name in ("a", "b"):
        b.add(name, prompt, 0, pool="last")
        b.run()
    costs = b.done["b"].last.accounting
    assert (costs.cached_tokens, costs.computed_prompt_tokens, costs.replayed_tokens) == (36, 1, 1)
    assert costs.forward_passes == 1 and b.worker.replayed == 1


def test_identical_prompts_of_one_step_share_a_row() -> None:
    b = Bench(max_running=8)
    for name in "abcd":
        b.add(name, [7, 8, 9], 0, pool="last")
    b.run()
    assert {b.done[name].last.hidden for name in "abcd"} == {fingerprint_of([7, 8, 9]).to_bytes(8, "little")}
    assert sum(b.worker.computed.values()) == 3


def test_a_step_that_failed_gives_nobody_its_state() -> None:
    b = Bench()
    failed = []
    b.worker.fail_step = lambda step: not failed and bool(step.pools) and not failed.append(step)
    b.add("a", [1, 2, 3], 0, pool="last")
    b.add("b", [5, 6], 0, pool="last")
    b.run()
    assert failed
    for name, prompt in (("a", [1, 2, 3]), ("b", [5, 6])):
        assert b.done[name].last.hidden == fingerprint_of(prompt).to_bytes(8, "little")
