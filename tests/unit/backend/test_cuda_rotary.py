"""What comes before attention on the GPU: q, and what the pool has afterwards, against the specification."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from cuda_device import DEVICE
from cuda_rounding import assert_rounded_alike
from torch import Tensor

from sglite.runtime.backend.base import BackendError, BatchLayout
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.kernels.rotary import rotate_and_store, store_kv
from sglite.runtime.backend.weights import QKVNorms
from sglite.runtime.cache.pool import KVPool, make_pool
from sglite.runtime.protocol import GroupSpec

PLAIN = CPUBackend()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
SLOTS = [5, -1, 0, 11, 3]
"""Of five tokens; one is not stored."""


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def pools(kv_heads: int, dim: int, v_dim: int, dtype: str, layout: str = "mha") -> tuple[KVPool, KVPool]:
    """The specification's and the device's, with the same numbers in every slot."""
    group = GroupSpec(
        name="a", layout=layout, num_layers=2, num_kv_heads=kv_heads, head_dim=dim, v_head_dim=v_dim, dtype=dtype
    )
    found = [make_pool([group], 3, 4, DTYPES, device) for device in (torch.device("cpu"), DEVICE)]
    for ours, theirs in zip(found[0].paged(False), found[1].paged(False), strict=True):
        ours.copy_(torch.randint(-9, 9, ours.shape))
        theirs.copy_(ours)
    return found[0], found[1]


def stored(slots: Sequence[int]) -> BatchLayout:
    n = len(slots)
    return BatchLayout(range(n + 1), [0] * n, [1] * n, [0] * n, slots, [[0]] * n, 4)


def angles(tokens: int, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    turns = torch.randn(tokens, 1, n) * 3
    return turns.cos().to(dtype), turns.sin().to(dtype)


def assert_same_pools(found: KVPool, expected: KVPool) -> None:
    for ours, theirs in zip(found.paged(False), expected.paged(False), strict=True):
        assert torch.equal(ours.cpu(), theirs)


def slots_of(numbers: Sequence[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64).to(DEVICE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("dim", "turned"), [(16, 8), (80, 40), (96, 16), (64, 1)])
def test_heads_are_turned_and_stored(dim: int, turned: int, dtype: str) -> None:
    """All of a head or its first part, without norms: the same bits."""
    heads, kv_heads, kind = 6, 2, DTYPES[dtype]
    theirs, ours = pools(kv_heads, dim, dim, dtype)
    wide = torch.randn(len(SLOTS), (heads + 2 * kv_heads) * dim + 8).to(kind)
    qkv, (cos, sin) = wide[:, 8:], angles(len(SLOTS), turned, kind)
    expected = PLAIN.rotate_and_store(
        qkv.contiguous(), None, cos, sin, theirs, 1, PLAIN.plan(stored(SLOTS)), num_heads=heads
    )
    moved = (part.to(DEVICE) for part in (cos, sin))
    found = rotate_and_store(wide.to(DEVICE)[:, 8:], None, *moved, ours, 1, slots_of(SLOTS), num_heads=heads)
    assert torch.equal(found.cpu(), expected)
    assert_same_pools(ours, theirs)


@pytest.mark.parametrize("norm", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "turned"), [(4, 1, 48, 24), (33, 3, 64, 16)])
def test_heads_are_normalised_first(heads: int, kv_heads: int, dim: int, turned: int, dtype: str, norm: str) -> None:
    kind = DTYPES[dtype]
    theirs, ours = pools(kv_heads, dim, dim, dtype)
    qkv = (torch.randn(len(SLOTS), (heads + 2 * kv_heads) * dim) * 5).to(kind)
    weights = [torch.randn(dim).to(DTYPES[norm]) for _ in range(2)]
    cos, sin = angles(len(SLOTS), turned, kind)
    meta = PLAIN.plan(stored(SLOTS))
    expected = PLAIN.rotate_and_store(qkv, QKVNorms(*weights, 1e-6), cos, sin, theirs, 0, meta, num_heads=heads)
    norms = QKVNorms(*(weight.to(DEVICE) for weight in weights), 1e-6)
    moved = (part.to(DEVICE) for part in (cos, sin))
    found = rotate_and_store(qkv.to(DEVICE), norms, *moved, ours, 0, slots_of(SLOTS), num_heads=heads)
    assert_rounded_alike(found, expected)
    for mine, its in zip(ours.paged(False), theirs.paged(False), strict=True):
        assert_rounded_alike(mine, its)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cache_of_int8(dtype: str) -> None:
    kind = DTYPES[dtype]
    theirs, ours = pools(2, 32, 32, "int8")
    qkv, (cos, sin) = torch.randn(len(SLOTS), 7 * 32).to(kind), angles(len(SLOTS), 16, kind)
    expected = PLAIN.rotate_and_store(qkv, None, cos, sin, theirs, 0, PLAIN.plan(stored(SLOTS)), num_heads=3)
    there = [part.to(DEVICE) for part in (qkv, cos, sin)]
    found = rotate_and_store(there[0], None, *there[1:], ours, 0, slots_of(SLOTS), num_heads=3)
    assert torch.equal(found.cpu(), expected)
    assert_same_pools(ours, theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=str)
def test_keys_and_values_are_stored(given: torch.dtype, dtype: str) -> None:
    """Of different sizes, as parts of other tensors, every bit as the specification has it."""
    theirs, ours = pools(3, 40, 24, dtype)
    k, v = torch.randn(5, 3, 90).to(given)[..., 2:82:2], torch.randn(3, 24, 5).to(given).permute(2, 0, 1)
    k[2, 1], v[3, 0, 7], v[0, 1, 2] = 0.0, torch.inf, torch.nan
    PLAIN.store_kv(theirs, 1, k, v, PLAIN.plan(stored(SLOTS)))
    store_kv(ours, 1, k.to(DEVICE), v.to(DEVICE), slots_of(SLOTS))
    for mine, its in zip(ours.paged(False), theirs.paged(False), strict=True):
        assert torch.equal(mine.cpu().isnan(), its.isnan())
        assert torch.equal(mine.cpu().nan_to_num(), its.nan_to_num())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_latents_are_stored(dtype: str) -> None:
    theirs, ours = pools(1, 72, 64, dtype, layout="mla")
    k = torch.randn(5, 1, 72)
    PLAIN.store_kv(theirs, 0, k, None, PLAIN.plan(stored(SLOTS)))
    store_kv(ours, 0, k.to(DEVICE), None, slots_of(SLOTS))
    assert_same_pools(ours, theirs)


def test_no_tokens() -> None:
    _, ours = pools(2, 16, 16, "float32")
    before = [tensor.clone() for tensor in ours.paged(False)]
    empty = torch.zeros(0, 4 * 16, device=DEVICE)
    cos = torch.zeros(0, 1, 8, device=DEVICE)
    assert rotate_and_store(empty, None, cos, cos, ours, 0, slots_of([]), num_heads=0).shape == (0, 0, 16)
    store_kv(ours, 0, empty.view(0, 2, 32)[..., :16], empty.view(0, 2, 32)[..., :16], slots_of([]))
    assert all(map(torch.equal, before, ours.paged(False)))


def test_what_does_not_fit_is_refused() -> None:
    _, ours = pools(2, 16, 16, "float32")
    _, uneven = pools(2, 16, 8, "float32")
    x, cos = torch.zeros(1, 6 * 16, device=DEVICE), torch.zeros(1, 1, 8, device=DEVICE)
    norms = QKVNorms(torch.zeros(16, device=DEVICE), torch.zeros(16, dtype=torch.bfloat16, device=DEVICE), 1e-6)
    slots = slots_of([0])
    with pytest.raises(BackendError, match="dense rows of 112 numbers"):
        rotate_and_store(x, None, cos, cos, ours, 0, slots, num_heads=3)
    with pytest.raises(BackendError, match="of one size"):
        rotate_and_store(x, None, cos, cos, uneven, 0, slots, num_heads=2)
    with pytest.raises(BackendError, match=r"angles torch.bfloat16 and torch.float32"):
        rotate_and_store(x, None, cos.bfloat16(), cos, ours, 0, slots, num_heads=2)
    with pytest.raises(BackendError, match="both in one type"):
        rotate_and_store(x, norms, cos, cos, ours, 0, slots, num_heads=2)
