"""What stands before everything else: bounded headers, and pages of other sites kept from a server without a key.

A browser runs pages of anybody, and any of them can send requests to addresses that only this machine reaches. A key
stops them. Without one:

    Host     on a loopback address, a name that is not this machine's is refused: DNS rebinding makes such names
    Origin   a page of another site is refused, unless ``cors_origins`` lets it call

With or without: header bytes are bounded, no answer may be taken for another type than it says, and an HTML page may
load nothing from elsewhere and be put in no frame, unless its route says more itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.options import ServeOptions

MAX_HEADER_BYTES = 32 * 1024
"""Of path, query, header names and values together."""
_CORS_SECONDS = 600
_EXPOSED = ("X-Sglite-Ignored", "X-Request-Id", "Retry-After")
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of a page that states none."""
_NO_SNIFFING = (b"x-content-type-options", b"nosniff")
_CDN = "https://cdn.jsdelivr.net"
_POLICIES = {
    "/docs": (
        f"default-src 'none'; script-src 'unsafe-inline' {_CDN}; style-src 'unsafe-inline' {_CDN}; "
        "img-src data: https://fastapi.tiangolo.com; connect-src 'self'; frame-ancestors 'none'"
    )
}
"""Of pages that FastAPI makes."""


def with_cors(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    """``app`` for pages of ``origins`` too (``*``: any). Keys travel in headers, so cookies are allowed to none.

    It belongs around what asks for keys: a preflight request carries none.
    """
    if not origins:
        return app
    methods = ["GET", "HEAD", "POST", "PUT", "DELETE"]
    return CORSMiddleware(
        app,
        allow_origins=[_normal(origin) for origin in origins],
        allow_methods=methods,
        allow_headers=["*"],
        expose_headers=_EXPOSED,
        max_age=_CORS_SECONDS,
    )


class Guard:
    """ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp, options: ServeOptions) -> None:
        self._app = app
        self._host = options.host.lower()
        self._keyless = options.api_key is None
        self._loopback = is_loopback(self._host)
        self._origins = {_normal(origin) for origin in options.cors_origins}

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answers 431 and 403 itself."""
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        path: str = scope["path"]

        def send_marked(message: Message) -> Awaitable[None]:
            return send(_marked(message, path) if message["type"] == "http.response.start" else message)

        refused = self._refusal(scope)
        if refused is None:
            return self._app(scope, receive, send_marked)
        return JSONResponse(refused.body(path), refused.status)(scope, receive, send_marked)

    def _refusal(self, scope: Scope) -> Refused | None:
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        host = origin = None
        for name, value in scope["headers"]:
            size += len(name) + len(value)
            if name == b"host" and host is None:
                host = value.decode("latin-1")
            elif name == b"origin" and origin is None:
                origin = value.decode("latin-1")
        if size > MAX_HEADER_BYTES:
            message = f"path and headers have {size} bytes, {MAX_HEADER_BYTES} are allowed; send less"
            return Refused(431, message, code="headers_too_large")
        if not self._keyless:
            return None
        if self._loopback and host and not self._is_here(host):
            message = (
                f"Host {host[:100]!r} is not this machine: without an API key this server answers to localhost and to "
                "addresses only; start it with --api-key, or have the proxy before it send 'Host: localhost'"
            )
            return Refused(403, message, code="foreign_host")
        if origin is not None and not self._may_call(origin, Headers(scope=scope)):
            message = (
                f"pages of {origin[:100]!r} may not call this server; name the origin in --cors-origins, or start the "
                "server with --api-key"
            )
            return Refused(403, message, code="foreign_origin")
        return None

    def _is_here(self, host: str) -> bool:
        name = _without_port(host)
        return name == self._host or name == "localhost" or name.endswith(".localhost") or _is_address(name)

    def _may_call(self, origin: str, headers: Headers) -> bool:
        """Whether it is the server's own page, or one that is allowed."""
        own = {headers.get("host", "").lower(), headers.get("x-forwarded-host", "").lower()} - {""}
        return "*" in self._origins or _normal(origin) in self._origins or _normal(origin).partition("://")[2] in own


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what is bound to ``host``."""
    if host == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def _marked(message: Message, path: str) -> Message:
    """The beginning of an answer, with the headers that all have and those of a page."""
    raw, is_page = [], False
    for pair in message.get("headers", ()):
        name = pair[0].lower()
        if name != _NO_SNIFFING[0]:
            raw.append(pair)
            is_page |= name == b"content-type" and pair[1].startswith(b"text/html")
    message = {**message, "headers": [*raw, _NO_SNIFFING]}
    if is_page:
        headers = MutableHeaders(scope=message)
        headers["Referrer-Policy"] = "no-referrer"
        headers.setdefault("Content-Security-Policy", _POLICIES.get(path, PAGE_POLICY))
    return message


def _normal(origin: str) -> str:
    return origin.strip().rstrip("/").lower()


def _without_port(host: str) -> str:
    """The name in a ``Host`` header, in lower case, without brackets and final dot."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
