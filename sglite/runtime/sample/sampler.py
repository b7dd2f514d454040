"""The sampler: one token per row of logits.

It promises that a row's result depends on that row's logits, parameters, seed, position and attempt, and on nothing
else: not on the other rows, their number or order, or what was sampled before. A row that cannot be sampled carries
an error and leaves the others alone. Work that no row asks for is not done.

    raw logits --adjust--> bias, penalties, masks --argmax or draw--> token id
        |------few-------> the tokens left, alone -------^
        '-------------------log-softmax-----------------------------> log probabilities

A row whose masks leave few tokens is sampled among those (``few``), with the same result. The logits given are never
written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from sglite.runtime.protocol import LogprobOptions, TokenLogprob
from sglite.runtime.sample.adjust import ApplyMask, SampleRow, adjust, apply_bitmask, masks_of, needs_adjusting
from sglite.runtime.sample.draw import draw
from sglite.runtime.sample.few import Ids, few_ids, gather
from sglite.runtime.sample.logprobs import LogitsNotFinite, not_finite, token_logprobs
from sglite.runtime.sample.order import largest

__all__ = ["SampleResult", "SampleRow", "Sampler"]


class SampleResult(msgspec.Struct, frozen=True):
    """What one row gave: a token (and its log probability, when asked for), or an error and ``token_id`` -1."""

    token_id: int
    logprob: TokenLogprob | None = None
    error: str | None = None


class Sampler:
    """Samples and scores. Holds no state: whatever a row needs comes with it.

    ``apply_mask`` is the backend's; the default is what that must equal.
    """

    def __init__(self, apply_mask: ApplyMask = apply_bitmask) -> None:
        self._apply_mask = apply_mask

    def sample(self, logits: Tensor, rows: Sequence[SampleRow], mask: Tensor | None = None) -> list[SampleResult]:
        """One result per row of ``logits`` [n, V], any float dtype; V may exceed the tokenizer's vocabulary.

        ``mask`` [n, words] int32 on the host: bit ``t % 32`` of word ``t // 32`` is set where token t is allowed;
        rows without a constraint are all ones; ``words * 32 >= V``. Greedy rows take the lowest id among equals.
        Raises ``ValueError`` or ``IndexError`` only for arguments that contradict each other.
        """
        _check(logits, rows, mask)
        if not rows:
            return []
        width = logits.shape[1]
        few: list[Ids | None] = [None] * len(rows)
        if mask is not None or any(row.params.allowed_token_ids is not None for row in rows):
            few = few_ids(rows, mask, width)
        parts = [*self._parts(logits, rows, mask, few)]
        best = [largest(part.logits) for part in parts]
        peaks = best[0][0] if parts[0].logits is logits else logits.amax(dim=1)
        errors = [not_finite(peak) for peak in peaks.tolist()]
        tokens = [-1] * len(rows)
        for part, found in zip(parts, best, strict=True):
            _choose(part, found, rows, tokens, errors)
        for index, token in enumerate(tokens):
            if token < 0 and errors[index] is None:
                errors[index] = _nothing_left(rows[index], mask, index)
        logprobs = _logprobs(logits, rows, tokens, errors)
        return [
            SampleResult(tokens[i], logprobs.get(i)) if errors[i] is None else SampleResult(-1, None, errors[i])
            for i in range(len(rows))
        ]

    def _parts(
        self, logits: Tensor, rows: Sequence[SampleRow], mask: Tensor | None, few: Sequence[Ids | None]
    ) -> Iterator[_Part]:
        """The batch as at most two parts: rows over the whole vocabulary, and rows over few tokens."""
        wide = [index for index, ids in enumerate(few) if ids is None]
        if wide:
            part = _select(logits, wide)
            chosen = [rows[i] for i in wide]
            own = None if mask is None else _select(mask, wide)
            own = None if own is None or bool((own == -1).all()) else own  # constrained rows may all be narrow
            if needs_adjusting(chosen, own):
                part = adjust(part, chosen, own, self._apply_mask, copy=part is logits)
            yield _Part(wide, part)
        narrow = [(index, ids) for index, ids in enumerate(few) if ids is not None]
        if narrow:
            places = [index for index, _ in narrow]
            found = gather(logits, places, [rows[i] for i in places], [ids for _, ids in narrow])
            yield _Part(places, found.logits, found.ids, found.sizes)

    def score(self, logits: Tensor, targets: Sequence[int], options: LogprobOptions) -> list[TokenLogprob]:
        """Log probabilities of known tokens: row i of ``logits`` [m, V] scores ``targets[i]``.

        Raises ``LogitsNotFinite`` when a row has NaN, +inf, or -inf only.
        """
        if logits.dim() != 2 or logits.shape[0] != len(targets):
            raise ValueError(f"logits {list(logits.shape)} for {len(targets)} targets; one row each is needed")
        if not targets:
            return []
        for index, peak in enumerate(logits.amax(dim=1).tolist()):
            reason = not_finite(peak)
            if reason is not None:
                raise LogitsNotFinite(f"{reason} (row {index} of {len(targets)} scored)")
        return token_logprobs(logits, targets, [options] * len(targets))


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of the batch at ``places``, their adjusted ``logits`` [m, K], and what the columns stand for."""

    places: list[int]
    logits: Tensor
    ids: Tensor | None = None
    """[m, K]; ``None``: column t is token t."""
    sizes: list[int] | None = None
    """Tokens each row is left with, where they are few."""


def _check(logits: Tensor, rows: Sequence[SampleRow], mask: Tensor | None) -> None:
    if logits.dim() != 2 or logits.shape[0] != len(rows):
        raise ValueError(f"logits {list(logits.shape)} for {len(rows)} rows; one row of logits each is needed")
    width = logits.shape[1]
    if mask is not None and (mask.dtype != torch.int32 or mask.shape[0] != len(rows) or mask.shape[1] * 32 < width):
        given = f"{mask.dtype} {list(mask.shape)}"
        raise ValueError(f"the bitmask is {given}; int32 with {len(rows)} rows of {width} bits is needed")


def _choose(
    part: _Part,
    best: tuple[Tensor, Tensor],
    rows: Sequence[SampleRow],
    tokens: list[int],
    errors: Sequence[str | None],
) -> None:
    """Write the token of each row of a part, whose largest logits are ``best``; a row that is left with none keeps
    -1."""
    peaks, columns = best
    left = [peak != float("-inf") for peak in peaks.tolist()]
    drawing = [
        i
        for i, place in enumerate(part.places)
        if left[i]
        and errors[place] is None
        and not rows[place].params.is_greedy
        and (part.sizes is None or part.sizes[i] > 1)
    ]
    if drawing:
        drawn = draw(_select(part.logits, drawing), [rows[part.places[i]] for i in drawing])
        columns[torch.tensor(drawing, device=columns.device)] = drawn
    ids = columns if part.ids is None else part.ids.gather(1, columns.unsqueeze(1)).squeeze(1)
    for i, (place, token_id) in enumerate(zip(part.places, ids.tolist(), strict=True)):
        if left[i]:
            tokens[place] = token_id


def _select(logits: Tensor, indices: list[int]) -> Tensor:
    """The rows ``indices`` of ``logits``, without a copy when these are all of them."""
    return logits if len(indices) == logits.shape[0] else logits[torch.tensor(indices, device=logits.device)]


def _nothing_left(row: SampleRow, mask: Tensor | None, index: int) -> str:
    names = masks_of(row, None if mask is None else mask[index])
    verb = "leaves" if len(names) == 1 else "leave"
    return (
        f"every token is masked at position {row.position}: {' and '.join(names)} {verb} none to sample; "
        "relax one of them"
    )


def _logprobs(
    logits: Tensor, rows: Sequence[SampleRow], tokens: list[int], errors: list[str | None]
) -> dict[int, TokenLogprob]:
    """Log probabilities by row index, of the rows that asked and have no error."""
    asking = [(i, row.logprobs) for i, row in enumerate(rows) if row.logprobs is not None and errors[i] is None]
    if not asking:
        return {}
    indices = [index for index, _ in asking]
    targets = [tokens[index] for index in indices]
    found = token_logprobs(_select(logits, indices), targets, [options for _, options in asking])
    return dict(zip(indices, found, strict=True))
