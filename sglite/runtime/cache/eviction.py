"""Which cached prefix goes first when pages run out: an interface and least-recently-used behind it.

The tree adds a node when it becomes evictable (an unlocked leaf) and removes it when it no longer is.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import Protocol


class Evictable(Protocol):
    """What a policy may look at."""

    last_access: int
    """The tree's clock when a request last used the node."""

    @property
    def is_evictable(self) -> bool:
        """An unlocked leaf, still in the tree."""
        ...


class EvictionPolicy(Protocol):
    """Order in which evictable nodes are given up."""

    def add(self, node: Evictable) -> None:
        """``node`` became evictable, or was used while evictable."""
        ...

    def pop(self) -> Evictable | None:
        """Remove and return the node to evict next; ``None`` when there is none."""
        ...


class LRUEviction:
    """Least recently used first.

    A heap with stale entries: a node may sit in it several times, or after it was locked again; only an entry that
    carries the node's present ``last_access`` counts. Stale entries are swept out whenever the heap has doubled.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Evictable]] = []
        self._order = count()
        self._sweep_at = 1024

    def add(self, node: Evictable) -> None:
        """``node`` became evictable; O(log n) amortised."""
        heapq.heappush(self._heap, (node.last_access, next(self._order), node))
        if len(self._heap) > self._sweep_at:
            self._heap = [entry for entry in self._heap if entry[2].is_evictable and entry[0] == entry[2].last_access]
            heapq.heapify(self._heap)
            self._sweep_at = max(1024, 2 * len(self._heap))

    def pop(self) -> Evictable | None:
        """The least recently used node that is still evictable; stale entries are dropped on the way."""
        while self._heap:
            stamp, _, node = heapq.heappop(self._heap)
            if node.is_evictable and node.last_access == stamp:
                return node
        return None
