"""What a request makes goes when it ends: the collections of a server have nothing to find."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from served import Served, listening, settles

from sglite.runtime.engine.generation import Generation, RequestRefused
from sglite.runtime.engine.grammar import GrammarState
from sglite.runtime.engine.presenter import Presenter
from sglite.runtime.engine.request import Request
from sglite.runtime.observe.exchange import Exchange, Tracked
from sglite.runtime.observe.observer import Observer
from sglite.runtime.observe.timeline import LIMIT
from sglite.runtime.protocol import FinishReason, RequestOutput
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.serve.connection import Connection
from sglite.runtime.serve.cycle import Cycle
from sglite.runtime.serve.merge import Bell, Merged
from sglite.runtime.text.chat_template import ChatTemplate

_TEMPLATE = (
    "{%- macro text(content) -%}{{ content }}{%- endmacro -%}"
    "{%- for message in messages -%}{% set said = text(message.content) %}[{{ message.role }}]{{ said }}{%- endfor -%}"
)


@contextmanager
def without_collections(*kinds: type) -> Iterator[Callable[[], int]]:
    """What holds itself stays for as long; how many objects of ``kinds`` there are more than before, whether anybody
    can still reach them or not."""

    def alive() -> int:
        return sum(isinstance(one, kinds) for one in gc.get_objects())

    gc.collect()
    gc.disable()
    before = alive()
    try:
        yield lambda: alive() - before
    finally:
        gc.enable()


def left_by(action: Callable[[], object]) -> int:
    """Objects that only a collection lets go of, after the action has been done twice."""
    action()
    with without_collections():
        action()
        return gc.collect()


def test_a_prompt_leaves_nothing() -> None:
    template = ChatTemplate(_TEMPLATE)
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    assert template.render(talk) == "[user]hello[assistant]hi"
    assert left_by(lambda: template.render(talk)) == 0


def test_a_generation_that_is_followed_leaves_nothing() -> None:
    end = FinishReason(type="length")

    async def follow() -> int:
        def begun() -> Generation:
            return Generation([Presenter("r", SamplingParams(), None, None)], lambda rid: None)

        async def read(one: Generation) -> int:
            counts = [progress.num_tokens async for _, (progress,) in Merged([one], Bell())]
            await one.ended()
            return counts[-1]

        async def once() -> None:
            one = begun()
            reading = asyncio.ensure_future(read(one))
            for at in range(3):
                await asyncio.sleep(0)
                reason = end if at == 2 else None
                one.push(RequestOutput(request_id="r", new_token_ids=[1], finish_reason=reason))
            assert await reading == 3

        await once()
        with without_collections():
            await once()
            return gc.collect()

    assert asyncio.run(follow()) == 0


def test_a_refused_generation_that_is_read_leaves_nothing() -> None:
    end = FinishReason(type="error", code="constraint_refused", message="no")

    async def read() -> None:
        one = Generation([Presenter("r", SamplingParams(), None, None)], lambda rid: None)
        one.push(RequestOutput(request_id="r", finish_reason=end))
        for _ in range(2):
            with pytest.raises(RequestRefused, match="no") as caught:
                [progress async for _, progress in Merged([one], Bell())]
            assert caught.value.code == "constraint_refused"
            del caught

    asyncio.run(read())
    with without_collections(Generation) as left:
        asyncio.run(read())
        assert left() <= 0


def test_a_request_that_is_forgotten_goes() -> None:
    observer, reason = Observer(), FinishReason(type="stop")

    def ask(number: int) -> None:
        exchange = observer.received("/generate", "POST", {})
        saw = observer.begin(str(number), [str(number)], exchange=exchange)
        saw(RequestOutput(request_id=str(number), new_token_ids=[1], finish_reason=reason))
        observer.answered(exchange, 200)

    with without_collections(Exchange, Tracked) as left:
        for number in range(LIMIT + 500):
            ask(number)
        assert 2 * LIMIT - 100 <= left() <= 2 * LIMIT


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    """When the whole body is there; ``/slow`` in pieces until the client leaves."""
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.disconnect":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/slow":
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
    await send({"type": "http.response.body", "body": b"!"})


@pytest.mark.parametrize(
    ("sent", "whole"),
    [
        (b"GET /one HTTP/1.1\r\nHost: a\r\n\r\n" * 3, True),
        (b"POST /one HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhal", False),
        (b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n", True),
        (b"GET /one HT", False),
        (b"no HTTP at all\r\n\r\n", True),
        (b"", False),
    ],
)
def test_a_connection_that_ends_goes_and_its_requests_with_it(sent: bytes, whole: bool) -> None:
    """Whether it was idle, its answer had not begun or was under way, or its head or body was not complete."""
    with (
        listening(_answer, http=Connection, lifespan="off", ws="none") as port,
        without_collections(Connection, Cycle) as left,
    ):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port), 5) as peer:
                peer.sendall(sent)
                if whole:
                    assert peer.recv(100)
        assert settles(lambda: left() <= 0), left()


def test_the_engine_keeps_no_request_nor_its_constraint_refused_or_not(server: Served) -> None:
    """Although what they computed stays in the cache."""

    def ask(name: str) -> None:
        for schema, status in (({"properties": {name: {}}}, 200), ({"properties": {name: {"type": "no"}}}, 400)):
            sampling = {"max_new_tokens": 2, "json_schema": json.dumps(schema)}
            server.post("/generate", {"text": "a", "sampling_params": sampling}, status)

    ask("first")
    with without_collections(GrammarState, Request) as left:
        ask("second")
        assert settles(lambda: left() <= 0), left()


def test_what_was_there_is_left_out_of_collections() -> None:
    program = (
        "import gc; from sglite.runtime import garbage; rare = gc.get_threshold()[0];"
        "garbage.settle(); print(gc.get_freeze_count() > 1000, gc.get_threshold()[0] > rare)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["True", "True"]


def test_a_body_of_millions_of_values_is_not_looked_through() -> None:
    program = """
import gc
from sglite.runtime import garbage
def looked() -> tuple[int, int]:
    return sum(one["collections"] for one in gc.get_stats()), len(gc.get_objects())
def made() -> list[list[int]]:
    with garbage.overlooked():
        return [[number] for number in range(300_000)]
found = made()
print(looked()[1] > 300_000)
del found
garbage.settle()
before, frozen = looked(), gc.get_freeze_count()
found = made()
after = looked()
print(after[0] == before[0], after[1] < 10_000, gc.isenabled())
del found
print(gc.get_freeze_count() - frozen < 10_000)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["True"] * 5, said.stdout
