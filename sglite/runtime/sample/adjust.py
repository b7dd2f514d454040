"""What stands between the model's logits and the draw: bias, penalties, and the masks that forbid tokens.

    logit_bias -> penalties                                                       on one float32 copy of the batch
    allowed_token_ids and ban of stop tokens before min_new_tokens and grammar    one bitmask

Nothing is copied that no row asks for. A row may end with no token at all; ``masks_of`` then names who was involved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sglite.runtime.protocol import LogprobOptions
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.sample.penalties import TokenCounts, apply_penalties


class SampleRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the sampler must know of a row besides its logits.

    ``position`` is that of the logits in the sequence and, with ``seed`` and ``attempt``, keys the randomness.
    ``num_output`` counts output tokens before this one; ``banned_until_min`` are the ids that end the sequence.
    ``counts`` must be there when ``params.has_penalties``.
    """

    params: SamplingParams
    seed: int
    position: int
    attempt: int = 0
    num_output: int = 0
    banned_until_min: tuple[int, ...] = ()
    counts: TokenCounts | None = None
    logprobs: LogprobOptions | None = None

    @property
    def banned(self) -> tuple[int, ...]:
        """Ids that must not be sampled yet."""
        return self.banned_until_min if self.num_output < self.params.min_new_tokens else ()


def needs_adjusting(rows: Sequence[SampleRow]) -> bool:
    """Whether ``adjust`` would change anything; if not, the batch needs no copy."""
    return any(row.params.logit_bias or row.params.has_penalties for row in rows)


def adjust(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """A float32 copy of ``logits`` [n, V] with bias and penalties applied.

    Raises ``ValueError`` or ``IndexError`` for rows that contradict the shapes; ``validate`` keeps requests from it.
    """
    work = logits.to(torch.float32, copy=True)
    _add_bias(work, [(index, row.params.logit_bias) for index, row in enumerate(rows) if row.params.logit_bias])
    penalised = [(i, row.params, _counts_of(row, i)) for i, row in enumerate(rows) if row.params.has_penalties]
    if penalised:
        apply_penalties(work, penalised)
    return work


def one_mask(rows: Sequence[SampleRow], mask: Tensor | None, width: int) -> Tensor | None:
    """What the ``mask``, allowed ids and the ban of stop tokens together leave each row; ``None``: everything.

    ``mask`` [n, words] int32, on the host, is not written; its bit ``t % 32`` of word ``t // 32`` is set where token t
    is allowed. Raises ``IndexError`` for ids that are not below ``width``.
    """
    changed = [(i, row) for i, row in enumerate(rows) if row.params.allowed_token_ids or row.banned]
    if not changed:
        return mask
    own = np.full((len(rows), -(-width // 32)), -1, dtype=np.int32) if mask is None else mask.numpy().copy()
    for index, row in changed:
        words = own[index].view(np.uint32)
        if row.params.allowed_token_ids:
            flags = np.zeros(len(words) * 32, dtype=np.bool_)
            flags[_checked(row.params.allowed_token_ids, width, "allowed_token_ids")] = True
            words &= np.packbits(flags, bitorder="little").view("<u4")
        if row.banned:
            for token_id in _checked(row.banned, width, "banned_until_min").tolist():
                words[token_id >> 5] &= np.uint32(~(1 << (token_id & 31)) & 0xFFFFFFFF)
    return torch.from_numpy(own)


def _counts_of(row: SampleRow, index: int) -> TokenCounts:
    """The token counts that the penalties of row ``index`` need."""
    if row.counts is None:
        raise ValueError(f"row {index} has penalties but no token counts")
    return row.counts


def masks_of(row: SampleRow, mask: Tensor | None) -> list[str]:
    """The masks in force on a row, in words; ``mask`` is the row's own [words]."""
    found = ["allowed_token_ids"] if row.params.allowed_token_ids is not None else []
    if row.banned:
        found.append(f"the ban of stop tokens by min_new_tokens={row.params.min_new_tokens}")
    if mask is not None and bool((mask != -1).any()):
        found.append("the grammar")
    return found


def _checked(ids: Sequence[int], width: int, what: str) -> NDArray[np.int64]:
    """The ids as an array; checked here, since on a device a bad one is fatal."""
    found = np.asarray(ids, dtype=np.int64)
    if (most := int(found.max())) >= width:
        raise IndexError(f"{what} has token id {most}, but the logits have {width} columns")
    return found


def _add_bias(logits: Tensor, biases: Sequence[tuple[int, Mapping[int, float]]]) -> None:
    """Add to ``logits`` [n, V] float32 in place; an entry is (row, column to number), at most one per row."""
    if biases:
        width = logits.shape[1]
        parts = [_checked(tuple(bias), width, "logit_bias") + row * width for row, bias in biases]
        cells = torch.from_numpy(np.concatenate(parts)).to(logits.device)
        values = [value for _, bias in biases for value in bias.values()]
        logits.view(-1)[cells] += torch.tensor(values, dtype=torch.float32).to(logits.device)
