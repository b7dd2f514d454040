"""``/api/embed``, and ``/api/embeddings`` of older clients."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.serve.body import read_object
from sglite.runtime.serve.embed import Wanted, embed, ids_of, longest_text
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields, ignored_header
from sglite.runtime.serve.ollama.names import read_model
from sglite.runtime.serve.responses import json_response, unless_gone
from sglite.runtime.serve.serving import Route, Serving

MAX_TEXTS = 2048


@dataclass(frozen=True)
class Embedded:
    """One vector a text, and the tokens of all texts."""

    vectors: Sequence[Sequence[float]]
    num_tokens: int


Embedder = Callable[[list[str], int | None, bool], Awaitable[Embedded]]
"""Texts, how many dimensions to keep (``None``: all), whether longer texts are cut -> vectors of length 1. Raises
``Refused``."""


def embedder_of(serving: Serving) -> Embedder | None:
    """What makes the vectors of the served model; ``None``: it has none."""
    if isinstance(serving.engine.pooling, str):
        return None

    async def run(texts: list[str], dimensions: int | None, truncate: bool) -> Embedded:
        ids = await ids_of(serving, texts, keep=longest_text(serving) if truncate else None)
        found = await embed(serving, ids, Wanted(dimensions=dimensions, normalize=True))
        return Embedded([vector.tolist() for vector in found.vectors], found.num_tokens)

    return run


class Embed:
    """The routes. ``embedder``: ``None`` where the model makes no embeddings."""

    def __init__(self, serving: Serving, embedder: Embedder | None) -> None:
        self._serving = serving
        self._embedder = embedder

    def routes(self) -> list[Route]:
        """See the module."""
        return [Route("/api/embed", ("POST",), self.embed), Route("/api/embeddings", ("POST",), self.embed_one)]

    async def embed(self, request: Request) -> Response:
        """Text, or a list of texts."""
        fields = Fields(await read_object(request))
        name, value = read_model(fields, self._serving.models), fields.raw("input")
        texts = [text for text in [value] if text] if isinstance(value, str) else value
        if not isinstance(texts, list) or len(texts) > MAX_TEXTS or not all(isinstance(text, str) for text in texts):
            raise fields.wrong("input", f"must be text, or a list of at most {MAX_TEXTS} texts")
        begun = time.monotonic_ns()
        dimensions, truncate = fields.integer("dimensions", 1, 2**31 - 1), fields.flag("truncate", True)
        found = await self._run(request, texts, dimensions, truncate)
        answer = {
            "model": name,
            "embeddings": found.vectors,
            "total_duration": time.monotonic_ns() - begun,
            "load_duration": 0,
            "prompt_eval_count": found.num_tokens,
        }
        return _with_ignored(json_response(answer), fields)

    async def embed_one(self, request: Request) -> Response:
        """One prompt."""
        fields = Fields(await read_object(request))
        read_model(fields, self._serving.models)
        prompt = fields.text("prompt")
        if prompt is None:
            raise fields.wrong("prompt", "must be text")
        found = await self._run(request, [prompt] if prompt else [], None, True)
        return _with_ignored(json_response({"embedding": found.vectors[0] if prompt else []}), fields)

    async def _run(self, request: Request, texts: list[str], dimensions: int | None, truncate: bool) -> Embedded:
        if self._embedder is None:
            message = f"{self._serving.models.name} does not support embeddings: {self._serving.engine.pooling}"
            raise Refused(501, message, param="model")
        return await unless_gone(request, self._embedder(texts, dimensions, truncate))


def _with_ignored(response: Response, fields: Fields) -> Response:
    response.headers.update(ignored_header(fields.unread()))
    return response
