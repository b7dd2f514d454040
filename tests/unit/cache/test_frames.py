"""Frames: who has one, who loses it first, and how far a window is whole."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from sglite.runtime.cache.allocator import PageAllocator
from sglite.runtime.cache.frames import FrameCounts, Frames, WindowSpec
from sglite.runtime.protocol import CopyPages


def filled(frames: Frames, page: int, *offsets: int) -> None:
    """Give a page a frame and the positions at ``offsets``, and leave it."""
    frames.use([page])
    frames.provide(page)
    for offset in offsets:
        frames.fill(page, offset, offset + 1)
    frames.unuse(page, keep=True)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.sampled_from([1, 3, 4]), st.lists(st.booleans(), max_size=40), st.integers(0, 40))
def test_a_window_is_whole_where_all_positions_before_are_there(
    window: int, page_size: int, there: list[bool], depth: int
) -> None:
    num_pages = -(-len(there) // page_size)
    frames = Frames(WindowSpec(window, num_pages + 1), page_size)
    table = list(range(num_pages))[::-1]
    for page in table:
        filled(frames, page)
    for position, is_there in enumerate(there):
        if is_there:
            offset = position % page_size
            frames.fill(table[position // page_size], offset, offset + 1)
        assert frames.is_there(table, position) == is_there
    depth = min(depth, len(there))
    whole = [d for d in range(depth + 1) if all(there[max(0, d - window + 1) : d])]
    assert frames.whole_depth(table, depth) == whole[-1]


def test_passed_pages_lose_their_frames_before_kept_ones_and_those_left_first_before_others() -> None:
    frames = Frames(WindowSpec(4, 4), 2)
    frames.use([1, 2, 3, 4])
    for page in (1, 2, 3, 4):
        frames.provide(page)
    assert frames.counts() == FrameCounts(0, 4, 0, 4) and frames.num_available == 0
    frames.unuse(4, keep=True)
    frames.unuse(1, keep=False)
    frames.unuse(3, keep=False)
    for new, loser in ((5, 1), (6, 3), (7, 4)):
        frames.use([new])
        frames.provide(new)
        assert frames.frame_of(loser) is None and frames.frame_of(new) is not None
    assert frames.counts() == FrameCounts(0, 4, 0, 4) and frames.taken_away == 3
    assert len({frames.frame_of(page) for page in (2, 5, 6, 7)}) == 4


def test_a_page_in_use_again_keeps_its_frame() -> None:
    frames = Frames(WindowSpec(4, 2), 2)
    filled(frames, 1, 0, 1)
    frames.use([1, 1])
    frames.unuse(1, keep=False)
    assert frames.is_used_once(1) and frames.num_available == 1
    filled(frames, 2)
    filled(frames, 3)
    assert frames.is_there([1], 0) and frames.frame_of(2) is None


def test_a_page_with_a_new_frame_has_nothing_in_it() -> None:
    frames = Frames(WindowSpec(3, 1), 2)
    filled(frames, 1, 0, 1)
    filled(frames, 2)
    filled(frames, 1)
    assert frames.whole_depth([1], 2) == 0


def test_copies_carry_what_is_there() -> None:
    frames = Frames(WindowSpec(3, 3), 4)
    filled(frames, 1, 0, 2)
    filled(frames, 2)
    frames.copy(1, 2, 2)
    assert [frames.is_there([2], offset) for offset in range(4)] == [True, False, False, False]
    frames.copy(9, 2, 3)
    source, target = frames.frame_of(1), frames.frame_of(2)
    assert source is not None and target is not None
    assert frames.take_news() == ({1: source, 2: target}, [CopyPages(source, target, 2)])
    assert frames.take_news() == ({}, [])


def test_a_freed_page_frees_its_frame_and_a_failed_step_leaves_nothing() -> None:
    frames = Frames(WindowSpec(3, 2), 2)
    allocator = PageAllocator(4, frames)
    first, second = allocator.allocate(2)
    filled(frames, first, 0, 1)
    frames.use([second])
    frames.provide(second)
    frames.fill(second, 0, 2, step=7)
    frames.forget_since(8)
    assert frames.is_there([second], 1)
    frames.forget_since(7)
    assert not frames.is_there([second], 1) and frames.is_there([first], 1)
    allocator.free([first])
    assert frames.counts() == FrameCounts(1, 1, 0, 2) and frames.mismatches == 0
    allocator.free([second])
    assert frames.mismatches == 1
