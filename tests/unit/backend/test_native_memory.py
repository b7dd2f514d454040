"""The first pages of a pool get memory before they are written to; the others when they are."""

from __future__ import annotations

import ctypes

import pytest
import torch
from native_kernels import NATIVE, backend_of

from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.cpu_native import NativeBackend
from sglite.runtime.backend.native_library import Library
from sglite.runtime.backend.native_memory import MOST_SHARE, bring_first_pages
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.executor.freed import keep_freed_memory
from sglite.runtime.protocol import GroupSpec


def pool_of(num_pages: int) -> KVPool:
    group = GroupSpec(name="a", num_kv_heads=4, head_dim=128, v_head_dim=128, dtype="bfloat16", num_layers=4)
    return CPUBackend().allocate_pool([group], num_pages=num_pages, page_size=16)


def resident(pool: KVPool) -> int:
    """Bytes of the pool that have memory."""
    found, page = 0, 4096
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    for tensor in pool.paged(False):
        first = -(-tensor.data_ptr() // page)
        count = (tensor.data_ptr() + tensor.nbytes) // page - first
        there = (ctypes.c_ubyte * count)()
        assert mincore(ctypes.c_void_p(first * page), ctypes.c_size_t(count * page), there) == 0
        found += page * sum(flag & 1 for flag in there)
    return found


@pytest.fixture
def library() -> Library:
    if not NATIVE:
        pytest.skip("there are no native kernels here")
    backend = backend_of(NATIVE[0])
    assert isinstance(backend, NativeBackend)
    return backend._library


def test_an_eighth_is_brought_in_and_stays_zero(library: Library) -> None:
    pool = pool_of(4096)  # 512 MiB
    assert resident(pool) == 0
    thread = bring_first_pages(library, pool)
    assert thread is not None
    thread.join(60)
    assert not thread.is_alive()
    found = resident(pool)
    assert 0.95 * pool.num_bytes / MOST_SHARE < found < 1.3 * pool.num_bytes / MOST_SHARE  # whole huge pages
    first = pool.num_slots // MOST_SHARE - 16
    for tensor in pool.paged(False):
        tensor[:first].zero_()
    assert resident(pool) == found
    assert not any(tensor[:first].any() for tensor in pool.paged(False))


def test_a_pool_has_no_memory_until_it_is_used() -> None:
    """Also where the C library has kept as much as it wants of what was freed: it would clear that for a pool."""
    keep_freed_memory()
    freed = [torch.ones(30 << 20, dtype=torch.uint8) for _ in range(12)]
    freed.clear()
    assert resident(pool_of(4096)) == 0


def test_small_pools_are_left_alone(library: Library) -> None:
    assert bring_first_pages(library, pool_of(64)) is None
