"""Rows whose masks leave few tokens: these are gathered, and everything else happens to them alone.

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

from sglite.runtime.sample.adjust import SampleRow, add_bias, counts_of
from sglite.runtime.sample.penalties import Counted, apply_penalties

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
    """[n, K] float32, adjusted; padding is -inf."""
    sizes: list[int]
    """Tokens of each row."""


def few_ids(rows: Sequence[SampleRow], mask: Tensor | None, width: int) -> list[Ids | None]:
    """The ids that all masks of a row leave, ascending, when one of the masks has at most ``FEW``; else ``None``.

    ``mask`` [n, words] int32 is on the host. Raises ``IndexError`` for an allowed id that is not below ``width``.
    """
    masks = None if mask is None else mask.numpy()
    found: list[Ids | None] = [None] * len(rows) if masks is None else _ids_in(masks)
    for index, row in enumerate(rows):
        allowed = row.params.allowed_token_ids
        if allowed is not None and (found[index] is not None or len(allowed) <= FEW):
            found[index] = _narrowed(found[index], allowed, None if masks is None else masks[index], width)
        ids = found[index]
        if ids is None:
            continue
        if row.banned:
            ids = ids[~np.isin(ids, np.asarray(row.banned, dtype=np.int64))]
        found[index] = ids[: np.searchsorted(ids, width)] if len(ids) and ids[-1] >= width else ids
    return found


def _narrowed(ids: Ids | None, allowed: Sequence[int], mask: NDArray[np.int32] | None, width: int) -> Ids:
    """The ``allowed`` ids that are among ``ids``, or that the ``mask`` [words] allows."""
    chosen = np.unique(np.asarray(allowed, dtype=np.int64))
    if chosen[-1] >= width:
        raise IndexError(f"allowed_token_ids has token id {chosen[-1]}, but the logits have {width} columns")
    if ids is not None:
        return np.intersect1d(ids, chosen, assume_unique=True)
    if mask is not None:
        words = mask.view(np.uint32)
        chosen = chosen[(words[chosen >> 5] >> (chosen & 31).astype(np.uint32) & 1).astype(np.bool_)]
    return chosen


def gather(logits: Tensor, places: Sequence[int], rows: Sequence[SampleRow], ids: Sequence[Ids]) -> FewTokens:
    """The tokens ``ids`` of the rows of ``logits`` [N, V] at ``places``, with bias and penalties applied.

    Raises ``ValueError`` or ``IndexError`` as ``adjust`` does.
    """
    sizes = [len(one) for one in ids]
    table = np.zeros((len(ids), max(1, *sizes)), dtype=np.int64)
    for line, one in zip(table, ids, strict=True):
        line[: len(one)] = one
    columns = torch.from_numpy(table).to(logits.device)
    at = torch.tensor(places, device=logits.device).unsqueeze(1)
    work = logits[at, columns].to(torch.float32)
    length = torch.tensor(sizes, device=logits.device).unsqueeze(1)
    work.masked_fill_(torch.arange(work.shape[1], device=logits.device) >= length, -torch.inf)
    _adjust(work, rows, ids, logits.shape[1])
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


def _adjust(work: Tensor, rows: Sequence[SampleRow], ids: Sequence[Ids], width: int) -> None:
    """Bias and penalties of the tokens that are there."""
    biases = []
    penalised = []
    for index, (row, own) in enumerate(zip(rows, ids, strict=True)):
        params = row.params
        if params.logit_bias:
            wanted = np.fromiter(params.logit_bias, dtype=np.int64)
            columns, there = _find(own, wanted, width, "logit_bias has token id {}")
            values = np.fromiter(params.logit_bias.values(), dtype=np.float64)[there]
            biases.append((index, dict(zip(columns.tolist(), values.tolist(), strict=True))))
        if params.has_penalties:
            seen = counts_of(row, index)
            columns, there = _find(own, seen.ids.numpy(), width, "token id {} was counted")
            counted = Counted(torch.from_numpy(columns), seen.counts[torch.from_numpy(there)])
            penalised.append((index, params, counted))
    add_bias(work, [entry for entry in biases if entry[1]])
    if penalised:
        apply_penalties(work, penalised)


def _find(own: Ids, wanted: Ids, width: int, what: str) -> tuple[Ids, NDArray[np.bool_]]:
    """Where the ``wanted`` ids stand among a row's ``own``, and which of them do."""
    worst = int(wanted.max(initial=0))
    if worst >= width:
        raise IndexError(f"{what.format(worst)}, but the logits have {width} columns")
    place = np.searchsorted(own, wanted)
    there = place < len(own)
    there[there] = own[place[there]] == wanted[there]
    return place[there], there
