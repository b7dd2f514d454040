"""The application: which route is answered by whom, who may call, and one way for everything that goes wrong."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sglite.runtime.engine.engine import Engine
from sglite.runtime.serve.auth import Keys
from sglite.runtime.serve.errors import Refused, refusal
from sglite.runtime.serve.in_flight import InFlight
from sglite.runtime.serve.info import Info
from sglite.runtime.serve.native import Native
from sglite.runtime.serve.options import ServeOptions
from sglite.runtime.serve.program_route import ProgramRoute
from sglite.runtime.serve.programs import Programs
from sglite.runtime.serve.responses import json_response
from sglite.runtime.serve.serving import Route, Serving
from sglite.version import __version__

logger = logging.getLogger(__name__)


def create_app(engine: Engine, options: ServeOptions | None = None) -> ASGIApp:
    """The server over ``engine``, which stays the caller's to shut down."""
    serving = Serving.of(engine, options or ServeOptions())
    programs = Programs(engine, serving.in_flight)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        programs.close()

    app = FastAPI(title="sglite", version=__version__, lifespan=lifespan)
    routes = all_routes(serving, programs)
    for route in routes:
        app.add_api_route(route.path, route.handler, methods=list(route.methods), response_model=None)
    app.add_exception_handler(HTTPException, _refuse_route)
    for kind in (Refused, ValueError, RuntimeError):
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(Exception, _answer)
    counted = Counted(app, serving.in_flight, frozenset(route.path for route in routes))
    return Keys(counted, serving.options.api_key, serving.options.admin_key, routes)


def all_routes(serving: Serving, programs: Programs) -> list[Route]:
    """Every route of the server, whatever the options."""
    return [
        *Native(serving.engine, serving.in_flight).routes(),
        *ProgramRoute(programs).routes(),
        *Info(serving.engine, serving.in_flight, programs).routes(),
    ]


class Counted:
    """ASGI middleware: counts requests by route."""

    def __init__(self, app: ASGIApp, in_flight: InFlight, paths: frozenset[str]) -> None:
        self._app = app
        self._in_flight = in_flight
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Counts and passes on."""
        if scope["type"] == "http" and scope["path"] in self._paths:
            self._in_flight.calls[scope["path"]] += 1
        await self._app(scope, receive, send)


async def _answer(request: Request, error: Exception) -> Response:
    found = refusal(error)
    if found.status >= 500:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    response = json_response(found.body(request.url.path), found.status)
    response.headers.update(found.headers())
    return response


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {
        404: f"there is no route {request.url.path[:200]}",
        405: f"{request.url.path[:200]} does not take {request.method}",
    }
    return await _answer(request, Refused(error.status_code, said.get(error.status_code, error.detail)))
