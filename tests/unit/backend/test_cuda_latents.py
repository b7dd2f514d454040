"""Latent attention on a GPU gives the numbers of the specification, over all slots and over chosen ones, and the same
slots are chosen."""

from __future__ import annotations

import pytest
import torch
from cuda_batches import PLAIN, Row, close, layout_of, moved, pool_of
from cuda_device import DEVICE

from sglite.runtime.backend.base import BackendError, BatchLayout
from sglite.runtime.backend.cuda_plan import Planner
from sglite.runtime.backend.kernels import latents
from sglite.runtime.backend.kernels.latents import choose_slots, mla_attention
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.protocol import GroupSpec

TREE = [-1, 0, 0, -1, 3, 1]
MIXED = [Row(0, 7), Row(150), Row(12, 20), Row(40, 7, TREE), Row(3), Row(30, 3, [-1, 0])]
SCALE = 0.3
PLANNER = Planner(DEVICE, kv_heads=1, processors=3)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def pool_for(layout: BatchLayout, dim: int, v_dim: int, dtype: torch.dtype = torch.float32) -> KVPool:
    name = str(dtype).removeprefix("torch.")
    return pool_of(layout, GroupSpec(name="a", layout="mla", head_dim=dim, v_head_dim=v_dim, dtype=name))


def check(rows: list[Row], heads: int, dim: int, v_dim: int, dtype: torch.dtype, page_size: int) -> None:
    layout = layout_of(rows, page_size)
    pool, q = pool_for(layout, dim, v_dim, dtype), torch.randn(layout.query_starts[-1], heads, dim).to(dtype)
    exact = PLAIN.mla_attention(q.float(), pool, 0, PLAIN.plan(layout), scale=SCALE)
    found = mla_attention(q.to(DEVICE), moved(pool), 0, PLANNER.plan(layout), scale=SCALE)
    close(found, exact, dtype)


@pytest.mark.parametrize(
    ("heads", "dim", "v_dim", "dtype"), [(5, 12, 9, torch.float32), (17, 40, 32, torch.bfloat16)], ids=str
)
def test_every_query_attends_to_the_latents_it_sees(heads: int, dim: int, v_dim: int, dtype: torch.dtype) -> None:
    check(MIXED, heads, dim, v_dim, dtype, 4)


def test_latents_of_the_usual_size() -> None:
    check([Row(150), Row(9, 5)], 16, 576, 512, torch.bfloat16, 64)


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [1, 64])
@pytest.mark.parametrize("heads", [16, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_together(dtype: torch.dtype, heads: int, page_size: int) -> None:
    for dim, v_dim in ((576, 512), (80, 64), (16, 16)):
        check(MIXED, heads, dim, v_dim, dtype, page_size)


def small(*shape: int) -> torch.Tensor:
    """Whole numbers, whose sums have no rounding: equals are many."""
    return torch.randint(-2, 3, shape).float()


@pytest.mark.parametrize(("top_k", "scored"), [(1, 2**24), (6, 1000), (25, 2**24)])
def test_the_same_slots_are_chosen_and_attended(monkeypatch: pytest.MonkeyPatch, top_k: int, scored: int) -> None:
    monkeypatch.setattr(latents, "SCORED", scored)
    rows = [Row(0, 7), Row(70), Row(12, 17), Row(20, 7, TREE), Row(3)]
    layout = layout_of(rows, 4)
    keys, pool, tokens = pool_for(layout, 8, 8), pool_for(layout, 12, 9), layout.query_starts[-1]
    for table, end in zip(layout.page_tables, layout.seq_lens, strict=True):
        for slot in [table[i // 4] * 4 + i % 4 for i in range(end)]:
            keys.k[0][slot] = small(1, 8)
    q, weights, query = small(tokens, 5, 8), small(tokens, 5), torch.randn(tokens, 5, 12)
    plain, meta = PLAIN.plan(layout), Planner(DEVICE).plan(layout)
    expected = PLAIN.choose_slots(q, weights, keys, 0, plain, top_k=top_k)
    chosen = choose_slots(q.to(DEVICE), weights.to(DEVICE), moved(keys), 0, meta, top_k=top_k)
    assert chosen is not None and expected is not None and chosen.tolist() == expected.tolist()
    exact = PLAIN.mla_attention(query, pool, 0, plain, scale=SCALE, chosen=expected)
    found = mla_attention(query.to(DEVICE), moved(pool), 0, meta, scale=SCALE, chosen=chosen)
    close(found, exact, torch.float32)


def test_nothing_is_chosen_where_nobody_sees_more() -> None:
    layout = layout_of([Row(30), Row(20, 4)], 4)
    pool, meta = moved(pool_for(layout, 8, 8)), Planner(DEVICE).plan(layout)
    q, weights = torch.randn(5, 3, 8, device=DEVICE), torch.randn(5, 3, device=DEVICE)
    assert choose_slots(q, weights, pool, 0, meta, top_k=31) is None
    assert choose_slots(q, weights, pool, 0, meta, top_k=30) is not None


def test_a_graphs_batch_gives_the_same_and_zeros_behind_it() -> None:
    """There is always something to choose; rows that see fewer get all they see."""
    fixed = Planner(DEVICE, processors=50).fixed(4, 20, 8)
    for rows in ([Row(150), Row(9), Row(0)], [Row(70)]):
        layout = layout_of(rows, 8)
        fixed.fill(layout)
        pool, q = pool_for(layout, 12, 9), torch.randn(4, 5, 12)
        exact = PLAIN.mla_attention(q[: len(rows)], pool, 0, PLAIN.plan(layout), scale=SCALE)
        q[len(rows) :] = torch.nan
        keys, weights = moved(pool_for(layout, 8, 8)), torch.randn(4, 3, device=DEVICE)
        every = choose_slots(torch.randn(4, 3, 8, device=DEVICE), weights, keys, 0, fixed.meta, top_k=159)
        assert every is not None and (every[len(rows) :] == -1).all()
        for chosen in (None, every):
            found = mla_attention(q.to(DEVICE), moved(pool), 0, fixed.meta, scale=SCALE, chosen=chosen)
            close(found[: len(rows)], exact, torch.float32)
            assert (found[len(rows) :] == 0).all()


def test_latents_that_are_too_large_are_refused() -> None:
    layout = layout_of([Row(3)], 16)
    pool = moved(pool_for(layout, 700, 520))
    with pytest.raises(BackendError, match="latents of 700 numbers, 520 of them values: the cuda backend takes up to"):
        mla_attention(torch.randn(1, 2, 700, device=DEVICE), pool, 0, Planner(DEVICE).plan(layout), scale=1.0)
