"""Pages have one owner, their counts add up after every call, and a contradiction costs one page, not the server."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from sglite.runtime.cache.allocator import PageAllocator

calls = st.lists(
    st.tuples(st.sampled_from(["allocate", "cache", "free"]), st.integers(0, 6), st.integers(0, 30)), max_size=40
)


def check(allocator: PageAllocator) -> None:
    counts = allocator.counts()
    assert counts.free + counts.held + counts.cached + counts.quarantined == counts.total == allocator.total
    assert counts.free == allocator.num_free


@given(total=st.integers(1, 12), script=calls)
def test_counts_add_up_and_nothing_is_handed_out_twice(total: int, script: list[tuple[str, int, int]]) -> None:
    """Correct use, drawn at random: pages come, are cached, go."""
    allocator = PageAllocator(total)
    held: list[int] = []
    cached: list[int] = []
    for call, n, pick in script:
        if call == "allocate" and n <= allocator.num_free:
            pages = allocator.allocate(n)
            assert len(set(pages)) == n and not {*pages} & {*held, *cached} and all(0 <= p < total for p in pages)
            held += pages
        elif call == "allocate":
            with pytest.raises(MemoryError, match=f"{n} pages asked for"):
                allocator.allocate(n)
        elif call == "cache" and held:
            page = held.pop(pick % len(held))
            allocator.cache(page)
            cached.append(page)
        elif call == "free" and held + cached:
            page = (held + cached)[pick % len(held + cached)]
            (held if page in held else cached).remove(page)
            allocator.free([page])
        check(allocator)
        counts = allocator.counts()
        assert (counts.held, counts.cached, allocator.mismatches) == (len(held), len(cached), 0)


@given(total=st.integers(1, 6), script=calls)
def test_any_misuse_is_counted_and_never_hands_a_page_to_two(total: int, script: list[tuple[str, int, int]]) -> None:
    """Calls on any page at all: freed twice, cached while free. A page in doubt is never handed out again."""
    allocator = PageAllocator(total)
    doubtful: set[int] = set()
    owned: set[int] = set()
    for call, n, pick in script:
        page = pick % total
        before = allocator.mismatches
        if call == "allocate":
            got = set(allocator.allocate(min(n, allocator.num_free)))
            assert not got & (owned | doubtful)
            owned |= got
        else:
            allocator.cache(page) if call == "cache" else allocator.free([page])
            if allocator.mismatches > before:
                doubtful.add(page)
                owned.discard(page)
            elif call == "free":
                owned.discard(page)
        check(allocator)
        assert allocator.counts().quarantined == len(doubtful)


def test_the_page_freed_last_is_handed_out_first() -> None:
    allocator = PageAllocator(8)
    pages = allocator.allocate(8)
    allocator.free([pages[3], pages[5]])
    assert allocator.allocate(1) == [pages[5]]


def test_a_pool_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one page, got 0"):
        PageAllocator(0)
