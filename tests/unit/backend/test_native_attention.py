"""How the work of native attention is cut: slots that rows share are read once, long rows in stretches, and nothing of
that shows in the results but for rounding."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from native_kernels import NATIVE, backend_of
from torch import Tensor

from sglite.runtime.backend.base import BatchLayout
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.cpu_native import NativeBackend
from sglite.runtime.backend.weights import QKVNorms
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.protocol import GroupSpec

PLAIN = CPUBackend()
DTYPES = [torch.float32, torch.bfloat16]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-8}
PAGE = 16

Row = tuple[Sequence[int], int, int]
"""Pages that it begins with, slots before its tokens, tokens."""


@pytest.fixture(scope="module", params=NATIVE)
def native(request: pytest.FixtureRequest) -> NativeBackend:
    """Every instruction set."""
    backend = backend_of(request.param)
    assert isinstance(backend, NativeBackend)
    return backend


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def layout_of(rows: list[Row], page_size: int = PAGE) -> BatchLayout:
    """Behind the pages that are given, every row has some of its own."""
    free = 1 + max((page for pages, _, _ in rows for page in pages), default=-1)
    tables, ends, stored = [], [0], []
    for pages, start, count in rows:
        own = -(-(start + count) // page_size) - len(pages)
        tables.append([*pages, *range(free, free + own)])
        free += own
        ends.append(ends[-1] + count)
        stored += [tables[-1][i // page_size] * page_size + i % page_size for i in range(start, start + count)]
    starts, lens = [start for _, start, _ in rows], [start + count for _, start, count in rows]
    return BatchLayout(ends, starts, lens, [0] * ends[-1], stored, tables, page_size)


def pool_of(layout: BatchLayout, dtype: torch.dtype, kv_heads: int = 2, dim: int = 64, v_dim: int = 64) -> KVPool:
    group = GroupSpec(
        name="a", num_kv_heads=kv_heads, head_dim=dim, v_head_dim=v_dim, dtype=str(dtype).removeprefix("torch.")
    )
    pages = 1 + max(page for table in layout.page_tables for page in table)
    pool = PLAIN.allocate_pool([group], num_pages=pages, page_size=layout.page_size)
    for tensor in (*pool.k, *pool.v):
        tensor.random_(-127, 128) if dtype == torch.int8 else tensor.normal_()
    for scales in pool.scales_of(0) or ():
        scales.uniform_(0.005, 0.02)
    return pool


def attend(
    native: NativeBackend, layout: BatchLayout, pool: KVPool, q: Tensor, window: int | None = None, sinks: bool = False
) -> int:
    """Compare with the specification in float32; returns how many slots' keys were read."""
    options = {
        "scale": q.shape[-1] ** -0.5,
        "window": window,
        "sinks": torch.randn(q.shape[1]) if sinks else None,
    }
    before = native.slots_read
    found = native.attention(q, pool, 0, native.plan(layout), **options)  # type: ignore[arg-type]
    exact = PLAIN.attention(q.float(), pool, 0, PLAIN.plan(layout), **options)  # type: ignore[arg-type]
    error = (found.double() - exact.double()).abs().max().item()
    assert error <= 3 * ROUNDING[q.dtype] * max(1.0, exact.abs().max().item())
    return native.slots_read - before


A, B, C = list(range(20)), [20, 21, 22, 23], [24, 25]
BATCHES: dict[str, list[Row]] = {
    "one prefix": [(A, 320, 1)] * 5,
    "a tree": [([*A, *B], 390, 1)] * 4 + [([*A, *B, *C], 430, 2)] * 2 + [(A, 330, 1), ([*A, *C], 352, 3)],
    "forced runs": [(A, 320 + i, 1 + 3 * i) for i in range(6)],
    "in a page of its own": [(A, 317, 1)] * 4,
    "among others": [([], 3, 1), (A, 320, 1), ([], 50, 40), (A, 321, 1), ([], 0, 130), (B, 70, 9), (A, 400, 1)],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BATCHES)
def test_rows_that_share_pages_get_what_they_would_alone(native: NativeBackend, dtype: torch.dtype, name: str) -> None:
    """In all kinds of layers: with a window that is wider than the rows, with one that is not, with sinks."""
    layout, apart = layout_of(BATCHES[name]), layout_of([([], start, count) for _, start, count in BATCHES[name]])
    for kv_heads, group, dim, v_dim in ((2, 4, 64, 64), (1, 9, 32, 96)):
        pool = pool_of(layout, dtype, kv_heads, dim, v_dim)
        q = torch.randn(layout.query_starts[-1], kv_heads * group, dim).to(dtype)
        alone = attend(native, apart, pool_of(apart, dtype, kv_heads, dim, v_dim), q)
        assert attend(native, layout, pool, q) < alone
        assert attend(native, layout, pool, q, window=1000, sinks=True) < alone
        attend(native, layout, pool, q, window=100, sinks=True)


def test_a_prefix_of_sixteen_rows_is_read_once(native: NativeBackend) -> None:
    layout = layout_of([(list(range(64)), 1024 + 10, 1)] * 16)
    q = torch.randn(16, 4, 64)
    assert attend(native, layout, pool_of(layout, torch.float32), q) == 1024 + 16 * 11


def test_so_is_what_four_of_them_share_behind_it(native: NativeBackend) -> None:
    shared, more = list(range(64)), [range(64 + 4 * i, 68 + 4 * i) for i in range(4)]
    layout = layout_of([([*shared, *more[i // 4]], 1024 + 64 + 5, 1) for i in range(16)])
    q = torch.randn(16, 8, 64)
    assert attend(native, layout, pool_of(layout, torch.float32), q) == 1024 + 4 * 64 + 16 * 6


def test_a_row_of_several_tokens_reads_its_slots_once(native: NativeBackend) -> None:
    layout = layout_of([([], 500, 6)])
    q = torch.randn(6, 8, 64)
    assert attend(native, layout, pool_of(layout, torch.float32), q) == 506


def test_what_is_not_shared_or_too_short_is_read_by_every_row(native: NativeBackend) -> None:
    """The same pages at other places are others; a window that ends inside a prefix leaves it to the rows."""
    for rows in ([(list(range(4)), 64, 1), (list(range(3, -1, -1)), 64, 1)], [([0], 30, 1)] * 2):
        layout = layout_of(rows)
        read = attend(native, layout, pool_of(layout, torch.float32), torch.randn(2, 8, 64))
        assert read == sum(layout.seq_lens)
    layout = layout_of([(A, 320, 1)] * 8)
    assert attend(native, layout, pool_of(layout, torch.float32), torch.randn(8, 8, 64), window=200) == 8 * 200


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_rows_are_cut_into_stretches(native: NativeBackend, dtype: torch.dtype) -> None:
    for rows in ([([], 5000, 1)], [([], 3000, 20), ([], 10, 1)], [([], 2047, 3)] + [([], 5, 1)] * 9):
        layout = layout_of(rows)  # type: ignore[arg-type]
        pool = pool_of(layout, dtype)
        q = torch.randn(layout.query_starts[-1], 8, 64).to(dtype)
        for window in (None, 1000):
            attend(native, layout, pool, q, window, sinks=True)


PROMPTS: dict[str, list[Row]] = {
    "from nothing": [([], 0, 530)],
    "behind other slots": [([], 301, 270)],
    "two, and rows that decode": [([], 0, 260), ([], 600, 1), ([], 33, 270), ([], 5, 1)],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_that_many_tiles_of_queries_attend_to(native: NativeBackend, dtype: torch.dtype, name: str) -> None:
    """Stretches that end inside a tile, windows that begin inside a stretch."""
    layout = layout_of(PROMPTS[name])
    for kv_heads, group, dim, v_dim in ((2, 2, 64, 64), (1, 5, 32, 96)):
        pool = pool_of(layout, dtype, kv_heads, dim, v_dim)
        q = torch.randn(layout.query_starts[-1], kv_heads * group, dim).to(dtype)
        for window in (None, 300, 70, 1):
            attend(native, layout, pool, q, window, sinks=window == 70)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [[([], 0, 300)], [(A, 320, 1)] * 16, [([], 500, 6)]])
def test_scores_that_lie_far_apart(native: NativeBackend, dtype: torch.dtype, rows: list[Row]) -> None:
    """Most shares are too small for a number, and the largest score grows from stretch to stretch."""
    layout = layout_of(rows)
    pool = pool_of(layout, dtype)
    growing = torch.linspace(0, 1, pool.num_slots)[:, None, None]
    for wide in (20.0, 300.0):
        q = torch.ones(layout.query_starts[-1], 8, 64) + torch.randn(layout.query_starts[-1], 8, 64) / 8
        pool.k[0].copy_((growing * wide + torch.randn_like(pool.k[0].float())).to(dtype))
        found = native.attention(q.to(dtype), pool, 0, native.plan(layout), scale=64**-0.5)
        exact = PLAIN.attention(q.to(dtype).double(), pool, 0, PLAIN.plan(layout), scale=64**-0.5)
        # What a score of 2,000 is rounded to in float32 is seen in shares of neighbours.
        assert (found.double() - exact).abs().max() <= 6 * ROUNDING[dtype] * (1 + wide / 20)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_others_stored_does_not_matter(native: NativeBackend, dtype: torch.dtype) -> None:
    """Slots behind a row's own, in its last page too, and pages of nobody are not numbers."""
    batches: list[list[Row]] = [[([], 0, 333)], [(A, 323, 1)] * 16, [([], 37, 1), ([], 20, 70)]]
    for rows in batches:
        layout = layout_of([([], 0, 40), *rows])
        pool, clean = pool_of(layout, dtype), pool_of(layout, dtype)
        seen = [
            table[i // PAGE] * PAGE + i % PAGE
            for table, length in zip(layout.page_tables, layout.seq_lens, strict=True)
            for i in range(length)
        ]
        for tensor, other in ((pool.k[0], clean.k[0]), (pool.v[0], clean.v[0])):
            kept = tensor[seen].clone()
            tensor.fill_(float("nan"))
            tensor[seen] = kept
            other.zero_()
            other[seen] = kept
        q = torch.randn(layout.query_starts[-1], 8, 64).to(dtype)
        for window in (None, 50):
            found, exact = (
                native.attention(q, one, 0, native.plan(layout), scale=0.125, window=window) for one in (pool, clean)
            )
            assert torch.equal(found, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BATCHES)
def test_attention_over_a_pool_of_int8(native: NativeBackend, dtype: torch.dtype, name: str) -> None:
    layout = layout_of(BATCHES[name])
    for group, dim in ((1, 64), (3, 32), (4, 128)):
        pool = pool_of(layout, torch.int8, 2, dim, 64)
        q = torch.randn(layout.query_starts[-1], 2 * group, 2 * dim).to(dtype)[..., dim:]
        attend(native, layout, pool, q, sinks=True)
        attend(native, layout, pool, q, window=100)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_stored_in_int8_is_what_the_specification_stores(native: NativeBackend, dtype: torch.dtype) -> None:
    """Keys are turned before they are rounded, natively with fewer roundings: a whole number may be the next one."""
    layout = layout_of([([], 0, 40)])
    pools = [pool_of(layout, torch.int8) for _ in range(2)]
    qkv = torch.randn(40, (4 + 4) * 64).to(dtype)
    qkv[3, 4 * 64 : 5 * 64] = 0.0
    angle = torch.randn(40, 1, 32)
    norms = QKVNorms(torch.randn(64).to(dtype), torch.randn(64).to(dtype), 1e-6)
    for backend, pool in zip((native, PLAIN), pools, strict=True):
        turns = (angle.cos().to(dtype), angle.sin().to(dtype))
        backend.rotate_and_store(qkv, norms, *turns, pool, 0, backend.plan(layout), num_heads=4)
    (found, found_scales), (expected, expected_scales) = (
        (torch.stack([pool.k[0][:40], pool.v[0][:40]]).float(), torch.stack(pool.scales_of(0))[:, :40])  # type: ignore[arg-type]
        for pool in pools
    )
    torch.testing.assert_close(found_scales, expected_scales, rtol=2 * ROUNDING[dtype], atol=0)
    assert (found - expected).abs().max() <= (1 if dtype == torch.float32 else 3)
    assert torch.equal(found[1], expected[1])


def test_numbers_that_are_not_finite_stay_so_in_int8(native: NativeBackend) -> None:
    layout = layout_of([([], 0, 1)] * 3)
    qkv = torch.randn(3, 3 * 64)
    qkv[1, 70], qkv[2, 140] = torch.nan, torch.inf
    turns = torch.ones(3, 1, 32), torch.zeros(3, 1, 32)
    for backend in (native, PLAIN):
        pool, meta = pool_of(layout, torch.int8, kv_heads=1), backend.plan(layout)
        q = backend.rotate_and_store(qkv, None, *turns, pool, 0, meta, num_heads=1)
        scales = torch.cat([part[layout.slot_mapping] for part in pool.scales_of(0) or ()], dim=1)
        assert scales.isfinite().tolist() == [[True, True], [False, True], [True, False]]
        out = backend.attention(q, pool, 0, meta, scale=0.1)
        assert out[0].isfinite().all() and not out[2].isfinite().any()
        if backend is native:  # torch's attention drops scores that are NaN
            assert not out[1].isfinite().any()
