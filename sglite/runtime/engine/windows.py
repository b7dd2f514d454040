"""Sliding windows for the scheduler: where a request can start, which pages its rows see, what is filled again.

A request starts where the window before it is whole, and computes from there; of what is in the cache already it stores
only what the layers with a window have lost. So a match is the longest prefix that all layers can restore, and what is
computed again to get there is counted as replayed. While a request runs, pages that its rows see are in use; those it
has left behind may lose their frames to anybody.

Does nothing for models whose layers all see everything, or whose pool has no frames of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import NamedTuple

from sglite.runtime.cache.node import RadixNode
from sglite.runtime.cache.paths import copied_page
from sglite.runtime.cache.radix import RadixCache
from sglite.runtime.engine.request import Request
from sglite.runtime.protocol import CopyPages, SchedulerOutput


class Refill(NamedTuple):
    """Positions ``[start, end)`` of a row are in the cache but have to be stored again for layers with a window."""

    start: int
    end: int


NOTHING = Refill(0, 0)


class WindowPlanner:
    """Plans frames for rows."""

    def __init__(self, cache: RadixCache) -> None:
        assert cache.allocator.frames is None or not cache.states, "no model has a window and recurrent state"
        self._cache = cache
        self._frames = cache.allocator.frames

    def counts(self) -> dict[str, int]:
        """Frames by what they are to us, those taken away so far among them; empty where there are none."""
        frames = self._frames
        return {} if frames is None else {**asdict(frames.counts()), "taken_away": frames.taken_away}

    def start(self, request: Request, start: int) -> int:
        """The position, at most ``start``, from which ``request`` must compute so that every row sees its window."""
        if self._frames is None or self._holds(request, start):
            return start
        return self._frames.whole_depth(request.page_table, start)

    def copy_waits(self, request: Request, node: RadixNode, step: int) -> bool:
        """Whether the page that the path to ``node`` needs a copy of is filled anew by step ``step`` itself."""
        if self._frames is None:
            return False
        index = copied_page(node, self._cache.page_size)
        return index is not None and self._frames.refilled_step(request.page_table[index]) >= step

    def refill(self, request: Request, start: int, planned: int, end: int) -> tuple[Refill, int]:
        """What a row from ``start`` has to fill below ``planned``, and where it must stop, at or before ``end``: what
        is missing in a second place is left to the next row."""
        if self._frames is None or start >= planned:
            return NOTHING, end
        table, low = request.page_table, start
        known = min(planned, end)
        while low < known and self._frames.is_there(table, low):
            low += 1
        high = low
        while high < known and not self._frames.is_there(table, high):
            high += 1
        second = high
        while second < known and self._frames.is_there(table, second):
            second += 1
        return Refill(low, high), second if second < known else end

    def fit(self, request: Request, start: int, end: int, reserve: int) -> int:
        """The largest depth up to ``end`` that can be computed with the frames to be had; ``start``: not one token."""
        frames = self._frames
        if frames is None:
            return end
        size, table = self._cache.page_size, request.page_table
        first = max(0, start - frames.before) // size
        seen = set(table[first : -(-end // size)])
        left_behind = [page for page in request.window.pages if page not in seen and frames.is_used_once(page)]
        room = frames.num_available + len(left_behind) - reserve - 1  # a page may turn out to be copied
        for index in range(first, -(-end // size)):
            room -= index >= len(table) or not frames.is_used(table[index])
            if room < 0:
                return max(start, min(end, index * size))
        return end

    def enter(
        self, request: Request, start: int, end: int, refill: Refill, copies: Iterable[CopyPages], step: int
    ) -> None:
        """Before a row of step ``step`` that computes ``[start, end)``, for which ``fit`` found the frames: it sees its
        pages, and those behind it are left. ``copies``: of pages, that the row begins with."""
        frames = self._frames
        if frames is None:
            return
        size = self._cache.page_size
        first = max(0, start - frames.before) // size
        pages = request.page_table[first : -(-end // size)]
        frames.use([*pages, *(copy.src for copy in copies)])
        self._unuse(request, request.window.pages, keep=False)
        for page in pages:
            frames.provide(page)
        for copy in copies:
            frames.copy(copy.src, copy.dst, copy.num_tokens)
            frames.unuse(copy.src, keep=True)
        request.window.pages, request.window.first, request.window.end = pages, first, end
        self._fill(request, refill.start, refill.end, step)

    def stored(self, request: Request, start: int, end: int) -> None:
        """A row that has its frames stores ``[start, end)`` of what ``request`` knows or is about to know."""
        if self._frames is None:
            return
        self._fill(request, start, end, None)
        if start <= request.window.end:
            request.window.end = max(request.window.end, end)

    def can_grow(self, request: Request, start: int, upto: int) -> bool:
        """Whether a row that computes ``[start, upto)``, right behind the last one, sees all it must, and there are
        frames for it."""
        frames, size = self._frames, self._cache.page_size
        if frames is None:
            return True
        known = request.window.first + len(request.window.pages)
        return self._holds(request, start) and -(-upto // size) - known <= frames.num_available

    def grow(self, request: Request, upto: int) -> None:
        """The last row, or one right behind it, goes on to ``upto``; ``can_grow`` found the frames."""
        frames, size = self._frames, self._cache.page_size
        if frames is None:
            return
        known = request.window.first + len(request.window.pages)
        more = request.page_table[known : -(-upto // size)]
        if not more:
            return
        frames.use(more)
        for page in more:
            frames.provide(page)
        request.window.pages = request.window.pages + more

    def advance(self, request: Request, start: int) -> None:
        """The next row computes the position ``start``: pages that it does not see are left."""
        if self._frames is None:
            return
        passed = max(0, start - self._frames.before) // self._cache.page_size - request.window.first
        if not passed:
            return
        self._unuse(request, request.window.pages[:passed], keep=False)
        request.window.pages, request.window.first = request.window.pages[passed:], request.window.first + passed

    def leave(self, request: Request, pages: Iterable[int] | None = None) -> None:
        """The request sees nothing more, or not those ``pages``, which are about to be given up."""
        if self._frames is None:
            return
        if pages is None:
            self._unuse(request, request.window.pages, keep=True)
            request.window.pages, request.window.first, request.window.end = [], 0, -1
            return
        for page in set(pages).intersection(request.window.pages):
            self._frames.unuse(page, keep=False)
            request.window.pages.remove(page)

    def announce(self, output: SchedulerOutput) -> None:
        """Tell the executor of frames."""
        if self._frames is not None:
            output.frames, output.frame_copies = self._frames.take_news()

    def _holds(self, request: Request, start: int) -> bool:
        """The request's last row ended at ``start`` or behind it: its pages, if its path still has them, hold the whole
        window before that."""
        if not request.window.first * self._cache.page_size < start <= request.window.end:
            return False
        frames, first, pages = self._frames, request.window.first, request.window.pages
        assert frames is not None
        seen = first * frames.page_size <= max(0, start - frames.before)
        return seen and request.page_table[first : first + len(pages)] == pages

    def _unuse(self, request: Request, pages: Iterable[int], keep: bool) -> None:
        """The first of the request's window pages are seen no more; ``keep``: all are likely to be wanted again."""
        assert self._frames is not None
        for index, page in enumerate(pages, request.window.first):
            self._frames.unuse(page, keep or self._is_meeting_point(request, index))

    def _is_meeting_point(self, request: Request, index: int) -> bool:
        """Others are likely to begin where this request did, and to repeat its prompt."""
        assert self._frames is not None
        low, high = index * self._frames.page_size, (index + 1) * self._frames.page_size
        before = self._frames.before
        return any(low < depth and depth - before < high for depth in (request.num_cached, request.prompt_len))

    def _fill(self, request: Request, start: int, end: int, step: int | None) -> None:
        frames, size = self._frames, self._cache.page_size
        assert frames is not None
        for index in range(start // size, -(-end // size)) if end > start else ():
            low = max(0, start - index * size)
            frames.fill(request.page_table[index], low, min(size, end - index * size), step)
