"""Latent attention on the CPU, dense and over chosen slots, against both written out query by query."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from sglite.runtime.backend import cpu_mla
from sglite.runtime.backend.base import BatchLayout
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.protocol import CopyPages, GroupSpec

HEADS, DIM, VALUES, KEYS = 5, 12, 9, 8
SCALE = 0.3
Row = tuple[int, int, list[int] | None]
"""Slots before this step, tokens of this step, parents."""
ROWS: list[Row] = [(0, 7, None), (30, 1, None), (29, 1, None), (12, 20, None), (9, 4, [-1, 0, 0]), (3, 1, None)]


def make_pool(page_size: int) -> KVPool:
    groups = [
        GroupSpec(name="attention", layout="mla", head_dim=DIM, v_head_dim=VALUES),
        GroupSpec(name="indexer", layout="mla", head_dim=KEYS, v_head_dim=KEYS),
    ]
    pool = CPUBackend().allocate_pool(groups, num_pages=160, page_size=page_size)
    for tensor in pool.k:
        tensor.normal_()
    return pool


def make_layout(rows: list[Row], page_size: int) -> BatchLayout:
    pages = random.Random(0).sample(range(160), 160)
    tables = [[pages.pop() for _ in range(-(-(start + count) // page_size))] for start, count, _ in rows]
    ends = [sum(count for _, count, _ in rows[:i]) for i in range(len(rows) + 1)]
    return BatchLayout(
        query_starts=ends,
        starts=[start for start, _, _ in rows],
        seq_lens=[start + count for start, count, _ in rows],
        positions=[0] * ends[-1],
        slot_mapping=[-1] * ends[-1],
        page_tables=tables,
        page_size=page_size,
        parents=[parents for _, _, parents in rows],
    )


def seen_by_each(rows: list[Row], layout: BatchLayout) -> list[list[int]]:
    """By query: the pool rows it sees, in the sequence's order."""
    result = []
    for (start, count, parents), table in zip(rows, layout.page_tables, strict=True):
        slots = [table[i // layout.page_size] * layout.page_size + i % layout.page_size for i in range(start + count)]
        known = start + count - len(parents or [])
        for slot in range(start, start + count):
            path, draft = [], slot - known
            while draft >= 0:
                path.append(known + draft)
                draft = (parents or [])[draft]
            result.append([slots[i] for i in [*range(min(slot + 1, known)), *sorted(path)]])
    return result


def attended(q: Tensor, latents: Tensor, slots: list[list[int]]) -> Tensor:
    results = []
    for query, own in zip(q, slots, strict=True):
        shares = torch.softmax(SCALE * query @ latents[own].T, dim=-1)  # [heads, slots]
        results.append(shares @ latents[own, :VALUES])
    return torch.stack(results)


def chosen_by_each(q: Tensor, weights: Tensor, keys: Tensor, seen: list[list[int]], top_k: int) -> list[list[int]]:
    result = []
    for query, weight, own in zip(q, weights, seen, strict=True):
        scores = (weight[:, None] * torch.relu(query @ keys[own].T)).sum(0)
        best = sorted(range(len(own)), key=lambda i: (-scores[i].item(), i))[:top_k]
        result.append([own[i] for i in sorted(best)])
    return result


@pytest.fixture(params=[2**23, 1, 300])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The same results however many blocks the work is cut into."""
    monkeypatch.setattr(cpu_mla, "BLOCK", request.param)
    return int(request.param)


@pytest.mark.parametrize("page_size", [1, 4])
def test_every_query_attends_to_the_latents_it_sees(block: int, page_size: int) -> None:
    backend, pool, layout = CPUBackend(), make_pool(page_size), make_layout(ROWS, page_size)
    q = torch.randn(layout.query_starts[-1], HEADS, DIM)
    out = backend.mla_attention(q, pool, 0, backend.plan(layout), scale=SCALE)
    torch.testing.assert_close(out, attended(q, pool.k[0][:, 0], seen_by_each(ROWS, layout)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("top_k", [1, 6, 25])
def test_chosen_slots_are_the_best_that_are_seen_and_attention_is_over_them(block: int, top_k: int) -> None:
    backend, pool, layout = CPUBackend(), make_pool(4), make_layout(ROWS, 4)
    meta, tokens = backend.plan(layout), layout.query_starts[-1]
    q, weights = torch.randn(tokens, HEADS, KEYS), torch.randn(tokens, HEADS)
    chosen = backend.choose_slots(q, weights, pool, 1, meta, top_k=top_k)
    best = chosen_by_each(q, weights, pool.k[1][:, 0], seen_by_each(ROWS, layout), top_k)
    assert chosen is not None
    assert chosen.tolist() == [slots + [-1] * (top_k - len(slots)) for slots in best]
    query = torch.randn(tokens, HEADS, DIM)
    out = backend.mla_attention(query, pool, 0, meta, scale=SCALE, chosen=chosen)
    torch.testing.assert_close(out, attended(query, pool.k[0][:, 0], best), atol=1e-5, rtol=0)


def test_nothing_is_chosen_where_nobody_sees_more() -> None:
    backend, pool, layout = CPUBackend(), make_pool(4), make_layout(ROWS, 4)
    q, weights = torch.randn(layout.query_starts[-1], HEADS, KEYS), torch.randn(layout.query_starts[-1], HEADS)
    assert backend.choose_slots(q, weights, pool, 1, backend.plan(layout), top_k=32) is None
    assert backend.choose_slots(q, weights, pool, 1, backend.plan(layout), top_k=31) is not None


@pytest.mark.parametrize("rows", [ROWS, [(39, 1, None)], [(0, 40, None)]], ids=str)
def test_of_equal_scores_the_first_are_taken_whatever_the_batch(rows: list[Row]) -> None:
    backend, pool, layout = CPUBackend(), make_pool(4), make_layout(rows, 4)
    pool.k[1].fill_(-1.0)  # relu makes every score 0
    tokens = layout.query_starts[-1]
    chosen = backend.choose_slots(
        torch.ones(tokens, HEADS, KEYS), torch.ones(tokens, HEADS), pool, 1, backend.plan(layout), top_k=3
    )
    assert chosen is not None
    assert [[slot for slot in row if slot >= 0] for row in chosen.tolist()] == [
        slots[:3] for slots in seen_by_each(rows, layout)
    ]


def test_values_of_other_rows_do_not_reach_a_row_even_as_nan() -> None:
    backend, pool, layout = CPUBackend(), make_pool(4), make_layout([(20, 1, None), (24, 1, None), (6, 9, None)], 4)
    mine = [page * 4 + i for page in layout.page_tables[0] for i in range(4)]
    others = torch.ones(len(pool.k[0]), dtype=torch.bool)
    others[mine] = False
    for tensor in pool.k:
        tensor[others] = torch.nan
    q, index = torch.randn(11, HEADS, DIM), torch.randn(11, HEADS, KEYS)
    meta = backend.plan(layout)
    chosen = backend.choose_slots(index, torch.ones(11, HEADS), pool, 1, meta, top_k=5)
    for slots in (None, chosen):
        assert backend.mla_attention(q, pool, 0, meta, scale=SCALE, chosen=slots)[0].isfinite().all()


def test_pages_are_copied_with_latents_and_keys_of_the_indexer() -> None:
    backend, pool = CPUBackend(), make_pool(4)
    before = [tensor.clone() for tensor in pool.k]
    backend.copy_pages(pool, [CopyPages(src=3, dst=9, num_tokens=3)])
    for tensor, old in zip(pool.k, before, strict=True):
        assert torch.equal(tensor[36:39], old[12:15]) and torch.equal(tensor[39:], old[39:])
        assert torch.equal(tensor[:36], old[:36])


def test_bfloat16_is_within_its_rounding() -> None:
    backend, layout = CPUBackend(), make_layout(ROWS, 4)
    group: dict[str, Any] = {"layout": "mla", "head_dim": DIM, "v_head_dim": VALUES, "dtype": "bfloat16"}
    pool = backend.allocate_pool([GroupSpec(name="attention", **group)], num_pages=160, page_size=4)
    pool.k[0].normal_()
    q = torch.randn(layout.query_starts[-1], HEADS, DIM, dtype=torch.bfloat16)
    out = backend.mla_attention(q, pool, 0, backend.plan(layout), scale=SCALE)
    expected = attended(q.float(), pool.k[0][:, 0].float(), seen_by_each(ROWS, layout))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=0.03, rtol=0.02)
