"""Log probabilities in OpenAI's two shapes, from the engine's rows ``[logprob, token id, text]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglite.runtime.text.tokenizer import Tokenizer

_FLOOR = -9999.0
"""JSON has no infinity; vLLM's bound."""
Row = Sequence[Any]


def chat_rows(tokenizer: Tokenizer, rows: Sequence[Row], tops: Sequence[Sequence[Row] | None]) -> list[dict[str, Any]]:
    """``logprobs.content`` of a chat completion; ``tops``: one list a row, or nothing at all."""
    found = []
    for index, row in enumerate(rows):
        top = tops[index] if index < len(tops) else None
        found.append({**_chat(tokenizer, row), "top_logprobs": [_chat(tokenizer, one) for one in top or ()]})
    return found


def _chat(tokenizer: Tokenizer, row: Row) -> dict[str, Any]:
    logprob, token = row[0], row[1]
    special = token in tokenizer.special_token_ids
    data, _ = tokenizer.join([token], skip_special_tokens=False, at_start=False)
    return {
        "token": tokenizer.token_text(token),
        "logprob": _bounded(logprob),
        "bytes": None if special else list(data),
    }


def text_rows(
    tokenizer: Tokenizer, rows: Sequence[Row], tops: Sequence[Sequence[Row] | None], offset: int
) -> dict[str, Any]:
    """``logprobs`` of a completion. ``offset``: characters of the choice's text before the first row's token."""
    tokens = [tokenizer.token_text(row[1]) for row in rows]
    offsets, at = [], offset
    for token in tokens:
        offsets.append(at)
        at += len(token)
    alternatives: list[dict[str, Any] | None] = []
    for index in range(len(rows)):
        top = tops[index] if index < len(tops) else []
        alternatives.append(None if top is None else _by_text(tokenizer, top))
    return {
        "tokens": tokens,
        "token_logprobs": [None if row[0] is None else _bounded(row[0]) for row in rows],
        "top_logprobs": alternatives if tops else None,
        "text_offset": offsets,
    }


def _by_text(tokenizer: Tokenizer, top: Sequence[Row]) -> dict[str, float]:
    """Text -> logprob; tokens that look the same keep the likelier one."""
    found: dict[str, float] = {}
    for one in top:
        found.setdefault(tokenizer.token_text(one[1]), _bounded(one[0]))
    return found


def _bounded(logprob: float | None) -> float:
    return _FLOOR if logprob is None or not logprob > _FLOOR else float(logprob)
