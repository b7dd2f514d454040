"""Clients that go away: how that is known, and what is not finished for them.

The server's own connections say so by themselves; others are asked, which takes a task. Work is interrupted where it
is awaited, in the task that awaits it, so that a request needs no task beside its own.
"""

from __future__ import annotations

import asyncio
import sys
from types import TracebackType
from typing import Any

from starlette.types import Receive, Scope

WATCH = "sglite.watch"
"""In a request's scope: a function that returns a future, done when the client goes away."""


def watch(scope: Scope, receive: Receive) -> asyncio.Future[None]:
    """Done when the client has gone; whoever asked for it cancels it. The body must have been read."""
    found: asyncio.Future[None] = scope[WATCH]() if WATCH in scope else asyncio.ensure_future(_disconnected(receive))
    return found


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class WhileThere:
    """``with WhileThere(gone) as there``: what is awaited inside is cancelled once the client has gone, and the block
    is left without an exception; ``there.left`` then says so. ``gone`` is cancelled at its end."""

    __slots__ = ("_gone", "_task", "left")

    def __init__(self, gone: asyncio.Future[None]) -> None:
        self._gone = gone
        self._task: asyncio.Task[Any] | None = None
        self.left = False

    def __enter__(self) -> WhileThere:
        self._task = asyncio.current_task()
        self._gone.add_done_callback(self._leave)
        return self

    def _leave(self, gone: asyncio.Future[None]) -> None:
        if self._task is not None and not gone.cancelled():
            self.left = True
            self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        task, self._task = self._task, None  # a callback that is on its way finds nothing to cancel
        self._gone.remove_done_callback(self._leave)
        self._gone.cancel()
        if self.left and sys.version_info >= (3, 11):
            assert task is not None
            task.uncancel()
        return self.left and kind is asyncio.CancelledError
