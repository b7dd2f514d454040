"""The sampler: one token per row of logits.

It promises that a row's result depends on that row's logits, parameters, seed, position and attempt, and on nothing
else: not on the other rows, their number or order, or what was sampled before. A row that cannot be sampled carries
an error and leaves the others alone. Work that no row asks for is not done.

    raw logits --adjust--> bias, penalties --backend's sample, with one mask--> ids, peaks, what is left
        '-------------------log-softmax-----------------------------> log probabilities

What is launched and what is read are two calls: ``start`` gives the ids where they are, on the device, ``results``
waits for them. The logits given are never written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from sglite.runtime.backend import cpu_sample
from sglite.runtime.backend.draws import Draws, Sampled
from sglite.runtime.protocol import LogprobOptions, TokenLogprob
from sglite.runtime.sample.adjust import SampleRow, adjust, masks_of, needs_adjusting, one_mask
from sglite.runtime.sample.draw import draws_of
from sglite.runtime.sample.logprobs import LogitsNotFinite, not_finite, token_logprobs

__all__ = ["Pending", "SampleResult", "SampleRow", "Sampler"]

Sample = Callable[[Tensor, Draws, Tensor | None], Sampled]
"""``Backend.sample``."""
Fetch = Callable[..., Callable[[], Sequence[Tensor]]]
"""``Backend.fetch``."""


def at_once(*tensors: Tensor) -> Callable[[], Sequence[Tensor]]:
    """``Fetch`` where tensors are on the host already, and stay as they are."""
    return lambda: tensors


class SampleResult(msgspec.Struct, frozen=True):
    """What one row gave: a token (and its log probability, when asked for), or an error and ``token_id`` -1."""

    token_id: int
    logprob: TokenLogprob | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """Rows whose tokens the device has been asked for."""

    ids: Tensor
    """[n] int64 on the device; any id where ``results`` will say that there is none."""
    _fetched: Callable[[], Sequence[Tensor]]
    """Ids, peaks and what is left, on the host."""
    _logits: Tensor
    _rows: Sequence[SampleRow]
    _mask: Tensor | None

    def results(self) -> list[SampleResult]:
        """One result per row; waits for the device. The logits and rows given to ``start`` must still be there."""
        tokens, peaks, lefts = (tensor.tolist() for tensor in self._fetched())
        errors: list[str | None] = [None] * len(tokens)
        for index, (peak, left) in enumerate(zip(peaks, lefts, strict=True)):
            if left - left != 0.0 or peak - peak != 0.0:  # not finite
                errors[index] = not_finite(peak) or self._nothing_left(index, left)
        logprobs = _logprobs(self._logits, self._rows, tokens, errors)
        return [
            SampleResult(token, logprobs.get(index)) if error is None else SampleResult(-1, None, error)
            for index, (token, error) in enumerate(zip(tokens, errors, strict=True))
        ]

    def _nothing_left(self, index: int, left: float) -> str | None:
        """What masked every token of a row; ``None``: it has some."""
        if left != float("-inf"):
            return None
        row = self._rows[index]
        names = masks_of(row, None if self._mask is None else self._mask[index])
        verb = "leaves" if len(names) == 1 else "leave"
        return (
            f"every token is masked at position {row.position}: {' and '.join(names)} {verb} none to sample; "
            "relax one of them"
        )


class Sampler:
    """Samples and scores. Holds no state: whatever a row needs comes with it.

    ``sample`` and ``fetch`` are the backend's; the defaults are what those must equal.
    """

    def __init__(self, sample: Sample = cpu_sample.sample, fetch: Fetch = at_once) -> None:
        self._sample = sample
        self._fetch = fetch

    def sample(self, logits: Tensor, rows: Sequence[SampleRow], mask: Tensor | None = None) -> list[SampleResult]:
        """``start`` and its results."""
        return self.start(logits, rows, mask).results()

    def start(
        self, logits: Tensor, rows: Sequence[SampleRow], mask: Tensor | None = None, draws: Draws | None = None
    ) -> Pending:
        """Ask for one token per row of ``logits`` [n, V], any float dtype; V may exceed the tokenizer's vocabulary.

        ``mask`` [n, words] int32 on the host: bit ``t % 32`` of word ``t // 32`` is set where token t is allowed;
        rows without a constraint are all ones; ``words * 32 >= V``. ``draws``: of the rows, where they are known
        already. Greedy rows take the lowest id among equals.
        Raises ``ValueError`` or ``IndexError`` only for arguments that contradict each other.
        """
        _check(logits, rows, mask)
        if not rows:
            nothing = logits.new_empty(0)
            return Pending(nothing.to(torch.int64), at_once(nothing, nothing, nothing), logits, rows, mask)
        work, peaks = logits.to(torch.float32), None
        if needs_adjusting(rows):
            work, peaks = adjust(logits, rows), logits.amax(dim=1)
        found = self._sample(work, draws or draws_of(rows), one_mask(rows, mask, logits.shape[1]))
        fetched = self._fetch(found.ids, found.peaks if peaks is None else peaks, found.left)
        return Pending(found.ids, fetched, logits, rows, mask)

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


def _check(logits: Tensor, rows: Sequence[SampleRow], mask: Tensor | None) -> None:
    if logits.dim() != 2 or logits.shape[0] != len(rows):
        raise ValueError(f"logits {list(logits.shape)} for {len(rows)} rows; one row of logits each is needed")
    width = logits.shape[1]
    if mask is not None and (mask.dtype != torch.int32 or mask.shape[0] != len(rows) or mask.shape[1] * 32 < width):
        given = f"{mask.dtype} {list(mask.shape)}"
        raise ValueError(f"the bitmask is {given}; int32 with {len(rows)} rows of {width} bits is needed")


def _select(logits: Tensor, indices: list[int]) -> Tensor:
    """The rows ``indices`` of ``logits``, without a copy when these are all of them."""
    return logits if len(indices) == logits.shape[0] else logits[torch.tensor(indices, device=logits.device)]


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
