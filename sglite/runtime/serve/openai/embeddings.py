"""``POST /v1/embeddings``, and ``/encode`` in SGLang's shape: vectors of texts or of token ids.

    {"input": text, ids, or a list of either}  ->  {"data": [{"index", "embedding"}, ...], "usage"}
    {"messages": a conversation, one text}     ->  the same
    {"text" or "input_ids"}                    ->  {"embedding", "meta_info"}, or a list of them

A checkpoint that declares no pooling makes none, unless it is served with ``--is-embedding``; it is told so.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.serve.body import check_names, read_object
from sglite.runtime.serve.embed import (
    Embedded,
    Text,
    Vector,
    Wanted,
    embed,
    ids_of,
    longest_text,
    pooling_of,
)
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields, ignored_header
from sglite.runtime.serve.openai.conversations import read_inputs, read_keep, read_texts
from sglite.runtime.serve.openai.sampling import IGNORED, read_options, read_rid
from sglite.runtime.serve.openai.usage import usage_of
from sglite.runtime.serve.responses import json_response, unless_gone
from sglite.runtime.serve.serving import Route, Serving

_MAX_NAME = 256
_REFUSED = {
    "embed_dtype": "numbers are float32",
    "lora_path": "adapters are not served",
    "image_data": "this model takes text only",
    "prompt_embeds": "send text or token ids",
}
_ENCODE_FIELDS = ("text", "input_ids", "rid", "model", "priority", "cache_salt", "extra_key", "dimensions")


class Embeddings:
    """The routes."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """See the module."""
        return [
            Route("/v1/embeddings", ("POST",), self.create),
            Route("/embeddings", ("POST",), self.create),
            Route("/encode", ("POST", "PUT"), self.encode),
        ]

    async def create(self, request: Request) -> Response:
        """OpenAI's embeddings."""
        return await self.answer(request, await read_object(request))

    async def answer(self, request: Request, body: dict[str, Any]) -> Response:
        """The answer to a body that was read."""
        fields = Fields(body)
        name = self._serving.models.check(fields.raw("model"))
        pooling_of(self._serving)
        fields.refuse(_REFUSED)
        texts, where = await read_texts(self._serving, fields)
        spelling = fields.one_of("encoding_format", ("float", "base64")) or "float"
        keep = read_keep(fields, longest_text(self._serving))
        prompt = fields.text("prompt_name", _MAX_NAME)
        wanted = Wanted(
            dimensions=fields.integer("dimensions", 1, self._serving.engine.config.hidden_size),
            normalize=_normalize(fields),
            options=read_options(fields),
            rids=_names(read_rid(fields), len(texts)),
        )
        ignored = [one for one in IGNORED if fields.raw(one) not in (None, False, {}, "")]
        ids = await ids_of(self._serving, texts, where=where, prompt=prompt, keep=keep)
        found = await unless_gone(request, embed(self._serving, ids, wanted))
        data = [
            {"object": "embedding", "index": index, "embedding": spelled(vector, spelling)}
            for index, vector in enumerate(found.vectors)
        ]
        usage = usage_of(found.events, [1] * len(found.events))
        response = json_response({"object": "list", "data": data, "model": name, "usage": usage})
        response.headers.update(ignored_header([*ignored, *fields.unread()]))
        return response

    async def encode(self, request: Request) -> Response:
        """SGLang's ``/encode``."""
        body = await read_object(request)
        pooling_of(self._serving)
        asked = read_encode(self._serving, body, "/encode")
        wanted = Wanted(dimensions=asked.dimensions, options=asked.options, rids=asked.rids)
        ids = await ids_of(self._serving, asked.texts, where=asked.where)
        found = await unless_gone(request, embed(self._serving, ids, wanted))
        return json_response(encoded(found, asked.many))


@dataclass(frozen=True, kw_only=True)
class EncodeAsk:
    """A request in SGLang's shape, read. ``where``: which field has the texts; ``many``: they came as a list."""

    texts: list[Text]
    where: str
    many: bool
    rids: list[str | None]
    dimensions: int | None
    options: dict[str, Any]


def read_encode(serving: Serving, body: dict[str, Any], route: str) -> EncodeAsk:
    """``Refused`` names the field that is wrong."""
    check_names(body, _ENCODE_FIELDS, route, {})
    fields = Fields(body)
    serving.models.check(fields.raw("model"))
    if (fields.raw("text") is None) == (fields.raw("input_ids") is None):
        raise Refused(400, "give either text or input_ids, and not both", param="text")
    where = "input_ids" if fields.raw("text") is None else "text"
    given = fields.raw(where)
    texts = read_inputs(fields, where)
    many = isinstance(given, list) and (where == "text" or isinstance(given[0], list))
    rid = fields.text("rid", _MAX_NAME)
    return EncodeAsk(
        texts=texts,
        where=where,
        many=many,
        rids=_names(rid, len(texts)) if many else [rid],
        dimensions=fields.integer("dimensions", 1, serving.engine.config.hidden_size),
        options=read_options(fields),
    )


def encoded(found: Embedded, many: bool) -> Any:
    """The answer in SGLang's shape."""
    rows = [
        {"embedding": vector.tolist(), "meta_info": event["meta_info"]}
        for vector, event in zip(found.vectors, found.events, strict=True)
    ]
    return rows if many else rows[0]


def _normalize(fields: Fields) -> bool | None:
    """``normalize``, which is ``use_activation`` in vLLM's words; ``None``: as the checkpoint declares."""
    given = [fields.flag(name) for name in ("normalize", "use_activation") if fields.raw(name) is not None]
    if len(set(given)) > 1:
        raise fields.wrong("use_activation", "and normalize say the same thing; give one")
    return given[0] if given else None


def spelled(vector: Vector, spelling: str) -> Any:
    """A vector as JSON: numbers, or the base64 of little-endian float32."""
    if spelling == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return vector.tolist()


def _names(rid: str | None, count: int) -> list[str | None]:
    """A name each for the texts of a request called ``rid``."""
    return [rid] if count == 1 else [None if rid is None else f"{rid}-{i}" for i in range(count)]
