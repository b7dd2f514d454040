"""Prefixes being computed: who waits for whom, and that nobody waits for what nobody computes."""

from __future__ import annotations

import pytest
from engines import Bench, ToyCompiler, toy_reference

from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.protocol import LogprobOptions

PROMPT = [i * 3 % 5 for i in range(20)]
LONG = [i * i % 5 for i in range(60)]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("run", ["* + + +", "* * +", "* *"])
def test_a_pin_never_holds_a_promise_that_nobody_keeps(run: str, scored: bool, overlap: bool) -> None:
    """The next turn of a program continues the pinned output, its last token included."""
    b = Bench(overlap=overlap, compiler=ToyCompiler())
    logprobs = LogprobOptions() if scored else None
    b.add("turn", PROMPT, 20, constraint=ConstraintSpec.regex(run), logprobs=logprobs, pin="program")
    out = b.run()["turn"].tokens
    prompt = [*PROMPT, *out, 1]
    b.add("next", prompt, 3, pin="program")
    assert b.run()["next"].tokens == toy_reference(prompt, 3)
    assert all(count == 1 for count in b.worker.computed.values())


@pytest.mark.parametrize("overlap", [False, True])
def test_who_waits_for_a_promise_holds_neither_slot_nor_pages(overlap: bool) -> None:
    b = Bench(max_step_tokens=4, max_running=2, num_pages=256, overlap=overlap)
    b.add("owner", LONG, 1)
    for i in range(6):
        b.add(f"waiter{i}", [*LONG, i % 5, i], 1)
    b.add("stranger", [4] * 10, 1)
    for _ in range(4):
        b.step()
    assert set(b.core.scheduler.running) <= {"owner", "stranger"}
    done = b.run()
    for i in range(6):
        assert done[f"waiter{i}"].tokens == toy_reference([*LONG, i % 5, i], 1)


@pytest.mark.parametrize("end", ["abort", "preempt", "fail"])
@pytest.mark.parametrize("overlap", [False, True])
def test_who_waits_takes_over_when_the_owner_goes(end: str, overlap: bool) -> None:
    """What the owner has computed becomes an ordinary prefix; the oldest waiter computes the rest, once."""
    b = Bench(max_step_tokens=4, max_running=2, num_pages=256, overlap=overlap)
    b.add("owner", LONG, 1)
    b.add("heir", [*LONG, 1], 2)
    b.add("cousin", [*LONG[:50], 2, 2], 2)
    for _ in range(4):
        b.step()
    if end == "abort":
        b.core.abort("owner")
    elif end == "preempt":
        b.core.scheduler._preempt(b.core.scheduler.running["owner"])
    else:
        b.worker.fail_step = lambda step: any(
            row.start == 16 and b.core.scheduler.failed_steps == 0 for row in step.rows
        )
    done = b.run()
    assert done["heir"].tokens == toy_reference([*LONG, 1], 2)
    assert done["cousin"].tokens == toy_reference([*LONG[:50], 2, 2], 2)
    if end != "fail":
        assert all(count == 1 for count in b.worker.computed.values())


def test_a_sibling_that_branches_off_inside_a_promise_waits_for_that_part_only() -> None:
    """It goes on as soon as its own prefix is there, while the owner still computes the rest."""
    b = Bench(max_step_tokens=8, chunk_size=4, max_running=2, num_pages=256)
    b.add("owner", LONG, 1)
    b.step()
    b.add("branch", [*LONG[:10], 4, 4, 4], 1)
    while b.done["branch"].terminals == 0:
        b.step()
    assert b.done["owner"].terminals == 0
    last = b.done["branch"].last
    assert last is not None and (last.accounting.cached_tokens, last.accounting.computed_prompt_tokens) == (10, 3)
    b.run()


@pytest.mark.parametrize("overlap", [False, True])
def test_pins_give_way_before_anybody_is_preempted(overlap: bool) -> None:
    b = Bench(num_pages=16, page_size=4, overlap=overlap, pin_budget=1.0)
    for i in range(3):
        b.add(f"pinned{i}", [i, *PROMPT[:15]], 0, pin=f"pin{i}")
    b.run()
    assert b.core.statistics()["pins"] == 3
    b.add("large", [4] * 50, 10)
    assert b.run()["large"].tokens == toy_reference([4] * 50, 10)
    assert b.core.scheduler.preemptions == 0 and b.core.statistics()["pins"] == 0


def test_a_pin_keeps_a_prefix_that_would_have_been_evicted() -> None:
    for pin, cached in (("", 0), ("keep", 16)):
        b = Bench(num_pages=12, page_size=4)
        b.add("first", PROMPT[:16], 0, pin=pin)
        b.run()
        for i in range(6):
            b.add(f"r{i}", [1 + i % 4] * 20, 4)
            b.run()
        b.add("again", [*PROMPT[:16], 1], 1)
        last = b.run()["again"].last
        assert last is not None and last.accounting.cached_tokens == cached


def test_namespaces_share_nothing() -> None:
    b = Bench()
    for name, namespace in (("a", ""), ("b", "salt"), ("c", "salt")):
        b.add(name, PROMPT, 1, namespace=namespace)
        b.run()
    cached = [d.last.accounting.cached_tokens for d in b.done.values() if d.last]
    assert cached == [0, 0, 19]
    b.core.flush_cache()
    assert b.core.cache._roots == {}


def test_without_a_cache_nothing_stays_and_requests_in_flight_still_share() -> None:
    b = Bench(config={"radix_cache": False})
    for name in ("a", "b"):
        b.add(name, PROMPT, 3)
    b.run()
    assert all(count == 1 for count in b.worker.computed.values())
    assert list(b.core.cache.nodes()) == []
    b.add("c", PROMPT, 3)
    last = b.run()["c"].last
    assert last is not None and last.accounting.cached_tokens == 0


@pytest.mark.parametrize("steps", range(2, 9))
@pytest.mark.parametrize("overlap", [False, True])
def test_the_place_of_one_aborted_in_the_middle_of_its_output_is_free_again(overlap: bool, steps: int) -> None:
    """A step in flight was computing its next token: its twin comes to the same place and goes on from there."""
    b = Bench(overlap=overlap)
    b.add("gone", PROMPT, 30)
    for _ in range(steps):
        b.step()
    b.core.abort("gone")
    b.add("twin", PROMPT, 30)
    assert b.run(limit=200)["twin"].tokens == toy_reference(PROMPT, 30)


@pytest.mark.parametrize("overlap", [False, True])
def test_the_place_of_one_that_failed_to_sample_is_free_again(overlap: bool) -> None:
    """With look-ahead its next row is in flight when the sample fails; somebody else needs to go on from there."""
    b = Bench(overlap=overlap, compiler=ToyCompiler())
    sampling = {"stop_token_ids": (1, 2), "min_new_tokens": 3}
    b.add("bad", PROMPT, 9, constraint=ConstraintSpec.regex("* * 1|2 *"), sampling=sampling)
    tokens = b.run()["bad"].tokens
    assert b.done["bad"].last is not None and b.done["bad"].last.finish_reason.code == "sampling"
    for length in range(len(tokens) + 1):
        prompt = [*PROMPT, *tokens[:length], 4]
        b.add(f"after{length}", prompt, 5)
        assert b.run(limit=100)[f"after{length}"].tokens == toy_reference(prompt, 5)


@pytest.mark.parametrize("depth", [9, 10, 11, 12])
def test_recurrent_state_is_saved_where_a_sibling_waits_to_branch_off(depth: int) -> None:
    """The owner's row is cut there, whatever the chunk size: the sibling computes its own tokens and no more."""
    b = Bench(max_step_tokens=8, chunk_size=4, max_running=2, num_pages=256, states={"ssm": 9})
    b.add("owner", LONG, 1)
    b.step()
    b.add("branch", [*LONG[:depth], 3, 3, 3], 2)
    done = b.run()
    assert done["branch"].tokens == toy_reference([*LONG[:depth], 3, 3, 3], 2)
    last = done["branch"].last
    assert last is not None and (last.accounting.cached_tokens, last.accounting.replayed_tokens) == (depth, 0)


def test_a_sequence_closed_while_it_generates_leaves_no_pin_behind() -> None:
    b = Bench()
    b.add("a", [1, 2, 3], 6, pin="program/1/")
    b.step()
    b.core.unpin("program/1/")
    b.run()
    assert not b.core.scheduler.memory.pins and b.core.cache.num_available == b.core.cache.allocator.total
