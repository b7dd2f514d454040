"""Latent attention on the CPU, over all slots that a query sees or over those that an indexer chose for it.

All heads read the same latents, so the heads of a query are rows of one matrix: a segment is one product for the
scores and one for the sums, which here is many times faster than attention kernels that go head by head. Scores of
long chunks are made block by block, see ``BLOCK``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sglite.runtime.backend.cpu_plan import CPUMetadata, Segment, read_slots

BLOCK = 2**21
"""Numbers that are held at a time: scores, or latents gathered for single queries. Larger ones leave the caches, and
a block of a causal chunk leaves out the slots behind its last query."""


def attend_latents(q: Tensor, latents: Tensor, size: int, segments: Sequence[Segment], scale: float) -> Tensor:
    """``q`` [T, heads, dim] over ``latents`` [slots, dim], the first ``size`` of them values: [T, heads, size]."""
    out = q.new_empty((*q.shape[:2], size))
    for segment in segments:
        keys = read_slots(latents, segment.slots).to(q.dtype).view(segment.rows, -1, latents.shape[1])
        queries = q[segment.tokens].view(segment.rows, -1, *q.shape[1:])  # [B, n, heads, dim]
        seen = _seen(segment, queries.shape[1], keys.shape[1])
        result = torch.empty((*queries.shape[:3], size), dtype=q.dtype)
        for part in _blocks(queries.shape[1], segment.rows * q.shape[1] * keys.shape[1]):
            width = _width(part, queries, keys)
            scores = _product(queries[:, part], keys[:, :width]).float().mul_(scale)
            if seen is not None:
                scores.masked_fill_(~seen[:, part, None, :width], -torch.inf)
            shares = scores.softmax(-1).to(q.dtype)
            result[:, part] = torch.matmul(shares.flatten(1, 2), keys[:, :width, :size]).view(*shares.shape[:3], size)
        out[segment.tokens] = result.flatten(0, 1)
    return out


def attend_chosen(q: Tensor, latents: Tensor, size: int, chosen: Tensor, scale: float) -> Tensor:
    """As ``attend_latents``, each query over its row of ``chosen`` [T, k] alone."""
    out = q.new_empty((*q.shape[:2], size))
    for part in _blocks(len(q), chosen.shape[1] * latents.shape[1]):
        slots = chosen[part]
        keys = latents.index_select(0, slots.clamp(min=0).flatten()).to(q.dtype).view(*slots.shape, -1)  # [n, k, dim]
        scores = torch.bmm(q[part], keys.transpose(1, 2)).float() * scale
        scores.masked_fill_((slots < 0)[:, None], -torch.inf)
        out[part] = torch.bmm(scores.softmax(-1).to(q.dtype), keys[..., :size])
    return out


def choose_slots(q: Tensor, weights: Tensor, keys: Tensor, meta: CPUMetadata, top_k: int) -> Tensor | None:
    """See ``Backend.choose_slots``; ``keys`` [slots, dim]."""
    if all(len(row.slots) <= top_k for row in meta.rows):
        return None
    chosen = torch.full((len(q), top_k), -1, dtype=torch.int64)
    for segment in meta.segments():
        known = read_slots(keys, segment.slots).view(segment.rows, -1, keys.shape[1])
        slots = _slot_numbers(segment).view(segment.rows, 1, -1)
        queries = q[segment.tokens].view(segment.rows, -1, *q.shape[1:])
        shares = weights[segment.tokens].view(segment.rows, -1, 1, q.shape[1])
        seen = _seen(segment, queries.shape[1], known.shape[1])
        result = torch.empty((*queries.shape[:2], top_k), dtype=torch.int64)
        for part in _blocks(queries.shape[1], segment.rows * q.shape[1] * known.shape[1]):
            scores = _product(queries[:, part].float(), known.float()).relu_()
            total = torch.matmul(shares[:, part], scores).squeeze(2)  # [B, n, S]
            visible = torch.ones_like(total, dtype=torch.bool) if seen is None else seen[:, part].expand_as(total)
            result[:, part] = _best(total, visible, slots.expand_as(total), top_k)
        chosen[segment.tokens] = result.flatten(0, 1)
    return chosen


def _best(scores: Tensor, visible: Tensor, slots: Tensor, top_k: int) -> Tensor:
    """The slots of the ``top_k`` best visible scores in their order, [..., top_k] with -1 where there are fewer.

    Of equal scores the first are taken, whatever the width: a sort or ``topk`` would leave it to chance.
    """
    scores = scores.masked_fill(~visible, -torch.inf)
    least = scores.topk(min(top_k, scores.shape[-1]), dim=-1, sorted=False).values.amin(-1, keepdim=True)
    better, equal = scores > least, (scores == least) & visible
    room = top_k - better.sum(-1, keepdim=True)
    taken = better | (equal & (equal.cumsum(-1) <= room))
    places = (taken.cumsum(-1) - 1)[taken]
    rows = taken.flatten(0, -2).nonzero(as_tuple=True)[0]
    best = slots.new_full((scores.shape[:-1].numel(), top_k), -1)
    best[rows, places] = slots[taken]
    return best.view(*scores.shape[:-1], top_k)


def _product(queries: Tensor, keys: Tensor) -> Tensor:
    """[B, n, heads, dim] by [B, S, dim]: [B, n, heads, S]."""
    rows, tokens, heads, _ = queries.shape
    return torch.matmul(queries.flatten(1, 2), keys.transpose(1, 2)).view(rows, tokens, heads, -1)


def _seen(segment: Segment, tokens: int, slots: int) -> Tensor | None:
    """[B or 1, n, S]: which slots each query sees; ``None``: all."""
    if segment.causal:
        return torch.ones((1, tokens, slots), dtype=torch.bool).tril()
    return None if segment.mask is None else segment.mask[:, 0]


def _width(part: slice, queries: Tensor, keys: Tensor) -> int:
    """Slots that some query of ``part`` may see: none sees beyond its own."""
    return keys.shape[1] - (queries.shape[1] - int(part.stop) if len(queries) == 1 else 0)


def _slot_numbers(segment: Segment) -> Tensor:
    """The pool rows that a segment reads, [B * S]."""
    slots = segment.slots
    return torch.arange(slots.start, slots.stop) if isinstance(slots, slice) else slots


def _blocks(tokens: int, each: int) -> Iterator[slice]:
    """Ranges of tokens that need ``each`` numbers apiece and at most ``BLOCK`` together, where one alone does not."""
    step = max(1, BLOCK // each)
    for first in range(0, tokens, step):
        yield slice(first, min(first + step, tokens))
