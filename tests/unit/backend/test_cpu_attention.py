"""The CPU backends' attention and stores, plain and native, against attention written out query by query."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from native_kernels import backend_of
from torch import Tensor

from sglite.runtime.backend.base import BackendError, BatchLayout
from sglite.runtime.backend.cpu import CPUBackend, CPUMetadata
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.protocol import GroupSpec

DIM = 32
"""What the native kernels take at once, so that they are the ones that are tested."""
SCALE = 0.3

Row = tuple[int, int, list[int] | None]
"""Slots before this step, tokens of this step, parents."""


@pytest.fixture(scope="module", params=["torch", "auto"])
def backend(request: pytest.FixtureRequest) -> CPUBackend:
    """The specification, and the fastest kernels that the processor has."""
    return backend_of(request.param)


def make_pool(page_size: int, num_pages: int = 64, kv_heads: int = 2) -> KVPool:
    group = GroupSpec(name="a", num_layers=1, num_kv_heads=kv_heads, head_dim=DIM, v_head_dim=DIM)
    pool = CPUBackend().allocate_pool([group], num_pages=num_pages, page_size=page_size)
    pool.k[0].normal_()
    pool.v[0].normal_()
    return pool


def make_layout(rows: list[Row], page_size: int, pages: list[int]) -> BatchLayout:
    """Rows on the given pages, taken in order; positions do not matter to attention."""
    pages = list(pages)
    tables, slots, ends = [], [], [0]
    for start, count, _ in rows:
        table = [pages.pop() for _ in range(-(-(start + count) // page_size))]
        tables.append(table)
        slots += [table[i // page_size] * page_size + i % page_size for i in range(start, start + count)]
        ends.append(ends[-1] + count)
    return BatchLayout(
        query_starts=ends,
        starts=[start for start, _, _ in rows],
        seq_lens=[start + count for start, count, _ in rows],
        positions=[0] * ends[-1],
        slot_mapping=slots,
        page_tables=tables,
        page_size=page_size,
        parents=[parents for _, _, parents in rows],
    )


def visible_slots(row: Row, query: int) -> list[int]:
    """Slot indices that a query sees, by the words of the contract."""
    start, count, parents = row
    drafts = len(parents or [])
    known = start + count - drafts
    if start + query < known:
        return list(range(start + query + 1))
    seen, draft = list(range(known)), start + query - known
    while draft >= 0:
        seen.append(known + draft)
        draft = (parents or [])[draft]
    return seen


def position_of(row: Row, slot: int) -> int:
    """Where a slot's token stands in its sequence: drafts one behind what they continue."""
    start, count, parents = row
    known = start + count - len(parents or [])
    depth, draft = 0, slot - known
    while draft >= 0:
        depth, draft = depth + 1, (parents or [])[draft]
    return min(slot, known - 1) + depth


def reference(
    q: Tensor,
    pool: KVPool,
    layout: BatchLayout,
    rows: list[Row],
    window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    out = torch.empty_like(q)
    for r, row in enumerate(rows):
        for j in range(row[1]):
            token = layout.query_starts[r] + j
            table, size = layout.page_tables[r], layout.page_size
            own = position_of(row, row[0] + j)
            seen = [i for i in visible_slots(row, j) if window is None or position_of(row, i) > own - window]
            slots = [table[i // size] * size + i % size for i in seen]
            for head in range(q.shape[1]):
                kv = head // (q.shape[1] // pool.k[0].shape[1])
                scores = SCALE * pool.k[0][slots, kv] @ q[token, head]
                sink = scores[:0] if sinks is None else sinks[head : head + 1]
                weight = torch.softmax(torch.cat((scores, sink)), 0)[: len(slots)]
                out[token, head] = weight @ pool.v[0][slots, kv]
    return out


@st.composite
def rows_of_a_step(draw: st.DrawFn) -> list[Row]:
    rows: list[Row] = []
    for _ in range(draw(st.integers(1, 5))):
        start, count = draw(st.just(0) | st.integers(0, 40)), draw(st.sampled_from([1, 1, 2, 3, 20]))
        parents = None
        if draw(st.booleans()):
            drafts = draw(st.integers(1, count))
            parents = [draw(st.integers(-1, i - 1)) for i in range(drafts)]
        rows.append((start, count, parents))
    return rows


@settings(max_examples=60, deadline=None)
@given(rows_of_a_step(), st.sampled_from([1, 4, 16]), st.sampled_from([1, 2, 4]), st.randoms(use_true_random=False))
def test_every_query_attends_to_exactly_the_slots_it_may_see(backend, rows, page_size, group, rng) -> None:  # type: ignore[no-untyped-def]
    num_pages = 320
    pool = make_pool(page_size, num_pages)
    pages = list(range(num_pages))
    if rng.random() < 0.5:
        rng.shuffle(pages)
    layout = make_layout(rows, page_size, pages)
    total = layout.query_starts[-1]
    meta = backend.plan(layout)
    k, v = torch.randn(total, 2, DIM), torch.randn(total, 2, DIM)
    backend.store_kv(pool, 0, k, v, meta)
    assert torch.equal(pool.k[0][list(layout.slot_mapping)], k)
    assert torch.equal(pool.v[0][list(layout.slot_mapping)], v)
    q = torch.randn(total, 2 * group, DIM)
    torch.testing.assert_close(
        backend.attention(q, pool, 0, meta, scale=SCALE), reference(q, pool, layout, rows), atol=1e-5, rtol=1e-5
    )


@settings(max_examples=100, deadline=None)
@given(rows_of_a_step(), st.integers(1, 24) | st.just(1000), st.booleans(), st.randoms(use_true_random=False))
@example([(30, 1, None), (29, 1, None), (30, 4, [-1, 0, -1])], 8, True, random.Random(0))
@example([(0, 20, None)], 5, True, random.Random(0))
@example([(0, 20, None)], 20, True, random.Random(0))
def test_windows_and_sinks_hold_for_every_query(backend, rows, window, with_sinks, rng) -> None:  # type: ignore[no-untyped-def]
    """A window counts positions, so siblings of a draft tree see equally far back; layers with and without one take
    turns over the same plan; slots outside of every query's window are not read, not even as NaN."""
    page_size, num_pages = 4, 128
    pool = make_pool(page_size, num_pages)
    pages = list(range(num_pages))
    rng.shuffle(pages)
    layout = make_layout(rows, page_size, pages)
    meta = backend.plan(layout)
    q = torch.randn(layout.query_starts[-1], 4, DIM)
    sinks = torch.randn(4) if with_sinks else None
    for seen in (window, None, window):
        attended = backend.attention(q, pool, 0, meta, scale=SCALE, window=seen, sinks=sinks)
        expected = reference(q, pool, layout, rows, seen, sinks)
        torch.testing.assert_close(attended, expected, atol=1e-5, rtol=1e-5)
    for tensor in (pool.k[0], pool.v[0]):
        for (start, _, _), table in zip(rows, layout.page_tables, strict=True):
            out = range(max(0, start - window + 1))
            tensor[[table[i // page_size] * page_size + i % page_size for i in out]] = math.nan
    blind = backend.attention(q, pool, 0, meta, scale=SCALE, window=window, sinks=sinks)
    torch.testing.assert_close(blind, reference(q, pool, layout, rows, window, sinks), atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(rows_of_a_step(), st.randoms(use_true_random=False))
@example([(3, 1, None), (20, 1, None), (9, 1, None)], random.Random(0))
@example([(3, 2, [-1, -1]), (9, 2, [-1, -1])], random.Random(0))
def test_slots_of_other_rows_never_reach_a_row_not_even_as_nan(backend, rows, rng) -> None:  # type: ignore[no-untyped-def]
    page_size, num_pages = 4, 128
    pool = make_pool(page_size, num_pages)
    pages = list(range(num_pages))
    rng.shuffle(pages)
    layout = make_layout(rows, page_size, pages)
    meta = backend.plan(layout)
    q = torch.randn(layout.query_starts[-1], 4, DIM)
    clean = backend.attention(q, pool, 0, meta, scale=SCALE)
    for row, table in enumerate(layout.page_tables):
        own = [table[i // page_size] * page_size + i % page_size for i in range(layout.seq_lens[row])]
        poisoned = KVPool(pool.groups, num_pages, page_size, (only(pool.k[0], own),), (only(pool.v[0], own),))
        tokens = slice(layout.query_starts[row], layout.query_starts[row + 1])
        assert torch.equal(backend.attention(q, poisoned, 0, meta, scale=SCALE)[tokens], clean[tokens])


def only(cache: Tensor, slots: list[int]) -> Tensor:
    """The cache with NaN in all other slots."""
    kept = torch.full_like(cache, math.nan)
    kept[slots] = cache[slots]
    return kept


@settings(max_examples=50, deadline=None)
@given(rows_of_a_step(), st.integers(1, 24), st.sampled_from([1, 4]), st.randoms(use_true_random=False))
def test_layers_in_frames_give_what_they_give_in_pages(backend, rows, window, page_size, rng) -> None:  # type: ignore[no-untyped-def]
    """Frames are few: pages behind every query's window have none, and another layer, in pages, is none the wiser."""
    num_pages = 320
    sizes: dict[str, Any] = {"num_kv_heads": 2, "head_dim": DIM, "v_head_dim": DIM}
    groups = [GroupSpec(name="all", **sizes), GroupSpec(name="some", window=window, **sizes)]
    pages, frames = list(range(num_pages)), list(range(num_pages))
    rng.shuffle(frames)
    layout = make_layout(rows, page_size, pages)
    behind = [max(0, start - window + 1) // page_size for start, _, _ in rows]
    tables = [
        [-1 if index < out else frames[page] for index, page in enumerate(table)]
        for out, table in zip(behind, layout.page_tables, strict=True)
    ]
    mapping = [frames[slot // page_size] * page_size + slot % page_size for slot in layout.slot_mapping]
    pool = backend.allocate_pool(groups, num_pages=num_pages, page_size=page_size, num_frames=num_pages)
    pool.k[0].normal_()
    pool.v[0].normal_()
    for page, frame in enumerate(frames):
        for tensors in (pool.k, pool.v):
            tensors[1].view(num_pages, -1)[frame] = tensors[0].view(num_pages, -1)[page]
    meta = backend.plan(replace(layout, frame_tables=tables, frame_mapping=mapping))
    q, k, v = (torch.randn(layout.query_starts[-1], heads, DIM) for heads in (4, 2, 2))
    for layer in (0, 1):
        backend.store_kv(pool, layer, k, v, meta)
    in_pages, in_frames = (backend.attention(q, pool, layer, meta, scale=SCALE, window=window) for layer in (0, 1))
    torch.testing.assert_close(in_frames, in_pages, atol=1e-6, rtol=1e-6)
    with pytest.raises(BackendError, match="no frame_tables"):
        backend.attention(q, pool, 1, backend.plan(layout), scale=SCALE, window=window)


def test_tokens_with_slot_minus_one_are_not_stored_but_see_what_is_cached(backend: CPUBackend) -> None:
    pool = make_pool(4)
    before = pool.k[0].clone(), pool.v[0].clone()
    layout = BatchLayout([0, 3], [4], [7], [4, 5, 6], [-1, -1, 10], [[5, 2]], 4)
    meta = backend.plan(layout)
    k, v = torch.randn(3, 2, DIM), torch.randn(3, 2, DIM)
    backend.store_kv(pool, 0, k, v, meta)
    changed = (pool.k[0] != before[0]).any(dim=(1, 2)).nonzero().flatten().tolist()
    assert changed == [10]
    assert torch.equal(pool.v[0][10], v[2])
    q = torch.randn(3, 4, DIM)
    expected = reference(q, pool, layout, [(4, 3, None)])
    torch.testing.assert_close(backend.attention(q, pool, 0, meta, scale=SCALE), expected)


def test_rows_of_similar_length_share_a_segment_and_contiguous_ones_need_no_gather() -> None:
    def segments(rows: list[Row], pages: list[int]) -> CPUMetadata:
        return CPUBackend().plan(make_layout(rows, 16, pages))

    decode = segments([(100, 1, None), (90, 1, None), (1000, 1, None)], list(range(100)))
    assert sorted(segment.rows for segment in decode.segments()) == [1, 2]
    assert len(segments([(0, 20, None), (0, 20, None)], list(range(10))).segments()) == 2
    prefill = segments([(0, 40, None)], [3, 2, 1]).segments()[0]
    assert prefill.slots == slice(16, 56) and prefill.causal and prefill.mask is None


def test_bfloat16_rows_are_computed_in_bfloat16(backend: CPUBackend) -> None:
    group = GroupSpec(name="a", num_kv_heads=2, head_dim=DIM, v_head_dim=DIM, dtype="bfloat16")
    pool = backend.allocate_pool([group], num_pages=8, page_size=4)
    meta = backend.plan(make_layout([(0, 9, None)], 4, [4, 6, 1]))
    q, k, v = (torch.randn(9, heads, DIM, dtype=torch.bfloat16) for heads in (4, 2, 2))
    backend.store_kv(pool, 0, k, v, meta)
    out = backend.attention(q, pool, 0, meta, scale=SCALE)
    heads_first = [x.float().transpose(0, 1) for x in (q, k, v)]
    exact = torch.nn.functional.scaled_dot_product_attention(
        heads_first[0], heads_first[1], heads_first[2], is_causal=True, scale=SCALE, enable_gqa=True
    ).transpose(0, 1)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, atol=0.03, rtol=0.02)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query_starts": [0, 2]}, "query_starts 0..2, 3 positions"),
        ({"seq_lens": [4]}, "row 0 computes 3 tokens from 0 to 4"),
        ({"page_tables": [[]]}, "row 0 has 0 pages of 4 for 3 positions"),
        ({"slot_mapping": [0, 1]}, "2 slots"),
        ({"starts": [0, 1]}, "2 starts"),
        ({"parents": [None, None]}, "2 parents for 1 rows"),
        ({"frame_mapping": [0, 1, 2]}, "frame_mapping and frame_tables go together"),
    ],
)
def test_a_layout_that_contradicts_itself_is_refused(
    backend: CPUBackend, change: dict[str, list[int]], words: str
) -> None:
    fields = {
        "query_starts": [0, 3],
        "starts": [0],
        "seq_lens": [3],
        "positions": [0, 1, 2],
        "slot_mapping": [0, 1, 2],
        "page_tables": [[0]],
        "page_size": 4,
    }
    with pytest.raises(BackendError) as error:
        backend.plan(BatchLayout(**{**fields, **change}))  # type: ignore[arg-type]
    assert words in str(error.value)
