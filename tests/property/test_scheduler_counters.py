"""What is computed, counted by the worker: every (prefix, token) once, and the accounting says who paid for it."""

from __future__ import annotations

import random

import pytest
from engines import Bench, Clock, fork_program, program, toy_reference

from sglite.runtime.protocol import LogprobOptions

CHUNKS = [None, 1, 3, 7, 16]
PAGES = [1, 3, 4, 16]


def roomy(rng: random.Random, **changes: object) -> Bench:
    """An engine in which nothing has to be evicted or preempted."""
    page_size = rng.choice(PAGES)
    options = {
        "num_pages": 4096 // page_size,
        "page_size": page_size,
        "max_step_tokens": rng.choice([5, 16, 64]),
        "max_running": rng.choice([1, 3, 16]),
        "chunk_size": rng.choice(CHUNKS),
        "overlap": rng.random() < 0.5,
        "policy": rng.choice(["program", "fcfs", "lpm", "dfs-weight"]),
    }
    return Bench(**{**options, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_no_prefix_and_token_is_computed_twice(first: int) -> None:
    """300 random fork programs, each in a random order of arrival, all at once or one by one, in a random engine."""
    for seed in range(first, first + 50):
        rng = random.Random(seed)
        b = roomy(rng)
        prompts = program(rng)
        rng.shuffle(prompts)
        lengths = [rng.randrange(8) for _ in prompts]
        for i, (prompt, n) in enumerate(zip(prompts, lengths, strict=True)):
            b.add(f"r{i}", prompt, n)
            for _ in range(rng.choice([0, 0, 1, 4])):
                b.step()
        done = b.run()
        assert b.core.cache.evicted_pages == b.core.scheduler.preemptions == 0
        assert all(count == 1 for count in b.worker.computed.values()), f"seed {seed}"
        paid = 0
        for i, (prompt, n) in enumerate(zip(prompts, lengths, strict=True)):
            last = done[f"r{i}"].last
            assert last is not None and done[f"r{i}"].tokens == toy_reference(prompt, n), f"seed {seed}"
            assert (
                last.accounting.prompt_tokens == last.accounting.cached_tokens + last.accounting.computed_prompt_tokens
            )
            paid += last.accounting.computed_prompt_tokens - last.accounting.replayed_tokens
        distinct = {tuple(prompt[: i + 1]) for prompt in prompts for i in range(len(prompt))}
        assert paid <= len(distinct), f"seed {seed}: a prompt position was charged twice"


def run_fork_programs(first: int, last: int) -> None:
    """Programs of nested forks, all requests at once or a few at a time, in any order of arrival, branches before
    their parents included; every position of every sequence, output included, is computed once."""
    for seed in range(first, last):
        rng = random.Random(seed)
        clock = Clock()
        b = roomy(rng, clock=clock, num_pages=8192, max_step_tokens=rng.choice([16, 64, 1024]), check_every=10)
        nodes = fork_program(rng)
        rng.shuffle(nodes)
        for node in nodes:
            b.add(node.ref.node_id, node.prompt, node.n, program=node.ref, pin=f"p/{node.ref.node_id}/")
            clock.now += rng.choice([0.0, 0.0, 0.001, 0.01])
            for _ in range(rng.choice([0, 0, 0, 0, 2])):
                b.step()
        while b.core.scheduler.has_work:
            clock.now += 0.001
            b.step()
        done = b.run()
        assert b.core.cache.evicted_pages == b.core.scheduler.preemptions == 0
        assert all(count == 1 for count in b.worker.computed.values()), f"seed {seed}"
        for node in nodes:
            assert done[node.ref.node_id].tokens == node.output, f"seed {seed}"
        needed = {tuple(node.prompt[: i + 1]) for node in nodes for i in range(len(node.prompt))}
        tails = [(node.prompt + node.output)[:-1] for node in nodes if node.output]
        needed |= {tuple(tail[: i + 1]) for tail in tails for i in range(len(tail))}
        assert len(b.worker.computed) == len(needed), f"seed {seed}: and nothing else is computed"
        b.core.unpin("p/")
        assert b.core.cache.num_available == b.core.cache.allocator.total


@pytest.mark.parametrize("first", range(0, 16, 4))
def test_nested_forks_compute_every_position_once(first: int) -> None:
    run_fork_programs(first, first + 4)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(1000, 2000, 250))
def test_a_thousand_nested_forks_compute_every_position_once(first: int) -> None:
    run_fork_programs(first, first + 250)


@pytest.mark.parametrize("page_size", PAGES)
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("chunk", [None, 1, 7])
def test_forks_find_the_prefix_of_their_parent_cached(page_size: int, overlap: bool, chunk: int | None) -> None:
    """A fork computes its parent's prefix as a request of its own; every branch reports it as cached."""
    rng = random.Random(page_size)
    parent = [rng.randrange(5) for _ in range(37)]
    b = Bench(num_pages=1024 // page_size, page_size=page_size, overlap=overlap, chunk_size=chunk)
    b.add("parent", parent, 0, pin="program")
    for i in range(5):
        b.add(f"branch{i}", [*parent, i, 1], 4)
    done = b.run()
    for i in range(5):
        last = done[f"branch{i}"].last
        assert last is not None
        assert (last.accounting.cached_tokens, last.accounting.computed_prompt_tokens) == (37, 2)
        assert last.accounting.replayed_tokens == 0
    assert sum(b.worker.computed.values()) == len(b.worker.computed)


@pytest.mark.parametrize("page_size", PAGES)
@pytest.mark.parametrize("overlap", [False, True])
def test_identical_prompts_in_flight_share_one_row(page_size: int, overlap: bool) -> None:
    """The row of the first gives logits to all of them; their outputs agree, so their decoding is shared as well."""
    b = Bench(num_pages=1024 // page_size, page_size=page_size, overlap=overlap)
    prompt = [i % 5 for i in range(20)]
    for i in range(4):
        b.add(f"r{i}", prompt, 6)
    done = b.run()
    assert [row.token_ids for row in b.worker.steps[0].rows] == [prompt]
    assert len(b.worker.steps[0].samples) == 4
    cached = []
    for i in range(4):
        last = done[f"r{i}"].last
        assert last is not None and done[f"r{i}"].tokens == toy_reference(prompt, 6)
        cached.append(last.accounting.cached_tokens)
        assert last.accounting.replayed_tokens == 0
    assert cached == [0, 20, 20, 20]
    assert sum(b.worker.computed.values()) == 20 + 5


@pytest.mark.parametrize("page_size", PAGES)
@pytest.mark.parametrize("overlap", [False, True])
def test_a_known_prompt_replays_its_last_token_only(page_size: int, overlap: bool) -> None:
    b = Bench(num_pages=1024 // page_size, page_size=page_size, overlap=overlap)
    prompt = [i % 5 for i in range(23)]
    for name in ("first", "second"):
        b.add(name, prompt, 1)
        b.run()
    last = b.done["second"].last
    assert last is not None
    assert last.accounting.cached_tokens == 22 and last.accounting.computed_prompt_tokens == 1
    assert last.accounting.replayed_tokens == 1 and last.accounting.forward_passes == 1
    assert b.worker.steps[-1].num_tokens == 1
    assert sum(b.worker.computed.values()) == 23


@pytest.mark.parametrize("overlap", [False, True])
def test_what_is_replayed_for_logprobs_is_declared(overlap: bool) -> None:
    """Scores of a cached prompt need its logits: positions from the first one asked for on are computed, not stored."""
    b = Bench(overlap=overlap)
    prompt = [i % 5 for i in range(23)]
    b.add("first", prompt, 1)
    b.run()
    b.add("second", prompt, 1, logprobs=LogprobOptions(start_len=13))
    last = b.run()["second"].last
    assert last is not None
    assert last.accounting.replayed_tokens == 23 - 12
    assert b.worker.replayed == 23 - 12
    assert all(count == 1 for count in b.worker.computed.values())


@pytest.mark.parametrize("overlap", [False, True])
def test_what_a_preemption_costs_is_declared(overlap: bool) -> None:
    """Preempted and evicted, everything is computed again: as many positions as before, and all of them replayed."""
    b = Bench(overlap=overlap)
    b.add("it", [i % 5 for i in range(23)], 12)
    for _ in range(6):
        b.step()
    before = b.core.scheduler.running["it"].num_computed
    b.core.scheduler._preempt(b.core.scheduler.running["it"])
    while b.core.scheduler.running:
        b.core.scheduler.update(b.core._executor.collect(b.core._in_flight.popleft()))
    b.core.flush_cache()
    again = sum(b.worker.computed.values())
    assert again >= before > 23
    last = b.run()["it"].last
    assert last is not None and b.done["it"].tokens == toy_reference([i % 5 for i in range(23)], 12)
    assert (last.accounting.preemptions, last.accounting.replayed_tokens) == (1, again)
    assert (last.accounting.cached_tokens, last.accounting.computed_prompt_tokens) == (0, 23)


def test_the_totals_of_the_engine_are_the_sums_of_its_requests() -> None:
    rng = random.Random(5)
    b = roomy(rng)
    for i, prompt in enumerate(program(rng)):
        b.add(f"r{i}", prompt, 5)
    done = b.run()
    for name in ("prompt_tokens", "cached_tokens", "computed_prompt_tokens", "completion_tokens", "forward_passes"):
        assert getattr(b.core.totals, name) == sum(getattr(d.last.accounting, name) for d in done.values() if d.last)
    statistics = b.core.statistics()
    assert statistics["num_finished"] == len(done) and statistics["num_running"] == statistics["num_waiting"] == 0
    assert statistics["step_tokens"] == sum(step.num_tokens for step in b.worker.steps)
