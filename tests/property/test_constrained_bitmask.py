"""Bitmasks are sets of token ids."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sglite.constrained import bitmask

SIZES = st.integers(1, 200)


@given(SIZES.flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)), st.sets(st.integers(0, n - 1)))))
def test_a_row_is_a_set(case: tuple[int, set[int], set[int]]) -> None:
    size, ids, others = case
    mask = bitmask.from_ids(ids, size)
    assert mask.shape == (bitmask.words_for(size),)
    assert bitmask.to_ids(mask).tolist() == sorted(ids)
    assert bitmask.count(mask) == len(ids)
    assert bitmask.only(mask) == (next(iter(ids)) if len(ids) == 1 else None)
    assert all(bitmask.allows(mask, i) == (i in ids) for i in range(size))
    bitmask.allow(mask, others)
    assert bitmask.to_ids(mask).tolist() == sorted(ids | others)
    bitmask.forbid(mask, ids)
    assert bitmask.to_ids(mask).tolist() == sorted(others - ids)


@given(SIZES)
def test_everything_and_the_padding(size: int) -> None:
    rows = bitmask.allocate(2, size)
    assert rows.shape == (2, bitmask.words_for(size)) and bitmask.is_all(rows[0])
    bitmask.clear_padding(rows[0], size)
    assert bitmask.to_ids(rows[0]).tolist() == list(range(size))
    assert bitmask.is_all(rows[0]) == (size % 32 == 0) and bitmask.is_all(rows[1])
    bitmask.fill_all(rows[0])
    assert bitmask.is_all(rows)
