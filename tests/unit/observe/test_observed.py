"""The middleware over small apps that answer in every way: each is counted, as what it was."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from sglite.runtime.observe.exchange import current_exchange
from sglite.runtime.observe.observer import Observer
from sglite.runtime.serve.observed import Observed


async def answer(status: int, send: Any) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b"x"})


async def full(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await answer(429, send)


async def gone(scope: Any, receive: Any, send: Any) -> None:
    await receive()


async def broken(scope: Any, receive: Any, send: Any) -> None:
    raise KeyError("a bug")


async def broken_late(scope: Any, receive: Any, send: Any) -> None:
    await answer(200, send)
    raise KeyError("a bug")


def call(app: Any, observer: Observer, path: str = "/a") -> tuple[list[dict[str, Any]], Counter[str]]:
    sent: list[dict[str, Any]] = []
    calls: Counter[str] = Counter()
    scope = {"type": "http", "path": path, "method": "GET", "headers": [(b"x-request-id", b"me")]}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(Observed(app, observer, ["/a", "/b/{name}/c"], calls)(scope, receive, send))
    return sent, calls


@pytest.mark.parametrize(
    ("app", "status", "reason"),
    [(full, "429", "overloaded"), (gone, "499", None), (broken, "500", "internal"), (broken_late, "200", None)],
)
def test_an_answer_is_counted_as_what_it_was(app: Any, status: str, reason: str | None) -> None:
    observer = Observer()
    if app in (broken, broken_late):
        with pytest.raises(KeyError):
            call(app, observer)
    else:
        call(app, observer)
    assert observer.tally.http == {("/a", status): 1} and observer.tally.http_open == 0
    assert observer.tally.refused == ({} if reason is None else {reason: 1}) or status == "499"
    assert current_exchange.get() is None


def test_a_path_counts_as_its_route_and_others_as_one() -> None:
    observer = Observer()
    for path, route in (("/a", "/a"), ("/b/x/c", "/b/{name}/c"), ("/b/x/y/c", "other"), ("/a/", "other")):
        _, calls = call(full, observer, path)
        assert calls == ({} if route == "other" else {route: 1})
    assert {route: count for (route, _), count in observer.tally.http.items()} == {
        "/a": 1, "/b/{name}/c": 1, "other": 2,
    }  # fmt: skip


def test_the_id_goes_out_and_a_stream_is_known_as_one() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current_exchange.get())
        await answer(200, send)

    sent, _ = call(app, Observer())
    assert (b"x-request-id", b"me") in sent[0]["headers"]
    (exchange,) = seen
    assert exchange is not None and exchange.streamed and exchange.id == "me"
