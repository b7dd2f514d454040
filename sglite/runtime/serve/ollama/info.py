"""What Ollama's clients ask about server and models: tags, ps, show, version."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.serve.body import read_object
from sglite.runtime.serve.fields import Fields, ignored_header
from sglite.runtime.serve.ollama.card import Card
from sglite.runtime.serve.ollama.names import read_model, tagged
from sglite.runtime.serve.ollama.options import DEFAULTS
from sglite.runtime.serve.responses import json_response
from sglite.runtime.serve.serving import Route, Serving
from sglite.version import __version__

API_VERSION = "0.12.11"
"""Ollama's version whose API this is; clients look at it before they use what came with one."""
_NEVER = "2999-12-31T00:00:00Z"
_READ = ("GET", "HEAD")


class Info:
    """The routes. ``embeds``: the model makes embeddings."""

    def __init__(self, serving: Serving, embeds: bool) -> None:
        self._serving = serving
        self._embeds = embeds
        self._found: Card | None = None

    def routes(self) -> list[Route]:
        """See the module."""
        return [
            Route("/api/version", _READ, self.version),
            Route("/api/tags", _READ, self.tags),
            Route("/api/ps", _READ, self.running),
            Route("/api/show", ("POST",), self.show),
        ]

    async def version(self, request: Request) -> Response:
        """The API's version, and our own."""
        return json_response({"version": API_VERSION, "sglite": __version__})

    async def tags(self, request: Request) -> Response:
        """The model, under each of its names."""
        card = await self._card()
        return json_response({"models": [self._entry(card, name) for name in self._serving.models.names]})

    async def running(self, request: Request) -> Response:
        """The same: what is served is loaded, and stays."""
        card, on_cpu = await self._card(), self._serving.engine.config.device == "cpu"
        more = {
            "expires_at": _NEVER,
            "size_vram": 0 if on_cpu else card.size,
            "context_length": self._serving.capacity,
        }
        return json_response({"models": [{**self._entry(card, name), **more} for name in self._serving.models.names]})

    async def show(self, request: Request) -> Response:
        """What the model is and can do."""
        fields = Fields(await read_object(request))
        name, card = read_model(fields, self._serving.models), await self._card()
        fields.flag("verbose")
        template = self._serving.engine.chat_template
        source = "" if template is None else template.source.get("default", next(iter(template.source.values())))
        figures = {f"{card.architecture}.{figure}": value for figure, value in card.figures.items()}
        parameters = [f"{option} {value}" for option, value in DEFAULTS.items()]
        answer = {
            "modelfile": "\n".join([f"FROM {name}", *(f"PARAMETER {line}" for line in parameters)]),
            "parameters": "\n".join(parameters),
            "template": source,
            "details": card.details(),
            "model_info": {
                "general.architecture": card.architecture,
                "general.parameter_count": card.num_parameters,
                **figures,
                f"{card.architecture}.context_length": self._serving.capacity,
            },
            "capabilities": self._capabilities(),
            "modified_at": card.modified_at,
        }
        response = json_response(answer)
        response.headers.update(ignored_header(fields.unread()))
        return response

    def _capabilities(self) -> list[str]:
        formats = self._serving.formats
        can = {
            "completion": self._serving.engine.config.generates,
            "tools": formats.tools is not None,
            "thinking": formats.reasoning is not None,
            "embedding": self._embeds,
        }
        return [name for name, found in can.items() if found]

    async def _card(self) -> Card:
        if self._found is None:
            engine = self._serving.engine
            self._found = await asyncio.to_thread(Card.read, engine.folder, engine.config.dtype)
        return self._found

    def _entry(self, card: Card, name: str) -> dict[str, Any]:
        return {
            "name": tagged(name),
            "model": tagged(name),
            "modified_at": card.modified_at,
            "size": card.size,
            "digest": card.digest,
            "details": card.details(),
        }
