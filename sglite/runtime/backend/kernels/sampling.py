"""One token a row on the device: what ``drawing`` does, launched. The host waits for nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.draws import Draws, Sampled
from sglite.runtime.backend.kernels.drawing import choose, choose_listed, find_peaks, make_list, plan_list, weigh
from sglite.runtime.backend.kernels.masks import check_mask

MAX_VOCAB = 2**22
"""As ``sample/draw.py``: sums of weights stay below 2**62; an id fits below its logit in a place."""
TILE = 4096
"""Logits a program."""
WARPS = 8
PIECES = 1024
LISTED = 512
"""Ids of a list that are looked at together."""


def on_device(draws: Draws, device: torch.device) -> Draws:
    """``draws`` on the device, in one copy that the host does not wait for."""
    parts = (draws.uniforms, draws.temperatures, draws.top_k, draws.top_p, draws.min_p)
    sizes = [part.numel() * part.element_size() for part in parts]
    packed = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for room, part in zip(packed.split(sizes), parts, strict=True):
        room.view(part.dtype).copy_(part)
    moved = packed.to(device, non_blocking=True).split(sizes)
    uniforms, *others = (room.view(part.dtype) for room, part in zip(moved, parts, strict=True))
    temperatures, top_k, top_p, min_p = others
    return Draws(temperatures, top_k, top_p, min_p, uniforms)


def sample(
    logits: Tensor, draws: Draws, bitmask: Tensor | None = None, *, drawing: bool = True, searching: bool = True
) -> Sampled:
    """``Backend.sample`` with ``draws`` and ``bitmask`` that are on the device already; masks are written to ``logits``
    [n, vocab] float32, dense rows. Needs as much memory again as the logits where it searches.

    What the caller knows of all rows saves kernels that would find nothing to do: without ``drawing`` all have
    temperature 0, without ``searching`` none has top-k or top-p. BackendError: a vocabulary above ``MAX_VOCAB``, logits
    of another type or with gaps, or a mask that does not fit.
    """
    n, width = logits.shape
    if logits.dtype != torch.float32 or (logits.stride(1) != 1 and width > 1):
        raise BackendError(f"logits {logits.dtype} with strides {logits.stride()}; give torch.float32 with dense rows")
    if width > MAX_VOCAB:
        raise BackendError(f"logits have {width} columns; at most {MAX_VOCAB} can be drawn from")
    if bitmask is not None:
        check_mask(logits, bitmask)
    searching = searching and drawing
    room = _Room.of(n, width, searching, logits.device)
    if n:
        tiles = room.best.shape[1]
        _find_peaks(logits, bitmask, room)
        shared = (logits, logits.stride(0), width, tiles)
        numbers = (draws.temperatures, draws.top_k, draws.top_p, draws.min_p)
        how = {"TILES": triton.next_power_of_2(tiles), "num_warps": WARPS, "enable_fp_fusion": False}
        if drawing:
            weigh[(n, tiles)](*shared, *numbers, *room.weighed, **how, TILE=TILE, PIECES=PIECES, SEARCHING=searching)
        choose[(n,)](*shared, *numbers, draws.uniforms, *room.chosen, **how, TILE=TILE, DRAWING=drawing)
        if searching:
            plan_list[(n,)](*numbers[1:3], room.sums, room.counts, room.ends, room.last, PIECES=PIECES, num_warps=4)
            make_list[(n, tiles)](*shared, *numbers[:3], *room.listed, **how, TILE=TILE, PIECES=PIECES)
            pieces = {"PIECES": PIECES, "LISTED": LISTED}
            choose_listed[(n,)](*shared, *numbers[:3], draws.uniforms, *room.searched, **how, **pieces)
    return room.result


@dataclass(frozen=True)
class _Room:
    """What the kernels leave for each other, and the result."""

    result: Sampled
    best: Tensor
    """[n, tiles] int64: ``standing`` of the best logit that the mask leaves."""
    tops: Tensor
    """[n, tiles] int32: order of the best logit before it."""
    lows: Tensor
    """[n, tiles] int32: order of the least finite logit."""
    weights: Tensor
    """[n, tiles] int64: sums of those that min-p keeps."""
    sums: Tensor
    """[n, PIECES] int64"""
    counts: Tensor
    """[n, PIECES] int32: tokens with a weight."""
    ends: Tensor
    """[n, PIECES] int32: where the next id of a piece goes in the list."""
    last: Tensor
    """[n] int32: the last piece that is listed."""
    ids: Tensor
    """[n, vocab] int32: the list."""

    @classmethod
    def of(cls, n: int, width: int, searching: bool, device: torch.device) -> _Room:
        tiles = triton.cdiv(width, TILE)

        def room(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        whole, short, number = torch.int64, torch.int32, torch.float32
        rows = n if searching else 0
        return cls(
            result=Sampled(room(whole, n), room(number, n), room(number, n)),
            best=room(whole, n, tiles),
            tops=room(short, n, tiles),
            lows=room(short, n, tiles),
            weights=room(whole, n, tiles),
            sums=torch.zeros((rows, PIECES), dtype=whole, device=device),
            counts=torch.zeros((rows, PIECES), dtype=short, device=device),
            ends=room(short, rows, PIECES),
            last=room(short, rows),
            ids=room(short, rows, width),
        )

    @property
    def weighed(self) -> tuple[Tensor, ...]:
        """What ``weigh`` reads and writes."""
        return self.best, self.lows, self.weights, self.sums, self.counts

    @property
    def listed(self) -> tuple[Tensor, ...]:
        """What ``make_list`` does."""
        return self.best, self.lows, self.ends, self.last, self.ids

    @property
    def chosen(self) -> tuple[Tensor, ...]:
        """What ``choose`` does."""
        return self.best, self.tops, self.weights, *self.result

    @property
    def searched(self) -> tuple[Tensor, ...]:
        """What ``choose_listed`` does."""
        return self.best, self.weights, self.sums, self.counts, self.ids, self.result.ids


def _find_peaks(logits: Tensor, bitmask: Tensor | None, room: _Room) -> None:
    n, width = logits.shape
    tiles = room.best.shape[1]
    mask, words, stride = (logits, 0, 0) if bitmask is None else (bitmask, bitmask.shape[1], bitmask.stride(0))
    numbers = (logits.stride(0), width, tiles, mask, words, stride, room.best, room.tops, room.lows)
    find_peaks[(n, tiles)](logits, *numbers, MASKED=bitmask is not None, TILE=TILE, num_warps=WARPS)
