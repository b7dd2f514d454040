"""The short way from a request to its handler, without the layers of a framework that handlers make no use of.

Which route a path and method belong to is decided by the router's own patterns, once, when the server is made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from sglite.runtime.serve.responses import EventStream
from sglite.runtime.serve.serving import Handler, Route


class Direct:
    """ASGI app: calls the handlers of routes without parameters; what belongs to none of them goes to ``rest``.

    Args:
        rest: knows the same routes, and the others.
        answer: of what a handler raises.
    """

    def __init__(
        self, rest: ASGIApp, routes: Sequence[Route], answer: Callable[[Request, Exception], Awaitable[Response]]
    ) -> None:
        self._rest = rest
        self._answer = answer
        self._handlers: dict[tuple[str, str], Handler] = {}
        patterns = [(compile_path(route.path)[0], route) for route in routes]
        for route in routes:
            for method in route.methods if "{" not in route.path else ():
                found = next(one for pattern, one in patterns if pattern.match(route.path) and method in one.methods)
                if found.path == route.path:
                    self._handlers[route.path, method] = found.handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        handler = self._handlers.get((scope["path"], scope["method"])) if scope["type"] == "http" else None
        if handler is None:
            await self._rest(scope, receive, send)
            return
        request = Request(scope, receive, send)
        response: Response | None = None
        try:
            response = await handler(request)
            if isinstance(response, EventStream):  # shows what is wrong with it when it is to begin
                await response(scope, receive, send)
                return
        except Exception as error:
            if isinstance(response, EventStream) and response.begun:
                raise
            response = await self._answer(request, error)
        await response(scope, receive, send)
