"""Adding routes to the application so that ``/openapi.json`` lists each with its methods, path, body and answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI

from sglite.runtime.serve.serving import Route

_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_BODILESS = ("GET", "HEAD", "DELETE")
_ANY_BODY: dict[str, Any] = {"type": "object"}
_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": ["object", "string"], "description": "An object; text on Ollama's routes."}},
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer; a stream of events where one was asked for."},
    "default": {"description": "What is wrong, in words.", "content": {"application/json": {"schema": _ERROR}}},
}


def add_routes(app: FastAPI, routes: Sequence[Route]) -> None:
    """Adds ``routes`` in order, each method as an operation with a name of its own."""
    for route in routes:
        for method in route.methods:
            app.add_api_route(
                route.path,
                route.handler,
                methods=[method],
                response_model=None,
                operation_id=_operation(route.path, method),
                summary=f"{method} {route.path}",
                responses=_ANSWERS,
                openapi_extra=_described(route, method),
                include_in_schema=method != "HEAD",
            )


def _operation(path: str, method: str) -> str:
    return method.lower() + re.sub(r"\W+", "_", path).rstrip("_")


def _described(route: Route, method: str) -> dict[str, Any]:
    """What a handler that reads the request itself does not tell FastAPI."""
    found: dict[str, Any] = {"x-access": route.access.value}
    names = _PARAMETER.findall(route.path)
    if names:
        schema = {"type": "string"}
        found["parameters"] = [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]
    if method not in _BODILESS:
        body = _ANY_BODY if route.body is None else route.body
        needed = bool(body.get("required"))
        found["requestBody"] = {"required": needed, "content": {"application/json": {"schema": body}}}
    return found
