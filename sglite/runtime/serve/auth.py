"""Who may call: with a key set, every path but the open routes needs it; admin routes need the admin key always.

The middleware stands before routing, so a route that is added later is closed without being told; which route a path
belongs to is decided by the router's own patterns, so that no spelling of a path passes as another route than the one
that answers. Keys are compared as bytes, in a time that does not depend on where they differ.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Iterable, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.serving import Access, Route

_CAREFUL = "sglite.careful"
"""In a request's scope: whether it may do what costs others time."""
_ADMIN_NEEDED = "this needs the admin key; send it as 'Authorization: Bearer KEY'"


class Keys:
    """ASGI middleware: passes requests that carry the key their path needs (as bearer token or ``x-api-key``)."""

    def __init__(self, app: ASGIApp, api_key: str | None, admin_key: str | None, routes: Sequence[Route]) -> None:
        self._app = app
        self._api_key = None if api_key is None else api_key.encode()
        self._admin_key = None if admin_key is None else admin_key.encode()
        self._routes = [(compile_path(route.path)[0], route.methods, route.access) for route in routes]
        self._keyless = api_key is None and admin_key is None
        self._known = {
            (route.path, method): self._found(route.path, method)
            for route in routes
            for method in (route.methods if "{" not in route.path else ())
        }

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answers 401 and 403 itself."""
        if scope["type"] == "lifespan":
            return self._app(scope, receive, send)
        given = [] if self._keyless else list(_given(scope))
        is_admin = self._admin_key is not None and _any_is(given, self._admin_key)
        refused = self._refusal(self._access(scope["path"], scope.get("method", "GET")), given, is_admin)
        if refused is None:
            scope[_CAREFUL] = self._admin_key is None or is_admin
            return self._app(scope, receive, send)
        return JSONResponse(refused.body(scope["path"]), refused.status, refused.headers())(scope, receive, send)

    def _access(self, path: str, method: str) -> Access:
        """Of the route that the router finds: the first of that path and method, else the first of that path."""
        return self._known.get((path, method)) or self._found(path, method)

    def _found(self, path: str, method: str) -> Access:
        of_path = [(methods, access) for pattern, methods, access in self._routes if pattern.match(path)]
        of_method = [access for methods, access in of_path if method in methods]
        return (of_method or [access for _, access in of_path] or [Access.NORMAL])[0]

    def _refusal(self, access: Access, given: list[bytes], is_admin: bool) -> Refused | None:
        if access is Access.OPEN or is_admin:
            return None
        if self._api_key is not None and not _any_is(given, self._api_key):
            return Refused(401, "this server needs an API key; send it as 'Authorization: Bearer KEY'", code="no_key")
        if access is Access.ADMIN and self._admin_key is None:
            message = "this route is closed: the server was started without --admin-key"
            return Refused(403, message, code="admin_closed")
        if access is Access.ADMIN or (access is Access.CAREFUL and self._admin_key is not None):
            return Refused(401, _ADMIN_NEEDED, code="no_key")
        return None


def require_careful(request: Request) -> None:
    """For routes of which only some requests cost others time: ``Refused`` (401) as of ``Access.CAREFUL``."""
    if not request.scope.get(_CAREFUL, False):
        raise Refused(401, _ADMIN_NEEDED, code="no_key")


def _given(scope: Scope) -> Iterable[bytes]:
    """The keys that a request carries."""
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            yield value[7:].strip()
        elif name == b"x-api-key":
            yield value.strip()


def _any_is(given: list[bytes], key: bytes) -> bool:
    return any(hmac.compare_digest(one, key) for one in given)
