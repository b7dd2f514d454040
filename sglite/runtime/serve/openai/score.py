"""``POST /v1/score`` (``/score``), which two servers have under one name:

    {"query", "items", "label_token_ids", "apply_softmax", "item_first"}      SGLang's: how likely labels come next
        ->  {"scores": [[probability of each label], ...], "object": "scoring", ...}
    {"text_1", "text_2"}, or queries with documents or items, data_1, data_2  vLLM's: how relevant texts are
        ->  {"data": [{"index", "score"}, ...], "object": "list", ...}

``label_token_ids`` makes the difference. The first works on every model that generates; what the items' prompts have
in common is computed once.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.serve.body import read_object
from sglite.runtime.serve.context_length import check_characters, made_prompts
from sglite.runtime.serve.embed import MAX_INPUTS
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields, ignored_header
from sglite.runtime.serve.openai.rerank import REFUSED, read_active, read_instruction, read_texts, usage_of_prompts
from sglite.runtime.serve.openai.sampling import IGNORED, read_options
from sglite.runtime.serve.relevance import Relevance, label_logprobs
from sglite.runtime.serve.responses import json_response, unless_gone
from sglite.runtime.serve.serving import Route, Serving

MAX_LABELS = 1024
_PAIRS = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


class Score:
    """The routes."""

    def __init__(self, serving: Serving, relevance: Relevance) -> None:
        self._serving = serving
        self._relevance = relevance

    def routes(self) -> list[Route]:
        """See the module."""
        return [Route(path, ("POST",), self.score) for path in ("/v1/score", "/score")]

    async def score(self, request: Request) -> Response:
        """Either of the two."""
        return await self.answer(request, await read_object(request))

    async def answer(self, request: Request, body: dict[str, Any]) -> Response:
        """The answer to a body that was read."""
        fields = Fields(body)
        name = self._serving.models.check(fields.raw("model"))
        ignored = [one for one in IGNORED if fields.raw(one) not in (None, False, {}, "")]
        if fields.raw("label_token_ids") is not None or fields.raw("query") is not None:
            answer = await self._labels(request, fields)
        else:
            answer = await self._relevances(request, fields)
        response = json_response({**answer, "model": name})
        response.headers.update(ignored_header([*ignored, *fields.unread()]))
        return response

    async def _labels(self, request: Request, fields: Fields) -> dict[str, Any]:
        fields.refuse({"return_pooled_hidden_states": "hidden states are not given out"})
        labels = self._read_labels(fields)
        softmax, options = fields.flag("apply_softmax"), read_options(fields)
        prompts = await asyncio.to_thread(self._prompts, fields, fields.flag("item_first"))
        work = label_logprobs(self._serving, prompts, labels, options)
        rows, events = await unless_gone(request, work)
        scores = [_shares(row) if softmax else [math.exp(one) for one in row] for row in rows]
        return {"object": "scoring", "scores": scores, "usage": usage_of_prompts(events)}

    def _read_labels(self, fields: Fields) -> list[int]:
        labels, size = fields.items("label_token_ids"), self._serving.engine.config.vocab_size
        rule = f"must be a list of 1 to {MAX_LABELS} token ids in [0, {size - 1}]"
        if not labels or len(labels) > MAX_LABELS:
            raise fields.wrong("label_token_ids", rule)
        if not all(type(label) is int for label in labels):
            raise fields.wrong("label_token_ids", rule)
        bad = next((label for label in labels if not 0 <= label < size), None)
        if bad is not None:
            shown = bad if abs(bad) < 10**20 else "of many digits"
            message = f"Token ID {shown} is out of vocabulary: label_token_ids {rule}"
            raise Refused(400, message, param="label_token_ids")
        return labels

    def _prompts(self, fields: Fields, item_first: bool) -> list[list[int]]:
        """Query and item, one after the other, of each item."""
        query, items = fields.raw("query"), fields.raw("items")
        items = items if isinstance(items, list) else [items]
        if not 0 < len(items) <= MAX_INPUTS:
            raise Refused(400, f"items has {len(items)} entries; send 1 to {MAX_INPUTS}", param="items")
        kind = str if isinstance(query, str) else list
        good = isinstance(query, kind) and all(isinstance(item, kind) for item in items)
        if not good or (kind is list and not all(type(token) is int for row in (query, *items) for token in row)):
            message = "query and items must be text, or both lists of token ids (items: a list of such lists)"
            raise Refused(400, message, param="items")
        joined = (item + query if item_first else query + item for item in items)  # one at a time: query may be long
        prompts = made_prompts(self._serving, self._encoded(joined) if kind is str else joined, "items")
        if not all(prompts):
            raise Refused(400, "an item and the query are both empty; send some text", param="items")
        return prompts

    def _encoded(self, texts: Iterable[str]) -> Iterator[list[int]]:
        tokenizer = self._serving.engine.tokenizer
        if tokenizer is None:
            raise Refused(400, "this server has no tokenizer; send token ids", param="query")
        for text in texts:
            check_characters(self._serving, [text], "items")
            yield tokenizer.encode(text, add_bos=True)

    async def _relevances(self, request: Request, fields: Fields) -> dict[str, Any]:
        fields.refuse(REFUSED)
        first, second = next((pair for pair in _PAIRS if all(fields.raw(one) is not None for one in pair)), _PAIRS[0])
        left, right = read_texts(fields, first), read_texts(fields, second)
        if len(left) not in (1, len(right)):
            message = f"{first} has {len(left)} texts and {second} {len(right)}; send one, or as many"
            raise Refused(400, message, param=first)
        pairs = list(zip(left * len(right) if len(left) == 1 else left, right, strict=True))
        instruction, options = read_instruction(fields), read_options(fields)
        active = read_active(fields)
        work = self._relevance.scores(pairs, instruction=instruction, active=active, options=options)
        found = await unless_gone(request, work)
        return {
            "id": f"score-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "data": [{"index": i, "object": "score", "score": value} for i, value in enumerate(found.values)],
            "usage": usage_of_prompts(found.events),
        }


def _shares(row: Sequence[float]) -> list[float]:
    """The labels' probabilities among themselves."""
    most = max(row)
    weights = [math.exp(one - most) if one > -math.inf else 0.0 for one in row]
    total = sum(weights) or 1.0
    return [weight / total for weight in weights]
