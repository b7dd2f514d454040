"""Penalties on tokens that occurred: repetition over prompt and output, frequency and presence over the output.

    l[t] > 0 ? l[t] / repetition : l[t] * repetition      t in prompt or output     (CTRL, arXiv 1909.05858)
    l[t] - frequency * count[t] - presence                t in output, count >= 1   (OpenAI's API reference)

in this order, as Hugging Face and vLLM have it. Only the entries that occur are read and written, so a step costs
the number of distinct tokens of the penalised rows, not their vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sglite.runtime.sample.params import SamplingParams


class TokenCounts:
    """The distinct tokens of one sequence and how often each was output; grows with the output.

    ``ids`` [size] int64, each id once; ``counts`` [size] float32, 0 for tokens that only the prompt has. Both are
    CPU tensors and views: valid until the next ``add``.
    """

    def __init__(self, prompt_ids: Iterable[int] = (), output_ids: Iterable[int] = ()) -> None:
        known = list(dict.fromkeys(prompt_ids))
        self._index = {token_id: slot for slot, token_id in enumerate(known)}
        self._ids = torch.tensor(known, dtype=torch.int64)
        self._counts = torch.zeros(len(known), dtype=torch.float32)
        self.add(output_ids)

    def add(self, ids: Iterable[int]) -> None:
        """Count output tokens, sampled or forced."""
        for token_id in ids:
            slot = self._index.setdefault(token_id, len(self._index))
            if slot == len(self._ids):
                self._grow()
            self._ids[slot] = token_id
            self._counts[slot] += 1

    @property
    def ids(self) -> Tensor:
        return self._ids[: len(self._index)]

    @property
    def counts(self) -> Tensor:
        return self._counts[: len(self._index)]

    def _grow(self) -> None:
        """Double the capacity, so that n additions cost O(n)."""
        room = max(64, len(self._ids))
        self._ids = torch.cat([self._ids, self._ids.new_zeros(room)])
        self._counts = torch.cat([self._counts, self._counts.new_zeros(room)])


class Counted(NamedTuple):
    """Distinct ``ids`` [size] int64 and their ``counts`` [size] float32, as ``TokenCounts`` has them."""

    ids: Tensor
    counts: Tensor


def apply_penalties(logits: Tensor, entries: Sequence[tuple[int, SamplingParams, TokenCounts | Counted]]) -> None:
    """Penalise ``logits`` [n, V] float32 in place; an entry is (row, parameters, counts), at most one per row.

    Raises ``IndexError`` when a counted id is not below V.
    """
    width = logits.shape[1]
    cells, counts, sizes = [], [], []
    for row, _, seen in entries:
        ids = seen.ids
        if len(ids) and int(ids.max()) >= width:
            raise IndexError(f"token id {int(ids.max())} was counted, but the logits have {width} columns")
        cells.append(ids + row * width)
        counts.append(seen.counts)
        sizes.append(len(ids))
    repeats = torch.tensor(sizes)
    names = ("repetition_penalty", "frequency_penalty", "presence_penalty")
    columns = [torch.tensor([getattr(params, name) for _, params, _ in entries]) for name in names]
    repetition, frequency, presence = (
        column.to(torch.float32).repeat_interleave(repeats).to(logits.device) for column in columns
    )
    cell = torch.cat(cells).to(logits.device)
    count = torch.cat(counts).to(logits.device)
    flat = logits.view(-1)
    value = flat[cell]
    value = torch.where(value > 0, value / repetition, value * repetition)
    flat[cell] = value - frequency * count - presence * (count > 0)
