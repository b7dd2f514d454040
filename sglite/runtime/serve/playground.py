"""``GET /``: for a browser a page to try the model with, for everything else one line of text.

The page is a client like any other: it calls the server's public routes and has no way in of its own, so it is open
where a key is set, and asks for the key. It needs no build and nothing from elsewhere. Its policy forbids the browser
whatever is not a file of this module, inline code included, and turning text into elements.

Files are named one by one and read once; no path that a request brings ever reaches the file system.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from sglite.runtime.serve.options import ServeOptions
from sglite.runtime.serve.serving import Access, Handler, Route

_FOLDER = Path(__file__).parent / "static"
_PAGE = "index.html"
_HTML, _CSS, _SCRIPT, _ICON = "text/html", "text/css", "text/javascript", "image/svg+xml"
FILES = {
    "playground.css": _CSS,
    "main.js": _SCRIPT,
    "request.js": _SCRIPT,
    "events.js": _SCRIPT,
    "turn.js": _SCRIPT,
    "view.js": _SCRIPT,
    "costs.js": _SCRIPT,
    "icon.svg": _ICON,
}
"""What the page is made of, besides itself, and of which type each file is. Served below ``/playground/``."""

POLICY = "; ".join([
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
])  # fmt: skip
"""The page's Content-Security-Policy."""
_SAFE = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
PLAIN = "Ollama is running"
"""What Ollama's clients look for at ``/``."""


@dataclass(frozen=True)
class _File:
    """A file as it is sent."""

    content: bytes
    media_type: str
    tag: str

    @classmethod
    def read(cls, name: str, media_type: str) -> _File:
        content = (_FOLDER / name).read_bytes()
        return cls(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:24]}"')

    def answer(self, request: Request, vary: str = "") -> Response:
        """The file, or 304 for one that the browser has. It asks each time, so that an update is seen at once."""
        headers = {**_SAFE, "ETag": self.tag, "Cache-Control": "no-cache"}
        if vary:
            headers["Vary"] = vary
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if self.tag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


class Playground:
    """The routes of the page. With ``playground=False`` only the line of text is left."""

    def __init__(self, options: ServeOptions) -> None:
        self._page = _File.read(_PAGE, _HTML) if options.playground else None

    def routes(self) -> list[Route]:
        """See the module. All are open: they hold nothing of the model's or its users'."""
        read = ("GET", "HEAD")
        routes = [Route("/", read, self.home, Access.OPEN)]
        if self._page is not None:
            routes += [Route(f"/playground/{name}", read, _sender(name), Access.OPEN) for name in FILES]
        return routes

    async def home(self, request: Request) -> Response:
        """``/``: the page if the client takes HTML by name, as browsers do."""
        if self._page is not None and _takes_html(request.headers.get("accept", "")):
            return self._page.answer(request, vary="Accept")
        return PlainTextResponse(PLAIN, headers={"Vary": "Accept"})


def _sender(name: str) -> Handler:
    file = _File.read(name, FILES[name])

    async def send(request: Request) -> Response:
        return file.answer(request)

    return send


def _takes_html(accept: str) -> bool:
    """Whether ``accept`` names HTML; ``*/*``, which every program sends, does not."""
    return _HTML in [item.partition(";")[0].strip() for item in accept.lower().split(",")]
