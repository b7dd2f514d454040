"""The first id of the largest logit of every row, in two small kernels: tiles of a row, then their best.

A logit and its id are one whole number, the larger the better: above, the logit's bits as a number of the same order
(NaN above all others, both zeros one), below, how few ids come before.

    best[row, tile]   order of the largest logit << 32 | 2**31 - 1 - id
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Logits a program: some tens of programs a row, 16 logits a thread."""
WARPS = 8


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """First id [n] int64 of the largest of every row of ``logits`` [n, vocab], any floating type and strides, and that
    logit [n] float32. NaN counts as the largest."""
    n, width = logits.shape
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    tiles = triton.cdiv(width, TILE)
    best = torch.empty((n, tiles), dtype=torch.int64, device=logits.device)
    ids = torch.empty(n, dtype=torch.int64, device=logits.device)
    values = torch.empty(n, dtype=torch.float32, device=logits.device)
    if n:
        _best_of_tiles[(n, tiles)](logits, best, logits.stride(0), width, tiles, TILE=TILE, num_warps=WARPS)
        _best[(n,)](best, ids, values, tiles, TILES=triton.next_power_of_2(tiles), num_warps=1)
    return ids, values


@triton.jit
def order_of(x):
    """float32 ``x`` as int32 of the same order."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(x == x, bits, 0x7FFFFFFF)


@triton.jit
def of_order(order):
    """The number that ``order_of`` made int32 ``order`` of."""
    return tl.where(order < 0, order ^ 0x7FFFFFFF, order).to(tl.float32, bitcast=True)


@triton.jit
def standing(x, ids, there):
    """Logits and their ids as one int64, the larger the better; below all others where they are not ``there``."""
    both = (order_of(x).to(tl.int64) << 32) | (0x7FFFFFFF - ids).to(tl.int64)
    return tl.where(there, both, -0x7FFFFFFFFFFFFFFF)


@triton.jit
def best_standing(best, tiles, TILES: tl.constexpr):
    """The best of a row's tiles."""
    tile = tl.arange(0, TILES)
    return tl.max(tl.load(best + tile, mask=tile < tiles, other=-0x7FFFFFFFFFFFFFFF), 0)


@triton.jit
def id_of(best):
    """The id of a ``standing``, int64."""
    return 0x7FFFFFFF - (best & 0x7FFFFFFF)


@triton.jit
def logit_of(best):
    """The logit of a ``standing``, float32."""
    return of_order((best >> 32).to(tl.int32))


@triton.jit
def _best_of_tiles(logits, best, stride, width, tiles, TILE: tl.constexpr):
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = tile * TILE + tl.arange(0, TILE)
    there = ids < width
    x = tl.load(logits + row * stride + ids, mask=there, other=0.0).to(tl.float32)
    tl.store(best + row * tiles + tile, tl.max(standing(x, ids, there), 0))


@triton.jit
def _best(best, ids, values, tiles, TILES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    found = best_standing(best + row * tiles, tiles, TILES)
    tl.store(ids + row, id_of(found))
    tl.store(values + row, logit_of(found))
