"""What stands between the model's logits and the draw: bias, penalties, and the masks that forbid tokens.

Applied in this order, each only to the rows that ask for it, on one float32 copy of the batch:

    logit_bias -> penalties -> allowed_token_ids -> ban of stop tokens before min_new_tokens -> grammar bitmask

A forbidden token has logit -inf. A row may end with no token at all; ``masks_of`` then names who was involved. Rows
whose masks leave few tokens do not come here: ``few`` does the same to these tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import torch
from torch import Tensor

from sglite.runtime.protocol import LogprobOptions
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.sample.penalties import TokenCounts, apply_penalties

ApplyMask = Callable[[Tensor, Tensor], None]
"""Sets the logits [n, V] that a bitmask [n, words] forbids to -inf: a backend's ``apply_mask``."""


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


def apply_bitmask(logits: Tensor, mask: Tensor) -> None:
    """``ApplyMask`` in plain torch, for any device and dtype: what a backend's own must equal."""
    # The lowest bits come first in an int32 as in its bytes on every machine torch runs on (little endian).
    octets = mask.to(logits.device).contiguous().view(torch.uint8)  # [n, words * 4]
    bits = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=logits.device)
    forbidden = (octets.unsqueeze(-1) & bits).eq_(0).view(torch.bool).flatten(1)[:, : logits.shape[1]]  # [n, V]
    logits[:, : forbidden.shape[1]].masked_fill_(forbidden, -torch.inf)
    logits[:, forbidden.shape[1] :] = -torch.inf


def needs_adjusting(rows: Sequence[SampleRow], mask: Tensor | None) -> bool:
    """Whether ``adjust`` would change anything; if not, the batch needs no copy."""
    return mask is not None or any(
        row.params.logit_bias or row.params.has_penalties or row.params.allowed_token_ids or row.banned for row in rows
    )


def adjust(
    logits: Tensor,
    rows: Sequence[SampleRow],
    mask: Tensor | None,
    apply: ApplyMask = apply_bitmask,
    *,
    copy: bool = True,
) -> Tensor:
    """An adjusted float32 copy of ``logits`` [n, V]; without ``copy`` the tensor given may be written.

    ``mask`` [n, words] int32 has bit ``t % 32`` of word ``t // 32`` set where token t is allowed, and covers V.
    Raises ``ValueError`` or ``IndexError`` for rows that contradict the shapes; ``validate`` keeps requests from it.
    """
    work = logits.to(torch.float32, copy=copy)
    add_bias(work, [(index, row.params.logit_bias) for index, row in enumerate(rows) if row.params.logit_bias])
    penalised = [(i, row.params, counts_of(row, i)) for i, row in enumerate(rows) if row.params.has_penalties]
    if penalised:
        apply_penalties(work, penalised)
    _keep_allowed(work, rows)
    _ban(work, rows)
    if mask is not None:
        apply(work, mask)
    return work


def counts_of(row: SampleRow, index: int) -> TokenCounts:
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


def _cells(logits: Tensor, pairs: Sequence[tuple[int, Sequence[int]]], what: str) -> Tensor:
    """Flat indices of the (row, ids) ``pairs``, on the device; checked here, since there a bad one is fatal."""
    width = logits.shape[1]
    parts = [torch.tensor(ids, dtype=torch.int64) for _, ids in pairs]
    for part in parts:
        if int(part.max()) >= width:
            raise IndexError(f"{what} has token id {int(part.max())}, but the logits have {width} columns")
    flat = [part + row * width for part, (row, _) in zip(parts, pairs, strict=True)]
    return torch.cat(flat).to(logits.device)


def add_bias(logits: Tensor, biases: Sequence[tuple[int, Mapping[int, float]]]) -> None:
    """Add to ``logits`` [n, V] float32 in place; an entry is (row, column to number), at most one per row."""
    if biases:
        flat, cells = logits.view(-1), _cells(logits, [(row, tuple(bias)) for row, bias in biases], "logit_bias")
        values = [value for _, bias in biases for value in bias.values()]
        flat[cells] += torch.tensor(values, dtype=torch.float32).to(logits.device)


def _keep_allowed(logits: Tensor, rows: Sequence[SampleRow]) -> None:
    pairs = [(i, row.params.allowed_token_ids) for i, row in enumerate(rows) if row.params.allowed_token_ids]
    if pairs:
        flat, cells = logits.view(-1), _cells(logits, pairs, "allowed_token_ids")
        kept = flat[cells]
        logits[torch.tensor([index for index, _ in pairs]).to(logits.device)] = -torch.inf
        flat[cells] = kept


def _ban(logits: Tensor, rows: Sequence[SampleRow]) -> None:
    pairs = [(index, row.banned) for index, row in enumerate(rows) if row.banned]
    if pairs:
        logits.view(-1)[_cells(logits, pairs, "banned_until_min")] = -torch.inf
