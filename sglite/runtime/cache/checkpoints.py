"""Recurrent state in the tree: which nodes have the state at their end saved, in slots that are few.

Attention keys of a prefix can be used at any depth, recurrent state only where it was saved. Slots are counted like
pages; when they run out, the checkpoint used least recently is given up. Without state groups nothing ever happens.
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

    def save(self, node: RadixNode, slots: dict[str, int], step: int) -> None:
        """Keep held ``slots`` (one per group) as the recurrent state at the end of ``node``, once ``step`` has run."""
        self.drop(node)
        node.checkpoint_step = step
        for group, slot in slots.items():
            self._states[group].cache(slot)
        node.checkpoint = slots
        node.wants_checkpoint = False
        self._nodes[node] = None

    def drop(self, node: RadixNode) -> None:
        """Give up the checkpoint of ``node``, if it has one."""
        for group, slot in node.checkpoint.items():
            self._states[group].free([slot])
        node.checkpoint = {}
        self._nodes.pop(node, None)

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

    def take_slots(self, step: int) -> dict[str, int] | None:
        """One held slot of every state group for ``step``; ``None``: all in use.

        Gives up the least recently used checkpoints if need be, but none that ``step`` itself is going to write.
        """
        while any(states.num_free == 0 for states in self._states.values()):
            oldest = next((node for node in self._nodes if node.checkpoint_step < step), None)
            if oldest is None:
                return None
            self.drop(oldest)
        return {group: states.allocate(1)[0] for group, states in self._states.items()}
