"""How a server stops: what it has begun it finishes, what comes meanwhile is told to go elsewhere.

Connections are accepted as before, so that a client gets an answer it can act on (503, ``Retry-After``) and not a
refused or broken connection, of which it could not tell whether its request was carried out.
"""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sglite.runtime.serve.errors import Refused

_STAY_OPEN = frozenset({"/metrics", "/abort_request"})
"""Routes that are about what is still going on."""
_RETRY_SECONDS = 1


class Drain:
    """ASGI middleware around everything else: counts the requests being answered; refuses more once ``begin`` is
    called. For the server's event loop only."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._draining = False
        self.num_active = 0
        """Requests being answered."""

    def begin(self) -> None:
        """No more requests from now on."""
        self._draining = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on or answers 503."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._draining and scope["path"] not in _STAY_OPEN:
            refused = Refused(503, "the server is stopping", code="draining", retry_after=_RETRY_SECONDS)
            headers = {**refused.headers(), "Connection": "close"}
            await JSONResponse(refused.body(scope["path"]), refused.status, headers)(scope, receive, send)
            return
        self.num_active += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.num_active -= 1
