"""``GET /v1/models`` and ``/v1/models/{id}``: the one model, under each of its names.

Anthropic's clients ask at the same place, with a header of theirs, for another shape.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.responses import json_response
from sglite.runtime.serve.serving import Route, Serving

_ANTHROPIC = "anthropic-version"


class ModelRoutes:
    """The routes."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """See the module."""
        return [
            Route("/v1/models", ("GET",), self.all),
            Route("/v1/models/{name:path}", ("GET",), self.one),
        ]

    async def all(self, request: Request) -> Response:
        """Every name."""
        names = self._serving.models.names
        if _ANTHROPIC in request.headers:
            ends = {"has_more": False, "first_id": names[0], "last_id": names[-1]}
            return json_response({"data": [self._other_card(name) for name in names], **ends})
        return json_response({"object": "list", "data": [self._card(name) for name in names]})

    async def one(self, request: Request) -> Response:
        """One name; 404 for another."""
        name = request.path_params["name"]
        if name not in self._serving.models.names:
            raise Refused(404, f"The model {name[:200]!r} does not exist", param="model", code="model_not_found")
        return json_response(self._other_card(name) if _ANTHROPIC in request.headers else self._card(name))

    def _other_card(self, name: str) -> dict[str, Any]:
        created = datetime.fromtimestamp(self._serving.models.created, timezone.utc)
        return {
            "type": "model",
            "id": name,
            "display_name": name,
            "created_at": created.isoformat().replace("+00:00", "Z"),
            "max_input_tokens": self._serving.capacity,
        }

    def _card(self, name: str) -> dict[str, Any]:
        models = self._serving.models
        return {
            "id": name,
            "object": "model",
            "created": models.created,
            "owned_by": "sglite",
            "root": models.path,
            "parent": None if name == models.names[0] else models.names[0],
            "max_model_len": self._serving.capacity,
        }
