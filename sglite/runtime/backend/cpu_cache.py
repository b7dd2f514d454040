"""How keys and values are stored in the pool and read from it.

In a pool of int8 the numbers of a slot and KV head have one scale, a 127th of the largest: a number is off by at most
half of it. What is not finite when it is stored is not finite when it is read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sglite.runtime.backend.cpu_plan import CPUMetadata, read_slots
from sglite.runtime.cache.pool import KVPool

LARGEST = 127


def store(pool: KVPool, layer: int, k: Tensor, v: Tensor | None, batch: CPUMetadata) -> None:
    """See ``Backend.store_kv``."""
    k_scales, v_scales = pool.scales_of(layer) or (None, None)
    for cache, scales, new in ((pool.k[layer], k_scales, k), (pool.v[layer], v_scales, v)):
        if new is None:
            continue
        if batch.store_tokens is not None:
            new = new.index_select(0, batch.store_tokens)
        if scales is not None:
            new, of_heads = quantised(new)
            scales.index_copy_(0, batch.store_slots, of_heads)
        cache.index_copy_(0, batch.store_slots, new.to(cache.dtype))


def read(pool: KVPool, layer: int, slots: slice | Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values [n, num_kv_heads, dim] of some pool rows."""
    keys, values = read_slots(pool.k[layer], slots), read_slots(pool.v[layer], slots)
    scales = pool.scales_of(layer)
    if scales is None:
        return keys.to(dtype), values.to(dtype)
    k_scales, v_scales = (read_slots(part, slots)[..., None] for part in scales)
    return (keys * k_scales).to(dtype), (values * v_scales).to(dtype)


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` [..., dim] as whole numbers of float32 and their scales [...]."""
    x = x.float()
    largest = x.abs().amax(-1)
    inverse = torch.where(largest > 0, LARGEST / largest, 0.0)
    return (x * inverse[..., None]).round().nan_to_num(0.0), largest / LARGEST
