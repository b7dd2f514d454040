"""Who may call: with an API key set, every route but an explicit list needs it.

The middleware stands before routing, so a route that is added later is closed without being told. Keys are compared as
bytes, in a time that does not depend on where they differ.
"""

from __future__ import annotations

import hmac

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sglite.runtime.serve.errors import Refused

OPEN_PATHS = frozenset({"/health"})
"""What anybody may call."""


class ApiKey:
    """ASGI middleware: passes requests that carry ``key`` (as bearer token or ``x-api-key``)."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 401 itself."""
        if scope["type"] == "lifespan" or scope.get("path") in OPEN_PATHS or self._carries_key(scope):
            await self._app(scope, receive, send)
            return
        refused = Refused(401, "this server needs an API key; send it as 'Authorization: Bearer KEY'", code="no_key")
        await JSONResponse(refused.body(), refused.status, refused.headers())(scope, receive, send)

    def _carries_key(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                given = value[7:].strip()
            elif name == b"x-api-key":
                given = value.strip()
            else:
                continue
            if hmac.compare_digest(given, self._key):
                return True
        return False
