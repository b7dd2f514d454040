"""A GPU's batch says what the layout says, in the shapes that kernels read; a graph's batch says it at one address."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from cuda_batches import PLAIN, Row, layout_of
from cuda_device import DEVICE
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sglite.runtime.backend import cpu_plan, cuda_tiles
from sglite.runtime.backend.base import AttentionMetadata, BackendError, BatchLayout
from sglite.runtime.backend.cuda_plan import CUDAMetadata, Planner, own
from sglite.runtime.backend.sharing import ESTIMATED, Sharing, never

ALWAYS = Sharing(((1, 1),), "test")
ROWS = [Row(9), Row(0, 20), Row(300), Row(5, 3, [-1, -1, 1]), Row(17, 130), Row(3, 16), Row(40, 2, [-1])]


@st.composite
def trees(draw: st.DrawFn) -> Row:
    parents = [draw(st.integers(-1, i - 1)) for i in range(draw(st.integers(1, 40)))]
    return Row(draw(st.integers(1, 20)), len(parents) + draw(st.integers(0, 3)), parents)


def host(tensor: Tensor) -> Any:
    return tensor.cpu().tolist()


def test_the_layout_arrives_on_the_device() -> None:
    layout = layout_of(ROWS, 4)
    layout = replace(layout, slot_mapping=[-1, *layout.slot_mapping[1:]])
    meta = Planner(DEVICE).plan(layout)
    assert host(meta.query_starts) == list(layout.query_starts) and host(meta.starts) == list(layout.starts)
    assert host(meta.seq_lens) == list(layout.seq_lens) and host(meta.slot_mapping) == list(layout.slot_mapping)
    assert host(meta.token_rows) == [r for r, row in enumerate(ROWS) for _ in range(row.tokens)]
    pages, firsts = host(meta.pages), host(meta.page_starts)
    assert [pages[first : first + len(t)] for first, t in zip(firsts, layout.page_tables, strict=True)] == [
        list(table) for table in layout.page_tables
    ]
    assert (meta.num_rows, meta.num_tokens, meta.max_queries, meta.max_seq_len) == (7, 173, 130, 301)
    assert not meta.decode and Planner(DEVICE).plan(layout_of([Row(3), Row(0)], 4)).decode
    tensors = [getattr(meta, field.name) for field in fields(meta)]
    buffers = {t.untyped_storage().data_ptr() for t in tensors if isinstance(t, Tensor)}
    assert len(buffers) == 1


def test_batches_that_were_planned_earlier_keep_their_numbers() -> None:
    """More of them than there are buffers on the host."""
    planner = Planner(DEVICE)
    layouts = [layout_of([Row(i), Row(2 * i, i + 1)], 4) for i in range(12)]
    planned = [planner.plan(layout) for layout in layouts]
    for layout, meta in zip(layouts, planned, strict=True):
        assert host(meta.seq_lens) == list(layout.seq_lens) and host(meta.slot_mapping) == list(layout.slot_mapping)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=12))
def test_every_query_is_in_one_tile_of_its_row(rows: list[tuple[int, int]]) -> None:
    """The height is a matter of the row's tokens alone."""
    layout = layout_of([Row(start, tokens) for start, tokens in rows], 16)
    found = {}
    for height, tiles in cuda_tiles.cut(cuda_tiles.rows_of(layout)).items():
        for row, first, count, slot, low in tiles.tolist():
            assert 0 < count <= height and low == 0
            assert height == next((h for h in cuda_tiles.HEIGHTS if h >= rows[row][1]), cuda_tiles.HEIGHTS[-1])
            for i in range(count):
                assert found.setdefault(first + i, (row, slot + i)) == (row, slot + i)
    expected = [(r, start + j) for r, (start, tokens) in enumerate(rows) for j in range(tokens)]
    assert [found[token] for token in sorted(found)] == expected


@settings(max_examples=40)
@given(st.lists(trees(), min_size=1, max_size=4), st.sampled_from([None, 1, 3, 7]))
def test_drafts_see_their_ancestors(rows: list[Row], window: int | None) -> None:
    """As in the specification, by the words and depths alone."""
    layout = layout_of(rows, 4)
    found = cuda_tiles.branches(cuda_tiles.rows_of(layout), layout.parents)
    plain = cpu_plan.plan(layout).rows
    if found is None:
        assert all(row.parents == list(range(-1, len(row.parents or ()) - 1)) for row in rows)
        return
    for r, row in enumerate(rows):
        first, known = layout.query_starts[r], row.end - int(found.drafts[r])
        slot, depth = np.arange(row.end), np.arange(row.end)
        depth[row.start :] = found.depths[first : first + row.tokens]
        for j in range(row.tokens):
            seen = slot <= row.start + j
            bits = found.ancestors[first + j, (slot - known) // 32] >> ((slot - known) % 32) & 1
            seen &= (slot < known) | (bits == 1)
            if window is not None:
                seen &= depth > depth[row.start + j] - window
            assert (seen == plain[r].visible(row.end, window)[j]).all()


def shared_of(layout: BatchLayout, sharing: Sharing = ESTIMATED) -> tuple[list[list[int]], list[list[int]], int]:
    """Tiles over shared pages, own tiles of single queries, slots that are read."""
    meta = Planner(DEVICE, sharing=sharing).plan(layout)
    shared = [] if meta.shared is None else host(meta.shared.tiles.tiles)
    return shared, host(meta.tiles[0].tiles), meta.slots_read


def test_what_rows_share_is_read_once() -> None:
    layout = layout_of([Row(4100 + i, shared=256) for i in range(5)] + [Row(70)], 16)
    shared, tiles, read = shared_of(layout)
    assert [tile[2:] for tile in shared] == [[5, 4095, 0]]
    assert [tile[4] for tile in tiles] == [4096] * 5 + [0]
    assert read == 4096 + sum(5 + i for i in range(5)) + 71
    again = Planner(DEVICE, deterministic=True).plan(layout)
    assert again.shared is None and again.slots_read == sum(layout.seq_lens)


def test_little_that_is_shared_is_left_alone() -> None:
    assert shared_of(layout_of([Row(1100, shared=64)] * 5, 16))[0] == []
    assert shared_of(layout_of([Row(4100, shared=256)], 16))[0] == []


def test_a_step_shares_by_what_all_of_it_saves() -> None:
    """Two pairs of rows, neither of which saves enough for itself."""
    layout = layout_of([Row(4600, shared=280)] * 2 + [Row(9)], 16)
    other = layout_of([Row(4600, shared=280)] * 2, 16, seed=1)
    first = 1 + max(page for table in layout.page_tables for page in table)
    tables = [*layout.page_tables, *([page + first for page in table] for table in other.page_tables)]
    rows = [Row(4600)] * 2 + [Row(9)] + [Row(4600)] * 2
    both = replace(layout_of(rows, 16), page_tables=tables)
    assert shared_of(layout)[0] == []
    shared, tiles, read = shared_of(both)
    assert [tile[2:4] for tile in shared] == [[2, 4479]] * 2 and [tile[4] for tile in tiles] == [
        4480,
        4480,
        0,
        4480,
        4480,
    ]
    assert read == sum(both.seq_lens) - 2 * 4480


@pytest.mark.parametrize("deep", [2, 6])
def test_most_slots_are_saved_when_some_rows_share_more(deep: int) -> None:
    """8 rows begin with the same 128 pages, ``deep`` of them with 512 that are the same."""
    layout = layout_of([Row(8300 if i < deep else 3000, shared=512 if i < deep else 128) for i in range(8)], 16)
    _, tiles, read = shared_of(layout)
    saved = {2: 7 * 128 * 16, 6: 5 * 512 * 16}[deep]
    assert read == sum(layout.seq_lens) - saved
    assert [tile[4] for tile in tiles] == ([2048] * 8 if deep == 2 else [8192] * 6 + [0] * 2)


def test_only_whole_pages_that_every_query_sees_are_shared() -> None:
    """Rows may lie in the same pages altogether; the query's own slot ends what it sees."""
    layout = layout_of([Row(2, shared=1), Row(5, shared=2), Row(20, shared=2), Row(3, shared=1)], 4)
    shared, tiles, read = shared_of(layout, ALWAYS)
    assert [tile[2:] for tile in shared] == [[3, 3, 0]] and [tile[4] for tile in tiles] == [0, 4, 4, 4]
    assert read == sum(layout.seq_lens) - 2 * 4


def test_rows_are_cut_to_fill_the_device_and_alike_in_every_batch_on_request() -> None:
    def parts(count: int, **options: bool) -> int:
        planner = Planner(DEVICE, kv_heads=8, processors=132, **options)
        return planner.plan(layout_of([Row(3000)] * count, 64)).tiles[0].parts

    assert [parts(1), parts(4), parts(40)] == [24, 8, 1]
    assert [parts(count, deterministic=True) for count in (1, 4, 40)] == [16] * 3


def test_one_group_fills_the_device_in_a_graph_of_any_size() -> None:
    """Two programs a processor or eight parts, however much of the room for groups is padding."""
    planner, rule = Planner(DEVICE, kv_heads=8, processors=132), {2: 8, 64: 8, 128: 8, 256: 4}
    for rows, parts in rule.items():
        shared = planner.fixed(rows, 600, 16).meta.shared
        assert shared is not None and shared.tiles.parts == parts
    eager = planner.plan(layout_of([Row(8200, shared=512)] * 3, 16)).shared
    assert eager is not None and eager.tiles.parts == 8


def test_state_slots_are_of_rows_that_compute() -> None:
    layout = layout_of([Row(3), Row(4, 0), Row(5, 2)], 4)
    meta = Planner(DEVICE).plan(replace(layout, state_slots=[{"a": 4, "b": 1}, {}, {"a": 2}]))
    assert host(meta.state_rows("a")) == [4, -1, 2]
    for group, message in (("b", r"a row has no state slot of group 'b', only \['a'\]"), ("c", "no state slot of")):
        with pytest.raises(BackendError, match=message):
            meta.state_rows(group)
    drafted = Planner(DEVICE).plan(replace(layout, parents=[None, None, [-1, 0]], state_slots=[{"a": 1}] * 3))
    with pytest.raises(BackendError, match="cannot follow the branches of 2 drafts"):
        drafted.state_rows("a")


def test_errors_are_those_of_the_specification() -> None:
    layout = layout_of(ROWS, 4)
    for wrong in (replace(layout, page_tables=[t[:-1] for t in layout.page_tables]), replace(layout, starts=[1] * 7)):
        messages = []
        for plan in (PLAIN.plan, Planner(DEVICE).plan):
            with pytest.raises(BackendError) as caught:
                plan(wrong)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
    with pytest.raises(BackendError, match="no frame_tables"):
        Planner(DEVICE).plan(layout).within(True)
    with pytest.raises(BackendError, match="AttentionMetadata was planned by another backend"):
        own(AttentionMetadata(3))


def framed(layout: BatchLayout) -> BatchLayout:
    tables = [[-1, *(page + 1 for page in table[1:])] for table in layout.page_tables]
    return replace(layout, frame_mapping=[slot + 4 for slot in layout.slot_mapping], frame_tables=tables)


def test_frames_are_another_table_of_the_same_batch() -> None:
    layout = framed(layout_of(ROWS, 4))
    meta = Planner(DEVICE).plan(layout)
    inside = meta.within(True)
    assert meta.within(False) is meta and host(inside.slot_mapping) == list(layout.frame_mapping or ())
    pages, firsts = host(inside.pages), host(inside.page_starts)
    for first, table in zip(firsts, layout.frame_tables or (), strict=True):
        assert pages[first : first + len(table)] == table


def addresses(meta: CUDAMetadata) -> list[int]:
    tensors = [meta.pages, meta.page_starts, meta.slot_mapping, meta.seq_lens, *meta.state_slots.values()]
    return [t.data_ptr() for t in (*tensors, *(tiles.tiles for tiles in meta.tiles))]


def test_a_graphs_batch_is_filled_in_place() -> None:
    """Rows of an earlier step leave no trace."""
    planner = Planner(DEVICE)
    batch = planner.fixed(6, 30, 4, groups=["a"], frames=True)
    before = addresses(batch.meta)
    for lengths in ([9, 100, 3, 40], [7], [], [119] * 6):
        layout = replace(framed(layout_of([Row(n) for n in lengths], 4)), state_slots=[{"a": n} for n in lengths])
        batch.fill(layout)
        meta, padding = batch.meta, 6 - len(lengths)
        assert addresses(meta) == before and meta.decode and meta.num_rows == 6
        assert host(meta.seq_lens) == list(layout.seq_lens) + [0] * padding
        assert host(meta.slot_mapping) == list(layout.slot_mapping) + [-1] * padding
        assert host(meta.within(True).slot_mapping) == [*(layout.frame_mapping or ()), *[-1] * padding]
        assert host(meta.state_rows("a")) == lengths + [-1] * padding
        assert host(meta.query_starts) == list(range(7)) and host(meta.token_rows) == list(range(6))
        slots = [*lengths, *[-1] * padding]
        assert host(meta.tiles[0].tiles) == [[r, r, 1, slot, 0] for r, slot in enumerate(slots)]
        pages, firsts = host(meta.pages), host(meta.within(True).page_starts)
        for first, table in zip(firsts, layout.frame_tables or (), strict=False):
            assert pages[first : first + len(table)] == table
        assert batch.slots_read == sum(layout.seq_lens)


def test_a_graphs_batch_shares_what_it_has_room_for() -> None:
    layout = layout_of([Row(4100, shared=256)] * 4, 16)
    batch = Planner(DEVICE).fixed(8, 300, 16)
    assert batch.meta.shared is not None
    assert [meta.shared for meta in batch.metas] == [None, batch.meta.shared]
    assert batch.fill(layout_of([Row(70)] * 3, 16)) == 0
    assert batch.fill(layout) == 1
    assert [tile[2:4] for tile in host(batch.meta.shared.tiles.tiles)] == [[4, 4095]] + [[0, 0]] * 3
    assert batch.slots_read == 4096 + 4 * 5
    by_rows = Planner(DEVICE, sharing=Sharing(((4, 1), (8, 10**6)), "test"))
    assert by_rows.plan(layout).shared is not None
    assert [by_rows.fixed(rows, 300, 16).fill(layout) for rows in (4, 8)] == [1, 0], "padding is merged too"
    plain = Planner(DEVICE, sharing=never("test")).fixed(8, 300, 16)
    assert plain.fill(layout) == 0 and len(plain.metas) == 1
    assert plain.meta.shared is None and plain.slots_read == 4 * 4101


def test_a_graphs_batch_refuses_what_does_not_fit() -> None:
    batch = Planner(DEVICE).fixed(2, 4, 4, groups=["a"])
    good = replace(layout_of([Row(3)], 4), state_slots=[{"a": 0}])
    batch.fill(good)
    for layout, message in (
        (layout_of([Row(3)] * 3, 4), "3 rows of up to 1 tokens in pages of 4; it takes up to 2 rows"),
        (layout_of([Row(3, 2)], 4), "1 rows of up to 2 tokens"),
        (layout_of([Row(3)], 8), "in pages of 8; it takes"),
        (layout_of([Row(16)], 4), "a row of 17 slots; it takes up to 16"),
        (replace(framed(good), state_slots=[{"a": 0}]), "frames are given, or not"),
        (replace(good, state_slots=[{"b": 0}]), "a row has no state slot of group 'a'"),
        (replace(good, parents=[[-1]]), "cannot follow the branches of 1 drafts"),
    ):
        with pytest.raises(BackendError, match=message):
            batch.fill(layout)
