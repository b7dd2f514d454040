"""Bitmasks on logits in host memory, in two short passes over a row.

A byte of a bitmask stands for eight ids, so a table of 256 entries turns it into eight floats: NaN where the id is
allowed and -inf where it is not. ``fmin`` prefers a number to NaN, which makes it write -inf over whatever a
forbidden logit was (NaN too) and leave an allowed one as it is.

    byte 0b00000101  ->  nan -inf  nan -inf -inf -inf -inf -inf
    logits               1.5  2.0  0.1  ...
    fmin                 1.5 -inf  0.1 -inf ...
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ApplyMask = Callable[[Tensor, Tensor], None]
"""``Backend.apply_mask``."""


def apply_bitmask(logits: Tensor, mask: Tensor) -> None:
    """``ApplyMask`` in plain torch, for any device and dtype: what a backend's own must equal."""
    # The lowest bits come first in an int32 as in its bytes on every machine torch runs on (little endian).
    octets = mask.to(logits.device).contiguous().view(torch.uint8)  # [n, words * 4]
    bits = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=logits.device)
    forbidden = (octets.unsqueeze(-1) & bits).eq_(0).view(torch.bool).flatten(1)[:, : logits.shape[1]]  # [n, V]
    logits[:, : forbidden.shape[1]].masked_fill_(forbidden, -torch.inf)
    logits[:, forbidden.shape[1] :] = -torch.inf


class CPUMasks:
    """``Backend.apply_mask`` for the CPU: a row without a constraint costs a look at its words.

    Keeps a buffer of one row between calls, so one instance belongs to one thread.
    """

    def __init__(self) -> None:
        allowed = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").view(np.bool_)
        self._table = np.where(allowed, np.float32("nan"), np.float32("-inf"))  # [256, 8]
        self._terms = np.empty((0, 8), dtype=np.float32)

    def apply(self, logits: Tensor, bitmask: Tensor) -> None:
        """See ``Backend.apply_mask``; both tensors in host memory."""
        known = bitmask.shape[1] * 32
        words = np.ascontiguousarray(bitmask.numpy()).astype("<i4", copy=False)
        for values, row in zip(logits, words, strict=True):
            if not (row == -1).all():
                part = values[:known]
                _forbid(part, self._expand(row.view(np.uint8))[: len(part)])
            values[known:] = -torch.inf

    def _expand(self, octets: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Eight floats a byte, in the buffer."""
        if len(self._terms) < len(octets):
            self._terms = np.empty((len(octets), 8), dtype=np.float32)
        terms = self._terms[: len(octets)]
        np.take(self._table, octets, axis=0, out=terms, mode="clip")  # a mode other than "raise" writes unbuffered
        return terms.reshape(-1)


def _forbid(values: Tensor, terms: npt.NDArray[np.float32]) -> None:
    """-inf where ``terms`` [n] is."""
    if values.dtype == torch.float32:
        numbers = values.numpy()
        np.fmin(numbers, terms, out=numbers)
    else:
        values.masked_fill_(torch.from_numpy(np.isneginf(terms)), -torch.inf)
