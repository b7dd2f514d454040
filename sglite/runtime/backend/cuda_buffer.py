"""How a step's integers reach the device: all of them in one pinned buffer and one copy that nobody waits for.

A pinned buffer is written again only after the copy out of it is done, which an event says; there are a few of them in
turn, so that the host, a step or two ahead of the device, does not wait. On a CPU device buffers are plain memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Arrays = Mapping[str, npt.NDArray[Any]]
"""A step's integers by name, of int32 or int64."""

ALIGNMENT = 16
IN_TURN = 4
"""Buffers; a step of the device and the one that the host prepares use two, frames and drafts do not add to them."""
_TYPES = {np.dtype(np.int32): torch.int32, np.dtype(np.int64): torch.int64}


class Places:
    """Where arrays lie in a buffer, one behind the other in the order of ``arrays``."""

    def __init__(self, arrays: Arrays) -> None:
        self._offsets: dict[str, int] = {}
        self.num_bytes = 0
        for name, array in arrays.items():
            self._offsets[name] = self.num_bytes
            self.num_bytes += -(-array.nbytes // ALIGNMENT) * ALIGNMENT

    def write(self, buffer: npt.NDArray[np.uint8], arrays: Arrays) -> int:
        """Put ``arrays`` in their places, which may be larger than they are; returns the bytes up to the last one's
        end."""
        end = 0
        for name, array in arrays.items():
            end = self._offsets[name] + array.nbytes
            buffer[self._offsets[name] : end] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return end

    def views(self, buffer: Tensor, arrays: Arrays) -> dict[str, Tensor]:
        """The parts of ``buffer`` as tensors of the arrays' types and shapes."""
        found = {}
        for name, array in arrays.items():
            first = self._offsets[name]
            found[name] = buffer[first : first + array.nbytes].view(_TYPES[array.dtype]).view(array.shape)
        return found


class Stage:
    """Pinned buffers, used in turn."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned = device.type == "cuda"
        self._buffers: list[Tensor] = [self._allocate(0)] * IN_TURN
        self._copied: list[torch.cuda.Event | None] = [None] * IN_TURN
        self._turn = 0

    def send(self, arrays: Arrays, places: Places, into: Tensor) -> None:
        """Copy ``arrays`` to their places in ``into`` [bytes] on the device, in the order of its stream."""
        self._turn = turn = (self._turn + 1) % IN_TURN
        event = self._copied[turn]
        if event is not None:
            event.synchronize()
        if len(self._buffers[turn]) < places.num_bytes:
            self._buffers[turn] = self._allocate(1 << places.num_bytes.bit_length())
        buffer = self._buffers[turn]
        end = places.write(buffer.numpy(), arrays)
        into[:end].copy_(buffer[:end], non_blocking=self._pinned)
        if self._pinned:
            self._copied[turn] = event = event or torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))

    def _allocate(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
