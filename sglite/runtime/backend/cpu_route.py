"""How tokens find their experts, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from sglite.runtime.backend.experts import Routing


def route(logits: Tensor, bias: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor]:
    """See ``Backend.route``."""
    scores = logits.softmax(-1) if routing.scoring == "softmax" else logits.sigmoid()
    choice = scores if bias is None else scores + bias
    if routing.num_groups > 1:
        choice = _in_best_groups(choice, routing)
    ids = choice.topk(routing.top_k, dim=-1, sorted=False).indices
    weights = scores.gather(1, ids)
    if routing.renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return ids, weights * routing.scaling


def _in_best_groups(choice: Tensor, routing: Routing) -> Tensor:
    grouped = choice.view(len(choice), routing.num_groups, -1)
    best = grouped.amax(-1) if routing.group_score == "max" else grouped.topk(2, dim=-1).values.sum(-1)
    kept = torch.zeros_like(best).scatter_(1, best.topk(routing.top_groups, dim=-1, sorted=False).indices, 1.0)
    return grouped.masked_fill(kept[..., None] == 0, -torch.inf).flatten(1)
