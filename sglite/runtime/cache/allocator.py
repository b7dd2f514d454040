"""Who owns which page: free, held by a request, or cached in the tree.

Promises, after every call: ``free + held + cached + quarantined == total``; a page has one owner. A call that would
break this (freeing twice, caching what nobody holds) quarantines the page and counts it; it never raises, because a
leak must not take a server down. Tests assert that the count stays 0.

State slots of recurrent layers are handed out by the same class: a slot is a page.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sglite.runtime.cache.frames import Frames

_FREE, _HELD, _CACHED, _QUARANTINED = range(4)


@dataclass(frozen=True)
class PageCounts:
    """Pages by owner."""

    free: int
    held: int
    cached: int
    quarantined: int
    total: int


class PageAllocator:
    """Hands out page ids 0 .. total-1; the most recently freed page is handed out first.

    ``frames``: of layers with a window, where those have frames of their own; a page that is freed gives up its frame.
    """

    def __init__(self, total: int, frames: Frames | None = None) -> None:
        if total < 1:
            raise ValueError(f"a pool needs at least one page, got {total}")
        self.total = total
        self.frames = frames
        self.mismatches = 0
        self._owner = bytearray(total)
        self._free = list(range(total - 1, -1, -1))
        self._held = 0
        self._cached = 0

    @property
    def num_free(self) -> int:
        """Pages nobody owns."""
        return len(self._free)

    def counts(self) -> PageCounts:
        """Pages by owner; the four counts add up to the total unless something was quarantined wrongly."""
        quarantined = self._owner.count(_QUARANTINED)
        return PageCounts(len(self._free), self._held, self._cached, quarantined, self.total)

    def allocate(self, n: int) -> list[int]:
        """Take ``n`` free pages; the caller holds them. Raises ``MemoryError`` when there are fewer."""
        if n > len(self._free):
            raise MemoryError(f"{n} pages asked for, {len(self._free)} of {self.total} free")
        if n == 0:
            return []
        pages = self._free[-n:][::-1]
        del self._free[-n:]
        for page in pages:
            self._owner[page] = _HELD
        self._held += n
        return pages

    def cache(self, page: int) -> None:
        """A held page becomes part of the tree."""
        if self._owner[page] != _HELD:
            return self._quarantine(page)
        self._owner[page] = _CACHED
        self._held -= 1
        self._cached += 1

    def free(self, pages: Iterable[int]) -> None:
        """Give pages back, held or cached."""
        for page in pages:
            owner = self._owner[page]
            if owner == _HELD:
                self._held -= 1
            elif owner == _CACHED:
                self._cached -= 1
            else:
                self._quarantine(page)
                continue
            self._owner[page] = _FREE
            self._free.append(page)
            if self.frames is not None:
                self.frames.drop(page)

    def _quarantine(self, page: int) -> None:
        """Take a page with contradictory owners out of circulation for good."""
        self.mismatches += 1
        owner = self._owner[page]
        if owner == _FREE:
            self._free.remove(page)
        elif owner == _HELD:
            self._held -= 1
        elif owner == _CACHED:
            self._cached -= 1
        self._owner[page] = _QUARANTINED
