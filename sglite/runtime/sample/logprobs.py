"""Log probabilities: log-softmax in float32 of the model's own logits.

Taken before bias, penalties, masks and temperature, so that the numbers a request gets for its output equal those
that scoring the same tokens as a prompt gives, whatever the sampling parameters were.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sglite.runtime.backend.order import top
from sglite.runtime.protocol import LogprobOptions, TokenLogprob

BLOCK = 2**24
"""Log probabilities held at once, which bounds the memory for scoring a long prompt."""


class LogitsNotFinite(ArithmeticError):
    """The model gave logits that no distribution can be made of."""


def not_finite(row_max: float) -> str | None:
    """What is wrong with a row whose largest raw logit is ``row_max``; -inf beside finite logits is legal."""
    if row_max != row_max:
        return "logits are not finite: the model gave NaN; check its weights and dtype"
    if row_max == float("inf"):
        return "logits are not finite: the model gave +inf; check its weights and dtype"
    if row_max == float("-inf"):
        return "logits are not finite: the model gave -inf for every token; check its weights and dtype"
    return None


def token_logprobs(logits: Tensor, targets: Sequence[int], options: Sequence[LogprobOptions]) -> list[TokenLogprob]:
    """Log probabilities of ``targets`` (one per row of the raw, finite ``logits`` [m, V]) and of what each row's
    options ask for: ``top_n`` most likely tokens, most likely first, lowest id first among equals, impossible ones
    (-inf) left out; and the given ids in the given order.

    Raises ``IndexError`` for an id that is not below V.
    """
    width = logits.shape[1]
    for ids in (targets, *(option.token_ids for option in options)):
        if ids and not 0 <= min(ids) <= max(ids) < width:
            raise IndexError(f"token ids {min(ids)} to {max(ids)} asked of logits with {width} columns")
    step = max(1, BLOCK // width)
    found: list[TokenLogprob] = []
    for first in range(0, len(targets), step):
        last = first + step
        found += _block(logits[first:last], targets[first:last], options[first:last])
    return found


def _block(logits: Tensor, targets: Sequence[int], options: Sequence[LogprobOptions]) -> list[TokenLogprob]:
    logprobs = torch.log_softmax(logits.to(torch.float32), dim=1)  # [m, V]
    target = torch.tensor(targets, device=logits.device).unsqueeze(1)
    own = logprobs.gather(1, target).squeeze(1).tolist()
    tops = _tops(logprobs, options)
    givens = _givens(logprobs, options)
    return [TokenLogprob(*entry) for entry in zip(targets, own, tops, givens, strict=True)]


def _tops(logprobs: Tensor, options: Sequence[LogprobOptions]) -> list[list[tuple[int, float]]]:
    tops: list[list[tuple[int, float]]] = [[] for _ in options]
    asking = [index for index, option in enumerate(options) if option.top_n > 0]
    if asking:
        part = logprobs[torch.tensor(asking, device=logprobs.device)]
        values, ids = top(part, min(max(options[i].top_n for i in asking), part.shape[1]))
        for index, row_ids, row_values in zip(asking, ids.tolist(), values.tolist(), strict=True):
            pairs = list(zip(row_ids, row_values, strict=True))[: options[index].top_n]
            tops[index] = [pair for pair in pairs if pair[1] > float("-inf")]
    return tops


def _givens(logprobs: Tensor, options: Sequence[LogprobOptions]) -> list[list[tuple[int, float]]]:
    width = logprobs.shape[1]
    cells = [row * width + token_id for row, option in enumerate(options) for token_id in option.token_ids]
    values = iter(logprobs.view(-1)[torch.tensor(cells, device=logprobs.device)].tolist() if cells else ())
    return [[(token_id, next(values)) for token_id in option.token_ids] for option in options]
