"""The GPU's attention gives the numbers of the specification, whatever the rows, heads, pages and types.

What a row does not see is NaN throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from cuda_batches import PLAIN, Row, close, layout_of, moved, pool_of
from cuda_device import DEVICE
from torch import Tensor

from sglite.runtime.backend.base import BackendError, BatchLayout
from sglite.runtime.backend.cuda_plan import CUDAMetadata, Planner
from sglite.runtime.backend.kernels.attention import attend
from sglite.runtime.backend.sharing import Sharing, never
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.protocol import GroupSpec

TREE = [-1, 0, 0, -1, 3, 1]
BATCHES: dict[str, list[Row]] = {
    "decode": [Row(0), Row(200), Row(63), Row(64)],
    "prompts": [Row(0, 7), Row(0, 130), Row(100, 20), Row(0, 1), Row(5, 0)],
    "mixed": [Row(200), Row(40, 33), Row(9), Row(70, 4, [-1, 0, 1]), Row(90, 16)],
    "trees": [Row(150, 8, TREE), Row(80), Row(3, 7, TREE), Row(20, 5, [-1, 0, 1]), Row(0, 38, [-1, *[0] * 35])],
}
Heads = tuple[int, int, int, int]
"""KV heads, heads a KV head, numbers of keys and of values."""
PLAINLY: Heads = (1, 2, 32, 32)
ALWAYS = Sharing(((1, 1),), "test")
UNCUT = Planner(DEVICE, processors=1)
"""One program for all slots of a tile."""


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def pool_for(layout: BatchLayout, dtype: torch.dtype, heads: Heads) -> KVPool:
    kv_heads, _, dim, v_dim = heads
    name = str(dtype).removeprefix("torch.")
    return pool_of(layout, GroupSpec(name="a", num_kv_heads=kv_heads, head_dim=dim, v_head_dim=v_dim, dtype=name))


def queries(layout: BatchLayout, heads: Heads, dtype: torch.dtype) -> Tensor:
    """As a part of something wider."""
    kv_heads, group, dim, _ = heads
    return torch.randn(layout.query_starts[-1], kv_heads * group + 2, dim).to(dtype)[:, 1:-1]


def check(
    layout: BatchLayout,
    meta: CUDAMetadata,
    heads: Heads,
    dtype: torch.dtype = torch.float32,
    *,
    stored: torch.dtype | None = None,
    window: int | None = None,
    sinks: bool = False,
) -> Tensor:
    """Compare with the specification in float32; returns what the kernels gave."""
    pool, q = pool_for(layout, stored or dtype, heads), queries(layout, heads, dtype)
    scale, weights = heads[2] ** -0.5, torch.randn(q.shape[1]) if sinks else None
    exact = PLAIN.attention(q.float(), pool, 0, PLAIN.plan(layout), scale=scale, window=window, sinks=weights)
    of_device = None if weights is None else weights.to(DEVICE)
    found = attend(q.to(DEVICE), moved(pool), 0, meta, scale=scale, window=window, sinks=of_device)
    close(found[: len(exact)], exact, dtype)
    return found.cpu()


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("window", "sinks"), [(None, False), (20, True)])
def test_every_query_attends_to_what_it_sees(batch: str, window: int | None, sinks: bool) -> None:
    layout = layout_of(BATCHES[batch], 16)
    check(layout, UNCUT.plan(layout), PLAINLY, window=window, sinks=sinks)


@pytest.mark.parametrize(("window", "sinks"), [(None, True), (150, False)])
def test_parts_are_merged(window: int | None, sinks: bool) -> None:
    """Of tiles of every height; some parts of a row are empty."""
    layout = layout_of([Row(300), Row(20), Row(250, 3, [-1, -1, 0]), Row(270, 17)], 16)
    meta = Planner(DEVICE, kv_heads=1).plan(layout)
    assert [tiles.parts for tiles in meta.tiles] == [3, 3, 3]
    check(layout, meta, (1, 2, 16, 24), window=window, sinks=sinks)


@pytest.mark.parametrize(
    ("heads", "dtype"),
    [
        ((1, 7, 80, 80), torch.bfloat16),
        ((3, 1, 16, 48), torch.float32),
        ((1, 20, 24, 16), torch.bfloat16),
        ((2, 4, 192, 128), torch.float32),
    ],
    ids=str,
)
def test_heads_of_any_size_and_number(heads: Heads, dtype: torch.dtype) -> None:
    layout = layout_of([Row(100), Row(30, 3), Row(10, 18)], 8)
    check(layout, UNCUT.plan(layout), heads, dtype)


def test_more_heads_of_a_group_than_a_program_takes() -> None:
    layout = layout_of([Row(70), Row(9, 2)], 8)
    check(layout, UNCUT.plan(layout), (1, 70, 16, 16))


@pytest.mark.parametrize("page_size", [1, 3, 128])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.int8], ids=str)
def test_pages_of_any_size_and_caches_of_int8(page_size: int, stored: torch.dtype) -> None:
    layout = layout_of([Row(140), Row(50, 5), Row(60, 20)], page_size)
    for window in (70, None):
        check(layout, UNCUT.plan(layout), PLAINLY, torch.bfloat16, stored=stored, window=window)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "page_size"), [(torch.float32, 1), (torch.bfloat16, 5), (torch.bfloat16, 64)])
@pytest.mark.parametrize("heads", [(2, 4, 64, 64), (1, 5, 96, 64), (2, 1, 128, 128)], ids=str)
@pytest.mark.parametrize("batch", BATCHES)
def test_all_together(batch: str, heads: Heads, dtype: torch.dtype, page_size: int) -> None:
    layout = layout_of(BATCHES[batch], page_size)
    for planner, window in ((UNCUT, None), (UNCUT, 1), (Planner(DEVICE), 33), (Planner(DEVICE), 1000)):
        meta = planner.plan(layout)
        check(layout, meta, heads, dtype, window=window, sinks=window != 1)
    check(layout, meta, heads, dtype, stored=torch.int8)


SHARING = [Row(start, shared=8) for start in (127, 130, 131, 140)]
SHARING += [Row(70), Row(150, shared=3), Row(130, 3, shared=8), Row(0, 18)]


def test_shared_pages_change_nothing() -> None:
    """Rows that share are among others, which do not; a layer with a window reads every row by itself."""
    layout = layout_of(SHARING, 16)
    meta = Planner(DEVICE, processors=8, sharing=ALWAYS).plan(layout)
    assert meta.shared is not None and meta.slots_read == sum(layout.seq_lens) - 3 * 8 * 16
    check(layout, meta, (2, 2, 32, 32))
    check(layout, meta, (1, 5, 16, 24), torch.bfloat16, stored=torch.int8, sinks=True)
    check(layout, meta, (1, 1, 16, 16), window=100)


def test_layers_in_frames_read_the_frames_there_are() -> None:
    """Those that no query sees are missing."""
    window, layout = 20, layout_of([Row(100), Row(45, 9), Row(60, 30)], 4)
    tables: list[Sequence[int]] = []
    for table, start in zip(layout.page_tables, layout.starts, strict=True):
        gone = max(0, start - window + 1) // 4
        tables.append([*[-1] * gone, *table[gone:]])
    layout = replace(layout, frame_tables=tables, frame_mapping=layout.slot_mapping)
    group = GroupSpec(name="a", num_kv_heads=1, head_dim=16, v_head_dim=16, window=window)
    pool = pool_of(layout, group, num_frames=3 + max(map(max, tables)), tables=tables)
    q = torch.randn(layout.query_starts[-1], 2, 16)
    exact = PLAIN.attention(q, pool, 0, PLAIN.plan(layout), scale=0.3, window=window)
    found = attend(q.to(DEVICE), moved(pool), 0, Planner(DEVICE).plan(layout), scale=0.3, window=window)
    close(found, exact, torch.float32)


def test_slots_without_a_frame_are_not_seen() -> None:
    layout = layout_of([Row(30)], 4)
    layout = replace(layout, frame_tables=[[-1] * 8], frame_mapping=[-1])
    group = GroupSpec(name="a", num_kv_heads=1, head_dim=16, v_head_dim=16, window=20)
    pool = moved(pool_of(layout, group, num_frames=3, tables=[[-1] * 8]))
    found = attend(torch.randn(1, 2, 16, device=DEVICE), pool, 0, Planner(DEVICE).plan(layout), scale=0.3, window=20)
    assert (found == 0).all()


@pytest.mark.parametrize("shared", [False, True])
def test_a_graphs_batch_gives_the_same_and_zeros_behind_it(shared: bool) -> None:
    sharing = ALWAYS if shared else never("test")
    fixed, heads = Planner(DEVICE, processors=50, sharing=sharing).fixed(6, 16, 16), (1, 2, 32, 32)
    for rows in ([Row(130 + i, shared=8) for i in range(3)] + [Row(200), Row(0)], [Row(33)]):
        layout = layout_of(rows, 16)
        kind = fixed.fill(layout)
        assert kind == int(shared and len(rows) > 1)
        padded = 6 - len(rows)
        pool, q = pool_for(layout, torch.float32, heads), queries(layout, heads, torch.float32)
        sinks = torch.randn(2)
        exact = PLAIN.attention(q, pool, 0, PLAIN.plan(layout), scale=1.0, sinks=sinks)
        q = torch.cat((q, torch.full((padded, *q.shape[1:]), torch.nan)))
        found = attend(q.to(DEVICE), moved(pool), 0, fixed.metas[kind], scale=1.0, sinks=sinks.to(DEVICE))
        assert (found[len(rows) :] == 0).all()
        close(found[: len(rows)], exact, torch.float32)


def test_a_rows_numbers_are_bit_equal_in_every_batch_on_request() -> None:
    """Alone, among others of which some share its pages, and in a graph's batch."""
    planner = Planner(DEVICE, processors=10, deterministic=True)
    rows = [Row(250, shared=8), Row(150, shared=8), Row(20, 5, shared=1), Row(0, 18)]
    heads = (1, 2, 32, 32)
    layout = layout_of(rows, 16)
    pool, q = moved(pool_for(layout, torch.float32, heads)), queries(layout, heads, torch.float32).to(DEVICE)
    together = attend(q, pool, 0, planner.plan(layout), scale=0.2)
    fixed = planner.fixed(2, 20, 16)
    for r, row in enumerate(rows):
        tokens = slice(layout.query_starts[r], layout.query_starts[r + 1])
        alone = BatchLayout(
            [0, row.tokens], [row.start], [row.end], [0] * row.tokens, [-1] * row.tokens, [layout.page_tables[r]], 16
        )
        assert torch.equal(attend(q[tokens], pool, 0, planner.plan(alone), scale=0.2), together[tokens])
        if row.tokens == 1:
            fixed.fill(alone)
            padded = q[tokens].expand(2, -1, -1)
            assert torch.equal(attend(padded, pool, 0, fixed.meta, scale=0.2)[:1], together[tokens])


def test_what_is_not_a_number_stays_so() -> None:
    """In one part of a row or in all of them; the row besides has its numbers."""
    layout = layout_of([Row(200), Row(200)], 16)
    heads = (1, 2, 16, 16)
    pool, q = pool_for(layout, torch.float32, heads), queries(layout, heads, torch.float32)
    clean = attend(q.to(DEVICE), moved(pool), 0, Planner(DEVICE).plan(layout), scale=1.0)
    pool.k[0][layout.page_tables[0][3] * 16] = torch.nan
    found = attend(q.to(DEVICE), moved(pool), 0, Planner(DEVICE).plan(layout), scale=1.0)
    assert found[0].isnan().all() and torch.equal(found[1], clean[1])
    q[1] = torch.nan
    assert attend(q.to(DEVICE), moved(pool), 0, Planner(DEVICE).plan(layout), scale=1.0).isnan().all()


def test_heads_that_are_too_large_are_refused() -> None:
    layout = layout_of([Row(3)], 16)
    pool, q = pool_for(layout, torch.float32, (1, 1, 520, 16)), torch.randn(1, 1, 520)
    with pytest.raises(BackendError, match="heads of 520 and 16 numbers: the cuda backend takes up to 512"):
        attend(q.to(DEVICE), moved(pool), 0, Planner(DEVICE).plan(layout), scale=1.0)
