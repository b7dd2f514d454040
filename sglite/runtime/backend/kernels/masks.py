"""Bitmasks on logits: -inf is written where an id is not allowed, the rest is neither read nor written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglite.runtime.backend.base import BackendError

TILE = 4096
"""Ids a program."""


def apply_mask(logits: Tensor, bitmask: Tensor) -> None:
    """``Backend.apply_mask`` with a ``bitmask`` that is on the device already; ``logits`` [n, vocab] with dense rows.

    BackendError: they do not go together.
    """
    check_mask(logits, bitmask)
    n, width = logits.shape
    if n and width:
        grid = (n, triton.cdiv(width, TILE))
        words = bitmask.shape[1]
        _apply_mask[grid](logits, bitmask, logits.stride(0), bitmask.stride(0), width, words, TILE=TILE, num_warps=8)


def check_mask(logits: Tensor, bitmask: Tensor) -> None:
    """BackendError: ``bitmask`` is not one of ``logits`` [n, vocab], or either has no dense rows on one device."""
    if bitmask.dtype != torch.int32 or bitmask.dim() != 2 or len(bitmask) != len(logits):
        raise BackendError(
            f"bitmask {bitmask.dtype} {list(bitmask.shape)} for {len(logits)} rows of logits; "
            f"give torch.int32 [{len(logits)}, words]"
        )
    if bitmask.device != logits.device:
        raise BackendError(f"bitmask on {bitmask.device}, logits on {logits.device}; copy it there first")
    if logits.stride(-1) != 1 or (bitmask.stride(-1) != 1 and bitmask.shape[1] > 1):
        raise BackendError("logits and bitmask need rows without gaps; give them contiguous")


@triton.jit
def allowed(bitmask, ids, words):
    """Whether the row of words at ``bitmask`` allows each of ``ids``; those beyond the words it does not."""
    word = tl.load(bitmask + (ids >> 5), mask=ids < words * 32, other=0)
    return ((word >> (ids & 31)) & 1) != 0


@triton.jit
def _apply_mask(logits, bitmask, stride, mask_stride, width, words, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * TILE + tl.arange(0, TILE)
    forbidden = (ids < width) & ~allowed(bitmask + row * mask_stride, ids, words)
    nothing = tl.full([TILE], float("-inf"), tl.float32).to(logits.dtype.element_ty)
    tl.store(logits + row * stride + ids, nothing, mask=forbidden)
