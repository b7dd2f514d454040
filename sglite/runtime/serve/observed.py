"""Every HTTP request is seen: counted by route and status, timed, and given an id that its answer carries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Iterable

from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sglite.runtime.observe.exchange import Exchange, current_exchange
from sglite.runtime.observe.logs import RequestLog
from sglite.runtime.observe.observer import CLIENT_GONE, Follower, Observer
from sglite.runtime.observe.traces import Traces
from sglite.runtime.serve.options import ServeOptions
from sglite.runtime.serve.responses import NDJSON, SSE

OTHER = "other"
"""The route of requests for paths that the server has not."""
_READ = frozenset({b"x-request-id", b"traceparent", b"tracestate"})
_STREAMS = (SSE.encode(), NDJSON.encode())


def observer_of(options: ServeOptions, model: str) -> Observer:
    """What the options ask for. ``ConfigError`` for what cannot be had."""
    followers: list[Follower] = [RequestLog()] if options.log_requests else []
    if options.otlp_traces_endpoint is not None:
        followers.append(Traces(options.otlp_traces_endpoint, model))
    return Observer(followers)


class Observed:
    """ASGI middleware, the outermost: what others refuse is seen too.

    ``X-Request-Id`` comes back in every answer: the client's, where it is fit to be one, else a new one.

    Args:
        paths: of all routes; the only ones that are counted by name.
        calls: counted too, by route: requests so far.
    """

    def __init__(self, app: ASGIApp, observer: Observer, paths: Iterable[str], calls: Counter[str]) -> None:
        self._app = app
        self._observer = observer
        self._calls = calls
        known = set(paths)
        self._plain = frozenset(path for path in known if "{" not in path)
        self._patterns = [(compile_path(path)[0], path) for path in sorted(known - self._plain)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = self._route(scope["path"])
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _READ}
        exchange = self._observer.received(route, scope["method"], headers)
        if route != OTHER:
            self._calls[route] += 1
        token = current_exchange.set(exchange)
        status = CLIENT_GONE
        try:
            await self._app(scope, self._heard(exchange, receive), self._said(exchange, send))
        except Exception:
            status = 500
            raise
        finally:
            current_exchange.reset(token)
            self._observer.answered(exchange, status if exchange.status is None else exchange.status)

    def _route(self, path: str) -> str:
        if path in self._plain:
            return path
        return next((route for pattern, route in self._patterns if pattern.match(path)), OTHER)

    def _heard(self, exchange: Exchange, receive: Receive) -> Receive:
        """Notes when the request is complete."""

        async def heard() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body") and exchange.body_at is None:
                exchange.body_at = self._observer.clock()
            return message

        return heard

    def _said(self, exchange: Exchange, send: Send) -> Send:
        """Puts the id on the answer."""

        def said(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", exchange.id.encode())]
                for name, value in headers:
                    if name.lower() == b"content-type":
                        exchange.streamed = value.startswith(_STREAMS)
                        break
                message = {**message, "headers": headers}
            return send(message)

        return said
