"""Batches for tests of a GPU's attention: rows with pages here and there, NaN wherever no row is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from cuda_device import DEVICE
from torch import Tensor

from sglite.runtime.backend.base import BatchLayout
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.protocol import GroupSpec

PLAIN = CPUBackend()
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-8}


@dataclass(frozen=True)
class Row:
    """One row: slots before this step, tokens of it, a draft tree, and how many of the prefix' pages it begins with."""

    start: int
    tokens: int = 1
    parents: Sequence[int] | None = None
    shared: int = 0

    @property
    def end(self) -> int:
        return self.start + self.tokens


def layout_of(rows: Sequence[Row], page_size: int, *, seed: int = 0) -> BatchLayout:
    """Pages are drawn from a larger pool; those of the prefix are the same for all rows."""
    needed = [-(-row.end // page_size) for row in rows]
    prefix = max((row.shared for row in rows), default=0)
    total = sum(needed) + prefix + 5
    free = random.Random(seed).sample(range(total), total)
    first = [free.pop() for _ in range(prefix)]
    tables = [
        [*first[: row.shared], *(free.pop() for _ in range(count - row.shared))]
        for row, count in zip(rows, needed, strict=True)
    ]
    ends = [sum(row.tokens for row in rows[:i]) for i in range(len(rows) + 1)]
    slots = [slot for row, table in zip(rows, tables, strict=True) for slot in slots_of(table, page_size, row)]
    return BatchLayout(
        query_starts=ends,
        starts=[row.start for row in rows],
        seq_lens=[row.end for row in rows],
        positions=[0] * ends[-1],
        slot_mapping=slots,
        page_tables=tables,
        page_size=page_size,
        parents=[row.parents for row in rows] if any(row.parents for row in rows) else None,
    )


def slots_of(table: Sequence[int], page_size: int, row: Row) -> list[int]:
    """Pool rows of a row's tokens."""
    return [table[i // page_size] * page_size + i % page_size for i in range(row.start, row.end)]


def pool_of(
    layout: BatchLayout,
    group: GroupSpec,
    *,
    num_frames: int = 0,
    tables: Sequence[Sequence[int]] | None = None,
) -> KVPool:
    """A pool on the CPU with numbers in the rows' slots and NaN in all others; int8 has it in the scales."""
    tables = layout.page_tables if tables is None else tables
    pages = max((page for table in tables for page in table), default=0) + 3
    pool = PLAIN.allocate_pool([group], num_pages=pages, page_size=layout.page_size, num_frames=num_frames)
    size = layout.page_size
    slots = [
        table[i // size] * size + i % size
        for table, end in zip(tables, layout.seq_lens, strict=True)
        for i in range(end)
        if table[i // size] >= 0
    ]
    foreign = torch.ones(len(pool.k[0]), dtype=torch.bool)
    foreign[slots] = False
    scales = [tensor for layer in pool.scales for tensor in layer or ()]
    for tensor in dict.fromkeys((*pool.k, *pool.v, *scales)):
        if tensor.dtype == torch.int8:
            tensor.random_(-127, 128)
        else:
            tensor.copy_(torch.randn(tensor.shape) if tensor.dim() == 3 else torch.rand(tensor.shape) * 0.02 + 0.005)
            tensor[foreign] = torch.nan
    return pool


def moved(pool: KVPool) -> KVPool:
    """``pool`` on the device."""
    k = tuple(tensor.to(DEVICE) for tensor in pool.k)
    latent = pool.groups[0].layout == "mla"
    v = tuple(k[i][..., : v.shape[2]] if latent else v.to(DEVICE) for i, v in enumerate(pool.v))
    scales = tuple(None if layer is None else (layer[0].to(DEVICE), layer[1].to(DEVICE)) for layer in pool.scales)
    return replace(pool, k=k, v=v, scales=scales)


def close(found: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Equal but for the rounding of ``dtype``; ``exact`` in float32."""
    assert found.dtype == dtype and found.shape == exact.shape
    error = (found.cpu().double() - exact.double()).abs().max().item()
    assert error <= 3 * ROUNDING[dtype] * max(1.0, exact.abs().max().item())
