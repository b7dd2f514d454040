"""What is kept for programs and what goes first: pins, parking, announced requests; and what a known prefix costs."""

from __future__ import annotations

import pytest
from engines import Bench, Clock, toy_logprobs

from sglite.runtime.engine import pins as pins_module
from sglite.runtime.protocol import LogprobOptions, ProgramRef

PROMPT = [i * 3 % 5 for i in range(20)]


# --- pins ----------------------------------------------------------------------------------------------------------


def pinned(b: Bench, *names: str, upcoming: int = 0, tokens: int = 16) -> None:
    """One pin a name, each of ``tokens`` tokens of its own."""
    for name in names:
        ref = ProgramRef(program_id=name, upcoming=upcoming)
        b.add(f"{name}-request", [ord(name[-1]) % 60, *([5] * (tokens - 1))], 0, pin=name, program=ref)
        b.run()


def held(b: Bench) -> list[str]:
    return [*b.core.scheduler.memory.pins._held]


@pytest.mark.parametrize("budget", [0.0, 0.25, 0.5, 1.0])
def test_pins_lock_no_more_than_their_budget(budget: float) -> None:
    b = Bench(num_pages=32, page_size=4, pin_budget=budget)
    pinned(b, *"abcdefgh")
    statistics = b.core.statistics()
    assert statistics["pins"] == budget * 32 / 4
    assert statistics["pinned_pages"] == budget * 32
    assert statistics["pins_dropped"] == 8 - budget * 32 / 4
    assert held(b) == [*"abcdefgh"][8 - statistics["pins"] :], "least recently used first"
    assert b.core.cache.allocator.counts().cached == 32, "what lost its pin is an ordinary prefix"


def test_the_pin_whose_next_use_is_farthest_goes_first() -> None:
    clock = Clock()
    b = Bench(num_pages=32, page_size=4, pin_budget=1.0, clock=clock)
    pinned(b, "a", "b", upcoming=2)
    pinned(b, "c", "d", "e", "f", "g", "h")
    b.core.park("c", 0.05)
    b.core.park("f", 5.0)
    b.core.park("g", 60.0)
    b.core.park("h", None)
    b.core.park("b", 3.0)
    order = []
    for _ in range(8):
        before = held(b)
        assert b.core.scheduler.memory.pins.give_up(1)
        order += [name for name in before if name not in held(b)]
    assert order == [*"gfbhcdea"]
    assert not b.core.scheduler.memory.pins.give_up(1)


@pytest.mark.parametrize(("now", "left"), [(1.0, ["a", "b"]), (1.95, ["c", "b"])])
def test_a_parked_sequence_that_goes_on_or_is_due_is_like_any_other(now: float, left: list[str]) -> None:
    """``b`` goes on; ``c`` is the first to go until its wait is almost over, then ``a`` is, used least recently."""
    clock = Clock()
    b = Bench(num_pages=32, page_size=4, pin_budget=1.0, clock=clock)
    pinned(b, "a", "b", "c")
    b.core.park("b", 5.0)
    b.core.park("c", 2.0)
    b.add("goes on", [ord("b") % 60, *[5] * 15, 7], 2, pin="b")
    b.run()
    clock.now = now
    b.core.scheduler.memory.pins.give_up(1)
    assert held(b) == left


@pytest.mark.parametrize("overlap", [False, True])
def test_parking_right_after_the_last_output_reaches_the_pin(overlap: bool) -> None:
    """With look-ahead the pin comes a step after the output: whoever parks in between parks it all the same."""
    b = Bench(num_pages=64, page_size=4, overlap=overlap, eos_ids=(2,))
    pinned(b, "a")
    b.add("turn", PROMPT, 30, pin="t", sampling={"ignore_eos": False})
    while not b.done["turn"].terminals:
        b.step()
    b.core.park("t", 9.0)
    b.run()
    assert held(b) == ["a", "t"]
    b.core.scheduler.memory.pins.give_up(1)
    assert held(b) == ["a"]


def test_parking_what_cannot_be_is_refused() -> None:
    b = Bench()
    for pin, seconds in (("", 1.0), ("a", -1.0), ("a", float("nan"))):
        with pytest.raises(ValueError, match="give the pin's name, and seconds >= 0 or None"):
            b.core.park(pin, seconds)


def test_pins_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins_module, "MAX_PINS", 3)
    b = Bench(num_pages=64, page_size=4, pin_budget=1.0)
    pinned(b, *"abcdefg", upcoming=1)
    pins = b.core.scheduler.memory.pins
    assert held(b) == [*"efg"] and [*pins._given_up] == [*"bcd"]
    for i in range(9):
        pins.park(f"{i}", None)
    assert len(pins._parked) == 3


def test_a_trunk_keeps_its_pin_as_long_as_pinned_branches_need_it() -> None:
    b = Bench(num_pages=32, page_size=4, pin_budget=1.0)
    b.add("trunk", PROMPT[:16], 0, pin="trunk")
    b.run()
    for i in range(3):
        b.add(f"branch{i}", [*PROMPT[:16], i, 1, 1, 1], 0, pin=f"branch{i}")
        b.run()
    pins = b.core.scheduler.memory.pins
    for left in (3, 2, 1):
        assert pins.give_up(1) and len(held(b)) == left
        assert "trunk" in held(b)
    assert pins.give_up(1) and not held(b)


def test_a_pin_that_somebody_uses_is_not_given_up_for_nothing() -> None:
    b = Bench(num_pages=16, page_size=4, pin_budget=1.0)
    b.add("trunk", PROMPT[:16], 0, pin="used")
    b.run()
    pinned(b, "idle")
    b.add("branch", [*PROMPT[:16], 1], 40)
    b.run()
    assert held(b) == ["used"], "16 pages hold 57 tokens without the idle pin's"


def test_a_pin_on_its_own_path_starves_nobody() -> None:
    """The pin fills the pool and a request shares all its pages: giving it up frees nothing as long as that waits."""
    b = Bench(num_pages=4, page_size=4, pin_budget=1.0)
    b.add("pinned", PROMPT[:16], 0, pin="p")
    b.run()
    prompt = [*PROMPT[:14], 9, 9]
    b.add("branch", prompt, 0, logprobs=LogprobOptions(start_len=14))
    assert b.run()["branch"].prompt_logprobs == toy_logprobs(b.worker, prompt, 14)


@pytest.mark.parametrize(("upcoming", "cached"), [(0, 0), (2, 16)])
def test_an_announced_prefix_that_lost_its_pin_is_evicted_after_others(upcoming: int, cached: int) -> None:
    b = Bench(num_pages=16, page_size=4, pin_budget=0.0)
    pinned(b, "a", upcoming=upcoming)
    for i in range(4):
        b.add(f"r{i}", [i] * 20, 0)
        b.run()
    b.add("back", [ord("a") % 60, *[5] * 15, 7], 1)
    last = b.run()["back"].last
    assert last is not None and last.accounting.cached_tokens == cached


def test_what_a_program_announced_is_forgotten_when_it_ends() -> None:
    b = Bench(num_pages=16, page_size=4, pin_budget=0.0)
    pinned(b, "a", upcoming=2)
    b.core.unpin("a")
    for i in range(4):
        b.add(f"r{i}", [i] * 20, 0)
        b.run()
    assert b.core.cache.match([ord("a") % 60, *[5] * 15]).depth == 0


def test_the_end_of_a_program_leaves_nothing_behind() -> None:
    """Pins kept, given up, parked: unpinned by the beginning of their names, all is as it was before."""
    b = Bench(num_pages=64, page_size=4, pin_budget=0.2)
    for i in range(6):
        ref = ProgramRef(program_id="p", upcoming=i % 2)
        b.add(f"r{i}", [i, *PROMPT], 3, pin=f"p/{i}/", program=ref)
        b.run()
        b.core.park(f"p/{i}/", i)
    assert b.core.statistics()["pins_dropped"] > 0
    b.core.unpin("p/")
    b.check()
    pins = b.core.scheduler.memory.pins
    assert not (pins._held or pins._given_up or pins._parked)
    assert b.core.cache.num_available == b.core.cache.allocator.total and b.core.cache.pinned_pages == 0
    assert all(node.locks == node.pins == node.hints == 0 for node in b.core.cache.nodes())


# --- what is computed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("states", [None, {"ssm": 9}])
def test_a_prefill_of_what_is_computed_costs_nothing(overlap: bool, states: dict[str, int] | None) -> None:
    b = Bench(overlap=overlap, states=states)
    b.add("first", PROMPT, 4)
    out = b.run()["first"].tokens
    steps = len(b.worker.steps)
    for i, prompt in enumerate([PROMPT, PROMPT[:7], [*PROMPT, *out[:3]]]):
        b.add(f"again{i}", prompt, 0, pin=f"pin{i}")
        last = b.run()[f"again{i}"].last
        assert last is not None and last.finish_reason is not None and last.finish_reason.type == "length"
        accounting = last.accounting
        assert (accounting.prompt_tokens, accounting.cached_tokens) == (len(prompt), len(prompt))
        assert accounting.computed_prompt_tokens == accounting.forward_passes == accounting.replayed_tokens == 0
    assert len(b.worker.steps) == steps and b.core.statistics()["pins"] == 3


def test_a_prefill_of_what_is_computed_needs_no_slot() -> None:
    b = Bench(max_running=1)
    b.add("first", PROMPT, 1)
    b.run()
    b.add("busy", [4] * 5, 20)
    b.step()
    b.add("free", PROMPT, 0, pin="fork")
    b.step()
    assert b.done["free"].terminals == 1 and b.done["busy"].terminals == 0
    b.run()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_prefill_of_what_is_being_computed_waits_for_it_and_costs_nothing(overlap: bool) -> None:
    b = Bench(overlap=overlap)
    b.add("first", PROMPT, 4)
    b.step()
    b.add("same", PROMPT, 0, pin="fork")
    done = b.run()
    last = done["same"].last
    assert last is not None and last.accounting.cached_tokens == len(PROMPT)
    assert last.accounting.forward_passes == last.accounting.replayed_tokens == 0
    assert all(step.rows for step in b.worker.steps) and b.core.statistics()["pins"] == 1


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("length", [16, 19, 32])
@pytest.mark.parametrize("overlap", [False, True])
def test_choices_after_one_prompt_are_scored_in_one_pass(page_size: int, length: int, overlap: bool) -> None:
    """Prefix and continuations in one step where the prefix fills its pages; inside a page, the next step copies it."""
    prompt = [i * 3 % 5 for i in range(length)]
    choices = [[1, 1, 2], [2, 2], [3], [4, 1], [0, 4, 4]]
    b = Bench(num_pages=512 // page_size, page_size=page_size, overlap=overlap)
    for i, choice in enumerate(choices):
        ref = ProgramRef(program_id="p", node_id=f"0.{i}", group_id="select", group_size=len(choices))
        b.add(f"c{i}", prompt + choice, 0, logprobs=LogprobOptions(start_len=length), program=ref)
    done = b.run()
    assert len(b.worker.steps) == (1 if length % page_size == 0 else 2)
    for i, choice in enumerate(choices):
        last = done[f"c{i}"].last
        assert last is not None and last.accounting.forward_passes == 1
        assert done[f"c{i}"].prompt_logprobs == toy_logprobs(b.worker, prompt + choice, length)
    assert all(count == 1 for count in b.worker.computed.values())
    assert sum(b.worker.computed.values()) == length + sum(map(len, choices))
