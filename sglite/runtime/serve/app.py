"""The application: which route is answered by whom, who may call, and one shape for everything that goes wrong."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sglite.runtime.engine.engine import Engine
from sglite.runtime.serve.auth import ApiKey
from sglite.runtime.serve.errors import Refused, refusal
from sglite.runtime.serve.in_flight import InFlight
from sglite.runtime.serve.info import Info
from sglite.runtime.serve.native import Native
from sglite.runtime.serve.program_route import ProgramRoute
from sglite.runtime.serve.programs import Programs
from sglite.runtime.serve.responses import json_response
from sglite.version import __version__

logger = logging.getLogger(__name__)
Handler = Callable[[Request], Awaitable[Response]]


def create_app(engine: Engine, api_key: str | None = None) -> ASGIApp:
    """The server over ``engine``, which stays the caller's to shut down."""
    in_flight = InFlight(engine.config.max_running + engine.args.max_queued_requests)
    programs = Programs(engine, in_flight)
    native, info = Native(engine, in_flight), Info(engine, in_flight, programs)
    program = ProgramRoute(programs)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        programs.close()

    app = FastAPI(title="sglite", version=__version__, lifespan=lifespan)
    routes: list[tuple[str, list[str], Handler]] = [
        ("/generate", ["POST", "PUT"], native.generate),
        ("/program", ["POST"], program.run),
        ("/program/renew", ["POST"], program.renew),
        ("/program/close", ["POST"], program.close),
        ("/model_info", ["GET"], info.model),
        ("/get_model_info", ["GET"], info.model),
        ("/server_info", ["GET"], info.server),
        ("/get_server_info", ["GET"], info.server),
        ("/flush_cache", ["GET", "POST"], info.flush_cache),
        ("/abort_request", ["POST"], info.abort),
        ("/render", ["POST"], info.render),
        ("/health", ["GET"], info.health),
        ("/health_generate", ["GET"], info.health_generate),
    ]
    for path, methods, handler in routes:
        app.add_api_route(path, handler, methods=methods, response_model=None)
    app.add_exception_handler(HTTPException, _refuse_route)
    for kind in (Refused, ValueError, RuntimeError):
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(Exception, _answer)
    counted = Counted(app, in_flight, frozenset(path for path, _, _ in routes))
    return counted if api_key is None else ApiKey(counted, api_key)


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
    response = json_response(found.body(), found.status)
    response.headers.update(found.headers())
    return response


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {
        404: f"there is no route {request.url.path[:200]}",
        405: f"{request.url.path[:200]} does not take {request.method}",
    }
    return await _answer(request, Refused(error.status_code, said.get(error.status_code, error.detail)))
