"""Where a model's tensors are born: allocated once, each bound to the checkpoint names that fill it.

Layers ask the table for what they need while the model is built, so the set of names a checkpoint must have is the
set the layers asked for, and nothing else is written down twice. Fused weights are one allocation whose row ranges
are bound to several names:

    qkv [q + k + v, hidden]     rows 0..q <- "...q_proj.weight",  q..q+k <- "...k_proj.weight",  then v_proj
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class WeightTable:
    """Allocates uninitialised tensors of one dtype on one device and remembers which name fills which part.

    On the ``meta`` device nothing is allocated, which is how a model's size is known before it is loaded.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self._parts: dict[str, Tensor] = {}
        self._tied: dict[str, str] = {}
        self._num_bytes = 0

    @property
    def parts(self) -> Mapping[str, Tensor]:
        """Checkpoint name -> the view it fills."""
        return self._parts

    @property
    def tied(self) -> Mapping[str, str]:
        """Names that a checkpoint may repeat -> the name whose tensor they share."""
        return self._tied

    @property
    def num_bytes(self) -> int:
        """Memory of everything allocated."""
        return self._num_bytes

    def tensor(self, name: str, *shape: int) -> Tensor:
        """A tensor that the checkpoint tensor ``name`` fills."""
        return self._allocate({name: shape[0]}, shape[1:])

    def stacked(self, rows: Mapping[str, int], *rest: int) -> Tensor:
        """[sum of rows, *rest], filled from several checkpoint tensors, one under the other in the given order."""
        return self._allocate(rows, rest)

    def tie(self, name: str, to: str) -> Tensor:
        """The tensor of ``to``, which ``name`` shares; a checkpoint may hold ``name`` too, if it is equal."""
        self._tied[name] = to
        return self._parts[to]

    def _allocate(self, rows: Mapping[str, int], rest: Sequence[int]) -> Tensor:
        whole = torch.empty((sum(rows.values()), *rest), dtype=self.dtype, device=self.device)
        self._num_bytes += whole.numel() * whole.element_size()
        first = 0
        for name, count in rows.items():
            if name in self._parts:
                raise KeyError(f"{name} is already bound; a name fills one tensor")
            self._parts[name] = whole[first : first + count]
            first += count
        return whole
