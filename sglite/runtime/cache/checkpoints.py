"""Recurrent state in the tree: which nodes have the state at their end saved, in slots that are few.

Attention keys of a prefix can be used at any depth, recurrent state only where it was saved. Slots are counted like
pages; when they run out, the checkpoint used least recently is given up, and before any other those that were saved
only because there was room. Without state groups nothing ever happens.

Promise: ``saved - dropped`` checkpoints are in the tree, each with a cached slot of every group.
"""

from __future__ import annotations

from collections import OrderedDict

from sglite.runtime.cache.allocator import PageAllocator
from sglite.runtime.cache.node import RadixNode


class Checkpoints:
    """The saved states of one tree.

    Args:
        states: the slots of every state group.
    """

    def __init__(self, states: dict[str, PageAllocator]) -> None:
        self._states = states
        self._nodes: OrderedDict[RadixNode, None] = OrderedDict()
        self.saved = 0
        self.restored = 0
        """Requests that began with one."""
        self.dropped = 0
        """For want of slots or pages, or because their steps failed."""

    @property
    def mismatches(self) -> int:
        """Slots taken out of use because their owners disagreed."""
        return sum(states.mismatches for states in self._states.values())

    def counts(self) -> dict[str, int]:
        """Slots by owner, as of pages, and what became of checkpoints; empty without state groups.

        Every group has as many slots and they are taken together: the numbers are those of any of them.
        """
        for states in self._states.values():
            counts = states.counts()
            return {
                "free": counts.free,
                "held": counts.held,
                "cached": counts.cached,
                "total": counts.total,
                "saved": self.saved,
                "restored": self.restored,
                "dropped": self.dropped,
            }
        return {}

    def save(self, node: RadixNode, slots: dict[str, int], step: int, *, spare: bool = False) -> None:
        """Keep held ``slots`` (one per group) as the recurrent state at the end of ``node``, once ``step`` has run.

        ``spare``: nobody is known to need it; it goes before others, until somebody has begun with it.
        """
        self.drop(node)
        self.saved += 1
        node.checkpoint_step = step
        for group, slot in slots.items():
            self._states[group].cache(slot)
        node.checkpoint = slots
        node.wants_checkpoint = False
        self._nodes[node] = None
        if spare:
            self._nodes.move_to_end(node, last=False)

    def drop(self, node: RadixNode) -> None:
        """Give up the checkpoint of ``node``, if it has one."""
        for group, slot in node.checkpoint.items():
            self._states[group].free([slot])
        node.checkpoint = {}
        if node in self._nodes:
            self.dropped += 1
            del self._nodes[node]

    def drop_since(self, step: int) -> None:
        """Forget the checkpoints that steps from ``step`` on were to write."""
        for node in [node for node in self._nodes if node.checkpoint_step >= step]:
            self.drop(node)

    def restorable(self, node: RadixNode, limit: int) -> RadixNode:
        """The deepest node on the path, ending at ``limit`` or above, whose recurrent state is kept; else the root."""
        while node.parent is not None and not (node.checkpoint and node.end <= limit):
            node = node.parent
        if node.parent is not None:
            self._nodes.move_to_end(node)
        return node

    def take_slots(self, step: int, *, spare: bool = False) -> dict[str, int] | None:
        """One held slot of every state group for ``step``; ``None``: all in use.

        Gives up the least recently used checkpoints if need be, but none that ``step`` itself is going to write;
        ``spare``: gives up none.
        """
        while any(states.num_free == 0 for states in self._states.values()):
            if spare:
                return None
            oldest = next((node for node in self._nodes if node.checkpoint_step < step), None)
            if oldest is None:
                return None
            self.drop(oldest)
        return {group: states.allocate(1)[0] for group, states in self._states.items()}
