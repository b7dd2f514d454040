"""Log probabilities in OpenAI's two shapes, from the engine's rows ``[logprob, token id, text]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglite.runtime.serve.fields import Fields
from sglite.runtime.serve.openai.sampling import MAX_TOP_LOGPROBS
from sglite.runtime.text.tokenizer import Tokenizer

_FLOOR = -9999.0
"""JSON has no infinity; vLLM's bound."""
Row = Sequence[Any]


def read_prompt_logprobs(fields: Fields, stream: bool) -> int | None:
    """vLLM's ``prompt_logprobs``: how many alternatives of each token of the prompt to tell; ``None``: nothing."""
    wanted = fields.integer("prompt_logprobs", 0, MAX_TOP_LOGPROBS)
    if wanted is not None and stream:
        raise fields.wrong("prompt_logprobs", "goes without stream=true")
    return wanted


def read_logprobs(fields: Fields) -> int | None:
    """Of a chat: alternatives of each output token; ``None``: no log probabilities."""
    wanted = fields.flag("logprobs")
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top and not wanted:
        raise fields.wrong("top_logprobs", "needs logprobs=true")
    return (top or 0) if wanted else None


def read_given(fields: Fields, top: int | None) -> list[int] | None:
    """vLLM's ``logprob_token_ids``: tokens that are told of in place of the likeliest; ``None``: those."""
    found = fields.items("logprob_token_ids")
    if found is None:
        return None
    if not found or not all(type(token) is int for token in found):
        raise fields.wrong("logprob_token_ids", "must not be an empty list, and have token ids")
    if top is None:
        raise fields.wrong("logprob_token_ids", "needs logprobs")
    return found


def logprob_options(
    top: int | None, of_prompt: int | None, given: list[int] | None, echo: bool = False
) -> dict[str, Any]:
    """Options of ``Engine.submit`` for ``top`` alternatives of output tokens, or the ``given`` ones in their place, and
    ``of_prompt`` of the prompt's; ``None``: no log probabilities. ``echo``: those of the prompt are among the output's.
    """
    if top is None and of_prompt is None:
        return {}
    likeliest = top or 0 if given is None else 0
    found: dict[str, Any] = {"return_logprob": True, "top_logprobs_num": max(likeliest, of_prompt or 0)}
    if given is not None:
        found["token_ids_logprob"] = given
    return {**found, "logprob_start_len": 0} if echo or of_prompt is not None else found


def prompt_rows(
    tokenizer: Tokenizer, rows: Sequence[Row], tops: Sequence[Sequence[Row] | None], top: int
) -> list[dict[str, Any] | None]:
    """vLLM's ``prompt_logprobs``: by token id, the prompt's own token first; the first position has none. ``rank`` is
    known of the ``top`` likeliest."""
    found: list[dict[str, Any] | None] = []
    for index, row in enumerate(rows):
        likeliest = [] if row[0] is None or not tops else list(tops[index] or ())[:top]
        ranks: dict[int, int] = {one[1]: rank for rank, one in enumerate(likeliest, 1)}
        entries = {
            str(one[1]): {
                "logprob": _bounded(one[0]),
                "rank": ranks.get(one[1]),
                "decoded_token": tokenizer.token_text(one[1]),
            }
            for one in (row, *likeliest)
        }
        found.append(None if row[0] is None else entries)
    return found


def chat_rows(
    tokenizer: Tokenizer, rows: Sequence[Row], tops: Sequence[Sequence[Row] | None], *, as_ids: bool = False
) -> list[dict[str, Any]]:
    """``logprobs.content`` of a chat completion; ``tops``: one list a row, or nothing at all. ``as_ids``: tokens are
    called by their ids."""
    found = []
    for index, row in enumerate(rows):
        top = tops[index] if index < len(tops) else None
        others = [_chat(tokenizer, one, as_ids) for one in top or ()]
        found.append({**_chat(tokenizer, row, as_ids), "top_logprobs": others})
    return found


def _name(tokenizer: Tokenizer, token: int, as_ids: bool) -> str:
    return f"token_id:{token}" if as_ids else tokenizer.token_text(token)


def _chat(tokenizer: Tokenizer, row: Row, as_ids: bool) -> dict[str, Any]:
    logprob, token = row[0], row[1]
    special = token in tokenizer.special_token_ids
    data, _ = tokenizer.join([token], skip_special_tokens=False, at_start=False)
    return {
        "token": _name(tokenizer, token, as_ids),
        "logprob": _bounded(logprob),
        "bytes": None if special else list(data),
    }


def text_rows(
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    tops: Sequence[Sequence[Row] | None],
    offset: int,
    *,
    top: int,
    as_ids: bool = False,
) -> dict[str, Any]:
    """``logprobs`` of a completion: of each position the ``top`` likeliest tokens, and the one that is there.

    ``offset``: characters of the choice's text before the first row's token; ``as_ids``: see ``chat_rows``.
    """
    offsets, at = [], offset
    for row in rows:
        offsets.append(at)
        at += len(tokenizer.token_text(row[1]))
    alternatives = [
        None if row[0] is None else _by_text(tokenizer, [*(tops[index] or () if tops else ())][:top], row, as_ids)
        for index, row in enumerate(rows)
    ]
    return {
        "tokens": [_name(tokenizer, row[1], as_ids) for row in rows],
        "token_logprobs": [None if row[0] is None else _bounded(row[0]) for row in rows],
        "top_logprobs": alternatives,
        "text_offset": offsets,
    }


def _by_text(tokenizer: Tokenizer, top: Sequence[Row], own: Row, as_ids: bool) -> dict[str, float]:
    """Text -> logprob; tokens that look the same keep the likelier one."""
    found: dict[str, float] = {}
    for one in (*top, own):
        found.setdefault(_name(tokenizer, one[1], as_ids), _bounded(one[0]))
    return found


def _bounded(logprob: float | None) -> float:
    return _FLOOR if logprob is None or not logprob > _FLOOR else float(logprob)
