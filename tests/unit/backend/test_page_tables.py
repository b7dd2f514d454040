"""Page tables are joined to the same numbers whatever they are kept in."""

from __future__ import annotations

from array import array

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sglite.runtime.backend.tables import TYPECODE, joined

PAGES = st.lists(st.integers(-1, 2**31 - 1), max_size=20)


@given(st.lists(st.tuples(PAGES, st.integers(0, 25)), max_size=6), st.data())
def test_tables_of_every_kind_give_the_same(rows: list[tuple[list[int], int]], data: st.DataObject) -> None:
    """Lists, tuples, arrays of C's ints and of others, and some of each."""
    kinds = [list, tuple, lambda table: array(TYPECODE, table), lambda table: array("q", table)]
    counts = [count for _, count in rows]
    expected = [page for table, count in rows for page in table[:count]]
    mixed = [data.draw(st.sampled_from(kinds))(table) for table, _ in rows]
    for tables in ([*map(kind, (table for table, _ in rows))] for kind in kinds):
        found = joined(tables, counts)
        assert found.dtype == np.int32 and found.tolist() == expected and found.flags.writeable
    assert joined(mixed, counts).tolist() == expected


def test_a_table_may_grow_while_its_pages_are_in_use() -> None:
    table = array(TYPECODE, [3, 1, 4])
    found = joined([table], [2])
    table.append(1)
    table[0] = 9
    assert found.tolist() == [3, 1] and table.tolist() == [9, 1, 4, 1]
