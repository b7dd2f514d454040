"""A stack of dense layers in one native call: bit for bit what its parts give one after another, also when weights or
pool are replaced, and plain torch where there is no kernel for a part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from native_kernels import NATIVE, backend_of
from torch import Tensor

from sglite.runtime.backend.base import BatchLayout
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.native_library import Library
from sglite.runtime.backend.weights import Activation, DenseLayer, DenseStack, Matrix, QKVNorms
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.protocol import GroupSpec

HIDDEN, HEADS, KV_HEADS, DIM, WIDE = 96, 4, 2, 32, 160
PAGE = 4
ROWS = [(0, 9), (13, 1), (30, 2), (5, 1), (3, 40)]
"""Slots before, tokens now."""


@pytest.fixture(scope="module", params=NATIVE)
def native(request: pytest.FixtureRequest) -> CPUBackend:
    return backend_of(request.param)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def stack_of(
    backend: CPUBackend,
    dtype: torch.dtype,
    *,
    windows: Sequence[int | None] = (None, None),
    biases: bool = False,
    norms: bool = True,
    activation: Activation = "silu",
    sinks: torch.dtype | None = None,
) -> DenseStack:
    """Packed layers of random weights."""

    def matrix(outs: int, ins: int) -> tuple[Matrix, Tensor | None]:
        made = Matrix((torch.randn(outs, ins) * ins**-0.5).to(dtype))
        backend.pack(made)
        return made, torch.randn(outs, dtype=dtype) if biases else None

    def norm(size: int) -> Tensor:
        return (1 + torch.randn(size) / 8).to(dtype)

    layers = [
        DenseLayer(
            attention_norm=(norm(HIDDEN), 1e-6),
            qkv=matrix((HEADS + 2 * KV_HEADS) * DIM, HIDDEN),
            heads=HEADS,
            norms=QKVNorms(norm(DIM), norm(DIM), 1e-5) if norms else None,
            layer=number,
            scale=DIM**-0.5,
            window=window,
            sinks=None if sinks is None else torch.randn(HEADS, dtype=sinks),
            out=matrix(HIDDEN, HEADS * DIM),
            mlp_norm=(norm(HIDDEN), 1e-6),
            gate_up=matrix(2 * WIDE, HIDDEN),
            activation=activation,
            down=matrix(HIDDEN, WIDE),
        )
        for number, window in enumerate(windows)
    ]
    return DenseStack(tuple(layers))


def batch(framed: bool) -> BatchLayout:
    """Rows on pages of their own; in frames the pages' numbers are turned around."""
    tables, slots, starts = [], [], [0]
    pages = iter(range(100))
    for before, now in ROWS:
        table = [next(pages) for _ in range(-(-(before + now) // PAGE))]
        tables.append(table)
        slots += [table[i // PAGE] * PAGE + i % PAGE for i in range(before, before + now)]
        starts.append(starts[-1] + now)
    last = next(pages) - 1
    return BatchLayout(
        query_starts=starts,
        starts=[before for before, _ in ROWS],
        seq_lens=[before + now for before, now in ROWS],
        positions=[i for before, now in ROWS for i in range(before, before + now)],
        slot_mapping=slots,
        page_tables=tables,
        page_size=PAGE,
        frame_mapping=[(last - slot // PAGE) * PAGE + slot % PAGE for slot in slots] if framed else None,
        frame_tables=[[last - page for page in table] for table in tables] if framed else None,
    )


def pool_of(backend: CPUBackend, dtype: torch.dtype, windows: Sequence[int | None]) -> KVPool:
    """Full pages, the same numbers every time."""
    name = str(dtype).removeprefix("torch.")
    groups = [
        GroupSpec(
            name=f"layers {number}", num_kv_heads=KV_HEADS, head_dim=DIM, v_head_dim=DIM, dtype=name, window=window
        )
        for number, window in enumerate(windows)
    ]
    frames = 40 if any(windows) else 0
    pool = backend.allocate_pool(groups, num_pages=40, page_size=PAGE, num_frames=frames)
    for number, tensor in enumerate((*pool.k, *pool.v)):
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number)))
    return pool


def angles(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angle = torch.randn(sum(now for _, now in ROWS), 1, DIM // 2, generator=torch.Generator().manual_seed(7))
    return angle.cos().to(dtype), angle.sin().to(dtype)


def both(
    native: CPUBackend, stack: DenseStack, x: Tensor, windows: Sequence[int | None]
) -> tuple[tuple[Tensor, KVPool], tuple[Tensor, KVPool]]:
    """Result and pool in one call, and part by part."""
    found = []
    for run in (type(native).dense_layers, CPUBackend.dense_layers):
        pool = pool_of(native, x.dtype, windows)
        meta = native.plan(batch(any(windows)))
        found.append((run(native, x, stack, *angles(x.dtype), pool, meta), pool))
    return found[0], found[1]


def assert_same(one: tuple[Tensor, KVPool], other: tuple[Tensor, KVPool]) -> None:
    assert torch.equal(one[0], other[0])
    assert all(map(torch.equal, (*one[1].k, *one[1].v), (*other[1].k, *other[1].v)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("windows", "options"),
    [
        ((None, None), {}),
        ((None, 7, None), {"biases": True, "norms": False, "activation": "gelu_tanh"}),
        ((5,), {"sinks": torch.float32}),
        ((None,), {"sinks": torch.bfloat16}),
        ((None,), {"activation": "gelu"}),
    ],
    ids=["plain", "windows, biases, no norms", "sinks", "sinks of a type without kernel", "activation without kernel"],
)
def test_one_call_gives_what_its_parts_give(
    native: CPUBackend,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    windows: Sequence[int | None],
    options: dict[str, object],
) -> None:
    stack = stack_of(native, dtype, windows=windows, **options)  # type: ignore[arg-type]
    x = torch.randn(sum(now for _, now in ROWS), HIDDEN).to(dtype)
    before, calls, whole = x.clone(), [], Library.dense_layers
    monkeypatch.setattr(Library, "dense_layers", lambda *given: (calls.append(1), whole(*given)))
    assert_same(*both(native, stack, x, windows))
    assert torch.equal(x, before)
    has_kernels = options.get("activation") != "gelu" and options.get("sinks") != torch.bfloat16
    assert len(calls) == has_kernels


def test_it_follows_weights_and_pools_that_are_replaced(native: CPUBackend) -> None:
    stack = stack_of(native, torch.float32)
    x = torch.randn(sum(now for _, now in ROWS), HIDDEN)
    first = both(native, stack, x, (None, None))[0][0]
    for matrix, _ in (stack.layers[1].down, stack.layers[0].qkv):
        native.unpack(matrix)
        matrix.tensor.mul_(-1)
        assert_same(*both(native, stack, x, (None, None)))
        native.pack(matrix)
    again = both(native, stack, x, (None, None))
    assert_same(*again)
    assert not torch.equal(first, again[0][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", [[8, 9, 11, 12], [8, 11], [12], []], ids=str)
def test_behind_the_last_layer_only_what_is_wanted_is_computed(
    native: CPUBackend, dtype: torch.dtype, wanted: list[int]
) -> None:
    """Of all tokens keys and values are stored."""
    stack = stack_of(native, dtype)
    x = torch.randn(sum(now for _, now in ROWS), HIDDEN).to(dtype)
    pools, metas = [pool_of(native, dtype, (None, None)) for _ in range(3)], native.plan(batch(False))
    some = native.plan(replace(batch(False), wanted=wanted))
    whole = native.dense_layers(x, stack, *angles(dtype), pools[0], metas)
    between = native.dense_layers(x, stack, *angles(dtype), pools[1], some)
    assert torch.equal(whole, between)
    read = native.slots_read
    last = native.dense_layers(x, replace(stack, is_last=True), *angles(dtype), pools[2], some)
    torch.testing.assert_close(last[wanted], whole[wanted], rtol=2e-2, atol=1e-5 if dtype == torch.float32 else 6e-2)
    for pool in pools[1:]:
        assert all(map(torch.equal, (*pool.k, *pool.v), (*pools[0].k, *pools[0].v)))
    ends = [before + now for before, now in ROWS]
    rows = [[8, 9, 11, 12].index(token) for token in wanted]
    first_layer = sum(end * now for end, (_, now) in zip(ends, ROWS, strict=True))
    assert native.slots_read - read <= first_layer + sum(ends[row] for row in rows)


def test_tokens_that_are_not_the_last_of_their_rows_are_computed_with_all_others(native: CPUBackend) -> None:
    stack = replace(stack_of(native, torch.float32), is_last=True)
    x = torch.randn(sum(now for _, now in ROWS), HIDDEN)
    pools = [pool_of(native, torch.float32, (None, None)) for _ in range(2)]
    whole = native.dense_layers(x, stack, *angles(x.dtype), pools[0], native.plan(batch(False)))
    meta = native.plan(replace(batch(False), wanted=[3, 12]))
    assert torch.equal(native.dense_layers(x, stack, *angles(x.dtype), pools[1], meta), whole)


def test_the_specification_takes_them_too() -> None:
    plain = CPUBackend()
    stack = stack_of(plain, torch.float32)
    x = torch.randn(sum(now for _, now in ROWS), HIDDEN)
    pool = pool_of(plain, torch.float32, (None, None))
    result = plain.dense_layers(x, stack, *angles(x.dtype), pool, plain.plan(batch(False)))
    assert result.shape == x.shape and torch.isfinite(result).all()
