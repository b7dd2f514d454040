"""Copies of pages and of states: all layers in one launch.

What a pool keeps is a list of tensors, each with a row of so many bytes a slot or state. Their addresses and sizes are
put on the device once (``Copies``); a launch has a program for every copy, tensor and stretch of bytes. Copies that
touch what an earlier one of the list writes, or write what it reads, are launched after it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglite.runtime.backend.base import BackendError
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.protocol import CopyPages, CopyState

STRETCH = 2048
"""Words that a program copies, of 8 bytes where all rows have whole such words."""
_TYPES: Mapping[int, Any] = {8: tl.int64, 4: tl.int32, 2: tl.int16, 1: tl.int8}


class Copies:
    """Copies within one pool. Keeps its tensors alive; none of them may be replaced."""

    def __init__(self, pool: KVPool) -> None:
        self._pool = pool
        self._pages = {frames: _table(pool.paged(frames)) for frames in (False, True)}
        self._states = {
            group: _table([tensor for layer in layers for tensor in layer]) for group, layers in pool.states.items()
        }

    def pages(self, copies: Sequence[CopyPages], *, frames: bool = False) -> None:
        """``Backend.copy_pages``. BackendError: a copy outside the pool."""
        rooms, size = self._pool.num_frames if frames else self._pool.num_pages, self._pool.page_size
        for copy in copies:
            inside = min(copy.src, copy.dst) >= 0 and max(copy.src, copy.dst) < rooms
            if not (inside and 0 <= copy.num_tokens <= size):
                raise BackendError(
                    f"{copy}: outside a pool of {rooms} {'frames' if frames else 'pages'} of {size} positions"
                )
        table = self._pages[frames]
        if table is not None:
            moves = [(copy.src, copy.dst, copy.num_tokens) for copy in copies if copy.num_tokens]
            for launch in at_once(moves):
                table.copy(launch, size)

    def states(self, copies: Sequence[CopyState]) -> None:
        """``Backend.copy_states``. BackendError: a group or slot that the pool does not have."""
        by_group: dict[str, list[tuple[int, int, int]]] = {}
        for copy in copies:
            slots = self._slots(copy.group)
            if not (copy.src < slots and 0 <= copy.dst < slots):
                raise BackendError(f"{copy}: the pool has {slots} states of that group")
            by_group.setdefault(copy.group, []).append((copy.src, copy.dst, 1))
        for group, moves in by_group.items():
            table = self._states[group]
            if table is not None:
                for launch in at_once(moves):
                    table.copy(launch, 1)

    def _slots(self, group: str) -> int:
        layers = self._pool.states.get(group, ())
        return next((len(tensor) for layer in layers for tensor in layer), 0)


def at_once(moves: Sequence[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """``moves``, each from, to and how much, in lists that may each be made in any order; those onto themselves are
    left out, which must copy what is there."""
    launch: list[tuple[int, int, int]] = []
    read: set[Hashable] = set()
    written: set[Hashable] = set()
    for source, target, amount in moves:
        if source == target:
            continue
        if source in written or target in written or target in read:
            yield launch
            launch, read, written = [], set(), set()
        launch.append((source, target, amount))
        read.add(source)
        written.add(target)
    if launch:
        yield launch


@dataclass(frozen=True)
class _Table:
    """Tensors with equally many rows, as a kernel finds them."""

    tensors: Sequence[Tensor]
    addresses: Tensor
    """[tensors] int64 on the device."""
    words: Tensor
    """[tensors] int64 on the device: of a row."""
    most: int
    """Of them."""
    word: int
    """Bytes."""

    def copy(self, moves: Sequence[tuple[int, int, int]], rows: int) -> None:
        """From, to, in units of so many ``rows``, and the number of rows; from -1: zeros are written."""
        device = self.addresses.device
        on_host = torch.tensor(moves, dtype=torch.int64, pin_memory=device.type == "cuda")
        stretches = triton.cdiv(max(amount for _, _, amount in moves) * self.most, STRETCH)
        _copy[(len(moves), len(self.tensors), stretches)](
            *(on_host.to(device, non_blocking=True), self.addresses, self.words, rows),
            **{"WORD": _TYPES[self.word], "STRETCH": STRETCH, "num_warps": 4},
        )


def _table(tensors: Sequence[Tensor]) -> _Table | None:
    """``None``: there are none."""
    if not tensors:
        return None
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise BackendError(f"tensor {list(tensor.shape)} of a pool has strides {tensor.stride()}; give a dense one")
    sizes = [tensor[0].numel() * tensor.element_size() for tensor in tensors]
    word = math.gcd(8, *sizes, *(tensor.data_ptr() for tensor in tensors))
    words = [size // word for size in sizes]
    device = tensors[0].device
    addresses = torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64, device=device)
    return _Table(tensors, addresses, torch.tensor(words, dtype=torch.int64, device=device), max(words), word)


@triton.jit
def _copy(moves, addresses, words, rows, WORD: tl.constexpr, STRETCH: tl.constexpr):
    move = moves + tl.program_id(0) * 3
    tensor = tl.program_id(1)
    source, target, amount = tl.load(move), tl.load(move + 1), tl.load(move + 2)
    first = tl.load(addresses + tensor).to(tl.pointer_type(WORD))
    size = tl.load(words + tensor)
    place = tl.program_id(2).to(tl.int64) * STRETCH + tl.arange(0, STRETCH)
    kept = tl.load(first + source * rows * size + place, mask=place < tl.where(source >= 0, amount * size, 0), other=0)
    tl.store(first + target * rows * size + place, kept, mask=place < amount * size)
