"""Clients that go away: what is awaited for them is interrupted, at the right place and at no other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.gone import WATCH, WhileThere, watch
from sglite.runtime.serve.responses import unless_gone


async def never() -> Any:
    await asyncio.Event().wait()


def asked(gone: asyncio.Future[None] | None, receive: Any = never) -> Request:
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": []}
    if gone is not None:
        scope[WATCH] = lambda: gone
    return Request(scope, receive)


def test_work_is_interrupted_when_the_client_goes_away() -> None:
    async def go() -> list[str]:
        said: list[str] = []
        gone = asyncio.get_running_loop().create_future()

        async def work() -> None:
            try:
                asyncio.get_running_loop().call_soon(gone.set_result, None)
                await asyncio.sleep(60)
            finally:
                said.append("given back")

        with pytest.raises(Refused, match="closed the connection"):
            await unless_gone(asked(gone), work())
        await asyncio.sleep(0)  # the task goes on as if nothing had been
        return said

    assert asyncio.run(asyncio.wait_for(go(), 5)) == ["given back"]


def test_a_client_of_another_server_is_asked() -> None:
    async def gone() -> Any:
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def go() -> None:
        with pytest.raises(Refused, match="closed the connection"):
            await unless_gone(asked(None, gone), asyncio.sleep(60))

    asyncio.run(asyncio.wait_for(go(), 5))


def test_who_goes_when_the_work_is_done_interrupts_nothing() -> None:
    async def go() -> str:
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with WhileThere(gone) as there:
            gone.set_result(None)  # heard of after the block
        await asyncio.sleep(0.01)
        return "untouched" if not there.left else "interrupted"

    assert asyncio.run(asyncio.wait_for(go(), 5)) == "untouched"


def test_a_cancellation_from_elsewhere_is_not_taken_for_it() -> None:
    async def go() -> None:
        request = asked(asyncio.get_running_loop().create_future())
        task = asyncio.ensure_future(unless_gone(request, asyncio.sleep(60)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(go(), 5))


def test_who_does_not_want_to_know_any_more_leaves_no_task() -> None:
    async def go() -> int:
        waiting = watch({"type": "http"}, never)
        waiting.cancel()
        await asyncio.sleep(0.01)
        return len(asyncio.all_tasks())

    assert asyncio.run(go()) == 1
