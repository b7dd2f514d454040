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
from collections.abc import Sequence

import torch
from torch import Tensor

from sglite.runtime.sample.adjust import SampleRow
from sglite.runtime.sample.order import top_ids

UNIT = 2.0**40
"""Weight of the most likely token. With up to 2**22 tokens a row's sum stays below 2**62."""
MAX_VOCAB = 2**22
NUCLEUS_SIZES = (1024, 16384)
"""Most likely tokens looked at for top-p before the whole vocabulary is sorted; a matter of speed only."""
BLOCK = 2**23
"""Logits drawn from at once, which bounds the memory for their weights."""


def uniform(seed: int, position: int, attempt: int) -> float:
    """The random number in [0, 1), a multiple of 2**-53, of one draw: a hash of its key, so that it depends on
    nothing else and needs no state (counter-based, after Salmon et al., SC 2011, with BLAKE2b as the hash)."""
    key = b"".join(part.to_bytes(8, "little") for part in (seed % 2**64, position, attempt))
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
    ids = top_ids(logits, min(max(row.params.top_k for row in rows), logits.shape[1]))
    weights = _weights(logits.gather(1, ids), logits, rows)
    weights.masked_fill_(torch.arange(ids.shape[1], device=k.device) >= k, 0)
    _keep_nucleus(weights, _nucleus(weights.sum(dim=1, keepdim=True), rows), rows)
    return ids.gather(1, _invert(weights, rows).unsqueeze(1)).squeeze(1)


def _draw_nucleus(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Looks at a few tokens first, and at more in the rows whose nucleus these do not hold."""
    target = _nucleus(_weights(logits, logits, rows).sum(dim=1, keepdim=True), rows)  # [n, 1]
    width = logits.shape[1]
    drawn = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    left = torch.arange(len(rows), device=logits.device)
    for k in (*(size for size in NUCLEUS_SIZES if size < width), width):
        chosen = [rows[i] for i in left.tolist()]
        part = logits[left]
        ids = top_ids(part, k)
        weights = _weights(part.gather(1, ids), part, chosen)
        decided = weights.sum(dim=1) >= target[left, 0]
        _keep_nucleus(weights, target[left], chosen)
        found = ids.gather(1, _invert(weights, chosen).unsqueeze(1)).squeeze(1)
        drawn[left[decided]] = found[decided]
        left = left[~decided]
        if len(left) == 0:
            break
    return drawn


_DRAWS = {"plain": _draw_plain, "top_k": _draw_top_k, "nucleus": _draw_nucleus}


def _weights(values: Tensor, logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Weights [n, K] int64 of ``values`` [n, K], some or all of the entries of ``logits`` [n, V]."""
    temperature = torch.tensor([row.params.temperature for row in rows], dtype=torch.float32)
    scaled = values - logits.amax(dim=1, keepdim=True)
    scaled.div_(temperature.to(logits.device).unsqueeze(1)).exp_().mul_(UNIT)
    return scaled.to(torch.int64)


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
    numbers = [uniform(row.seed, row.position, row.attempt) for row in rows]
    prefix = weights.cumsum(dim=1)
    total = prefix[:, -1:]
    u = torch.tensor(numbers, dtype=torch.float64).to(weights.device).unsqueeze(1)
    # A total above 2**53 rounds as a double, so that the product may reach it.
    target = torch.minimum((u * total).floor().to(torch.int64), total - 1)
    return torch.searchsorted(prefix, target, right=True).squeeze(1)
