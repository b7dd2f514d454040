"""Memory for many matrices in a few large pieces: pages of 2 MiB, which are what weights are read fastest from, must be
filled by neighbours where a matrix is not a multiple of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CHUNK = 64 * 2**20
"""Bytes of a piece. What is at least half as large has memory of its own."""
_LINE = 64
"""Bytes that every matrix begins at a multiple of."""


class Arena:
    """Hands out uninitialised tensors on ``device``. What is left of a piece is never touched, and costs nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pieces: list[Tensor] = []
        self._left = torch.empty(0, dtype=torch.uint8, device=device)

    @property
    def pieces(self) -> list[Tensor]:
        """All memory, in bytes."""
        return self._pieces

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor lies in it."""
        room = tensor.untyped_storage().data_ptr()
        return any(piece.untyped_storage().data_ptr() == room for piece in self._pieces)

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A tensor, as ``torch.empty``."""
        size = math.prod(shape) * dtype.itemsize
        if size >= CHUNK // 2:
            return self._piece(size).view(dtype).view(shape)
        whole = -(-size // _LINE) * _LINE
        if whole > len(self._left):
            self._left = self._piece(CHUNK)
        taken, self._left = self._left[:size], self._left[whole:]
        return taken.view(dtype).view(shape)

    def _piece(self, size: int) -> Tensor:
        self._pieces.append(torch.empty(size, dtype=torch.uint8, device=self._device))
        return self._pieces[-1]
