"""Pages for the scheduler: how far a row can go, and what is given up so that it can.

In this order: free pages, unlocked prefixes, pins of programs. Preempting a request is the scheduler's business.
"""

from __future__ import annotations

from bisect import bisect_right

from sglite.runtime.cache.radix import RadixCache
from sglite.runtime.engine.pins import Pins
from sglite.runtime.engine.request import Request
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

    def fit(self, request: Request, start: int, end: int, reserve: int) -> int:
        """The largest depth up to ``end`` that can be computed with the pages to be had; ``start``: not one token.

        ``reserve`` pages stay available for others.
        """
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
