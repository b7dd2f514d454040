"""Rows whose bitmasks leave few tokens: these are gathered, and everything else happens to them alone.

A grammar at a structural place leaves a handful of 150,000 tokens, and work on the others is wasted. The ids are
taken in ascending order and keep it, and a forbidden token would have had no weight in the draw, so what is sampled
is, bit for bit, what sampling over the whole vocabulary gives: the draw depends on the order of the tokens that have
weight and on the row's own random number.

    mask 0 1 0 0 1 1 0 ...   ids 1 4 5   logits l1 l4 l5   column 2  ->  token 5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FEW = 1024
"""Most tokens that are gathered; beyond it the whole row is cheaper, or nearly so."""

Ids = NDArray[np.int64]
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)
"""Bits set in each byte."""


@dataclass(frozen=True, slots=True)
class FewTokens:
    """Rows [n] by the tokens left to them, padded to K columns."""

    ids: Tensor
    """[n, K] int64, ascending; padding is 0."""
    logits: Tensor
    """[n, K] float32; padding is -inf."""
    sizes: Tensor
    """[n] int64: tokens of each row."""


def few_ids(bitmask: Tensor, width: int) -> list[Ids | None]:
    """The ids below ``width`` that each row of ``bitmask`` [n, words] int32 allows, ascending, when they are at most
    ``FEW``; else ``None``."""
    found = _ids_in(np.ascontiguousarray(bitmask.numpy()))
    return [ids if ids is None or not len(ids) or ids[-1] < width else ids[: np.searchsorted(ids, width)]
            for ids in found]  # fmt: skip


def gather(logits: Tensor, places: Tensor, ids: Sequence[Ids]) -> FewTokens:
    """The tokens ``ids`` of the rows of ``logits`` [N, V] at ``places`` [n]."""
    sizes = torch.tensor([len(one) for one in ids])
    table = np.zeros((len(ids), max(1, int(sizes.max()))), dtype=np.int64)
    for line, one in zip(table, ids, strict=True):
        line[: len(one)] = one
    columns = torch.from_numpy(table)
    work = logits[places.unsqueeze(1), columns]
    work.masked_fill_(torch.arange(work.shape[1]) >= sizes.unsqueeze(1), -torch.inf)
    return FewTokens(columns, work, sizes)


def _ids_in(masks: NDArray[np.int32]) -> list[Ids | None]:
    """The ids that each of the bitmasks [n, words] allows, ascending, when they are at most ``FEW``."""
    found: list[Ids | None] = [None] * len(masks)
    narrow = np.flatnonzero((masks != 0).sum(axis=1) <= FEW)  # each of a row's words has an id at least
    part = masks[narrow]
    at = np.flatnonzero(part)
    octets = part.ravel()[at].astype("<i4", copy=False).view(np.uint8).reshape(-1, 4)
    owners = at // masks.shape[1]
    counts = np.bincount(owners, weights=_BITS[octets].sum(axis=1), minlength=len(narrow))
    kept = (counts <= FEW)[owners]
    places = np.flatnonzero(np.unpackbits(octets[kept], bitorder="little"))
    ids = ((at - owners * masks.shape[1])[kept] * 32)[places >> 5] + (places & 31)
    first = 0
    for index, count in zip(narrow.tolist(), counts.astype(np.int64).tolist(), strict=True):
        if count <= FEW:
            found[index] = ids[first : first + count]
            first += count
    return found
