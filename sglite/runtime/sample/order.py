"""The most likely tokens of a row in one fixed order: by value, lowest id first among equals.

``torch.topk`` leaves open which of several equal entries it returns and in which order. Model logits in 16 bits are
full of equal entries, and what the sampler does must not depend on how a kernel met them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def top_ids(values: Tensor, k: int) -> Tensor:
    """The ids [n, k] of the ``k`` largest entries of each row of ``values`` [n, V], largest first, lowest id first
    among equals. Which -inf entries come in the places left over is not fixed. No NaN; 1 <= k <= V."""
    width = values.shape[1]
    if k == width:
        return torch.sort(values, dim=1, descending=True, stable=True).indices
    top = torch.topk(values, k + 1, dim=1)
    # Only a tie across the cut leaves the set open: an equal entry that was not returned.
    last = top.values[:, k - 1]
    open_rows = ((last == top.values[:, k]) & (last > -torch.inf)).nonzero().flatten()
    ids = top.indices[:, :k].sort(dim=1).values
    if len(open_rows):
        ids[open_rows] = _first_of_ties(values[open_rows], last[open_rows].unsqueeze(1), k)
    by_value = torch.sort(values.gather(1, ids), dim=1, descending=True, stable=True).indices
    return ids.gather(1, by_value)


def _first_of_ties(values: Tensor, last: Tensor, k: int) -> Tensor:
    """Ids [n, k], ascending, of the entries above ``last`` [n, 1] and as many equal to it as fill k places."""
    above = values > last
    tied = values == last
    places = k - above.sum(dim=1, keepdim=True)
    kept = above | (tied & (tied.cumsum(dim=1, dtype=torch.int32) <= places))
    return kept.nonzero()[:, 1].view(-1, k)
