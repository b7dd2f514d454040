"""Pins: prefixes that programs are going to continue, kept locked between two of their requests.

A pin is a hint. Pages that only pins lock are at most a share of the pool, and are given up before anybody has to
give way. The pin whose next use is farthest goes first: sequences parked at a tool that takes long, longest first;
then those whose program has not announced another request; of equals, the one used least recently. A prefix whose
pin was given up is an ordinary one, but evicted after others while its program has announced to come back.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from sglite.runtime.cache.node import Cursor, RadixNode
from sglite.runtime.cache.radix import RadixCache

MAX_PINS = 16_384
"""Pins kept, and given-up pins remembered: bounds the bookkeeping, not the pages."""
LONG_GAP_S = 0.1
"""A wait expected to end sooner does not change the order: it is a few steps."""
UNKNOWN_GAP_S = 1.0
"""What a wait of unknown length counts as."""


@dataclass(eq=False)
class Pin:
    """A sequence between two requests."""

    name: str
    cursor: Cursor
    upcoming: int
    """Requests that its program has announced."""
    used: int
    """When it was pinned, in pins."""

    @property
    def node(self) -> RadixNode:
        """Where its prefix ends."""
        return self.cursor.node

    @property
    def yields(self) -> bool:
        """Whether only pins lock its prefix; else giving it up would free nothing."""
        return self.node.locks == self.node.pins


class Pins:
    """All pins of one tree, by name.

    Args:
        cache: the tree.
        budget: share of the pool that only pins may lock, 0 to 1.
        clock: seconds, monotonic.
    """

    def __init__(self, cache: RadixCache, budget: float = 0.5, clock: Callable[[], float] = time.monotonic) -> None:
        self._cache = cache
        self._clock = clock
        self._limit = int(budget * cache.allocator.total)
        self._held: OrderedDict[str, Pin] = OrderedDict()
        self._given_up: OrderedDict[str, RadixNode] = OrderedDict()
        """Where announced requests of sequences without a pin will come back to."""
        self._parked: OrderedDict[str, tuple[float, float | None]] = OrderedDict()
        """Since when, and for how long as far as is known, a sequence waits for a tool."""
        self._used = 0
        self.num_dropped = 0
        """Pins given up for want of pages, or over the budget."""

    def __len__(self) -> int:
        return len(self._held)

    def pin(self, name: str, cursor: Cursor, upcoming: int = 0) -> None:
        """Keep what is computed of the prefix at ``cursor`` under ``name``, instead of what that stood for."""
        new = self._cache.pin(cursor)
        self._forget(name)
        if new.node.parent is None:
            self._cache.close(new)  # nothing is computed
            return
        self._used += 1
        self._held[name] = Pin(name, new, upcoming, self._used)
        if len(self._held) > MAX_PINS:
            self._drop(next(iter(self._held.values())))

    def unpin(self, prefix: str) -> None:
        """Forget all pins whose names start with ``prefix``."""
        for names in (self._held, self._given_up, self._parked):
            for name in [name for name in names if name.startswith(prefix)]:
                self._forget(name)
                self._parked.pop(name, None)

    def park(self, name: str, expected_s: float | None) -> None:
        """The sequence of ``name`` waits for something outside, for about ``expected_s`` seconds if that is known."""
        self._parked[name] = self._clock(), expected_s
        self._parked.move_to_end(name)
        if len(self._parked) > MAX_PINS:
            self._parked.popitem(last=False)

    def park_all(self, prefix: str, expected_s: float | None) -> None:
        """``park`` for all pins whose names start with ``prefix``."""
        for name in [name for name in self._held if name.startswith(prefix)]:
            self.park(name, expected_s)

    def unpark(self, name: str) -> None:
        """The sequence of ``name`` goes on."""
        self._parked.pop(name, None)

    def keep_budget(self) -> None:
        """Give up pins until those that are left lock no more pages than they may."""
        self._shed(self._limit)

    def give_up(self, pages: int) -> bool:
        """Give up pins until ``pages`` more can be evicted, or no pin would help; ``False``: nothing was gained."""
        before = self._cache.pinned_pages
        self._shed(max(0, before - pages))
        return self._cache.pinned_pages < before

    def _shed(self, limit: int) -> None:
        """Give up pins until at most ``limit`` pages are locked by pins alone."""
        while self._cache.pinned_pages > limit:
            idle = [pin for pin in self._held.values() if pin.yields]
            last = [pin for pin in idle if pin.node.pins == 1]  # a trunk stays as long as branches need it
            now = self._clock()
            for pin in sorted(last or idle, key=lambda pin: self._next_use(pin, now)):
                self._drop(pin)
                if self._cache.pinned_pages <= limit:
                    break

    def _next_use(self, pin: Pin, now: float) -> tuple[float, bool, int]:
        """Sorts pins, farthest next use first."""
        gap = 0.0
        if pin.name in self._parked:
            since, expected = self._parked[pin.name]
            gap = UNKNOWN_GAP_S if expected is None else expected - (now - since)
        return -gap if gap >= LONG_GAP_S else 0.0, pin.upcoming > 0, pin.used

    def _drop(self, pin: Pin) -> None:
        """Give a pin up; its prefix stays until it is evicted."""
        node = pin.node
        del self._held[pin.name]
        self._cache.close(pin.cursor)
        self.num_dropped += 1
        if pin.upcoming > 0 and node.parent is not None:
            self._given_up[pin.name] = node
            self._cache.hint(node, 1)
            if len(self._given_up) > MAX_PINS:
                self._cache.hint(self._given_up.popitem(last=False)[1], -1)

    def _forget(self, name: str) -> None:
        """Nothing is kept under ``name`` any more."""
        pin = self._held.pop(name, None)
        if pin is not None:
            self._cache.close(pin.cursor)
        node = self._given_up.pop(name, None)
        if node is not None:
            self._cache.hint(node, -1)
