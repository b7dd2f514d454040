"""The news of several generations in the order in which they happen."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from sglite.runtime.engine.generation import Generation
from sglite.runtime.engine.presenter import Progress

PACE_SECONDS = 0.004
"""Tokens of one request that come faster than this share events: an event costs more than a token."""


class Bell:
    """Has things done on the event loop it is made on, from any thread: at once on the loop's own, else soon; what
    comes together from others shares one wake-up."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._waiting: deque[Callable[[], None]] = deque()
        self._rung = False

    @property
    def is_here(self) -> bool:
        """Its loop is the one that runs."""
        return self._loop is asyncio.get_running_loop()

    def call(self, action: Callable[[], None]) -> None:
        """Do ``action``, or never if the loop ends before. It must be fit to be done within whatever runs there."""
        if threading.get_ident() == self._thread:
            action()
            return
        self._waiting.append(action)
        if not (self._rung or self._loop.is_closed()):
            self._rung = True
            self._loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._rung = False  # first, so that what comes from now on is not forgotten
        for _ in range(len(self._waiting)):
            self._waiting.popleft()()


class Merged(AsyncIterator[tuple[int, list[Progress]]]):
    """Pairs (which generation, its progress), each state once, the last one complete; raises what went wrong.

    A slow reader misses intermediate states and loses nothing, since progress is cumulative; so does one whose tokens
    come faster than every ``PACE_SECONDS``. The first state, the second if that held nothing to show, and the last are
    told at once. For the loop of ``bell``.
    """

    def __init__(self, generations: Sequence[Generation], bell: Bell) -> None:
        self._generations = generations
        self._changed: dict[int, None] = {}
        self._news: asyncio.Future[None] | None = None
        """While somebody waits."""
        self._seen = [0] * len(generations)
        self._open = len(generations)
        self._loop = asyncio.get_running_loop()
        self._beginning = dict.fromkeys(range(len(generations)), 0)
        """Of those whose beginning may not have been shown, how often they were told."""
        self._due = 0.0
        """When the next news may be told."""
        self._timer: asyncio.TimerHandle | None = None
        self._bell = bell
        for index, generation in enumerate(generations):
            generation.subscribe(functools.partial(self._hear, index))

    def _hear(self, index: int) -> None:
        """Called on any thread. What is noted and not yet read will be read as it is by then."""
        if index not in self._changed or self._generations[index].finished:
            self._bell.call(functools.partial(self._note, index))

    def _note(self, index: int) -> None:
        self._changed[index] = None
        if self._news is None:
            return
        early = 0.0 if self._generations[index].finished else self._due - self._loop.time()
        if early <= 0:
            self._tell()
        elif self._timer is None:
            self._timer = self._loop.call_later(early, self._tell)

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def __anext__(self) -> tuple[int, list[Progress]]:
        while True:
            while self._changed:
                index = next(iter(self._changed))
                del self._changed[index]
                version, over, progress = self._generations[index].progress()
                if version == self._seen[index]:
                    continue
                self._seen[index] = version
                self._open -= over
                if index in self._beginning:
                    self._begin(index, progress)
                return index, progress
            if not self._open:
                raise StopAsyncIteration
            self._news = self._loop.create_future()
            if not self._beginning:
                self._due = self._loop.time() + PACE_SECONDS
            try:
                await self._news
            finally:
                self._news = None
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None

    def _begin(self, index: int, progress: list[Progress]) -> None:
        self._beginning[index] += 1
        if self._beginning[index] > 1 or progress[0].text or any(part.text for part in progress):
            del self._beginning[index]
