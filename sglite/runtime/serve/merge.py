"""The events of several generations in the order in which they happen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sglite.runtime.engine.generation import Generation


class Merged(AsyncIterator[tuple[int, Any]]):
    """Pairs (which generation, its event), each state once, the last one complete; raises what went wrong.

    A slow reader misses intermediate states and loses nothing, since events are cumulative. For the loop it is made
    on.
    """

    def __init__(self, generations: Sequence[Generation]) -> None:
        self._generations = generations
        self._changed: dict[int, None] = {}
        self._news = asyncio.Event()
        self._seen = [0] * len(generations)
        self._open = len(generations)
        loop = asyncio.get_running_loop()
        for index, generation in enumerate(generations):
            generation.subscribe(lambda index=index: _tell(loop, self._note, index))  # type: ignore[misc]

    def _note(self, index: int) -> None:
        self._changed[index] = None
        self._news.set()

    async def __anext__(self) -> tuple[int, Any]:
        while True:
            while self._changed:
                index = next(iter(self._changed))
                del self._changed[index]
                version, over, event = self._generations[index].state()
                if version == self._seen[index]:
                    continue
                self._seen[index] = version
                self._open -= over
                return index, event
            if not self._open:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()


def _tell(loop: asyncio.AbstractEventLoop, note: Any, index: int) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(note, index)
