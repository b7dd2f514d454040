"""``POST /v1/rerank`` (``/rerank``, ``/v2/rerank``): documents in the order of their relevance to a query.

    {"query", "documents": [text or {"text"}, ...], "top_n", "return_documents", "instruction"}
        ->  {"id", "model", "results": [{"index", "relevance_score", "document": {"text"}}, ...], "usage"}

The shape is that of Jina, Cohere and vLLM, best first. SGLang's clients name no model and expect the list alone; so
``/v1/rerank`` without ``model`` answers ``[{"score", "document": text, "index"}, ...]``.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.serve.body import read_object
from sglite.runtime.serve.embed import MAX_INPUTS
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields, ignored_header
from sglite.runtime.serve.openai.sampling import IGNORED, read_options
from sglite.runtime.serve.openai.usage import usage_of
from sglite.runtime.serve.relevance import Relevance
from sglite.runtime.serve.responses import json_response, unless_gone
from sglite.runtime.serve.serving import Route, Serving

MAX_TOP = 2**31 - 1
_SGLANGS = "/v1/rerank"
REFUSED = {
    "truncate_prompt_tokens": "texts are scored whole; cut them yourself",
    "max_tokens_per_doc": "texts are scored whole; cut them yourself",
    "max_tokens_per_query": "texts are scored whole; cut them yourself",
    "max_chunks_per_doc": "texts are scored whole; cut them yourself",
    "rank_fields": "send the text that is to be scored",
    "mm_processor_kwargs": "this model takes text only",
}


class Rerank:
    """The routes."""

    def __init__(self, serving: Serving, relevance: Relevance) -> None:
        self._serving = serving
        self._relevance = relevance

    def routes(self) -> list[Route]:
        """See the module."""
        return [Route(path, ("POST",), self.rerank) for path in (_SGLANGS, "/rerank", "/v2/rerank")]

    async def rerank(self, request: Request) -> Response:
        """Documents by relevance."""
        return await self.answer(request, await read_object(request))

    async def answer(self, request: Request, body: dict[str, Any]) -> Response:
        """The answer to a body that was read."""
        fields = Fields(body)
        name = self._serving.models.check(fields.raw("model"))
        fields.refuse(REFUSED)
        query, documents = read_text(fields.raw("query"), "query"), read_texts(fields, "documents")
        top = fields.integer("top_n", 0, MAX_TOP) or len(documents)
        shown = fields.flag("return_documents", True)
        instruction, options = read_instruction(fields), read_options(fields)
        ignored = [one for one in IGNORED if fields.raw(one) not in (None, False, {}, "")]
        pairs = [(query, document) for document in documents]
        active = read_active(fields)
        scoring = self._relevance.scores(pairs, instruction=instruction, active=active, options=options)
        found = await unless_gone(request, scoring)
        order = sorted(range(len(documents)), key=lambda index: -found.values[index])[:top]
        if request.url.path == _SGLANGS and fields.raw("model") is None:
            told: list[dict[str, Any]] = [{"score": found.values[i], "index": i} for i in order]
            response = json_response([{**one, "document": documents[one["index"]]} if shown else one for one in told])
        else:
            results: list[dict[str, Any]] = [{"index": i, "relevance_score": found.values[i]} for i in order]
            if shown:
                results = [{**one, "document": {"text": documents[one["index"]]}} for one in results]
            head = {"id": f"rerank-{uuid.uuid4().hex}", "model": name}
            response = json_response({**head, "results": results, "usage": usage_of_prompts(found.events)})
        response.headers.update(ignored_header([*ignored, *fields.unread()]))
        return response


def read_text(value: Any, where: str) -> str:
    """A text, plain or as an object with one. ``Refused`` for anything else, and for an empty one."""
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text:
        raise Refused(400, f'{where} must be text that is not empty, plain or as {{"text": ...}}', param=where)
    return text


def read_texts(fields: Fields, where: str) -> list[str]:
    """A text, or a list of 1 to ``MAX_INPUTS`` texts."""
    value = fields.raw(where)
    values = value if isinstance(value, list) else [value]
    if not 0 < len(values) <= MAX_INPUTS:
        raise Refused(400, f"{where} has {len(values)} entries; send 1 to {MAX_INPUTS}", param=where)
    if not isinstance(value, list):
        return [read_text(value, where)]
    return [read_text(one, f"{where}[{index}]") for index, one in enumerate(values)]


def read_instruction(fields: Fields) -> str | None:
    """What the reranker is told to look for, in vLLM's and SGLang's spelling."""
    return fields.text("instruction", 10_000) or fields.text("instruct", 10_000)


def read_active(fields: Fields) -> bool:
    """Whether scores are shares, in vLLM's newer and older spelling."""
    return fields.flag("use_activation", fields.flag("activation", True))


def usage_of_prompts(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``usage`` of requests whose output nobody sees."""
    usage = usage_of(events, [1] * len(events))
    return {**usage, "completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}
