"""Who may call: with a key set, every path but the open routes needs it; admin routes need the admin key always.

The middleware stands before routing, so a route that is added later is closed without being told. Keys are compared as
bytes, in a time that does not depend on where they differ.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.serving import Access, Route


class Keys:
    """ASGI middleware: passes requests that carry the key their path needs (as bearer token or ``x-api-key``)."""

    def __init__(self, app: ASGIApp, api_key: str | None, admin_key: str | None, routes: Sequence[Route]) -> None:
        self._app = app
        self._api_key = None if api_key is None else api_key.encode()
        self._admin_key = None if admin_key is None else admin_key.encode()
        self._access = {route.path: route.access for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 401 and 403 itself."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refused = self._refusal(self._access.get(scope["path"], Access.NORMAL), list(_given(scope)))
        if refused is None:
            await self._app(scope, receive, send)
        else:
            await JSONResponse(refused.body(scope["path"]), refused.status, refused.headers())(scope, receive, send)

    def _refusal(self, access: Access, given: list[bytes]) -> Refused | None:
        is_admin = self._admin_key is not None and _any_is(given, self._admin_key)
        if access is Access.OPEN or is_admin:
            return None
        if self._api_key is not None and not _any_is(given, self._api_key):
            return Refused(401, "this server needs an API key; send it as 'Authorization: Bearer KEY'", code="no_key")
        if access is Access.ADMIN and self._admin_key is None:
            message = "this route is closed: the server was started without --admin-key"
            return Refused(403, message, code="admin_closed")
        if access is Access.ADMIN or (access is Access.CAREFUL and self._admin_key is not None):
            return Refused(401, "this route needs the admin key; send it as 'Authorization: Bearer KEY'", code="no_key")
        return None


def _given(scope: Scope) -> Iterable[bytes]:
    """The keys that a request carries."""
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            yield value[7:].strip()
        elif name == b"x-api-key":
            yield value.strip()


def _any_is(given: list[bytes], key: bytes) -> bool:
    return any(hmac.compare_digest(one, key) for one in given)
