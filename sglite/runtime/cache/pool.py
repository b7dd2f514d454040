"""The tensors behind the page numbers: one key and one value tensor per attention layer.

    k[layer]  [num_pages * page_size, num_kv_heads, head_dim]      slot = page * page_size + offset
    v[layer]  [num_pages * page_size, num_kv_heads, v_head_dim]

Layers of all groups are numbered through, in the order of the groups. Who owns a page is decided elsewhere; a pool
only has room for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sglite.runtime.protocol import GroupSpec


@dataclass(frozen=True)
class KVPool:
    """Keys and values of every layer for ``num_pages`` pages of ``page_size`` positions."""

    groups: tuple[GroupSpec, ...]
    num_pages: int
    page_size: int
    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]

    @property
    def num_slots(self) -> int:
        """Positions that fit, over all pages."""
        return self.num_pages * self.page_size

    @property
    def num_bytes(self) -> int:
        """Memory of all layers."""
        return sum(t.numel() * t.element_size() for t in (*self.k, *self.v))


def make_pool(
    groups: Sequence[GroupSpec], num_pages: int, page_size: int, dtypes: dict[str, torch.dtype], device: torch.device
) -> KVPool:
    """Zeroed pool for paged multi-head groups; ``dtypes`` maps the dtype names of the groups to torch types."""
    k: list[Tensor] = []
    v: list[Tensor] = []
    for group in groups:
        for _ in range(group.num_layers):
            shape = (num_pages * page_size, group.num_kv_heads)
            k.append(torch.zeros((*shape, group.head_dim), dtype=dtypes[group.dtype], device=device))
            v.append(torch.zeros((*shape, group.v_head_dim), dtype=dtypes[group.dtype], device=device))
    return KVPool(tuple(groups), num_pages, page_size, tuple(k), tuple(v))
