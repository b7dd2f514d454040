"""Layers with a window, by the numbers: what a running request occupies, what a match can restore, what is replayed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from engines import Bench, toy_reference

from sglite.runtime.cache.frames import Frames, WindowSpec
from sglite.runtime.spec.base import Draft

LONG = [i % 5 for i in range(100)]


def bench_of(window: int, num_frames: int, **fields: object) -> Bench:
    return Bench(num_pages=200, page_size=4, window=WindowSpec(window, num_frames), **fields)  # type: ignore[arg-type]


def frames_of(bench: Bench) -> Frames:
    frames = bench.core.cache.allocator.frames
    assert frames is not None
    return frames


def run(bench: Bench, name: str, prompt: list[int], n: int = 2) -> int:
    """Run one request to its end; returns how many positions it computed again."""
    bench.add(name, prompt, n)
    bench.run()
    assert bench.done[name].tokens == toy_reference(prompt, n)
    last = bench.done[name].last
    assert last is not None
    return last.accounting.replayed_tokens


@pytest.mark.parametrize("overlap", [False, True])
def test_a_running_request_occupies_its_window_and_its_row(overlap: bool) -> None:
    bench = bench_of(window=8, num_frames=50, chunk_size=4, overlap=overlap)
    bench.add("a", LONG, 60)
    most = 0
    while bench.core.scheduler.has_work:
        bench.step()
        most = max(most, frames_of(bench).counts().used)
    assert bench.done["a"].tokens == toy_reference(LONG, 60)
    assert most <= -(-7 // 4) + 1 + 1, "seven positions before the row, the row, and where they cut pages"
    assert frames_of(bench).counts().used == 0


def test_a_sequence_far_longer_than_all_frames_runs_without_giving_way() -> None:
    bench = bench_of(window=8, num_frames=6, chunk_size=4)
    run(bench, "a", LONG, 200)
    assert bench.core.scheduler.preemptions == 0 and frames_of(bench).taken_away > 50


def test_a_prompt_that_is_known_replays_no_more_than_without_a_window() -> None:
    """The windows before the end of a prompt and before the end of a sequence are kept longest."""
    few, plain = bench_of(window=8, num_frames=12), Bench(num_pages=200, page_size=4)
    for bench in (few, plain):
        run(bench, "a", LONG, 30)
    assert frames_of(few).taken_away > 10
    for i, prompt in enumerate((LONG, [*LONG, *toy_reference(LONG, 30)])):
        assert run(few, f"b{i}", prompt) == run(plain, f"b{i}", prompt) <= 2


def test_a_branch_starts_from_the_deepest_whole_window_and_fills_what_it_lacks() -> None:
    bench = bench_of(window=8, num_frames=14)
    run(bench, "a", LONG)
    run(bench, "other", [4, 4, 3, *LONG])  # takes frames of what "a" has passed by
    branch = [*LONG[:60], 1, 1, 1]
    replayed = run(bench, "b", branch)
    assert 8 <= replayed <= 60, "nothing near depth 60 was left"
    assert bench.worker.computed.most_common(1)[0][1] == 1, "keys and values of full layers are computed once"
    assert run(bench, "c", [*LONG[:60], 1, 2]) == 0, "where one branched off, others are likely to"


def test_without_pressure_a_branch_finds_every_window_whole() -> None:
    bench = bench_of(window=8, num_frames=100)
    run(bench, "a", LONG)
    assert [run(bench, f"b{cut}", [*LONG[:cut], 4, 4]) for cut in (97, 60, 33, 5)] == [0] * 4
    assert frames_of(bench).taken_away == 0


def test_frames_follow_their_pages_out_of_the_cache() -> None:
    bench = bench_of(window=8, num_frames=100)
    run(bench, "a", LONG)
    assert frames_of(bench).counts().idle == 26
    bench.core.flush_cache()
    assert frames_of(bench).counts().free == 100


def test_what_a_failed_step_was_to_fill_is_filled_again() -> None:
    bench = bench_of(window=8, num_frames=14, chunk_size=16)
    run(bench, "a", LONG)
    run(bench, "other", [4, 4, 3, *LONG])
    failures = iter([False, True])
    bench.worker.fail_step = lambda step: next(failures, False)
    branches = {"b": [*LONG[:60], 1, 1, 1], "c": [*LONG[:40], 3, 3, 3]}
    for name, prompt in branches.items():
        bench.add(name, prompt, 4)
    bench.run()
    assert {name: bench.done[name].tokens for name in branches} == {
        name: toy_reference(prompt, 4) for name, prompt in branches.items()
    }
    assert bench.core.scheduler.failed_steps == 1


def test_accepted_drafts_are_not_computed_again() -> None:
    class Oracle:
        def propose(self, tokens: Sequence[int], limit: int) -> Draft:
            guesses = toy_reference(tokens, min(3, limit))
            return Draft(guesses, list(range(-1, len(guesses) - 1)))

    bench = bench_of(window=8, num_frames=20, proposer=Oracle())
    assert run(bench, "a", LONG, 40) == 0
    assert bench.core.num_steps < 20
