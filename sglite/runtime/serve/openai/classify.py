"""``POST /classify`` (``/v1/classify``): scores of whole texts, by classifiers and reward models.

    {"input": text, ids, or a list of either}   vLLM's: the likeliest label and the probabilities of all
    {"messages": a conversation, one text}       the same
        ->  {"data": [{"index", "label", "probs", "num_classes"}, ...], "object": "list", ...}
    {"text" or "input_ids"}                      SGLang's: the raw scores
        ->  {"embedding", "meta_info"}, or a list of them

Probabilities: softmax over the labels; where there is only one, its sigmoid. ``use_activation: false`` (``activation``)
gives the raw scores in their place.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.pooling import Pooling
from sglite.runtime.serve.body import read_object
from sglite.runtime.serve.embed import Embedded, Text, Vector, ids_of, longest_text, pooled
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields, ignored_header
from sglite.runtime.serve.openai.conversations import read_keep, read_texts
from sglite.runtime.serve.openai.embeddings import encoded, read_encode
from sglite.runtime.serve.openai.sampling import IGNORED, read_options
from sglite.runtime.serve.openai.usage import usage_of
from sglite.runtime.serve.responses import json_response, unless_gone
from sglite.runtime.serve.serving import Route, Serving

AS_IT_IS = Pooling(normalize=False)
_REFUSED = {
    "mm_processor_kwargs": "this model takes text only",
}


class Classify:
    """The routes."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """See the module."""
        return [
            Route("/classify", ("POST", "PUT"), self.classify),
            Route("/v1/classify", ("POST",), self.classify),
        ]

    async def classify(self, request: Request) -> Response:
        """Either of the two."""
        return await self.answer(request, await read_object(request))

    async def answer(self, request: Request, body: dict[str, Any]) -> Response:
        """The answer to a body that was read."""
        labels_of(self._serving)
        if "input" not in body and "messages" not in body:
            return await self._raw(request, body)
        fields = Fields(body)
        name = self._serving.models.check(fields.raw("model"))
        fields.refuse(_REFUSED)
        texts, where = await read_texts(self._serving, fields)
        keep, options = read_keep(fields, longest_text(self._serving, AS_IT_IS)), read_options(fields)
        active = fields.flag("use_activation", fields.flag("activation", True))
        ignored = [one for one in IGNORED if fields.raw(one) not in (None, False, {}, "")]
        found = await unless_gone(request, self._scores(texts, where, options, keep=keep))
        response = json_response(
            {
                "id": f"classify-{uuid.uuid4().hex}",
                "object": "list",
                "created": int(time.time()),
                "model": name,
                "data": [self._row(index, scores, active) for index, scores in enumerate(found.vectors)],
                "usage": usage_of(found.events, [1] * len(found.events)),
            }
        )
        response.headers.update(ignored_header([*ignored, *fields.unread()]))
        return response

    def _row(self, index: int, scores: Vector, active: bool) -> dict[str, Any]:
        labels = self._serving.engine.config.labels
        numbers = probabilities(scores) if active else scores
        best = labels[int(scores.argmax())]
        return {"index": index, "label": best, "probs": numbers.tolist(), "num_classes": len(labels)}

    async def _raw(self, request: Request, body: dict[str, Any]) -> Response:
        asked = read_encode(self._serving, body, "/classify")
        if asked.dimensions is not None:
            raise Refused(400, "dimensions: scores are given whole; leave it out", param="dimensions")
        found = await unless_gone(request, self._scores(asked.texts, asked.where, asked.options, asked.rids))
        return json_response(encoded(found, asked.many))

    async def _scores(
        self,
        texts: list[Text],
        where: str,
        options: dict[str, Any],
        rids: Sequence[str | None] = (),
        keep: int | None = None,
    ) -> Embedded:
        ids = await ids_of(self._serving, texts, where=where, keep=keep, pooling=AS_IT_IS)
        return await pooled(self._serving, ids, options, rids)


def labels_of(serving: Serving) -> tuple[str, ...]:
    """What the model's scores are called. ``Refused`` (400) where it has none."""
    labels = serving.engine.config.labels
    if not labels:
        message = (
            f"{serving.models.name} does not classify: serve a ...ForSequenceClassification checkpoint or a reward "
            "model; /v1/score gives the probabilities of labels after a text"
        )
        raise Refused(400, message, param="model", code="classification_not_supported")
    return labels


def probabilities(scores: Vector) -> Vector:
    """Softmax; of a single score the sigmoid."""
    if len(scores) == 1:
        one: Vector = (1 / (1 + np.exp(-scores.astype(np.float64).clip(-700, 700)))).astype(np.float32)
        return one
    weights = np.exp(scores - scores.max())
    found: Vector = (weights / weights.sum()).astype(np.float32)
    return found
