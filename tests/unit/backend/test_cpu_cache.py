"""A cache of int8 in plain torch: what rounding costs, and that scales go where their numbers go."""

from __future__ import annotations

import pytest
import torch

from sglite.runtime.backend.base import BackendError, BatchLayout
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.cpu_cache import quantised
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.protocol import CopyPages, GroupSpec

BACKEND = CPUBackend()


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def pool_of(dtype: str, num_pages: int = 20, num_frames: int = 0, window: int | None = None) -> KVPool:
    group = GroupSpec(name="a", num_layers=2, num_kv_heads=2, head_dim=64, v_head_dim=32, dtype=dtype, window=window)
    return BACKEND.allocate_pool([group], num_pages=num_pages, page_size=4, num_frames=num_frames)


def test_a_number_is_off_by_at_most_half_a_step() -> None:
    x = torch.randn(50, 3, 64) * torch.logspace(-20, 20, 50)[:, None, None]
    whole, scales = quantised(x)
    assert whole.abs().max() == 127 and torch.equal(whole, whole.round())
    assert ((whole * scales[..., None] - x).abs() <= 0.501 * scales[..., None]).all()
    nothing, scale = quantised(torch.zeros(2, 64))
    assert not nothing.any() and not scale.any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_finite_when_it_is_read(bad: float) -> None:
    x = torch.randn(4, 64)
    x[2, 5] = bad
    whole, scales = quantised(x)
    assert whole.isfinite().all()
    read = whole * scales[:, None]
    assert not read[2].isfinite().any() and read[[0, 1, 3]].isfinite().all()


def test_attention_is_off_by_little() -> None:
    """Scores by about a 127th of a standard deviation's root, values by half a step: together below 2 % here."""
    layout = BatchLayout([0, 60], [0], [60], [0] * 60, list(range(60)), [list(range(15))], 4)
    k, v, q = torch.randn(60, 2, 64), torch.randn(60, 2, 32), torch.randn(60, 4, 64)
    results = []
    for dtype in ("float32", "int8"):
        pool, meta = pool_of(dtype), BACKEND.plan(layout)
        BACKEND.store_kv(pool, 1, k, v, meta)
        results.append(BACKEND.attention(q, pool, 1, meta, scale=64**-0.5))
    error = (results[1] - results[0]).square().mean().sqrt() / results[0].square().mean().sqrt()
    assert 0 < error < 0.02


@pytest.mark.parametrize("frames", [False, True])
def test_pages_are_copied_with_their_scales(frames: bool) -> None:
    pool = pool_of("int8", num_frames=6 if frames else 0, window=8 if frames else None)
    tensors = pool.paged(frames)
    assert len(tensors) == 8 and not pool.paged(not frames)
    for tensor in tensors:
        tensor.random_(1, 100)
    before = [tensor.clone() for tensor in tensors]
    BACKEND.copy_pages(pool, [CopyPages(src=1, dst=4, num_tokens=3)], frames=frames)
    for tensor, old in zip(tensors, before, strict=True):
        assert torch.equal(tensor[16:19], old[4:7]) and torch.equal(tensor[19:], old[19:])


def test_a_pool_is_as_large_as_its_numbers_and_scales() -> None:
    assert pool_of("int8").num_bytes == 2 * 80 * 2 * (64 + 32 + 2 * 4)


def test_latents_and_states_of_int8_are_refused() -> None:
    group = GroupSpec(name="a", layout="mla", head_dim=64, v_head_dim=32, dtype="int8")
    with pytest.raises(BackendError, match=r"group 'a': dtype 'int8' is not served .* float32, bfloat16 for mla"):
        BACKEND.allocate_pool([group], num_pages=2, page_size=4)
