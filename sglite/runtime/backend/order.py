"""The most likely tokens of a row in one fixed order: by value, lowest id first among equals.

``torch.topk`` leaves open which of several equal entries it returns and in which order. Model logits in 16 bits are
full of equal entries, and what the sampler does must not depend on how a kernel met them.

Nothing here sorts a whole row where it can be helped. The largest entries of stretches of a row are found fast, and
bound those of the row: the k-th largest of them is at most the k-th largest entry, so what is below it is left out.

    row        3 1 4 1 | 5 9 2 6 | 5 3 5 8        k = 2
    largest       4         9         8           second largest: 8, so 9 and 8 are all that may count
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

STRETCH = 128
"""Entries of a stretch; a matter of speed only, as are the others."""
LEAST_STRETCH = 8
PER_ID = 2
"""Stretches a row has for every entry that is wanted of it."""


def largest(values: Tensor) -> tuple[Tensor, Tensor]:
    """The largest entry [n] of each row of ``values`` [n, V], V > 0, and the lowest id [n] that has it.

    NaN counts as the largest.
    """
    width = values.shape[1]
    if width < 2 * STRETCH:
        best = values.max(dim=1)
        return best.values, best.indices
    found, stretch = peaks(values, STRETCH).max(dim=1)
    start = (stretch * STRETCH).clamp_(max=width - STRETCH).unsqueeze(1)
    part = values.gather(1, start + torch.arange(STRETCH, device=values.device))
    return found, start.squeeze(1) + part.argmax(dim=1)


def top(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest entries [n, k] of each row of ``values`` [n, V] and their ids [n, k], largest first, lowest id
    first among equals. Where a row has fewer than k above -inf, -inf and any id fill it. No NaN; 1 <= k <= V."""
    width = values.shape[1]
    stretch = next((size for size in (STRETCH, 32, LEAST_STRETCH) if width >= PER_ID * k * size), 0)
    if not stretch:
        found = torch.sort(values, dim=1, descending=True, stable=True)
        return found.values[:, :k], found.indices[:, :k]
    bound = torch.topk(peaks(values, stretch), k, dim=1).values[:, -1:]
    ids, there = by_row(at_least(values, bound.clamp_(min=torch.finfo(values.dtype).min)), len(values), width, least=k)
    found = torch.sort(values.gather(1, ids).masked_fill_(~there, -torch.inf), dim=1, descending=True, stable=True)
    return found.values[:, :k], ids.gather(1, found.indices[:, :k])


def at_least(values: Tensor, bound: Tensor) -> Tensor:
    """Flat indices [m], ascending, of the entries of ``values`` [n, V] that are not below ``bound`` [n, 1]."""
    if values.device.type == "cpu" and values.dtype != torch.bfloat16:  # numpy is several times faster at this
        return torch.from_numpy(np.flatnonzero(values.numpy() >= bound.numpy()))
    return (values >= bound).view(-1).nonzero().squeeze(1)


def equal_to(values: Tensor, wanted: Tensor) -> Tensor:
    """Flat indices [m], ascending, of the entries of ``values`` [n, V] int64 that equal ``wanted`` [n, 1]."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(values.numpy() == wanted.numpy()))
    return (values == wanted).view(-1).nonzero().squeeze(1)


def by_row(flat: Tensor, n: int, width: int, least: int = 1) -> tuple[Tensor, Tensor]:
    """Ascending flat indices [m] of [n, width] as a table [n, K] of columns, and where it has any; K is ``least`` or
    more. Elsewhere the column is 0."""
    rows = torch.div(flat, width, rounding_mode="floor")
    counts = torch.bincount(rows, minlength=n)
    size = max(least, int(counts.max()))
    place = torch.arange(len(flat), device=flat.device) - (counts.cumsum(0) - counts)[rows]
    table = torch.zeros((n, size), dtype=torch.int64, device=flat.device)
    table[rows, place] = flat - rows * width
    return table, torch.arange(size, device=flat.device) < counts.unsqueeze(1)


def peaks(values: Tensor, stretch: int) -> Tensor:
    """The largest entry of every ``stretch`` of each row of ``values`` [n, V]; the last one reaches back into the
    one before, to be as long. V is not below ``stretch``."""
    whole = values.shape[1] // stretch * stretch
    found = values[:, :whole].reshape(len(values), -1, stretch).amax(dim=2)
    return found if whole == values.shape[1] else torch.cat((found, values[:, -stretch:].amax(dim=1, keepdim=True)), 1)
