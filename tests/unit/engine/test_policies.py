"""In which order requests run: priority, arrival, what the tree knows; and what that is worth in cache hits."""

from __future__ import annotations

import random

import pytest
from engines import Bench, toy_reference

from sglite.runtime.engine.policy import POLICIES, get_policy

PROMPT = [i * 3 % 5 for i in range(20)]


def order_of_end(b: Bench) -> list[str]:
    """Names in the order in which their requests end."""
    ended: list[str] = []
    while b.core.scheduler.has_work:
        b.step()
        ended += [name for name, done in b.done.items() if done.terminals and name not in ended]
    return ended


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("overlap", [False, True])
def test_higher_priority_ends_first_in_an_engine_with_one_slot(policy: str, overlap: bool) -> None:
    b = Bench(max_running=1, policy=policy, overlap=overlap)
    for i, priority in enumerate([0, 2, 1, 2, -1]):
        b.add(f"r{i}", [i, *PROMPT], 3, priority=priority)
    assert order_of_end(b) == ["r1", "r3", "r2", "r0", "r4"]


def test_equals_run_in_order_of_arrival() -> None:
    b = Bench(max_running=1)
    for i in range(6):
        b.add(f"r{i}", [5 - i, *PROMPT], 3)
    assert order_of_end(b) == [f"r{i}" for i in range(6)]


@pytest.mark.parametrize("overlap", [False, True])
def test_an_urgent_request_takes_the_slot_of_a_less_urgent_one_which_loses_nothing(overlap: bool) -> None:
    b = Bench(max_running=1, overlap=overlap)
    b.add("slow", PROMPT, 40)
    for _ in range(10):
        b.step()
    b.add("urgent", [1, *PROMPT], 5, priority=1)
    b.add("equal", [2, *PROMPT], 5)
    assert order_of_end(b) == ["urgent", "slow", "equal"]
    assert b.done["slow"].tokens == toy_reference(PROMPT, 40)
    assert b.core.scheduler.preemptions == 1
    assert all(count == 1 for count in b.worker.computed.values()), "what it had computed stayed in the tree"


@pytest.mark.parametrize("urgent", [False, True])
def test_the_owner_of_a_promise_inherits_the_priority_of_who_waits_for_it(urgent: bool) -> None:
    """Rows of a step stand in order of priority: with somebody urgent waiting for it, the owner's comes first."""
    long = [i * i % 5 for i in range(60)]
    b = Bench(max_step_tokens=9, chunk_size=4, max_running=4, num_pages=256)
    b.add("owner", long, 1, priority=0)
    b.add("middle", [4] * 60, 1, priority=3)
    b.step()
    if urgent:
        b.add("urgent", [*long, 1], 1, priority=5)
    for _ in range(3):
        b.step()
    assert (b.worker.steps[-1].rows[0].token_ids == [4] * 4) == (not urgent)
    b.run()
    assert all(count == 1 for count in b.worker.computed.values())


def test_without_a_promise_priority_decides() -> None:
    """The same as above, but the urgent request needs nothing of the first: who is in the middle overtakes."""
    b = Bench(max_step_tokens=4, max_running=4, num_pages=256)
    b.add("owner", [i * i % 5 for i in range(60)], 1, priority=0)
    for _ in range(3):
        b.step()
    b.add("urgent", [3] * 20, 1, priority=5)
    b.add("middle", [4] * 20, 1, priority=3)
    assert order_of_end(b) == ["urgent", "middle", "owner"]


def trace(b: Bench, rng: random.Random) -> tuple[int, int]:
    """Three families of prompts, interleaved in arrival, through a cache that holds hardly more than one family."""
    families = [[rng.randrange(5) for _ in range(40)] for _ in range(3)]
    for i in range(24):
        b.add(f"r{i}", [*families[i % 3], i % 5, i // 5], 2)
    done = b.run()
    cached = sum(d.last.accounting.cached_tokens for d in done.values() if d.last)
    return cached, sum(d.last.accounting.prompt_tokens for d in done.values() if d.last)


@pytest.mark.parametrize("policy", ["lpm", "dfs-weight"])
@pytest.mark.parametrize("overlap", [False, True])
def test_policies_that_look_at_the_tree_hit_more_than_arrival_order(policy: str, overlap: bool) -> None:
    rates = {}
    for name in ("fcfs", policy):
        b = Bench(num_pages=16, page_size=4, max_running=1, overlap=overlap, policy=name)
        cached, prompt = trace(b, random.Random(3))
        rates[name] = cached / prompt
    assert rates["fcfs"] < 0.2 and rates[policy] > 0.8, rates


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_forgets_or_invents_a_request(policy: str) -> None:
    b = Bench(policy=policy, max_running=1)
    b.add("known", PROMPT, 4)
    b.run()
    rng = random.Random(1)
    for i in range(300):
        b.add(f"r{i}", [*PROMPT[: rng.randrange(20)], rng.randrange(5)], 1, priority=rng.randrange(3))
    waiting = [*b.core.scheduler.waiting.values()]
    ordered = get_policy(policy)(waiting, b.core.cache)
    assert sorted(r.order for r in ordered) == sorted(r.order for r in waiting)
    assert [r.priority for r in ordered] == sorted((r.priority for r in waiting), reverse=True)


def test_an_unknown_policy_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="fcfs, lpm, dfs-weight, got 'random'"):
        get_policy("random")
