"""Every native kernel, of every instruction set that the processor has, against the plain-torch specification.

Bounds: float32 sums differ by the order of their terms, a few units in 1e-7 times the number of terms' root; bfloat16
results are rounded to 8 bits (2^-8 of their size), the specification's also in between.
"""

from __future__ import annotations

import threading

import pytest
import torch
from native_kernels import NATIVE, backend_of
from torch import Tensor

from sglite.runtime.backend.base import BatchLayout
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.weights import Matrix, QKVNorms
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.protocol import GroupSpec

PLAIN = CPUBackend()
DTYPES = [torch.float32, torch.bfloat16]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-8}


@pytest.fixture(scope="module", params=NATIVE)
def native(request: pytest.FixtureRequest) -> CPUBackend:
    """Every instruction set."""
    return backend_of(request.param)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype, steps: int = 2) -> None:
    """Within ``steps`` roundings of the largest number."""
    assert found.shape == expected.shape
    error = (found.double() - expected.double()).abs().max().item()
    assert error <= steps * ROUNDING[dtype] * max(1.0, expected.double().abs().max().item())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wide", [False, True], ids=["weight as x", "weight float32"])
def test_norms(native: CPUBackend, dtype: torch.dtype, wide: bool) -> None:
    weight = torch.randn(96, dtype=torch.float32 if wide else dtype)
    for shape in ((1, 96), (5, 96), (70, 96), (3, 4, 96)):
        x = torch.randn(shape, dtype=dtype)
        assert_near(native.rms_norm(x, weight, 1e-6), PLAIN.rms_norm(x, weight, 1e-6), dtype)
    x, added = torch.randn(9, 200, dtype=dtype)[:, :96], torch.randn(9, 96, dtype=dtype)
    total, normed = native.add_rms_norm(x, added, weight, 1e-6)
    assert torch.equal(total, x + added)
    assert_near(normed, PLAIN.rms_norm(total, weight, 1e-6), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "swiglu_oai"])
def test_gated_activations(native: CPUBackend, dtype: torch.dtype, activation: str) -> None:
    x = torch.randn(13, 2 * 80, dtype=dtype) * 6
    x[0, 0], x[1, 0] = -200.0, 200.0
    expected = PLAIN.gated(x.double() if activation != "swiglu_oai" else x.float(), activation)  # type: ignore[arg-type]
    assert_near(native.gated(x, activation), expected, dtype, steps=1 if dtype == torch.bfloat16 else 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("turned", [32, 64])
@pytest.mark.parametrize("normed", ["as q and k", "in float32", None])
def test_heads_are_normalised_turned_and_stored(
    native: CPUBackend, dtype: torch.dtype, turned: int, normed: str | None
) -> None:
    pools = [pool_of(dtype, 3, 64, num_pages=20, page_size=4) for _ in range(2)]
    tokens, heads = 40, 6
    slots = torch.randperm(80)[:tokens].tolist()
    slots[7] = -1
    layout = BatchLayout([0, tokens], [0], [tokens], list(range(tokens)), slots, [list(range(20))], 4)
    qkv = torch.randn(tokens, (heads + 6) * 64, dtype=dtype)
    angle = torch.randn(tokens, 1, turned // 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    kind = torch.float32 if normed == "in float32" else dtype
    norms = QKVNorms(torch.randn(64).to(kind), torch.randn(64).to(kind), 1e-6) if normed else None
    found, expected = (
        backend.rotate_and_store(qkv, norms, cos, sin, pool, 0, backend.plan(layout), num_heads=heads)
        for backend, pool in zip((native, PLAIN), pools, strict=True)
    )
    assert_near(found, expected, dtype)
    assert_near(pools[0].k[0], pools[1].k[0], dtype)
    assert torch.equal(pools[0].v[0], pools[1].v[0])


def pool_of(dtype: torch.dtype, kv_heads: int, dim: int, v_dim: int | None = None, **sizes: int) -> KVPool:
    name = str(dtype).removeprefix("torch.")
    group = GroupSpec(name="a", num_kv_heads=kv_heads, head_dim=dim, v_head_dim=v_dim or dim, dtype=name)
    return PLAIN.allocate_pool([group], **sizes)


def ragged(rows: list[tuple[int, int]], page_size: int) -> tuple[BatchLayout, int]:
    """A layout of rows (slots before, tokens now) on shuffled pages, and how many pages there are."""
    needed = [-(-(start + count) // page_size) for start, count in rows]
    pages = torch.randperm(sum(needed)).tolist()
    tables = [[pages.pop() for _ in range(count)] for count in needed]
    ends = torch.tensor([0, *(count for _, count in rows)]).cumsum(0).tolist()
    stored = [
        table[i // page_size] * page_size + i % page_size
        for (start, count), table in zip(rows, tables, strict=True)
        for i in range(start, start + count)
    ]
    starts, lens = [start for start, _ in rows], [start + count for start, count in rows]
    return BatchLayout(ends, starts, lens, [0] * ends[-1], stored, tables, page_size), sum(needed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kv_heads", "group", "dim", "v_dim"), [(1, 1, 32, 32), (2, 7, 64, 32), (8, 2, 128, 128)])
@pytest.mark.parametrize("window", [None, 1, 37])
def test_attention_over_ragged_rows(
    native: CPUBackend, dtype: torch.dtype, kv_heads: int, group: int, dim: int, v_dim: int, window: int | None
) -> None:
    """Decoding rows, chunks and whole prompts of all lengths about those of a tile and of a stretch, in one batch."""
    rows = [(0, 1), (15, 1), (63, 1), (64, 1), (80, 1), (81, 1), (300, 1), (0, 4), (70, 5), (0, 70), (130, 33)]
    for page_size in (1, 3, 16):
        layout, num_pages = ragged(rows, page_size)
        pool = pool_of(dtype, kv_heads, dim, v_dim, num_pages=num_pages, page_size=page_size)
        for tensor in (*pool.k, *pool.v):
            tensor.normal_()
        q = torch.randn(layout.query_starts[-1], kv_heads * group, 2 * dim, dtype=dtype)[..., dim:]
        for sinks in (None, torch.randn(kv_heads * group)):
            options = {"scale": dim**-0.5, "window": window, "sinks": sinks}
            exact = PLAIN.attention(q.float(), pool, 0, PLAIN.plan(layout), **options)
            assert_near(native.attention(q, pool, 0, native.plan(layout), **options), exact, dtype, steps=3)


def test_calls_from_several_threads_take_turns(native: CPUBackend) -> None:
    packed = Matrix(torch.randn(256, 64))
    native.pack(packed)
    x = torch.randn(5, 64)
    expected, found = native.matmul(x, packed), []

    def work() -> None:
        found.extend(native.matmul(x, packed) for _ in range(200))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 600 and all(torch.equal(result, expected) for result in found)
