"""Vectors of texts: what ``/v1/embeddings``, ``/encode``, ``/api/embed`` and the scores of pairs are made of.

    texts, or token ids --ids_of--> token ids --embed--> one vector each, from the model's last token

Texts are tokenised whole, with what the tokenizer itself puts around them, as the reference libraries do; ids are
taken as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglite.runtime.pooling import Pooling
from sglite.runtime.serve.context_length import CODE
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.generations import Row, start
from sglite.runtime.serve.serving import Serving

MAX_INPUTS = 2048
"""Texts of one request."""
_LONG_TEXT = 20_000
"""Encoding more characters than this takes long enough to be done beside the loop."""
_SHORTEST = 1e-12
"""Vectors are divided by this at least, as the reference does."""

Vector = NDArray[np.float32]
Text = str | list[int]
"""A text, or its token ids."""


@dataclass(frozen=True)
class Embedded:
    """What became of each text. ``vectors``: [dimensions] float32; ``events``: the engine's final ones."""

    vectors: list[Vector]
    events: list[dict[str, Any]]

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(event["meta_info"]["prompt_tokens"] for event in self.events)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is wanted of the vectors and of the requests that make them.

    ``dimensions``: how many to keep, the first ones (``None``: all). ``normalize``: length 1 (``None``: as the
    checkpoint declares; shortened ones always are). ``options``: of ``Engine.submit``. ``rids``: the client's names.
    """

    dimensions: int | None = None
    normalize: bool | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    rids: Sequence[str | None] = ()


_PLAIN = Wanted()


def pooling_of(serving: Serving) -> Pooling:
    """How vectors are made. ``Refused`` (400) with the reason where they are not."""
    pooling: Pooling | str = serving.engine.pooling
    if serving.engine.config.labels:
        pooling = "it scores texts; use /classify"
    if isinstance(pooling, str):
        message = f"{serving.models.name} makes no embeddings: {pooling}"
        raise Refused(400, message, param="model", code="embeddings_not_supported")
    return pooling


def longest_text(serving: Serving, pooling: Pooling | None = None) -> int:
    """Tokens of the longest text."""
    declared = (pooling or pooling_of(serving)).max_tokens
    return serving.capacity if declared is None else min(serving.capacity, declared)


async def ids_of(
    serving: Serving,
    texts: Sequence[Text],
    *,
    where: str = "input",
    prompt: str | None = None,
    keep: int | None = None,
    pooling: Pooling | None = None,
) -> list[list[int]]:
    """Token ids of texts, at least one each. Ids are checked and taken as they are.

    Args:
        where: what the client calls the texts.
        prompt: name of what the texts begin with; ``None``: the checkpoint's default, mostly none.
        keep: tokens that are kept of longer texts, from their beginning; ``None``: those are refused.
        pooling: in place of the checkpoint's, for models that make something else than embeddings.
    """
    begin, most = _prompt(pooling or pooling_of(serving), prompt), longest_text(serving, pooling)
    tokenizer = serving.engine.tokenizer

    def work() -> list[list[int]]:
        found = []
        for text in texts:
            if not isinstance(text, str):
                found.append(text if keep is None else text[:keep])
                continue
            assert tokenizer is not None
            ids = tokenizer.encode_whole(begin + text)
            if keep is not None and len(ids) > keep:
                ids = _shortened(ids, tokenizer.encode_whole(""), keep)
            found.append(ids)
        return found

    if tokenizer is None and any(isinstance(text, str) for text in texts):
        raise Refused(400, f"this server has no tokenizer; send token ids as {where}", param=where)
    _check(serving, texts, where)
    ids = await asyncio.to_thread(work) if sum(map(len, texts)) > _LONG_TEXT else work()
    for index, row in enumerate(ids):
        if len(row) > most:
            message = f"{where}[{index}] has {len(row)} tokens and {most} is the most; shorten it"
            raise Refused(400, message, param=where, code=CODE)
    return ids


def _check(serving: Serving, texts: Sequence[Text], where: str) -> None:
    """``Refused`` for what has no token, or none of this model's."""
    size = serving.engine.config.vocab_size
    for index, text in enumerate(texts):
        if not text:
            raise Refused(400, f"{where}[{index}] is empty; send at least one character or token", param=where)
        if not isinstance(text, str) and not 0 <= min(text) <= max(text) < size:
            raise Refused(400, f"{where}[{index}] has a token id that is not in [0, {size - 1}]", param=where)


def _shortened(ids: list[int], around: list[int], keep: int) -> list[int]:
    """The first tokens, with those at the end that every text gets; ``around``: all that an empty text gets."""
    end = 0
    while end < len(around) and ids[-1 - end] == around[-1 - end]:
        end += 1
    return ids[:keep] if end >= keep else [*ids[: keep - end], *ids[len(ids) - end :]]


def _prompt(pooling: Pooling, name: str | None) -> str:
    """The text that a prompt's name stands for."""
    name = pooling.default_prompt if name is None else name
    if name is None:
        return ""
    if name not in pooling.prompts:
        known = ", ".join(sorted(pooling.prompts)) or "none"
        message = f"prompt_name {name[:80]!r} is not one of the checkpoint's prompts; known: {known}"
        raise Refused(400, message, param="prompt_name")
    return pooling.prompts[name]


async def embed(serving: Serving, ids: Sequence[list[int]], wanted: Wanted = _PLAIN) -> Embedded:
    """One vector for each of ``ids``. Cancelling it ends the requests. ``Refused`` names what is wrong."""
    pooling, size = pooling_of(serving), serving.engine.config.hidden_size
    if wanted.dimensions is not None and not 1 <= wanted.dimensions <= size:
        message = f"dimensions must be an integer in [1, {size}], got {wanted.dimensions}"
        raise Refused(400, message, param="dimensions")
    found = await pooled(serving, ids, wanted.options, wanted.rids)
    normalize = pooling.normalize if wanted.normalize is None else wanted.normalize
    shorter = wanted.dimensions is not None and wanted.dimensions < size
    vectors = [vector[: wanted.dimensions] for vector in found.vectors]
    return Embedded([normalized(one) for one in vectors] if normalize or shorter else vectors, found.events)


async def pooled(
    serving: Serving, ids: Sequence[list[int]], options: Mapping[str, Any], rids: Sequence[str | None] = ()
) -> Embedded:
    """What the model gives for each of ``ids`` at its last token, as it is. Cancelling it ends the requests."""
    rows = [
        Row(input_ids=row, sampling={"max_new_tokens": 0}, options={**options, "pool": "last"}, rid=rid)
        for row, rid in zip(ids, rids or [None] * len(ids), strict=True)
    ]
    started = await start(serving.engine, serving.in_flight, rows)
    try:
        events = await started.results()
    finally:
        started.end()
    return Embedded([_hidden(event) for event in events], events)


def normalized(vector: Vector) -> Vector:
    """``vector`` with length 1."""
    length = max(float(np.linalg.norm(vector)), _SHORTEST)
    found: Vector = (vector / np.float32(length)).astype(np.float32)
    return found


def _hidden(event: dict[str, Any]) -> Vector:
    found = event.get("hidden")
    if found is None:
        raise Refused(503, "the request was ended before it was computed; send it again", code="aborted")
    return np.frombuffer(found, "<f4").astype(np.float32)
