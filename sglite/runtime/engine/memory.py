"""Pages for the scheduler: how far a row can go, and what is given up so that it can.

In this order: free pages, unlocked prefixes, pins of programs. Preempting a request is the scheduler's business.
"""

from __future__ import annotations

from bisect import bisect_right

from sglite.runtime.cache.radix import RadixCache
from sglite.runtime.engine.pins import Pins
from sglite.runtime.engine.request import Request
from sglite.runtime.engine.windows import WindowPlanner
from sglite.runtime.protocol import CopyPages


class PagePlanner:
    """Finds and attaches pages.

    Args:
        cache: the tree and its pages.
        pins: hints, which go when pages are needed.
    """

    def __init__(self, cache: RadixCache, pins: Pins) -> None:
        self.cache = cache
        self.pins = pins
        self.windows = WindowPlanner(cache)

    def fit(self, request: Request, start: int, end: int, reserve: int) -> int:
        """The largest depth up to ``end`` that can be computed with the memory to be had; ``start``: not one token.

        ``reserve`` pages, and frames, stay available for others.
        """
        return self.windows.fit(request, start, self._fit_pages(request, start, end, reserve), reserve)

    def _fit_pages(self, request: Request, start: int, end: int, reserve: int) -> int:
        assert request.cursor is not None
        node = request.cursor.node
        while True:
            room = self.cache.num_available - reserve
            missing = self.cache.pages_missing(node, end)
            if missing <= room:
                return end
            if not self.pins.give_up(missing - room):
                break
        fitting = bisect_right(range(start, end), room, key=lambda upto: self.cache.pages_missing(node, upto))
        return max(start, start + fitting - 1)

    def release(self, request: Request) -> None:
        """Give up what ``request`` holds beyond its place in the tree."""
        self.windows.leave(request)
        self.cache.allocator.free(request.held_pages)

    def forget_since(self, step: int) -> None:
        """Steps from ``step`` on failed: the states, and what windows lacked, that they were to write are not there."""
        self.cache.checkpoints.drop_since(step)
        if self.cache.allocator.frames is not None:
            self.cache.allocator.frames.forget_since(step)

    def take(self, n: int) -> list[int] | None:
        """``n`` held pages, evicting as needed; ``None`` when there are not as many."""
        if n > self.cache.num_available:
            return None
        self.cache.evict(n - self.cache.allocator.num_free)
        return self.cache.allocator.allocate(n)

    def attach(self, request: Request, end: int) -> list[CopyPages]:
        """Give the path of ``request`` the pages for depths below ``end``, which ``fit`` found to be available."""
        assert request.cursor is not None
        node = request.cursor.node
        missing = self.cache.pages_missing(node, end)
        if missing == 0:
            return []
        pages = self.take(missing)
        assert pages is not None
        changed, copied = self.cache.add_pages(node, pages, end, request.page_table)
        request.pages_sent = min(request.pages_sent, changed)
        return [] if copied is None else [CopyPages(*copied)]
