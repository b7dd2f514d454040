"""The short way to a handler: whom it calls is whom the router would call, and all else is the router's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from sglite.runtime.serve.direct import Direct
from sglite.runtime.serve.serving import Handler, Route
from sglite.runtime.serve.streaming import LINES, stream


def says(text: str) -> Handler:
    async def handler(request: Request) -> Response:
        if text == "broken":
            raise ValueError("a bad value")
        return PlainTextResponse(text)

    return handler


async def rest(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("rest")(scope, receive, send)


async def answer(request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{request.url.path}: {error}", 400)


ROUTES = [
    Route("/a", ("GET",), says("a")),
    Route("/a", ("POST",), says("a posted")),
    Route("/things/{name}", ("GET",), says("a thing")),
    Route("/things/own", ("GET", "POST"), says("own")),
    Route("/b", ("POST",), says("broken")),
    Route("/b", ("POST",), says("never")),
]


def ask(method: str, path: str) -> tuple[int, str]:
    """Status and text of the answer."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nobody reads the body")

    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b"", "server": ("h", 1)}
    asyncio.run(Direct(rest, ROUTES, answer)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"].decode()


def test_a_path_and_method_have_their_handler() -> None:
    assert ask("GET", "/a") == (200, "a") and ask("POST", "/a") == (200, "a posted")


def test_what_a_handler_raises_is_answered() -> None:
    assert ask("POST", "/b") == (400, "/b: a bad value")


def test_all_else_is_left_to_the_router() -> None:
    for method, path in (("DELETE", "/a"), ("GET", "/none"), ("GET", "/things/x"), ("GET", "/a/"), ("HEAD", "/a")):
        assert ask(method, path) == (200, "rest")


def test_a_path_that_an_earlier_pattern_takes_is_not_a_route_of_its_own() -> None:
    assert ask("GET", "/things/own") == (200, "rest") and ask("POST", "/things/own") == (200, "own")


def streamed(*parts: bytes | Exception) -> Handler:
    async def lines() -> AsyncGenerator[bytes, None]:
        for part in parts:
            if isinstance(part, Exception):
                raise part
            yield part

    async def handler(request: Request) -> Response:
        return stream(lines(), lambda: None, LINES)

    return handler


def test_a_stream_that_fails_before_it_begins_is_answered_once() -> None:
    routes = [
        Route("/early", ("GET",), streamed(ValueError("a bad value"))),
        Route("/late", ("GET",), streamed(b"one\n", ValueError("too late"))),
    ]

    def sent(path: str) -> tuple[list[int], bytes]:
        messages: list[Any] = []

        async def send(message: Any) -> None:
            messages.append(message)

        async def receive() -> Any:
            return await asyncio.Event().wait()

        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b"", "server": ("h", 1)}
        asyncio.run(Direct(rest, routes, answer)(scope, receive, send))
        statuses = [message["status"] for message in messages if message["type"] == "http.response.start"]
        return statuses, b"".join(message.get("body", b"") for message in messages)

    assert sent("/early") == ([400], b"/early: a bad value")
    statuses, body = sent("/late")
    assert statuses == [200] and body.startswith(b"one\n") and b"too late" in body
