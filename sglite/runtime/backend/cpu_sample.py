"""The draw: temperature, top-k, top-p, min-p, and one token by inverting the distribution function. The specification.

The order is Hugging Face's: temperature; top-k; top-p over what top-k kept, renormalised; min-p relative to the most
likely token. Among equally likely tokens the lowest id comes first, also where top-k and top-p cut: exactly k tokens
stay, and of the nucleus the shortest prefix whose probability reaches top-p. The distribution function goes over the
tokens that are left, the most likely first where top-k or top-p has ordered them, by id where neither has.

Probabilities are whole numbers: a token's weight is ``exp((l - max l) / T)`` in units of 2**-40. Sums of integers
have no rounding and no order, so the prefix sums of a row are the same bits alone or in a batch, on one thread or
on a thousand; a token without weight owns no number and cannot be drawn; the most likely one always has weight. The
price is that tokens 2**40 times less likely than the best have none, less than fp32 softmax itself loses to rounding.

    weights   5 3 0 2      prefix sums   5 8 8 10      target = floor(u * 10) = 7  ->  first prefix sum > 7: token 1
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sglite.runtime.backend.draws import Draws, Sampled
from sglite.runtime.backend.few import few_ids, gather
from sglite.runtime.backend.mask import ApplyMask, apply_bitmask
from sglite.runtime.backend.order import STRETCH, at_least, by_row, equal_to, largest, peaks, top

UNIT = 2.0**40
"""Weight of the most likely token. With up to 2**22 tokens a row's sum stays below 2**62."""
MAX_VOCAB = 2**22
NARROW = 2**15
"""Rows up to this are searched without looking at the likely tokens first. A matter of speed only, as are"""
LIKELY, CROWDED = 2**28, 128
"""the weight from which on a token is likely, how many stretches of a row may have such for it to be looked at,"""
PIECES = 1024
"""and by how many pieces a row is searched: of the distance from its best logit over the temperature."""
WEIGHTLESS = 28.0
"""Distance from which on nothing has a weight: 40 ln 2 and a bit."""
BLOCK = 2**23
"""Logits drawn from at once, which bounds the memory for their weights."""


def sample(logits: Tensor, draws: Draws, bitmask: Tensor | None = None, apply: ApplyMask = apply_bitmask) -> Sampled:
    """``Backend.sample`` of tensors in host memory. ``apply``: what masks rows that are not few."""
    if bitmask is None:
        best, ids = largest(logits)
        return Sampled(_chosen(logits, draws, ids, best.isfinite()), best, best)
    peaks = logits.amax(dim=1)
    ids, left = torch.empty(len(logits), dtype=torch.int64), torch.empty_like(peaks)
    for part in _parts(logits, bitmask, apply):
        best, columns = largest(part.logits)
        able = best.isfinite() & peaks[part.places].isfinite() & part.several
        columns = _chosen(part.logits, draws.of(part.places), columns, able)
        ids[part.places] = columns if part.ids is None else part.ids.gather(1, columns.unsqueeze(1)).squeeze(1)
        left[part.places] = best
    return Sampled(ids, peaks, left)


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of the batch at ``places`` [m], their masked ``logits`` [m, K], and what the columns stand for."""

    places: Tensor
    logits: Tensor
    several: Tensor
    """[m] bool or []: whether there may be more than one token to draw from."""
    ids: Tensor | None = None
    """[m, K]; ``None``: column t is token t."""


def _parts(logits: Tensor, bitmask: Tensor, apply: ApplyMask) -> Iterator[_Part]:
    """The batch as at most two parts: rows over the whole vocabulary, and rows over few tokens."""
    few = few_ids(bitmask, logits.shape[1])
    wide = torch.tensor([index for index, ids in enumerate(few) if ids is None], dtype=torch.int64)
    if len(wide):
        part, own = _rows(logits, wide), _rows(bitmask, wide)
        if bool((own != -1).any()):
            part = part.clone() if part is logits else part
            apply(part, own)
        yield _Part(wide, part, torch.tensor(True))
    narrow = [(index, ids) for index, ids in enumerate(few) if ids is not None]
    if narrow:
        places = torch.tensor([index for index, _ in narrow])
        found = gather(logits, places, [ids for _, ids in narrow])
        yield _Part(places, found.logits, found.sizes > 1, found.ids)


def _chosen(logits: Tensor, draws: Draws, best: Tensor, able: Tensor) -> Tensor:
    """The column [n] of each row: drawn where the row is ``able`` to and not greedy, else ``best``."""
    places = (able & (draws.temperatures > 0)).nonzero().squeeze(1)
    if not len(places):
        return best
    drawn = draw(_rows(logits, places), draws if len(places) == len(best) else draws.of(places))
    return best.index_copy(0, places, drawn)


def draw(logits: Tensor, draws: Draws) -> Tensor:
    """One token id per row [n] int64 of masked ``logits`` [n, V] float32, whose largest are finite, without NaN."""
    width = logits.shape[1]
    if width > MAX_VOCAB:
        raise ValueError(f"logits have {width} columns; at most {MAX_VOCAB} can be drawn from")
    step = max(1, BLOCK // width)
    drawn = torch.empty(len(logits), dtype=torch.int64)
    cut = draws.top_k > 0
    for one, members in (
        (_draw_top_k, cut), (_draw_nucleus, ~cut & (draws.top_p < 1.0)), (_draw_plain, ~cut & (draws.top_p >= 1.0)),
    ):  # fmt: skip
        found = members.nonzero().squeeze(1)
        for first in range(0, len(found), step):
            places = found[first : first + step]
            drawn[places] = one(_rows(logits, places), draws.of(places))
    return drawn


def _draw_plain(logits: Tensor, draws: Draws) -> Tensor:
    """No sorting: min-p is a threshold on the weight."""
    weights = weigh(logits, logits, draws)
    if bool((draws.min_p > 0.0).any()):
        weights.masked_fill_(weights < _min_weight(draws), 0)
    return _invert(weights, draws)


def _draw_top_k(logits: Tensor, draws: Draws) -> Tensor:
    k = draws.top_k.unsqueeze(1)  # [n, 1]
    values, ids = top(logits, min(int(k.max()), logits.shape[1]))
    weights = weigh(values, values, draws)
    weights.masked_fill_(torch.arange(ids.shape[1]) >= k, 0)
    _keep_nucleus(weights, _nucleus(weights.sum(dim=1, keepdim=True), draws), draws)
    return ids.gather(1, _invert(weights, draws).unsqueeze(1)).squeeze(1)


def _draw_nucleus(logits: Tensor, draws: Draws) -> Tensor:
    """Where the likely tokens of a wide row are few and hold the nucleus these are sorted; other rows are searched."""
    distance = _distance(logits, logits, draws)
    weights = _weight_at(distance)
    target = _nucleus(weights.sum(dim=1, keepdim=True), draws)  # [n, 1]
    drawn = torch.full((len(logits),), -1, dtype=torch.int64)
    few = (peaks(weights, STRETCH) >= LIKELY).sum(dim=1) <= CROWDED if logits.shape[1] > NARROW else drawn > 0
    places = few.nonzero().squeeze(1)
    if len(places):
        part = _rows(weights, places)
        ids, there = by_row(at_least(part, torch.full_like(target[places], LIKELY)), *part.shape)
        own = part.gather(1, ids).masked_fill_(~there, 0)
        held = (own.sum(dim=1) >= target[places, 0]).nonzero().squeeze(1)
        places, ids, own = places[held], ids[held], own[held]
        drawn[places] = _draw_sorted(_rows(logits, places), ids, own, target[places], draws.of(places))
    places = (drawn < 0).nonzero().squeeze(1)
    if len(places):
        parts = [_rows(values, places) for values in (logits, distance, weights)]
        drawn[places] = _search(parts[0], parts[1], parts[2], target[places], draws.of(places))
    return drawn


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """The rows of ``values`` at ``places``, ascending, without a copy when these are all of them."""
    return values if len(places) == len(values) else values[places]


def _draw_sorted(logits: Tensor, ids: Tensor, weights: Tensor, target: Tensor, draws: Draws) -> Tensor:
    """Among tokens ``ids`` [n, K] with ``weights`` [n, K], 0 for none, which hold the nucleus."""
    ids, weights = _by_likelihood(logits, ids, weights)
    _keep_nucleus(weights, target, draws)
    return ids.gather(1, _invert(weights, draws).unsqueeze(1)).squeeze(1)


def _by_likelihood(logits: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """``ids`` [n, K], ascending, and their ``weights`` [n, K], most likely first; those without weight are last."""
    values = logits.gather(1, ids).masked_fill_(weights == 0, -torch.inf)
    order = torch.sort(values, dim=1, descending=True, stable=True).indices
    return ids.gather(1, order), weights.gather(1, order)


def _search(logits: Tensor, distance: Tensor, weights: Tensor, target: Tensor, draws: Draws) -> Tensor:
    """Among all tokens: the weights of pieces are summed up, and those pieces alone are sorted where a sum is reached.

    ``distance`` is written.
    """
    grain = (PIECES - 1) / distance.amax(dim=1, keepdim=True).clamp_(1e-6, WEIGHTLESS)
    pieces = distance.mul_(grain).clamp_(max=PIECES - 1).to(torch.int64)  # [n, V]
    _, kept = _reached(logits, weights, pieces, target)
    if bool((draws.min_p > 0.0).any()):
        weights = weights.masked_fill(weights < _min_weight(draws), 0)
        kept = torch.minimum(kept, weights.sum(dim=1, keepdim=True))
    return _reached(logits, weights, pieces, _number(kept, draws) + 1)[0].squeeze(1)


def _reached(logits: Tensor, weights: Tensor, pieces: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The first token [n, 1], by likelihood, with which the sum of ``weights`` reaches the ``target`` [n, 1], which is
    at least 1; and the sum there [n, 1]."""
    sums = torch.zeros((len(logits), PIECES), dtype=torch.int64).scatter_add_(1, pieces, weights)
    upto = sums.cumsum(dim=1)
    piece = torch.searchsorted(upto, target)
    ids, there = by_row(equal_to(pieces, piece), *logits.shape)
    ids, own = _by_likelihood(logits, ids, weights.gather(1, ids).masked_fill_(~there, 0))
    reached = own.cumsum(dim=1).add_(upto.gather(1, piece) - sums.gather(1, piece))
    place = torch.searchsorted(reached, target)
    return ids.gather(1, place), reached.gather(1, place)


def weigh(values: Tensor, logits: Tensor, draws: Draws) -> Tensor:
    """Weights [n, K] int64 of ``values`` [n, K], some or all of the entries of ``logits`` [n, V]."""
    return _weight_at(_distance(values, logits, draws))


def _distance(values: Tensor, logits: Tensor, draws: Draws) -> Tensor:
    """How far ``values`` [n, K] are below the best of ``logits`` [n, V], over the temperature; never negative."""
    return (logits.amax(dim=1, keepdim=True) - values).div_(draws.temperatures.unsqueeze(1))


def _weight_at(distance: Tensor) -> Tensor:
    """Weights of tokens at a ``distance``, of the same shape, int64."""
    return distance.neg().exp_().mul_(UNIT).to(torch.int64)


def _nucleus(total: Tensor, draws: Draws) -> Tensor:
    """The weight [n, 1] that the nucleus must reach, given the ``total`` [n, 1] before top-p."""
    top_p = draws.top_p.unsqueeze(1)
    reach = (total.to(torch.float64) * top_p).ceil().to(torch.int64)
    return torch.where(top_p >= 1.0, total, torch.minimum(reach, total))


def _keep_nucleus(weights: Tensor, target: Tensor, draws: Draws) -> None:
    """Zero, in ``weights`` [n, K] sorted by likelihood, what top-p and min-p drop: every token before which the
    ``target`` is reached already, and every one below the least weight."""
    before = weights.cumsum(dim=1) - weights
    weights.masked_fill_(before >= target, 0)
    if bool((draws.min_p > 0.0).any()):
        weights.masked_fill_(weights < _min_weight(draws), 0)


def _min_weight(draws: Draws) -> Tensor:
    """The least weight [n, 1] that min-p keeps; the most likely token has ``UNIT``."""
    return (draws.min_p * UNIT).ceil().to(torch.int64).unsqueeze(1)


def _invert(weights: Tensor, draws: Draws) -> Tensor:
    """The index [n] into each row of ``weights`` [n, K] at which its prefix sums pass ``u * total``."""
    prefix = weights.cumsum(dim=1)
    return torch.searchsorted(prefix, _number(prefix[:, -1:], draws), right=True).squeeze(1)


def _number(total: Tensor, draws: Draws) -> Tensor:
    """A whole number [n, 1] below each row's ``total`` [n, 1], which is at least 1: ``floor(u * total)``."""
    # A total above 2**53 rounds as a double, so that the product may reach it.
    return torch.minimum((draws.uniforms.unsqueeze(1) * total).floor().to(torch.int64), total - 1)
