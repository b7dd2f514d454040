"""The draw: temperature, top-k, top-p, min-p, and one token by inverting the distribution function.

The order is Hugging Face's: temperature; top-k; top-p over what top-k kept, renormalised; min-p relative to the most
likely token. Among equally likely tokens the lowest id comes first, also where top-k and top-p cut: exactly k tokens
stay, and of the nucleus the shortest prefix whose probability reaches top-p.

Probabilities are whole numbers: a token's weight is ``exp((l - max l) / T)`` in units of 2**-40. Sums of integers
have no rounding and no order, so the prefix sums of a row are the same bits alone or in a batch, on one thread or
on a thousand; a token without weight owns no number and cannot be drawn; the most likely one always has weight. The
price is that tokens 2**40 times less likely than the best have none, less than fp32 softmax itself loses to rounding.

    weights   5 3 0 2      prefix sums   5 8 8 10      target = floor(u * 10) = 7  ->  first prefix sum > 7: token 1
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from sglite.runtime.sample.adjust import SampleRow
from sglite.runtime.sample.order import STRETCH, at_least, by_row, equal_to, peaks, top

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
_KEY = struct.Struct("<QQQ")
BLOCK = 2**23
"""Logits drawn from at once, which bounds the memory for their weights."""


def uniform(seed: int, position: int, attempt: int) -> float:
    """The random number in [0, 1), a multiple of 2**-53, of one draw: a hash of its key, so that it depends on
    nothing else and needs no state (counter-based, after Salmon et al., SC 2011, with BLAKE2b as the hash)."""
    key = _KEY.pack(seed % 2**64, position, attempt)
    return (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 11) * 2.0**-53


def draw(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """One token id per row [n] int64 for adjusted ``logits`` [n, V]; every row has a finite maximum and no NaN."""
    width = logits.shape[1]
    if width > MAX_VOCAB:
        raise ValueError(f"logits have {width} columns; at most {MAX_VOCAB} can be drawn from")
    drawn = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(_group(row), []).append(index)
    step = max(1, BLOCK // width)
    for name, members in groups.items():
        for first in range(0, len(members), step):
            block = members[first : first + step]
            places = torch.tensor(block, device=logits.device)
            part = logits if len(block) == len(rows) else logits[places]
            drawn[places] = _DRAWS[name](part.to(torch.float32), [rows[i] for i in block])
    return drawn


def _group(row: SampleRow) -> str:
    if row.params.top_k > 0:
        return "top_k"
    return "nucleus" if row.params.top_p < 1.0 else "plain"


def _draw_plain(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """No sorting: min-p is a threshold on the weight."""
    weights = _weights(logits, logits, rows)
    if any(row.params.min_p > 0.0 for row in rows):
        weights.masked_fill_(weights < _min_weight(rows, logits.device), 0)
    return _invert(weights, rows)


def _draw_top_k(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    k = torch.tensor([row.params.top_k for row in rows], device=logits.device).unsqueeze(1)  # [n, 1]
    values, ids = top(logits, min(max(row.params.top_k for row in rows), logits.shape[1]))
    weights = _weights(values, values, rows)
    weights.masked_fill_(torch.arange(ids.shape[1], device=k.device) >= k, 0)
    _keep_nucleus(weights, _nucleus(weights.sum(dim=1, keepdim=True), rows), rows)
    return ids.gather(1, _invert(weights, rows).unsqueeze(1)).squeeze(1)


def _draw_nucleus(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Where the likely tokens of a wide row are few and hold the nucleus these are sorted; other rows are searched."""
    distance = _distance(logits, logits, rows)
    weights = _weigh(distance)
    target = _nucleus(weights.sum(dim=1, keepdim=True), rows)  # [n, 1]
    drawn = torch.full((len(rows),), -1, dtype=torch.int64, device=logits.device)
    few = (peaks(weights, STRETCH) >= LIKELY).sum(dim=1) <= CROWDED if logits.shape[1] > NARROW else drawn > 0
    places = few.nonzero().squeeze(1)
    if len(places):
        part = _rows(weights, places)
        ids, there = by_row(at_least(part, torch.full_like(target[places], LIKELY)), *part.shape)
        own = part.gather(1, ids).masked_fill_(~there, 0)
        held = (own.sum(dim=1) >= target[places, 0]).nonzero().squeeze(1)
        places, ids, own = places[held], ids[held], own[held]
        chosen = [rows[i] for i in places.tolist()]
        drawn[places] = _draw_sorted(_rows(logits, places), ids, own, target[places], chosen)
    places = (drawn < 0).nonzero().squeeze(1)
    if len(places):
        chosen = [rows[i] for i in places.tolist()]
        parts = [_rows(values, places) for values in (logits, distance, weights)]
        drawn[places] = _search(parts[0], parts[1], parts[2], target[places], chosen)
    return drawn


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """The rows of ``values`` at ``places``, ascending, without a copy when these are all of them."""
    return values if len(places) == len(values) else values[places]


def _draw_sorted(logits: Tensor, ids: Tensor, weights: Tensor, target: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Among tokens ``ids`` [n, K] with ``weights`` [n, K], 0 for none, which hold the nucleus."""
    ids, weights = _by_likelihood(logits, ids, weights)
    _keep_nucleus(weights, target, rows)
    return ids.gather(1, _invert(weights, rows).unsqueeze(1)).squeeze(1)


def _by_likelihood(logits: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """``ids`` [n, K], ascending, and their ``weights`` [n, K], most likely first; those without weight are last."""
    values = logits.gather(1, ids).masked_fill_(weights == 0, -torch.inf)
    order = torch.sort(values, dim=1, descending=True, stable=True).indices
    return ids.gather(1, order), weights.gather(1, order)


def _search(logits: Tensor, distance: Tensor, weights: Tensor, target: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Among all tokens: the weights of pieces are summed up, and those pieces alone are sorted where a sum is reached.

    ``distance`` is written.
    """
    grain = (PIECES - 1) / distance.amax(dim=1, keepdim=True).clamp_(1e-6, WEIGHTLESS)
    pieces = distance.mul_(grain).clamp_(max=PIECES - 1).to(torch.int64)  # [n, V]
    _, kept = _reached(logits, weights, pieces, target)
    if any(row.params.min_p > 0.0 for row in rows):
        weights = weights.masked_fill(weights < _min_weight(rows, weights.device), 0)
        kept = torch.minimum(kept, weights.sum(dim=1, keepdim=True))
    return _reached(logits, weights, pieces, _number(kept, rows) + 1)[0].squeeze(1)


def _reached(logits: Tensor, weights: Tensor, pieces: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The first token [n, 1], by likelihood, with which the sum of ``weights`` reaches the ``target`` [n, 1], which is
    at least 1; and the sum there [n, 1]."""
    sums = torch.zeros((len(logits), PIECES), dtype=torch.int64, device=logits.device).scatter_add_(1, pieces, weights)
    upto = sums.cumsum(dim=1)
    piece = torch.searchsorted(upto, target)
    ids, there = by_row(equal_to(pieces, piece), *logits.shape)
    ids, own = _by_likelihood(logits, ids, weights.gather(1, ids).masked_fill_(~there, 0))
    reached = own.cumsum(dim=1).add_(upto.gather(1, piece) - sums.gather(1, piece))
    place = torch.searchsorted(reached, target)
    return ids.gather(1, place), reached.gather(1, place)


_DRAWS = {"plain": _draw_plain, "top_k": _draw_top_k, "nucleus": _draw_nucleus}


def _weights(values: Tensor, logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Weights [n, K] int64 of ``values`` [n, K], some or all of the entries of ``logits`` [n, V]."""
    return _weigh(_distance(values, logits, rows))


def _distance(values: Tensor, logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """How far ``values`` [n, K] are below the best of ``logits`` [n, V], over the temperature; never negative."""
    below = logits.amax(dim=1, keepdim=True) - values
    return below.div_(_column([row.params.temperature for row in rows], logits))


def _weigh(distance: Tensor) -> Tensor:
    """Weights of tokens at a ``distance``, of the same shape, int64."""
    return distance.neg().exp_().mul_(UNIT).to(torch.int64)


def _column(numbers: Sequence[float], logits: Tensor) -> Tensor:
    """One number a row, [n, 1] float32."""
    return torch.tensor(numbers, dtype=torch.float32).to(logits.device).unsqueeze(1)


def _nucleus(total: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """The weight [n, 1] that the nucleus must reach, given the ``total`` [n, 1] before top-p."""
    top_p = torch.tensor([row.params.top_p for row in rows], dtype=torch.float64).to(total.device).unsqueeze(1)
    reach = (total.to(torch.float64) * top_p).ceil().to(torch.int64)
    return torch.where(top_p >= 1.0, total, torch.minimum(reach, total))


def _keep_nucleus(weights: Tensor, target: Tensor, rows: Sequence[SampleRow]) -> None:
    """Zero, in ``weights`` [n, K] sorted by likelihood, what top-p and min-p drop: every token before which the
    ``target`` is reached already, and every one below the least weight."""
    before = weights.cumsum(dim=1) - weights
    weights.masked_fill_(before >= target, 0)
    if any(row.params.min_p > 0.0 for row in rows):
        weights.masked_fill_(weights < _min_weight(rows, weights.device), 0)


def _min_weight(rows: Sequence[SampleRow], device: torch.device) -> Tensor:
    """The least weight [n, 1] that min-p keeps; the most likely token has ``UNIT``."""
    least = torch.tensor([row.params.min_p * UNIT for row in rows], dtype=torch.float64)
    return least.ceil().to(torch.int64).to(device).unsqueeze(1)


def _invert(weights: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """The index [n] into each row of ``weights`` [n, K] at which its prefix sums pass ``u * total``."""
    prefix = weights.cumsum(dim=1)
    return torch.searchsorted(prefix, _number(prefix[:, -1:], rows), right=True).squeeze(1)


def _number(total: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """A whole number [n, 1] below each row's ``total`` [n, 1], which is at least 1: ``floor(u * total)``."""
    numbers = [uniform(row.seed, row.position, row.attempt) for row in rows]
    u = torch.tensor(numbers, dtype=torch.float64).to(total.device).unsqueeze(1)
    # A total above 2**53 rounds as a double, so that the product may reach it.
    return torch.minimum((u * total).floor().to(torch.int64), total - 1)
