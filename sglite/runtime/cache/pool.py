"""The tensors behind the page numbers and state slots.

    k[layer]  [num_pages * page_size, num_kv_heads, head_dim]      slot = page * page_size + offset
    v[layer]  [num_pages * page_size, num_kv_heads, v_head_dim]    of an ``mla`` group: the first numbers of k
    scales[layer]  two tensors [num_pages * page_size, num_kv_heads] where the group's dtype is int8: a number of k or v
                   is what is stored times the scale of its slot and head; None elsewhere
    states[group][layer]  one tensor [num_states, *shape] per StateTensor of the group

Where there are frames (``frames.py``), groups with a window have ``num_frames`` of them in place of the pages.
Layers of the paged groups are numbered through, in the order of the groups; those of a state group from 0. Who owns a
page or a state slot is decided elsewhere; a pool only has room for it.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sglite.runtime.protocol import GroupSpec

Scales = tuple[Tensor, Tensor]
"""Of keys and of values."""
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
    num_frames: int = 0
    scales: tuple[Scales | None, ...] = ()
    """By layer; empty: there are none."""

    def scales_of(self, layer: int) -> Scales | None:
        """Of a layer's keys and of its values; ``None``: they are stored as they are."""
        return self.scales[layer] if self.scales else None

    @property
    def num_slots(self) -> int:
        """Positions that fit, over all pages."""
        return self.num_pages * self.page_size

    @cached_property
    def framed(self) -> tuple[bool, ...]:
        """By layer: it is kept in frames."""
        paged = (group for group in self.groups if group.kind == "paged")
        return tuple(in_frames(group, self.num_frames) for group in paged for _ in range(group.num_layers))

    def paged(self, frames: bool) -> tuple[Tensor, ...]:
        """Every tensor that has a row per position, in frames or in pages; those of latent layers once."""
        found: list[Tensor] = []
        for layer, (k, v) in enumerate(zip(self.k, self.v, strict=True)):
            if self.framed[layer] == frames:
                found += (k,) if v.data_ptr() == k.data_ptr() else (k, v)
                found += self.scales_of(layer) or ()
        return tuple(found)

    @property
    def num_bytes(self) -> int:
        """Memory of all layers."""
        states = (tensor for layers in self.states.values() for layer in layers for tensor in layer)
        return sum(t.numel() * t.element_size() for t in (*self.paged(False), *self.paged(True), *states))


def make_pool(
    groups: Sequence[GroupSpec],
    num_pages: int,
    page_size: int,
    dtypes: Mapping[str, torch.dtype],
    device: torch.device,
    num_states: int = 0,
    num_frames: int = 0,
) -> KVPool:
    """Zeroed pool; ``dtypes`` maps the dtype names of the groups to torch types."""
    k: list[Tensor] = []
    v: list[Tensor] = []
    scales: list[Scales | None] = []
    states: dict[str, tuple[LayerStates, ...]] = {}
    for group in groups:
        if group.kind == "state":
            states[group.name] = tuple(
                _layer_states(group, num_states, dtypes, device) for _ in range(group.num_layers)
            )
            continue
        for _ in range(group.num_layers):
            rooms = num_frames if in_frames(group, num_frames) else num_pages
            shape = (rooms * page_size, group.num_kv_heads)
            k.append(_zeros((*shape, group.head_dim), dtypes[group.dtype], device))
            if group.layout == "mla":
                v.append(k[-1][..., : group.v_head_dim])
            else:
                v.append(_zeros((*shape, group.v_head_dim), dtypes[group.dtype], device))
            if dtypes[group.dtype] == torch.int8:
                scales.append((_zeros(shape, torch.float32, device), _zeros(shape, torch.float32, device)))
            else:
                scales.append(None)
    return KVPool(tuple(groups), num_pages, page_size, tuple(k), tuple(v), states, num_frames, tuple(scales))


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the host, memory that the system hands out when it is first written to: a pool costs what is used of it."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return torch.zeros(shape, dtype=dtype)
    # A mapping of its own: what the C library has kept of memory once freed would be cleared here, all of it.
    if hasattr(mmap, "MAP_PRIVATE"):
        room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        room = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            room.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(room, dtype=dtype).view(shape)


def in_frames(group: GroupSpec, num_frames: int) -> bool:
    """Whether a pool with so many frames keeps the group in them, and not in pages."""
    return num_frames > 0 and group.window is not None


def _layer_states(
    group: GroupSpec, num_states: int, dtypes: Mapping[str, torch.dtype], device: torch.device
) -> LayerStates:
    return tuple(
        torch.zeros((num_states, *tensor.shape), dtype=dtypes[tensor.dtype], device=device)
        for tensor in group.state_tensors
    )
