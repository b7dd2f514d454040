"""Which cached prefix goes first when pages run out: an interface, and farthest-next-use behind it.

When a prefix will be used again is known only of programs that said so (``hints``); for all others the past stands in
for the future. The tree adds a node when it becomes evictable (an unlocked leaf) or its order changes.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import Protocol


class Evictable(Protocol):
    """What a policy may look at."""

    last_access: int
    """The tree's clock when a request last used the node."""
    hints: int
    """Sequences known to come back to the node."""

    @property
    def is_evictable(self) -> bool:
        """An unlocked leaf, still in the tree."""
        ...


class EvictionPolicy(Protocol):
    """Order in which evictable nodes are given up."""

    def add(self, node: Evictable) -> None:
        """``node`` became evictable, or was used or hinted at while evictable."""
        ...

    def pop(self) -> Evictable | None:
        """Remove and return the node to evict next; ``None`` when there is none."""
        ...


class NextUseEviction:
    """Nodes that nobody is known to come back to first, of equals the least recently used: without hints, plain LRU.

    A heap with stale entries: a node may sit in it several times, or after it was locked again; only an entry that
    carries the node's present order counts. Stale entries are swept out whenever the heap has doubled.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[bool, int, int, Evictable]] = []
        self._order = count()
        self._sweep_at = 1024

    def add(self, node: Evictable) -> None:
        """``node`` became evictable; O(log n) amortised."""
        heapq.heappush(self._heap, (node.hints > 0, node.last_access, next(self._order), node))
        if len(self._heap) > self._sweep_at:
            self._heap = [entry for entry in self._heap if _counts(entry)]
            heapq.heapify(self._heap)
            self._sweep_at = max(1024, 2 * len(self._heap))

    def pop(self) -> Evictable | None:
        """The first in order that is still evictable; stale entries are dropped on the way."""
        while self._heap:
            entry = heapq.heappop(self._heap)
            if _counts(entry):
                return entry[3]
        return None


def _counts(entry: tuple[bool, int, int, Evictable]) -> bool:
    """Whether an entry says what is true of its node now."""
    hinted, stamp, _, node = entry
    return node.is_evictable and node.last_access == stamp and (node.hints > 0) == hinted
