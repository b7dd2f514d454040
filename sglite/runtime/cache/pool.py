"""The tensors behind the page numbers and state slots.

    k[layer]  [num_pages * page_size, num_kv_heads, head_dim]      slot = page * page_size + offset
    v[layer]  [num_pages * page_size, num_kv_heads, v_head_dim]    of an ``mla`` group: the first numbers of k
    states[group][layer]  one tensor [num_states, *shape] per StateTensor of the group

Layers of the paged groups are numbered through, in the order of the groups; those of a state group from 0. Who owns a
page or a state slot is decided elsewhere; a pool only has room for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sglite.runtime.protocol import GroupSpec

LayerStates = tuple[Tensor, ...]
"""What one layer keeps per sequence, a tensor per StateTensor of its group."""


@dataclass(frozen=True)
class KVPool:
    """Keys and values of every layer for ``num_pages`` pages of ``page_size`` positions, and recurrent states."""

    groups: tuple[GroupSpec, ...]
    num_pages: int
    page_size: int
    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    states: Mapping[str, tuple[LayerStates, ...]] = field(default_factory=dict)

    @property
    def num_slots(self) -> int:
        """Positions that fit, over all pages."""
        return self.num_pages * self.page_size

    @property
    def paged(self) -> tuple[Tensor, ...]:
        """Every tensor that has a row per position; those of latent layers once."""
        return (*self.k, *(v for k, v in zip(self.k, self.v, strict=True) if v.data_ptr() != k.data_ptr()))

    @property
    def num_bytes(self) -> int:
        """Memory of all layers."""
        states = (tensor for layers in self.states.values() for layer in layers for tensor in layer)
        return sum(t.numel() * t.element_size() for t in (*self.paged, *states))


def make_pool(
    groups: Sequence[GroupSpec],
    num_pages: int,
    page_size: int,
    dtypes: Mapping[str, torch.dtype],
    device: torch.device,
    num_states: int = 0,
) -> KVPool:
    """Zeroed pool; ``dtypes`` maps the dtype names of the groups to torch types."""
    k: list[Tensor] = []
    v: list[Tensor] = []
    states: dict[str, tuple[LayerStates, ...]] = {}
    for group in groups:
        if group.kind == "state":
            states[group.name] = tuple(
                _layer_states(group, num_states, dtypes, device) for _ in range(group.num_layers)
            )
            continue
        for _ in range(group.num_layers):
            shape = (num_pages * page_size, group.num_kv_heads)
            k.append(torch.zeros((*shape, group.head_dim), dtype=dtypes[group.dtype], device=device))
            if group.layout == "mla":
                v.append(k[-1][..., : group.v_head_dim])
            else:
                v.append(torch.zeros((*shape, group.v_head_dim), dtype=dtypes[group.dtype], device=device))
    return KVPool(tuple(groups), num_pages, page_size, tuple(k), tuple(v), states)


def _layer_states(
    group: GroupSpec, num_states: int, dtypes: Mapping[str, torch.dtype], device: torch.device
) -> LayerStates:
    return tuple(
        torch.zeros((num_states, *tensor.shape), dtype=dtypes[tensor.dtype], device=device)
        for tensor in group.state_tensors
    )
