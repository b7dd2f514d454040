"""Recurrent state in the scheduler: which checkpoints are saved, who starts from them, what that costs and counts.

``(cached, computed, replayed)`` of a request adds up to its prompt: ``cached + computed``, of which ``replayed`` had
been computed before.
"""

from __future__ import annotations

import pytest
from engines import Bench, toy_reference

from sglite.runtime.engine.recurrent import SPARE_INTERVAL

PROMPT = [1, 2, 3, 4, 0, 1, 2, 3, 3, 3, 2, 1, 0, 0, 4, 4, 4, 2, 2, 1]
OVERLAP = pytest.mark.parametrize("overlap", [False, True], ids=["sync", "overlap"])


def hybrid(**fields: object) -> Bench:
    return Bench(**{"states": {"ssm": 12}, "num_pages": 512, **fields})  # type: ignore[arg-type]


def costs(b: Bench, name: str) -> tuple[int, int, int]:
    """Cached, computed and replayed tokens of a request that has ended as it should."""
    last = b.done[name].last
    assert last is not None
    accounting = last.accounting
    return accounting.cached_tokens, accounting.computed_prompt_tokens, accounting.replayed_tokens


def ask(b: Bench, name: str, prompt: list[int], n: int = 4, **fields: object) -> tuple[int, int, int]:
    """Run one request to its end."""
    b.add(name, prompt, n, **fields)
    assert b.run()[name].tokens == toy_reference(prompt, n)
    return costs(b, name)


def states(b: Bench) -> dict[str, int]:
    found: dict[str, int] = b.core.statistics()["states"]
    return found


@OVERLAP
def test_the_same_prompt_again_computes_its_last_token(overlap: bool) -> None:
    b = hybrid(overlap=overlap)
    assert ask(b, "first", PROMPT) == (0, 20, 0)
    assert ask(b, "again", PROMPT, 1) == (19, 1, 1)
    assert ask(b, "other end", [*PROMPT[:19], 4, 4]) == (19, 2, 0)


@OVERLAP
def test_siblings_that_come_together_compute_their_prompt_once(overlap: bool) -> None:
    b = hybrid(overlap=overlap)
    for i in range(4):
        b.add(f"r{i}", PROMPT, 6)
    done = b.run()
    assert all(done[f"r{i}"].tokens == toy_reference(PROMPT, 6) for i in range(4))
    assert sorted(costs(b, f"r{i}")[:2] for i in range(4)) == [(0, 20), (19, 1), (19, 1), (19, 1)]
    assert states(b)["restored"] == 3


@pytest.mark.parametrize("length", [1, 2])
def test_a_prompt_hardly_worth_a_checkpoint(length: int) -> None:
    b = hybrid()
    assert ask(b, "first", PROMPT[:length]) == (0, length, 0)
    assert ask(b, "again", PROMPT[:length], 1) == (length - 1, 1, 1)


@OVERLAP
@pytest.mark.parametrize("ends", ["length", "stop"])
def test_a_conversation_goes_on_from_where_it_ended(overlap: bool, ends: str) -> None:
    """With overlap the token after the last may have been computed already; the state then stands behind it."""
    b = hybrid(overlap=overlap)
    reply = toy_reference(PROMPT, 9)
    stop = next(i for i in range(4, 9) if reply[i] not in reply[:i])
    sampling = {"stop_token_ids": (reply[stop],)} if ends == "stop" else {}
    b.add("first", PROMPT, 9, sampling=sampling)
    reply = b.run()["first"].tokens
    history = [*PROMPT, *reply]
    cached, _, replayed = ask(b, "next", [*history, 4, 1, 3])
    assert cached >= len(history) - 1 and replayed == 0


def test_the_third_that_shares_a_part_of_an_old_prompt_starts_from_there() -> None:
    """The only checkpoint of the part is behind it: the second has to compute the part again and saves it."""
    b = hybrid()
    ask(b, "old", PROMPT)
    assert ask(b, "second", [*PROMPT[:12], 4, 4, 4]) == (0, 15, 12)
    assert ask(b, "third", [*PROMPT[:12], 2, 4, 4]) == (12, 3, 0)
    assert ask(b, "inside", [*PROMPT[:7], 0, 0]) == (0, 9, 7)


@OVERLAP
def test_those_that_come_together_share_the_replay(overlap: bool) -> None:
    b = hybrid(overlap=overlap, chunk_size=4)
    ask(b, "old", PROMPT)
    for i in range(3):
        b.add(f"r{i}", [*PROMPT[:12], 4 - i, i, 4], 3)
    b.run()
    assert sorted(costs(b, f"r{i}") for i in range(3)) == [(0, 15, 12), (12, 3, 0), (12, 3, 0)]


def test_those_that_wait_for_a_replay_go_on_when_it_is_aborted() -> None:
    b = hybrid(chunk_size=2)
    ask(b, "old", PROMPT)
    for i in range(3):
        b.add(f"r{i}", [*PROMPT[:12], 4 - i, i, 4], 3)
    b.step()
    assert len(b.core.scheduler.running) == 1
    b.core.abort("r0")
    b.run()
    assert sorted(costs(b, f"r{i}") for i in (1, 2)) == [(0, 15, 12), (12, 3, 0)]


@OVERLAP
@pytest.mark.parametrize("steps", range(4))
def test_branches_start_at_the_very_end_of_their_trunk(overlap: bool, steps: int) -> None:
    """However far the trunk has got when they come."""
    b = hybrid(overlap=overlap, chunk_size=8)
    b.add("trunk", PROMPT, 0)
    for _ in range(steps):
        b.step()
    for i in range(3):
        b.add(f"r{i}", [*PROMPT, i, 4, i], 2)
    b.run()
    assert [costs(b, f"r{i}") for i in range(3)] == [(20, 3, 0)] * 3


def test_who_waits_for_a_replay_lends_it_its_urgency() -> None:
    b = hybrid(chunk_size=2)
    ask(b, "old", PROMPT)
    b.add("slow", [*PROMPT[:12], 4, 4], 1)
    b.step()
    b.add("urgent", [*PROMPT[:12], 2, 4], 1, priority=5)
    b.step()
    assert b.core.scheduler.running["slow"].priority == 5
    b.run()


def test_a_prompt_that_is_the_beginning_of_one_under_way_starts_before_its_own_end() -> None:
    b = hybrid(chunk_size=4, max_step_tokens=8)
    b.add("owner", PROMPT, 2)
    b.step()
    b.add("beginning", PROMPT[:11], 2)
    done = b.run()
    assert done["beginning"].tokens == toy_reference(PROMPT[:11], 2)
    assert costs(b, "beginning")[:2] == (10, 1)


def test_chunk_ends_of_a_long_prompt_are_saved_while_there_is_room() -> None:
    long = [i * i % 5 for i in range(4 * SPARE_INTERVAL)]
    b = hybrid(max_step_tokens=96)
    ask(b, "long", long, 1)
    cut = 3 * SPARE_INTERVAL
    cached, _, replayed = ask(b, "part", [*long[:cut], 2, 4, 4, 1, 1], 1)
    assert cut - SPARE_INTERVAL - 2 * 96 < cached <= cut and cached + replayed == cut
    full = hybrid(max_step_tokens=96, states={"ssm": 2})
    ask(full, "long", long, 1)
    assert full.core.statistics()["states"]["saved"] == 3, "one along the way, the prompt's end, the end"
    assert ask(full, "again", long, 1)[0] == len(long) - 1, "what was saved for want of anything better went first"


def test_what_was_saved_because_there_was_room_goes_first() -> None:
    b = hybrid(states={"ssm": 6}, max_running=1, max_step_tokens=96)
    ask(b, "kept", PROMPT, 1)
    ask(b, "long", [i * i % 5 for i in range(4 * SPARE_INTERVAL)], 1)
    assert states(b)["dropped"] == 1, "a slot for the end of the long prompt"
    assert ask(b, "again", PROMPT, 1) == (19, 1, 1)


def test_slots_are_counted_and_what_was_dropped_is_built_again() -> None:
    b = hybrid(states={"ssm": 3}, max_running=1)
    prompts = [[i, *PROMPT] for i in range(4)]
    for i, prompt in enumerate(prompts):
        ask(b, f"r{i}", prompt)
    found = states(b)
    assert found["free"] + found["held"] + found["cached"] == found["total"] == 3
    assert found["saved"] - found["dropped"] == found["cached"] == 3 and found["restored"] == 0
    assert ask(b, "dropped", prompts[0], 1) == (0, 21, 21), "keys are there, the state is not"
    assert ask(b, "built again", prompts[0], 1) == (20, 1, 1)
    b.core.flush_cache()
    assert states(b)["free"] == 3


def test_without_a_cache_no_checkpoint_is_kept_and_siblings_still_share() -> None:
    b = hybrid(config={"radix_cache": False})
    for i in range(3):
        b.add(f"r{i}", PROMPT, 5)
    b.run()
    assert all(b.done[f"r{i}"].tokens == toy_reference(PROMPT, 5) for i in range(3))
    assert states(b)["cached"] == 0 and states(b)["free"] == 12
    assert ask(b, "after", PROMPT) == (0, 20, 0)


def test_models_without_recurrent_state_say_nothing_of_it() -> None:
    assert Bench().core.statistics()["states"] == {}
