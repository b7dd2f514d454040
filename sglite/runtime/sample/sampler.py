"""The sampler: one token per row of logits.

It promises that a row's result depends on that row's logits, parameters, seed, position and attempt, and on nothing
else: not on the other rows, their number or order, or what was sampled before. A row that cannot be sampled carries
an error and leaves the others alone. Work that no row asks for is not done.

    raw logits --adjust--> bias, penalties, masks --argmax or draw--> token id
        '-------------------log-softmax-----------------------------> log probabilities

Only torch operations on the logits' own device; the logits given are never written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sglite.runtime.protocol import LogprobOptions, TokenLogprob
from sglite.runtime.sample.adjust import SampleRow, adjust, masks_of, needs_adjusting
from sglite.runtime.sample.draw import draw
from sglite.runtime.sample.logprobs import LogitsNotFinite, not_finite, token_logprobs

__all__ = ["SampleResult", "SampleRow", "Sampler"]


@dataclass(frozen=True, slots=True)
class SampleResult:
    """What one row gave: a token (and its log probability, when asked for), or an error and ``token_id`` -1."""

    token_id: int
    logprob: TokenLogprob | None = None
    error: str | None = None


class Sampler:
    """Samples and scores. Holds no state: whatever a row needs comes with it."""

    def sample(self, logits: Tensor, rows: Sequence[SampleRow], mask: Tensor | None = None) -> list[SampleResult]:
        """One result per row of ``logits`` [n, V], any float dtype; V may exceed the tokenizer's vocabulary.

        ``mask`` [n, words] int32: bit ``t % 32`` of word ``t // 32`` is set where token t is allowed; rows without
        a constraint are all ones; ``words * 32 >= V``. Greedy rows take the lowest id among equals.
        Raises ``ValueError`` or ``IndexError`` only for arguments that contradict each other.
        """
        if logits.dim() != 2 or logits.shape[0] != len(rows):
            raise ValueError(f"logits {list(logits.shape)} for {len(rows)} rows; one row of logits each is needed")
        if not rows:
            return []
        adjusted = adjust(logits, rows, mask) if needs_adjusting(rows, mask) else logits
        best = adjusted.max(dim=1)
        tokens: list[int] = best.indices.tolist()
        peaks: list[float] = best.values.tolist()
        raw_peaks = peaks if adjusted is logits else logits.amax(dim=1).tolist()
        errors = [
            not_finite(raw_peak) or (_nothing_left(row, mask, index) if peak == float("-inf") else None)
            for index, (row, peak, raw_peak) in enumerate(zip(rows, peaks, raw_peaks, strict=True))
        ]
        drawing = [i for i, row in enumerate(rows) if errors[i] is None and not row.params.is_greedy]
        if drawing:
            part = _select(adjusted, drawing)
            for index, token_id in zip(drawing, draw(part, [rows[i] for i in drawing]).tolist(), strict=True):
                tokens[index] = token_id
        logprobs = _logprobs(logits, rows, tokens, errors)
        return [
            SampleResult(tokens[i], logprobs.get(i)) if errors[i] is None else SampleResult(-1, None, errors[i])
            for i in range(len(rows))
        ]

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
